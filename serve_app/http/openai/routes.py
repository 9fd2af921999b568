"""The routes of OpenAI's audio API, for clients that are written for it."""

import asyncio
from contextlib import AsyncExitStack, aclosing
from functools import partial
from time import monotonic
from typing import Any

from fastapi import FastAPI, Request
from fastapi.params import Depends
from fastapi.responses import JSONResponse, Response

from serve_app.errors import InvalidRequest
from serve_app.formats.text import rendered
from serve_app.http.openai.request import (
    ALIAS,
    NOT_HERE,
    Ask,
    TranscriptionFields,
    TranslationFields,
    parse,
    unknown_model,
)
from serve_app.http.openai.response import answer, json_ready, text_pieces
from serve_app.http.openai.schemas import (
    DiarizedTranscription,
    ModelItem,
    Transcription,
    VerboseTranscription,
)
from serve_app.http.openai.stream import EventStream, events
from serve_app.http.responses import text_response
from serve_app.http.schemas import ErrorResponse
from serve_app.http.uploads import received_form
from serve_app.options import Options
from serve_app.request.progress import Report, Transcribe, followed
from serve_app.transcript import Segment, Task, Transcript


def add_openai_routes(
    app: FastAPI,
    transcribe: Transcribe,
    model: str,
    *,
    max_bytes: int,
    dependencies: list[Depends],
    errors: dict[int | str, dict[str, Any]],
) -> None:
    """Adds them to `app`. `model` and `whisper-1` are the names that a request can give."""
    models = (model, ALIAS)

    async def answered(request: Request, task: Task) -> Response:
        begun_s = monotonic()
        async with AsyncExitStack() as held:
            wanted = partial(parse, task=task, models=models)
            source, ask = await held.enter_async_context(received_form(request, max_bytes, wanted))

            async def run(report: Report) -> Transcript:
                try:
                    return await transcribe(source, ask.options, report)
                except InvalidRequest as error:
                    raise ask.renamed(error) from None

            if ask.stream:
                news = await held.enter_async_context(followed(run))
                stream = await held.enter_async_context(aclosing(events(news, ask)))
                first = await anext(stream)  # where this fails, it is an ordinary error
                return EventStream(first, stream, held.pop_all())
            # The text is that of a stream, whatever becomes of its sentences where speakers change.
            said: list[Segment] = []
            transcript = await run(lambda progress: said.extend(progress.segments))
        response = await asyncio.to_thread(_response, transcript, ask, said)  # many words take seconds
        response.headers["openai-processing-ms"] = str(round((monotonic() - begun_s) * 1000))
        return response

    @app.post(
        "/v1/audio/transcriptions",
        response_model=None,
        openapi_extra=_request_body(TranscriptionFields),
        responses={**_ANSWERS, **errors},
        tags=["OpenAI"],
        dependencies=dependencies,
    )
    async def transcriptions(request: Request) -> Response:
        """OpenAI's transcription, from an uploaded file."""
        return await answered(request, "transcribe")

    @app.post(
        "/v1/audio/translations",
        response_model=None,
        openapi_extra=_request_body(TranslationFields),
        responses={**_ANSWERS, **errors},
        tags=["OpenAI"],
        dependencies=dependencies,
    )
    async def translations(request: Request) -> Response:
        """OpenAI's translation into English, from an uploaded file."""
        return await answered(request, "translate")

    @app.get("/v1/models", tags=["OpenAI"], dependencies=dependencies)
    async def list_models() -> dict[str, Any]:
        """The names that `model` can be."""
        return {"object": "list", "data": [json_ready(ModelItem(id=name)) for name in models]}

    @app.get("/v1/models/{name:path}", tags=["OpenAI"], dependencies=dependencies)
    async def retrieve_model(name: str) -> dict[str, Any]:
        """One of them."""
        if name not in models:
            raise unknown_model(name, models)
        return json_ready(ModelItem(id=name))


def _response(transcript: Transcript, ask: Ask, said: list[Segment]) -> Response:
    text = "".join(text_pieces(said, ask.options.task, first=True))
    kind = ask.response_format
    if kind in ("json", "verbose_json", "diarized_json"):
        return JSONResponse(answer(transcript, ask, text))
    body = f"{text}\n" if kind == "text" else rendered(transcript, kind, ask.options.layout())
    return text_response(body, kind, transcript)


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Transcription | VerboseTranscription | DiarizedTranscription,
        "description": "In the `response_format` asked for.",
        "content": {
            kind: {"schema": {"type": "string"}}
            for kind in ("text/plain", "application/x-subrip", "text/vtt", "text/event-stream")
        },
    },
    404: {"model": ErrorResponse, "description": "The server has no such model."},
}


def _request_body(fields: type[TranslationFields]) -> dict[str, Any]:
    """OpenAI's fields, then our options; arrays as their clients send them."""
    schema = fields.model_json_schema()
    own = Options.model_json_schema()["properties"]
    known = {**{name: own[name] for name in own if name not in NOT_HERE}, **schema["properties"]}
    properties = {
        f"{name}[]" if value.get("type") == "array" else name: value for name, value in known.items()
    }
    upload = {"type": "string", "format": "binary", "description": "The audio or video file."}
    form = {**schema, "properties": {"file": upload, **properties}, "required": ["file", "model"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}
