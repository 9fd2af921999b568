"""The HTTP API: an ordinary FastAPI application, without Ray and torch.

`create_app` gets what it needs as callables, so that tests can pass fakes.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from pydantic import Field
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Match
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app import __version__
from serve_app.errors import InvalidRequest, Unauthorized
from serve_app.formats.table import FORMATS
from serve_app.http.answer_types import PredictResponse, WordsResponse, described_answers
from serve_app.http.asr_webservice.request import AsrFields
from serve_app.http.asr_webservice.routes import DetectLanguage, asr_routes
from serve_app.http.errors import ERRORS_AT_ONCE, described_errors, error_body, shaped_response
from serve_app.http.forms import described_body, form_options
from serve_app.http.jobs.assemblyai import assemblyai_routes
from serve_app.http.jobs.baseten import baseten_routes
from serve_app.http.jobs.result import peaks_routes
from serve_app.http.jobs.routes import job_routes, routes_without_jobs
from serve_app.http.jobs.submission import JobBody
from serve_app.http.middleware import Gate, RequestId
from serve_app.http.model_names import ModelNames
from serve_app.http.openai.request import Fields
from serve_app.http.openai.routes import answering, azure_routes, openai_routes
from serve_app.http.other_apis import ASSEMBLYAI_HAS, BASETEN_PREFIXES, path_of, vendor_of
from serve_app.http.responses import transcript_response
from serve_app.http.uploads import PredictRequest, options_in_body_only, received
from serve_app.http.without_text import WithoutText, without_text_routes
from serve_app.jobs.service import Jobs
from serve_app.options import Options
from serve_app.page.routes import page_routes
from serve_app.request.admission import Admission
from serve_app.request.progress import Transcribe
from serve_app.settings.access import AccessSettings
from serve_app.settings.openai import OpenAISettings

OWN_MACHINE_ONLY = AccessSettings()
SHIPPED_NAMES = OpenAISettings()

TAGS = {  # the groups of /docs, in this order
    "Transcribe": "Audio in, transcript out, over one connection.",
    "Voices": "Who speaks when, and where speech is, without the text.",
    "Jobs": "Requests that are stored and need no open connection. An API key has its own jobs.",
    "OpenAI": "OpenAI's audio API, for clients that are written for it.",
    "Baseten": "Baseten's asynchronous inference, for clients that are written for it. Also `POST` to "
    + ", ".join(f"`{prefix}/async_predict`" for prefix in BASETEN_PREFIXES if prefix)
    + ".",
    "AssemblyAI": "AssemblyAI's transcripts, for clients that are written for it.",
    "whisper-asr-webservice": "Its API, for clients that are written for it, such as Bazarr and Speakr.",
    "Health": "Whether the service lives, and whether it is ready. Open without a key.",
}


class Readiness(TypedDict):
    """Whether requests can be worked on."""

    status: Literal["ready", "not ready"]
    stages: Annotated[dict[str, bool], Field(description="For each stage, whether it has its models.")]


# FastAPI's own spans would begin a trace of their own inside of Serve's, with queries that may hold secrets.
NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


def create_app(
    transcribe: Transcribe,
    readiness: Callable[[], Awaitable[dict[str, bool]]],
    *,
    model: str,
    other_models: Collection[str] = (),
    max_bytes: int,
    max_json_bytes: int = 64 << 20,
    access: AccessSettings = OWN_MACHINE_ONLY,
    openai: OpenAISettings = SHIPPED_NAMES,
    receive_timeout_s: float = 600.0,
    admission: Admission | None = None,
    detect_language: DetectLanguage | None = None,
    without_text: WithoutText | None = None,
    jobs: Jobs | None = None,
    jobs_reachable: Callable[[], Awaitable[None]] | None = None,
    on_error: Callable[[str, int], None] | None = None,
    outermost: Sequence[Middleware] = (Middleware(RequestId),),
) -> FastAPI:
    """The application.

    `transcribe` runs a request; `readiness` says for each stage whether its models are loaded. `model` is the
    configured model's name, `other_models` are those of the setting `models`, and `openai` has the aliases.
    `max_bytes` limits the file in any kind of body. `admission` counts requests and refuses too many. Without
    `detect_language` there are no routes of whisper-asr-webservice, and without `without_text` none of
    speakers and speech alone. Without `jobs` their routes say that there are none; `jobs_reachable` raises
    the error of a node that cannot reach them. `on_error` hears the code and status of every error that is
    answered. Serve adds request ids itself: behind it, `outermost` has the middlewares that need the
    `receive` that Serve gives.
    """
    cors = Middleware(
        CORSMiddleware,
        allow_origins=access.cors_origins,
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=[
            "Location",
            "Retry-After",
            "X-Request-ID",
            "X-Warnings",
            "X-Error-Code",
            "X-Error-Message",
        ],
    )
    gate = Middleware(Gate, access, receive_timeout_s, admission, on_error)
    app: FastAPI = FastAPIOffline(  # the documentation page loads nothing from other hosts
        title="WhisperX on Ray Serve",
        version=__version__,
        description="Audio URL or file in; timed, speaker-labelled segments out.",
        openapi_tags=[{"name": name, "description": about} for name, about in TAGS.items()],
        exception_handlers={HTTPException: _http_error},
        telemetry=NO_TELEMETRY,
        # In the order in which a request meets them. Web pages can read the gate's errors.
        middleware=[*outermost, *([cors] if access.cors_origins else []), gate],
    )
    # This gives /docs a field for the key; the middleware has checked the key long before.
    key_field = [Depends(HTTPBearer(auto_error=False))] if access.keys else []
    checked = [Depends(options_in_body_only(PredictRequest)), *key_field]

    # The first is its name in Truss.
    @app.post("/v1/models/whisperx:predict", include_in_schema=False, dependencies=checked)
    @app.post(
        "/predict",
        operation_id="predict",
        responses=described_answers(
            PredictResponse | WordsResponse,
            [each.media_type for each in FORMATS.values() if each.write],
            *ERRORS_AT_ONCE,
        ),
        openapi_extra=described_body(Options.model_json_schema()["properties"], json_model=PredictRequest),
        tags=["Transcribe"],
        dependencies=checked,
    )
    async def predict(request: Request) -> Response:
        """Transcribes one file, which is uploaded or fetched from a URL, while the connection is open.

        `POST /v1/models/whisperx:predict`, where Truss has it, is the same.
        """
        async with received(request, max_bytes, form_options, max_json_bytes) as (source, options):
            transcript = await transcribe(source, options)
        return await asyncio.to_thread(transcript_response, transcript, options)

    not_ready: dict[int | str, dict[str, Any]] = {
        503: {"model": Readiness, "description": "Some stage is not ready."}
    }

    @app.get("/v1/models/whisperx", include_in_schema=False)  # where Truss asks for readiness
    @app.get("/readyz", tags=["Health"], response_model=Readiness, responses=not_ready)
    async def readyz() -> JSONResponse:
        """Whether every stage of the graph has its models loaded.

        `GET /v1/models/whisperx`, where Truss has it, is the same.
        """
        stages = await readiness()
        is_ready = all(stages.values())
        status = "ready" if is_ready else "not ready"
        return JSONResponse({"status": status, "stages": stages}, 200 if is_ready else 503)

    refused = described_errors(Unauthorized) if access.keys else {}
    answer_to, models = answering(transcribe, max_bytes), ModelNames(model, openai.names(), other_models)
    for routes, in_url in (
        (openai_routes(answer_to, models), ()),
        (azure_routes(answer_to, models), ("api-version",)),
    ):
        checked = [Depends(options_in_body_only(Options, Fields, in_url=in_url)), *key_field]
        app.include_router(routes, dependencies=checked, responses=refused)

    if without_text is not None:
        checked = [Depends(options_in_body_only(PredictRequest)), *key_field]
        routes = without_text_routes(without_text, models, max_bytes, max_json_bytes)
        app.include_router(routes, dependencies=checked, responses=refused)

    if detect_language is not None:
        checked = [Depends(options_in_body_only(Options, AsrFields, in_url="all")), *key_field]
        routes = asr_routes(transcribe, detect_language, models, max_bytes)
        app.include_router(routes, dependencies=checked, responses=refused)

    if jobs is None:
        app.include_router(routes_without_jobs())
    else:
        reached = [*key_field, *([Depends(jobs_reachable)] if jobs_reachable else [])]
        checked = [Depends(options_in_body_only(JobBody)), *reached]
        has_list = bool(access.keys) or not access.public_without_keys
        routes = job_routes(jobs, max_bytes, max_json_bytes, has_list=has_list)
        app.include_router(routes, dependencies=checked, responses=refused)
        for routes in (peaks_routes(jobs), baseten_routes(jobs), assemblyai_routes(jobs)):
            app.include_router(routes, dependencies=reached, responses=refused)

    @app.get("/health", include_in_schema=False)  # where Speakr asks
    @app.get("/healthz", tags=["Health"])
    async def healthz() -> dict[str, str]:
        """Whether the process answers; this says nothing about models or queues.

        `GET /health` is the same.
        """
        return {"status": "ok"}

    app.include_router(page_routes())
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown routes and wrong methods, in the shape of every other error; and the answer to OPTIONS."""
    assert isinstance(error, HTTPException)
    path = path_of(request.scope)
    headers = dict(error.headers or {})
    message = error.detail
    if error.status_code == 405:
        allowed = {*headers["Allow"].split(", "), *_of_its_router(request), "OPTIONS"}
        headers["Allow"] = ", ".join(sorted(allowed | {"HEAD"} if "GET" in allowed else allowed))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        message = f"{request.method} is not possible here; {headers['Allow']} are."
    elif error.status_code == 404 and vendor_of(path) == "AssemblyAI":
        message = ASSEMBLYAI_HAS
    body = error_body(InvalidRequest(message, None, f"http_{error.status_code}"))
    return shaped_response(path, error.status_code, body, headers)


def _of_its_router(request: Request) -> set[str]:
    """The methods of a path; Starlette itself names only those of the first of a router's routes."""
    for route in request.app.routes:
        if route.matches(request.scope)[0] != Match.NONE:
            scopes = {method: {**request.scope, "method": method} for method in ("DELETE", "GET", "POST")}
            return {method for method, scope in scopes.items() if route.matches(scope)[0] == Match.FULL}
    return set()  # of a part that is mounted
