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
from serve_app.formats.table import FORMATS
from serve_app.http.openai.request import (
    ALIAS,
    FIELDS_OF,
    OUR_FIELDS,
    Fields,
    ParsedForm,
    parse,
    unknown_model,
)
from serve_app.http.openai.response import answer, text_pieces
from serve_app.http.openai.schemas import DiarizedTranscription, Transcription, VerboseTranscription
from serve_app.http.openai.stream import EventStream, events
from serve_app.http.responses import ErrorResponse, text_response
from serve_app.http.uploads import received
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
    """Adds the routes to `app`. A request can name the model `model` or `whisper-1`."""
    models = (model, ALIAS)

    async def answer_to(request: Request, task: Task) -> Response:
        started_s = monotonic()
        async with AsyncExitStack() as held:
            parse_form = partial(parse, task=task, models=models)
            source, form = await held.enter_async_context(received(request, max_bytes, parse_form))

            async def run(report: Report) -> Transcript:
                try:
                    return await transcribe(source, form.options, report)
                except InvalidRequest as error:
                    raise form.renamed(error) from None

            if form.fields.stream:
                news = await held.enter_async_context(followed(run))
                stream = await held.enter_async_context(aclosing(events(news, form)))
                first = await anext(stream)  # an error up to here becomes an ordinary answer
                return EventStream(first, stream, held.pop_all())
            # The text is put together as in a stream: sentences split at a speaker change would differ.
            final: list[Segment] = []
            transcript = await run(lambda progress: final.extend(progress.segments))
        response = await asyncio.to_thread(_response, transcript, form, final)  # many words take seconds
        response.headers["openai-processing-ms"] = str(round((monotonic() - started_s) * 1000))
        return response

    def add_route(path: str, task: Task, description: str) -> None:
        @app.post(
            path,
            name=path.rpartition("/")[2],
            description=description,
            response_model=None,
            openapi_extra=_request_body(task),
            responses={**_ANSWERS, **errors},
            tags=["OpenAI"],
            dependencies=dependencies,
        )
        async def endpoint(request: Request) -> Response:
            return await answer_to(request, task)

    add_route("/v1/audio/transcriptions", "transcribe", "OpenAI's transcription of an uploaded file.")
    add_route("/v1/audio/translations", "translate", "OpenAI's translation of an uploaded file into English.")

    @app.get("/v1/models", tags=["OpenAI"], dependencies=dependencies)
    async def list_models() -> dict[str, Any]:
        """The names that `model` can be."""
        return {"object": "list", "data": [_model(name) for name in models]}

    @app.get("/v1/models/{name:path}", tags=["OpenAI"], dependencies=dependencies)
    async def retrieve_model(name: str) -> dict[str, Any]:
        """One model, if `model` can have this name."""
        if name not in models:
            raise unknown_model(name, models)
        return _model(name)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "whisperx-serve"}  # 0: not known


def _response(transcript: Transcript, form: ParsedForm, final: list[Segment]) -> Response:
    text = "".join(text_pieces(final, form.options.task, is_first=True))
    shown = FORMATS[form.options.response_format]
    if shown.write is None:
        return JSONResponse(answer(transcript, form, text))
    body = f"{text}\n" if shown.name == "text" else shown.write(transcript, form.options.layout())
    return text_response(body, shown.media_type, transcript)


_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Transcription | VerboseTranscription | DiarizedTranscription,
        "description": "The transcript in the `response_format` asked for.",
        "content": {
            media_type: {"schema": {"type": "string"}}
            for media_type in ("text/plain", "application/x-subrip", "text/vtt", "text/event-stream")
        },
    },
    404: {"model": ErrorResponse, "description": "The server has no such model."},
}


def _request_body(task: Task) -> dict[str, Any]:
    """OpenAI's fields and our options; arrays are named as OpenAI's clients send them."""
    ours, theirs = Options.model_json_schema()["properties"], Fields.model_json_schema()["properties"]
    known = {name: ours[name] for name in ours if name in OUR_FIELDS}
    known |= {name: theirs[name] for name in FIELDS_OF[task]}
    upload = {"type": "string", "format": "binary", "description": "The audio or video file."}
    properties = {
        f"{name}[]" if value.get("type") == "array" else name: value for name, value in known.items()
    }
    form = {"type": "object", "properties": {"file": upload, **properties}, "required": ["file", "model"]}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}
