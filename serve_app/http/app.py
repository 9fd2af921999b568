"""The HTTP surface: routes, bodies, errors. An ordinary FastAPI factory, without Ray and torch.

`create_app` gets the two things it needs as callables, so it is tested with fakes and a client.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from serve_app import __version__
from serve_app.errors import TranscriptionError
from serve_app.formats.text import MEDIA_TYPES
from serve_app.http.auth import Access, ReceiveDeadline
from serve_app.http.openai.routes import add_openai_routes
from serve_app.http.responses import ErrorAnswers, RequestId, error_response, text_response
from serve_app.http.schemas import (
    ErrorResponse,
    PredictRequest,
    PredictResponse,
    WordsResponse,
    answer,
)
from serve_app.http.uploads import received
from serve_app.options import Options
from serve_app.ray_patches.body_queues import BoundedReceive
from serve_app.request.admission import Admission, CountRequests
from serve_app.request.progress import Transcribe
from serve_app.settings import AccessSettings
from serve_app.transcript import Transcript

Readiness = Callable[[], Awaitable[dict[str, bool]]]

OWN_MACHINE_ONLY = AccessSettings()


def create_app(
    transcribe: Transcribe,
    readiness: Readiness,
    *,
    model: str,
    max_bytes: int,
    access: AccessSettings = OWN_MACHINE_ONLY,
    receive_timeout_s: float = 600.0,
    admission: Admission | None = None,
    behind_serve: bool = False,
) -> FastAPI:
    """The application: `transcribe` runs a request, `readiness` says per stage if it has its models.

    `model` is what OpenAI's clients call it.
    A file of more than `max_bytes` is refused in every kind of body, and so is a body that takes longer to
    arrive than `receive_timeout_s`. `access` says who may ask, `admission` how many at once. `behind_serve`
    is for an application that Serve calls: Serve puts X-Request-ID into every answer itself.
    """
    app: FastAPI = FastAPIOffline(  # the documentation page loads nothing from elsewhere
        title="WhisperX on Ray Serve",
        version=__version__,
        description="Audio URL or file in; timed, speaker-labelled segments out.",
        exception_handlers={TranscriptionError: _error, StarletteHTTPException: _http_error},
        middleware=[  # the first one sees a request first, and its answer last
            *([Middleware(BoundedReceive)] if behind_serve else []),  # needs the `receive` that Serve gives
            *_cors(access),
            *([] if behind_serve else [Middleware(RequestId)]),
            Middleware(ErrorAnswers),
            Middleware(Access, settings=access),
            Middleware(ReceiveDeadline, timeout_s=receive_timeout_s),
            *([Middleware(CountRequests, admission=admission)] if admission else []),
        ],
    )

    async def predict(request: Request) -> Response:
        """Transcribes one audio URL or file. Errors come as `{"error": {message, type, param, code}}`."""
        async with received(request, max_bytes) as (source, options):
            transcript = await transcribe(source, options)
        return await asyncio.to_thread(_response, transcript, options)  # many words take seconds

    # Gives /docs a field for the key. It is checked long before this, in front of the application.
    key_field = [Depends(HTTPBearer(auto_error=False))] if access.keys else []
    for path in ("/predict", "/v1/models/whisperx:predict"):
        app.post(
            path,
            response_model=None,
            operation_id="predict" if path == "/predict" else "predict_truss",
            responses=_RESPONSES,
            openapi_extra={"requestBody": _request_body()},
            tags=["transcription"],
            dependencies=key_field,
        )(predict)

    @app.get("/v1/models/whisperx", include_in_schema=False)  # Truss's question; no name of OpenAI's
    async def truss_readiness() -> JSONResponse:
        return await readyz()

    add_openai_routes(app, transcribe, model, max_bytes=max_bytes, dependencies=key_field, errors=_ERRORS)

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


def _cors(access: AccessSettings) -> list[Middleware]:
    if not access.cors_origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=access.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Retry-After", "X-Request-ID", "X-Warnings"],
        )
    ]


def _response(transcript: Transcript, options: Options) -> Response:
    body = answer(transcript, options)
    if isinstance(body, str):
        return text_response(body, options.response_format, transcript)
    return JSONResponse(body)


async def _http_error(_: Request, error: Exception) -> Response:
    """Unknown routes, wrong methods and unreadable forms, in the same shape as every other error."""
    assert isinstance(error, StarletteHTTPException | HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    body = {"message": str(error.detail), "type": kind, "param": None, "code": f"http_{error.status_code}"}
    return JSONResponse({"error": body}, error.status_code, error.headers)


async def _error(_: Request, error: Exception) -> Response:
    return error_response(error)


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request is wrong.",
        401: "No API key, or an unknown one.",
        403: "The server has no API keys, and the request is not its own machine's.",
        408: "The body arrived too slowly.",
        413: "Too many bytes.",
        422: "The audio cannot be used.",
        424: "The audio URL cannot be fetched.",
        429: "The API key's limit is reached; see Retry-After.",
        503: "No capacity now; see Retry-After.",
        504: "The request took too long.",
    }.items()
}

_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": PredictResponse | WordsResponse,
        "description": "The transcript in the `response_format` asked for.",
        "content": {kind.partition(";")[0]: {"schema": {"type": "string"}} for kind in MEDIA_TYPES.values()},
        "headers": {
            "X-Warnings": {
                "description": "In formats that are text: what JSON has as `warnings`, as ASCII JSON.",
                "schema": {"type": "string"},
            }
        },
    },
    **_ERRORS,
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
