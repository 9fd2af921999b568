"""Following a request while it runs: what it reports, and its end."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
