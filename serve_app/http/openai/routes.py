"""The routes of OpenAI's audio API, for clients that are written for it."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from functools import partial
from time import monotonic
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.errors import InvalidRequest, ModelNotFound
from serve_app.formats.table import FORMATS
from serve_app.http.answer_types import described_answers
from serve_app.http.errors import ERRORS_AT_ONCE, OTHER_ERRORS, described_errors
from serve_app.http.forms import FormField, described_body
from serve_app.http.model_names import ModelNames
from serve_app.http.openai.request import FIELDS_OF, OUR_FIELDS, Fields, ParsedForm, parse
from serve_app.http.openai.response import Transcription, answer
from serve_app.http.openai.stream import events
from serve_app.http.openai.whisper_cpp import InferenceFields, parse_inference
from serve_app.http.responses import EventStream, text_pieces, text_response
from serve_app.http.uploads import received
from serve_app.options import Options
from serve_app.options.validation import conflict
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


ReadForm = Callable[[Sequence[FormField]], ParsedForm]
AnswerTo = Callable[[Request, ReadForm], Awaitable[Response]]

API_VERSION = re.compile(r"\d{4}-\d\d-\d\d(-preview)?")


def answering(transcribe: Transcribe, max_bytes: int) -> AnswerTo:
    """What answers a form for all of these routes."""

    async def answer_to(request: Request, read: ReadForm) -> Response:
        started_s = monotonic()
        async with AsyncExitStack() as held:
            source, form = await held.enter_async_context(received(request, max_bytes, read))

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

    return answer_to


def openai_routes(answer_to: AnswerTo, models: ModelNames) -> APIRouter:
    """OpenAI's routes, and whisper.cpp's one, for requests that name one of these models."""
    shown: dict[str, ModelOut] = {name: _model_out(name) for name in models.names}
    router = APIRouter(tags=["OpenAI"], responses=OTHER_ERRORS)

    @router.post("/v1/audio/transcriptions", **_described("transcribe"))
    async def transcriptions(request: Request) -> Response:
        """Transcribes an uploaded file."""
        return await answer_to(request, partial(parse, task="transcribe", models=models))

    @router.post("/v1/audio/translations", **_described("translate"))
    async def translations(request: Request) -> Response:
        """Transcribes an uploaded file into English."""
        return await answer_to(request, partial(parse, task="translate", models=models))

    @router.post("/inference", **_described("transcribe", InferenceFields.model_json_schema()["properties"]))
    async def inference(request: Request) -> Response:
        """Transcribes an uploaded file, as the server of whisper.cpp does."""
        return await answer_to(request, partial(parse_inference, models=models))

    @router.get("/v1/models")
    async def list_models() -> ModelList:
        """Lists the names that `model` can have: the server's models and those that stand for them."""
        return {"object": "list", "data": list(shown.values())}

    @router.get("/v1/models/{name:path}", responses=described_errors(ModelNotFound))
    async def retrieve_model(name: str) -> ModelOut:
        """One of these models."""
        models.defaults(name)
        return shown.get(name) or _model_out(name)

    return router


def azure_routes(answer_to: AnswerTo, models: ModelNames) -> APIRouter:
    """Azure's paths of OpenAI's routes, where a deployment is one of these models."""
    prefix = "/openai/deployments/{name}/audio"
    router = APIRouter(prefix=prefix, tags=["OpenAI"], responses=OTHER_ERRORS)
    version = Annotated[
        str, Query(alias="api-version", description="Of Azure's API, as a date; all versions are the same.")
    ]

    def read_as(task: Task, name: str, api_version: str) -> ReadForm:
        if api_version and not API_VERSION.fullmatch(api_version):
            raise conflict(
                "api-version", "must be a date, such as 2024-10-21, with -preview behind it or not"
            )
        return partial(parse, task=task, models=models, deployment=name)

    @router.post("/transcriptions", **_described("transcribe", required=()))
    async def azure_transcriptions(request: Request, name: str, api_version: version = "") -> Response:
        """Transcribes an uploaded file, as at Azure: the path has the model's name."""
        return await answer_to(request, read_as("transcribe", name, api_version))

    @router.post("/translations", **_described("translate", required=()))
    async def azure_translations(request: Request, name: str, api_version: version = "") -> Response:
        """Transcribes an uploaded file into English, as at Azure."""
        return await answer_to(request, read_as("translate", name, api_version))

    return router


def _model_out(name: str) -> ModelOut:
    return {"id": name, "object": "model", "created": 0, "owned_by": "whisperx-serve"}


def _response(transcript: Transcript, form: ParsedForm, final: list[Segment]) -> Response:
    text = "".join(text_pieces(final, form.options.task, is_first=True))
    shown = FORMATS[form.options.response_format]
    if shown.write is None:
        return JSONResponse(answer(transcript, form, text))
    body = f"{text}\n" if shown.name == "text" else shown.write(transcript, form.options.layout())
    return text_response(body, shown.media_type, transcript)


def _described(
    task: Task, more: dict[str, Any] | None = None, required: Sequence[str] = ("model",)
) -> dict[str, Any]:
    """The OpenAPI description of a route; arrays are named as OpenAI's clients send them."""
    known = Options.model_json_schema()["properties"] | Fields.model_json_schema()["properties"]
    fields = {
        f"{name}[]" if value.get("type") == "array" else name: value
        for name, value in known.items()
        if name in {*OUR_FIELDS, *FIELDS_OF[task]}
    }
    if more is not None:
        fields, required = more | fields, ()
    fields["model"] |= {"default": "whisper-1"} if required else {"default": ""}
    media_types = ("text/plain", "application/x-subrip", "text/vtt", "text/event-stream")
    return {
        "openapi_extra": described_body(fields, *required),
        "responses": described_answers(Transcription, media_types, *ERRORS_AT_ONCE, ModelNotFound),
    }
