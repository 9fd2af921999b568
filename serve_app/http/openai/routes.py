"""The routes of OpenAI's audio API, for clients that are written for it."""

import asyncio
from contextlib import AsyncExitStack, aclosing
from functools import partial
from time import monotonic
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.errors import InvalidRequest, ModelNotFound
from serve_app.formats.table import FORMATS
from serve_app.http.forms import described_body
from serve_app.http.openai.request import (
    ALIAS,
    FIELDS_OF,
    OUR_FIELDS,
    Fields,
    ParsedForm,
    parse,
    unknown_model,
)
from serve_app.http.openai.response import Transcription, answer, text_pieces
from serve_app.http.openai.stream import EventStream, events
from serve_app.http.responses import (
    ERRORS_AT_ONCE,
    OTHER_ERRORS,
    described_answers,
    described_errors,
    text_response,
)
from serve_app.http.uploads import received
from serve_app.options import Options
from serve_app.request.progress import Report, Transcribe, followed
from serve_app.transcript import Segment, Task, Transcript


class ModelOut(TypedDict):
    """A model, as OpenAI shows one."""

    id: str
    object: Literal["model"]
    created: Annotated[int, Field(description="Always 0: it is not known.")]
    owned_by: str


class ModelList(TypedDict):
    """The models."""

    object: Literal["list"]
    data: list[ModelOut]


def openai_routes(transcribe: Transcribe, model: str, max_bytes: int) -> APIRouter:
    """The routes. A request can name the model `model` or `whisper-1`."""
    models: dict[str, ModelOut] = {
        name: {"id": name, "object": "model", "created": 0, "owned_by": "whisperx-serve"}
        for name in (model, ALIAS)
    }
    router = APIRouter(prefix="/v1", tags=["OpenAI"], responses=OTHER_ERRORS)

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

    @router.post("/audio/transcriptions", **_described("transcribe"))
    async def transcriptions(request: Request) -> Response:
        """Transcribes an uploaded file."""
        return await answer_to(request, "transcribe")

    @router.post("/audio/translations", **_described("translate"))
    async def translations(request: Request) -> Response:
        """Transcribes an uploaded file into English."""
        return await answer_to(request, "translate")

    @router.get("/models")
    async def list_models() -> ModelList:
        """Lists the names that `model` can have: the configured one and `whisper-1`."""
        return {"object": "list", "data": list(models.values())}

    @router.get("/models/{name:path}", responses=described_errors(ModelNotFound))
    async def retrieve_model(name: str) -> ModelOut:
        """One of these models."""
        if name not in models:
            raise unknown_model(name, models)
        return models[name]

    return router


def _response(transcript: Transcript, form: ParsedForm, final: list[Segment]) -> Response:
    text = "".join(text_pieces(final, form.options.task, is_first=True))
    shown = FORMATS[form.options.response_format]
    if shown.write is None:
        return JSONResponse(answer(transcript, form, text))
    body = f"{text}\n" if shown.name == "text" else shown.write(transcript, form.options.layout())
    return text_response(body, shown.media_type, transcript)


def _described(task: Task) -> dict[str, Any]:
    """The OpenAPI description of a route; arrays are named as OpenAI's clients send them."""
    known = Options.model_json_schema()["properties"] | Fields.model_json_schema()["properties"]
    fields = {
        f"{name}[]" if value.get("type") == "array" else name: value
        for name, value in known.items()
        if name in {*OUR_FIELDS, *FIELDS_OF[task]}
    }
    fields["model"] |= {"default": ALIAS}  # for the page /docs: it is required all the same
    media_types = ("text/plain", "application/x-subrip", "text/vtt", "text/event-stream")
    return {
        "openapi_extra": described_body(fields, "model"),
        "responses": described_answers(Transcription, media_types, *ERRORS_AT_ONCE, ModelNotFound),
    }
