"""The HTTP API: an ordinary FastAPI application, without Ray and torch.

`create_app` gets what it needs as callables, so that tests can pass fakes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from serve_app import __version__
from serve_app.formats.table import FORMATS
from serve_app.http.forms import form_options
from serve_app.http.json_body import PredictRequest
from serve_app.http.middleware import middleware_stack
from serve_app.http.openai.routes import add_openai_routes
from serve_app.http.responses import ErrorResponse, PredictResponse, WordsResponse, transcript_response
from serve_app.http.uploads import received
from serve_app.options import Options
from serve_app.request.admission import Admission
from serve_app.request.progress import Transcribe
from serve_app.settings import AccessSettings

Readiness = Callable[[], Awaitable[dict[str, bool]]]

OWN_MACHINE_ONLY = AccessSettings()


def create_app(
    transcribe: Transcribe,
    readiness: Readiness,
    *,
    model: str,
    max_bytes: int,
    max_json_bytes: int = 64 << 20,
    access: AccessSettings = OWN_MACHINE_ONLY,
    receive_timeout_s: float = 600.0,
    admission: Admission | None = None,
    behind_serve: bool = False,
    outermost: Sequence[Middleware] = (),
) -> FastAPI:
    """The application.

    `transcribe` runs a request; `readiness` says for each stage whether its models are loaded. OpenAI's
    clients call the model `model`. `max_bytes` limits the file in any kind of body. `admission` counts
    requests and refuses too many. `behind_serve` is for an application that Serve calls, and `outermost` has
    middlewares that need the `receive` that Serve gives.
    """
    app: FastAPI = FastAPIOffline(  # the documentation page loads nothing from other hosts
        title="WhisperX on Ray Serve",
        version=__version__,
        description="Audio URL or file in; timed, speaker-labelled segments out.",
        exception_handlers={HTTPException: _http_error},
        middleware=middleware_stack(
            access, receive_timeout_s, admission, behind_serve=behind_serve, outermost=outermost
        ),
    )

    async def predict(request: Request) -> Response:
        """Transcribes one audio URL or file. Errors come as `{"error": {message, type, param, code}}`."""
        async with received(request, max_bytes, form_options, max_json_bytes) as (source, options):
            transcript = await transcribe(source, options)
        return await asyncio.to_thread(transcript_response, transcript, options)

    # This gives /docs a field for the key; the middleware has checked the key long before.
    key_field = [Depends(HTTPBearer(auto_error=False))] if access.keys else []
    for path in ("/predict", "/v1/models/whisperx:predict"):
        app.post(
            path,
            response_model=None,
            operation_id="predict" if path == "/predict" else "predict_truss",
            responses=_ANSWERS,
            openapi_extra={"requestBody": _request_body()},
            tags=["transcription"],
            dependencies=key_field,
        )(predict)

    @app.get("/v1/models/whisperx", include_in_schema=False)  # where Truss asks for readiness
    @app.get("/readyz", tags=["health"], responses={503: {"description": "Some stage is not ready."}})
    async def readyz() -> JSONResponse:
        """Whether every stage of the graph has its models loaded."""
        stages = await readiness()
        is_ready = all(stages.values())
        status = "ready" if is_ready else "not ready"
        return JSONResponse({"status": status, "stages": stages}, 200 if is_ready else 503)

    add_openai_routes(app, transcribe, model, max_bytes=max_bytes, dependencies=key_field, errors=_ERRORS)

    @app.get("/healthz", tags=["health"])
    async def healthz() -> dict[str, str]:
        """The process answers; this says nothing about models or queues."""
        return {"status": "ok"}

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        """The interactive documentation."""
        return RedirectResponse("docs")

    return app


async def _http_error(_: Request, error: Exception) -> Response:
    """Unknown routes and wrong methods, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    body = {"message": str(error.detail), "type": kind, "param": None, "code": f"http_{error.status_code}"}
    return JSONResponse({"error": body}, error.status_code, error.headers)


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request is wrong.",
        401: "No API key, or an unknown one.",
        403: "The server has no API keys, and the request is not from its own machine.",
        408: "The body arrived too slowly.",
        413: "Too many bytes.",
        422: "The audio cannot be used.",
        424: "The audio URL cannot be fetched.",
        429: "The API key's limit is reached; see Retry-After.",
        503: "No capacity now; see Retry-After.",
        504: "The request took too long.",
    }.items()
}

_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "model": PredictResponse | WordsResponse,
        "description": "The transcript in the `response_format` asked for.",
        "content": {
            entry.media_type.partition(";")[0]: {"schema": {"type": "string"}}
            for entry in FORMATS.values()
            if entry.write
        },
        "headers": {
            "X-Warnings": {
                "description": "In text formats: what JSON has as `warnings`, as ASCII JSON.",
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
