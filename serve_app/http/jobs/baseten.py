"""Baseten's asynchronous inference API, for clients that are written for it, on the jobs of /v1/jobs."""

import io
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.http.auth import key_name
from serve_app.http.jobs.submission import described_json, idempotency_key
from serve_app.http.other_apis import BASETEN_PREFIXES, MAX_BODY_BYTES, renaming
from serve_app.http.uploads import PredictRequest, options_in_body_only, received_json
from serve_app.jobs.service import Jobs, Submission, within
from serve_app.jobs.store.records import Job
from serve_app.jobs.webhooks.payloads import DEPLOYMENT_ID, MODEL_ID, baseten_errors, iso
from serve_app.options.validation import validate_or_400

_STATUSES = {"running": "IN_PROGRESS"}  # the others are our own in capitals


class RetryConfig(BaseModel):
    """The `inference_retry_config` of a body: attempts after a failure."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_attempts: int = Field(3, ge=1, le=10, description="How many there are in all.")
    initial_delay_ms: int = Field(1000, ge=0, le=10_000, description="The pause before the second one.")
    max_delay_ms: int = Field(5000, ge=0, le=60_000, description="Pauses double up to this one.")


class AsyncPredict(BaseModel):
    """The body of `POST /async_predict`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_input: Annotated[dict[str, Any], WithJsonSchema(PredictRequest.model_json_schema())] = Field(
        description="The JSON body of `POST /predict`."
    )
    webhook_endpoint: str | None = Field(None, description="https URL that the result is sent to.")
    priority: Annotated[int, Field(ge=0, le=2)] = Field(0, description="0 to 2; 0 is first.")
    max_time_in_queue_seconds: Annotated[int, Field(ge=10, le=259_200)] = Field(
        600, description="The request expires if work on it has not begun by then."
    )
    inference_retry_config: Annotated[dict[str, Any], WithJsonSchema(RetryConfig.model_json_schema())] = (
        Field(default_factory=dict, description="How it is tried again after a failure.")
    )


class AsyncRequest(TypedDict):
    """How far a request is. Times are ISO 8601 in UTC."""

    request_id: str
    model_id: str
    deployment_id: str
    status: Literal["QUEUED", "IN_PROGRESS", "SUCCEEDED", "FAILED", "EXPIRED", "CANCELED", "WEBHOOK_FAILED"]
    webhook_status: Literal["PENDING", "SUCCEEDED", "FAILED", "NO_WEBHOOK_PROVIDED"]
    created_at: str
    status_at: Annotated[str, Field(description="When `status` last changed.")]
    errors: Annotated[list[dict[str, str]], Field(description="`code` and `message`; empty without errors.")]


class Queued(TypedDict):
    """The answer to a request that is stored now."""

    request_id: str


class Canceled(TypedDict):
    """Whether a request was canceled."""

    request_id: str
    canceled: bool
    message: Annotated[str, Field(description="What happened, in a sentence.")]


def baseten_routes(jobs: Jobs) -> APIRouter:
    """The routes."""
    about = "`error`, `error_code`, and in `detail` our own code."
    error = {"model": dict[str, str], "description": about}
    router = APIRouter(tags=["Baseten"], responses={"default": error})
    example = {"model_input": {"audio_file": "https://example.com/talk.mp3"}}
    described = described_json(AsyncPredict, example)

    async def async_predict(request: Request) -> Response:
        """Stores a request of `/predict` as a job; its result is also sent to `webhook_endpoint`."""
        unique = idempotency_key(request)
        submission = await received_json(request, MAX_BODY_BYTES, _submission)
        with renaming({name: f"model_input.{name}" for name in PredictRequest.model_fields}):
            [(job, _)] = await jobs.submit(key_name(request), [submission], unique)
        return JSONResponse({"request_id": job.id}, 201)

    for prefix in BASETEN_PREFIXES:
        router.add_api_route(
            f"{prefix}/async_predict",
            async_predict,
            methods=["POST"],
            status_code=201,
            response_model=Queued,
            include_in_schema=not prefix,
            openapi_extra=described,
            dependencies=[Depends(options_in_body_only())],
        )

    @router.get("/async_request/{request_id}", response_model=AsyncRequest)
    async def async_request(request_id: str, request: Request) -> Response:
        """How far a request is."""
        return JSONResponse(_shown(await jobs.get(request_id, key_name(request))))

    @router.delete("/async_request/{request_id}", response_model=Canceled)
    async def cancel(request_id: str, request: Request) -> Response:
        """Cancels a request that waits; one that runs goes on."""
        job = await jobs.cancel(request_id, key_name(request), only_queued=True)
        is_canceled = job.status == "canceled"
        message = "The request was canceled."
        if not is_canceled:
            message = f"The request is {_status(job)}; only QUEUED ones are canceled."
        if job.status == "running":
            message += f" POST /v1/jobs/{job.id}/cancel stops it."
        return JSONResponse({"request_id": job.id, "canceled": is_canceled, "message": message})

    return router


def _submission(fields: dict[str, Any]) -> Submission:
    """Raises InvalidRequest naming the field that is wrong."""
    asked = validate_or_400(AsyncPredict, fields)
    with within("model_input"):
        given = validate_or_400(PredictRequest, asked.model_input)
        source = given.source(io.BytesIO(), MAX_BODY_BYTES)
    with within("inference_retry_config"):
        retries = validate_or_400(RetryConfig, asked.inference_retry_config)
    return Submission(
        source=source,
        options=given.asked(),
        priority=asked.priority,
        max_queue_s=asked.max_time_in_queue_seconds,
        max_attempts=retries.max_attempts,
        initial_delay_s=retries.initial_delay_ms / 1000,
        max_delay_s=retries.max_delay_ms / 1000,
        webhook_url=asked.webhook_endpoint,
        webhook_style="baseten",
        webhook_param="webhook_endpoint",
    )


def _shown(job: Job) -> dict[str, Any]:
    """An AsyncRequest."""
    webhook_status = "NO_WEBHOOK_PROVIDED"
    if job.webhook_url is not None:
        webhook_status = job.webhook.status.upper() if job.webhook else "PENDING"
    changed_at_s = job.finished_at_s or job.started_at_s or job.created_at_s
    return {
        "request_id": job.id,
        "model_id": MODEL_ID,
        "deployment_id": DEPLOYMENT_ID,
        "status": _status(job),
        "webhook_status": webhook_status,
        "created_at": iso(job.created_at_s),
        "status_at": iso(changed_at_s),
        "errors": baseten_errors(job) if job.is_final else [],
    }


def _status(job: Job) -> str:
    # Baseten's clients get results by webhook alone, so SUCCEEDED would tell them that theirs has arrived.
    # A request that failed stays FAILED: there was no result to lose.
    if job.status == "succeeded" and job.webhook is not None and job.webhook.status == "failed":
        return "WEBHOOK_FAILED"
    return _STATUSES.get(job.status, job.status.upper())
