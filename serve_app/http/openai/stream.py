"""A transcription as server-sent events, while it runs."""

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping

from serve_app.http.errors import error_body
from serve_app.http.openai.request import ParsedForm
from serve_app.http.openai.response import diarized, extras
from serve_app.http.responses import KEEP_ALIVE_S, text_pieces
from serve_app.request.progress import News
from serve_app.transcript import Progress, Transcript


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


def _event(item: Mapping[str, object]) -> bytes:
    return b"data: " + json.dumps(item).encode() + b"\n\n"
