"""A transcription as server-sent events, while it runs.

Starlette's StreamingResponse alone would not do: if a client leaves while an event is sent, its generator
stays open, and so does the run. FastAPI's events send status 200 before a bad file can be refused.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.http.errors import error_body
from serve_app.http.openai.request import ParsedForm
from serve_app.http.openai.response import diarized, extras
from serve_app.http.responses import text_pieces
from serve_app.request.progress import News
from serve_app.transcript import Progress, Transcript

KEEP_ALIVE_S = 15.0  # proxies cut a silent connection after 30 to 60


async def events(news: News, form: ParsedForm) -> AsyncGenerator[bytes, None]:
    """The events of a run: text in order as it becomes final, speakers if asked for, then the whole text.

    An error before the first event is raised and can still become an ordinary answer; later it is an event.
    """
    text: list[str] = []
    has_sent = False
    while True:
        try:
            async with asyncio.timeout(KEEP_ALIVE_S):  # wait_for of Python 3.11 can lose a cancellation
                item = await news.get()
        except TimeoutError:
            has_sent = True
            yield b": still at work\n\n"
            continue
        if not isinstance(item, Progress):
            break
        for piece in text_pieces(item.segments, form.options.task, is_first=not text):
            has_sent = True
            text.append(piece)
            yield _event({"type": "transcript.text.delta", "delta": piece})
    try:
        transcript = item.result()
    except Exception as error:
        if not has_sent:
            raise
        yield b"event: error\n" + _event(error_body(error))
        return
    yield await asyncio.to_thread(_last_events, transcript, form, "".join(text))  # one per sentence
    yield b"data: [DONE]\n\n"  # where OpenAI's clients stop reading


def _last_events(transcript: Transcript, form: ParsedForm, text: str) -> bytes:
    segments = diarized(transcript, form) if form.fields.response_format == "diarized_json" else []
    # Without `usage`: OpenAI's type for this event takes only tokens.
    done = {"type": "transcript.text.done", "text": text, **extras(transcript, form)}
    return b"".join(_event(item) for item in (*segments, done))


class EventStream(StreamingResponse):
    """Sends `first` and then `rest`, ends when its client leaves, and closes `held` in any case."""

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], held: AsyncExitStack) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter is for nginx
        super().__init__(_chained(first, rest), headers=headers, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            # From 2.4 on, `send` has to fail once the client has left. Serve's does not, so this one listens.
            await super().__call__({**scope, "asgi": {"spec_version": "2.3"}}, receive, send)


async def _chained(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    yield first
    async for event in rest:
        yield event


def _event(item: Mapping[str, object]) -> bytes:
    return b"data: " + json.dumps(item).encode() + b"\n\n"
