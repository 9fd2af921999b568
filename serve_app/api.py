"""The HTTP surface: routes, bodies, errors. An ordinary FastAPI factory, without Ray and torch.

`create_app` gets the two things it needs as callables, so it is tested with fakes and a client.
"""

import asyncio
import base64
import binascii
import io
import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi_offline import FastAPIOffline
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app import __version__
from serve_app.errors import InvalidRequest, Overloaded, PayloadTooLarge, TranscriptionError
from serve_app.schemas import (
    ErrorResponse,
    Options,
    PredictRequest,
    PredictResponse,
    parse_options,
    parse_predict,
    predict_response,
)
from serve_app.transcript import Source, Transcript

logger = logging.getLogger("ray.serve")

Transcribe = Callable[[Source, Options], Awaitable[Transcript]]
Readiness = Callable[[], Awaitable[dict[str, bool]]]

JSON_OVERHEAD_BYTES = 1 << 20  # room for everything in a JSON body that is not the base64 file
RETRY_AFTER_S = 5


def create_app(transcribe: Transcribe, readiness: Readiness, *, max_bytes: int) -> FastAPI:
    """The application: `transcribe` runs a request, `readiness` says per stage if it has its models."""
    app: FastAPI = FastAPIOffline(  # the documentation page loads nothing from elsewhere
        title="WhisperX on Ray Serve",
        version=__version__,
        description="Audio URL or file in; timed, speaker-labelled segments out.",
    )
    app.add_middleware(LimitBody, max_bytes=max_bytes * 4 // 3 + JSON_OVERHEAD_BYTES)
    app.add_exception_handler(TranscriptionError, _transcription_error)
    app.add_exception_handler(StarletteHTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected_error)

    async def predict(request: Request) -> JSONResponse:
        """Transcribes one audio URL or file. Errors come as `{"error": {message, type, param, code}}`."""
        content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if content_type == "multipart/form-data":
            async with request.form(max_files=1, max_fields=50) as form:
                fields = _fields(form)
                upload = fields.pop("file", None)
                if not isinstance(upload, UploadFile):
                    raise InvalidRequest("file: upload the audio as a file part named file.", "file")
                options = parse_options(fields)
                transcript = await transcribe(Source(file=upload.file), options)
        elif content_type == "application/json":
            # In a thread: a base64 file of some hundred MB would hold up every other request.
            source, options = await asyncio.to_thread(_json_request, await request.body(), max_bytes)
            transcript = await transcribe(source, options)
        else:
            raise InvalidRequest(
                "Send application/json with audio_file or audio_b64, or multipart/form-data with a file.",
                None,
                "unsupported_content_type",
            )
        return JSONResponse(predict_response(transcript, words=options.word_timestamps))

    for path in ("/predict", "/v1/models/whisperx:predict"):
        app.post(
            path,
            response_model=None,
            operation_id="predict" if path == "/predict" else "predict_truss",
            responses=_RESPONSES,
            openapi_extra={"requestBody": _request_body()},
            tags=["transcription"],
        )(predict)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """The process answers; says nothing about models or queues."""
        return {"status": "ok"}

    @app.get("/readyz", tags=["health"], responses={503: {"description": "Some stage is not ready."}})
    async def readyz() -> JSONResponse:
        """Whether every stage of the graph has its models loaded."""
        stages = await readiness()
        ready = all(stages.values())
        return JSONResponse(
            {"status": "ready" if ready else "not ready", "stages": stages}, 200 if ready else 503
        )

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        """The interactive documentation."""
        return RedirectResponse("docs")

    return app


class LimitBody:
    """Refuses bodies over `max_bytes`: by Content-Length before reading, by counting while reading.

    Ray Serve itself puts no limit on bodies.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large()
            return message

        if declared.isdigit() and int(declared) > self.max_bytes:
            await _error_response(self._too_large())(scope, receive, send)
            return
        await self.app(scope, counted, send)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(
            f"The request body is over {self.max_bytes} bytes; send a shorter or smaller file."
        )


def _fields(form: FormData) -> dict[str, Any]:
    """The form's fields; an empty one is as good as none, and a repeated one is refused."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in fields:
            raise InvalidRequest(f"{name}: given more than once; send it once.", name)
        fields[name] = value
    return {name: value for name, value in fields.items() if value != ""}


def _json_request(content: bytes, max_bytes: int) -> tuple[Source, Options]:
    """The URL to fetch or the base64 file, and the options."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest('The body must be a JSON object such as {"audio_file": "https://..."}.')
    body = parse_predict(fields)
    if body.audio_b64 is None:
        return Source(url=body.audio_file, headers=body.headers), body.options()
    try:
        data = base64.b64decode(body.audio_b64, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("audio_b64: not valid base64.", "audio_b64") from None
    if len(data) > max_bytes:
        raise PayloadTooLarge(
            f"The file is over {max_bytes} bytes; send a shorter or smaller one.", "audio_b64"
        )
    return Source(file=io.BytesIO(data)), body.options()


def _error_response(error: TranscriptionError) -> JSONResponse:
    headers = {"Retry-After": str(RETRY_AFTER_S)} if isinstance(error, Overloaded) else None
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return JSONResponse({"error": body}, error.status, headers)


async def _transcription_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, TranscriptionError)
    return _error_response(error)


async def _http_error(_: Request, error: Exception) -> Response:
    """Unknown routes, wrong methods and unreadable forms, in the same shape as every other error."""
    assert isinstance(error, StarletteHTTPException | HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    body = {"message": str(error.detail), "type": kind, "param": None, "code": f"http_{error.status_code}"}
    return JSONResponse({"error": body}, error.status_code, error.headers)


async def _unexpected_error(_: Request, error: Exception) -> Response:
    logger.error("request failed", exc_info=error)
    return _error_response(TranscriptionError("The server failed; the operator's log has the details."))


_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"model": PredictResponse, "description": "The segments, in order of time."},
    **{
        status: {"model": ErrorResponse, "description": description}
        for status, description in {
            400: "The request is wrong.",
            413: "Too many bytes.",
            422: "The audio cannot be used.",
            424: "The audio URL cannot be fetched.",
            503: "No capacity now; see Retry-After.",
            504: "The request took too long.",
        }.items()
    },
}


def _request_body() -> dict[str, Any]:
    options = Options.model_json_schema()
    upload = {"type": "string", "format": "binary", "description": "The audio or video file."}
    form = {**options, "title": "PredictForm", "required": ["file"]}
    form["properties"] = {"file": upload, **options["properties"]}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": PredictRequest.model_json_schema()},
            "multipart/form-data": {"schema": form},
        },
    }
