"""Following a request while it runs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from serve_app.options import Options
from serve_app.request.pipeline import unheard
from serve_app.transcript import Progress, Source, Transcript

Report = Callable[[Progress], None]


class Transcribe(Protocol):
    """Runs one request and tells `report` of every window that is done; raises TranscriptionError."""

    def __call__(
        self, source: Source, options: Options, report: Report = unheard, /
    ) -> Awaitable[Transcript]: ...


News = asyncio.Queue[Progress | asyncio.Future[Transcript]]


@asynccontextmanager
async def followed(run: Callable[[Report], Awaitable[Transcript]]) -> AsyncIterator[News]:
    """What a run reports, as it does, and in the end the run itself, done. It has ended with the context."""
    news: News = asyncio.Queue()
    running = asyncio.ensure_future(run(news.put_nowait))
    running.add_done_callback(news.put_nowait)
    try:
        yield news
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
