"""Following a request while it runs: what it reports, and how long its stages take."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from serve_app.audio import Source
from serve_app.options import Options
from serve_app.transcript import Progress, Transcript

Report = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """For callers who only want the transcript."""


class Transcribe(Protocol):
    """Runs one request and tells `report` of every window that is done; raises TranscriptionError."""

    def __call__(
        self, source: Source, options: Options, report: Report = ignore_progress, /
    ) -> Awaitable[Transcript]: ...


News = asyncio.Queue[Progress | asyncio.Future[Transcript]]


@asynccontextmanager
async def followed(run: Callable[[Report], Awaitable[Transcript]]) -> AsyncIterator[News]:
    """Gives what a run reports, and at last the run itself, done. On leaving, the run has ended."""
    news: News = asyncio.Queue()
    running = asyncio.ensure_future(run(news.put_nowait))
    running.add_done_callback(news.put_nowait)
    try:
        yield news
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class Timings:
    """Wall time per stage, from the first call's begin to the last call's end. Stages overlap."""

    def __init__(self) -> None:
        self._spans_s: dict[str, tuple[float, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times one call of the stage."""
        begun_s = time.monotonic()
        try:
            yield
        finally:
            first_s, _ = self._spans_s.get(name, (begun_s, begun_s))
            self._spans_s[name] = (min(first_s, begun_s), time.monotonic())

    def wall_s(self) -> dict[str, float]:
        """Seconds per stage."""
        return {name: end_s - begun_s for name, (begun_s, end_s) in self._spans_s.items()}
