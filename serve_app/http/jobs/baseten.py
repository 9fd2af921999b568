"""Baseten's asynchronous inference API, for clients that are written for it, on the jobs of /v1/jobs."""

import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from serve_app.errors import InvalidRequest
from serve_app.http.jobs.other_apis import (
    described,
    json_fields,
    key_name,
    renaming,
    route_class,
    validated_in,
)
from serve_app.http.uploads import PredictRequest, options_in_body_only
from serve_app.jobs.payloads import DEPLOYMENT_ID, MODEL_ID, baseten_errors
from serve_app.jobs.records import Job
from serve_app.jobs.service import Jobs, Submission
from serve_app.options import Options, validate_or_400
from serve_app.spool import decode_base64
from serve_app.transcript import Source

# Baseten's paths name what is deployed; here there is one deployment, which all of them mean.
_PREFIXES = ("", "/production", "/development", "/environments/{name}", "/deployment/{name}")

_STATUSES = {"running": "IN_PROGRESS"}  # others are ours in capitals

_ERROR_CODES = {  # of statuses; client_error for all others
    401: "unauthorized",
    403: "unauthorized",
    413: "payload_too_large",
    429: "rate_limited",
    500: "internal_baseten_error",
    503: "model_unavailable",
    504: "timeout",
}


class AsyncPredict(BaseModel):
    """The body of `POST /async_predict`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_input: dict[str, Any] = Field(description="The JSON body of `POST /predict`.")
    webhook_endpoint: str | None = Field(None, description="https URL that the result is sent to.")
    priority: Annotated[int, Field(ge=0, le=2)] = Field(0, description="0 first.")
    max_time_in_queue_seconds: Annotated[int, Field(ge=10, le=259_200)] = Field(
        600, description="The request expires if work on it has not begun by then."
    )
    inference_retry_config: dict[str, Any] = Field(
        default_factory=dict,
        description="`max_attempts` (1 to 10, else 3), `initial_delay_ms` (up to 10000, else 1000) and "
        "`max_delay_ms` (up to 60000, else 5000) of attempts after a failure.",
    )


class RetryConfig(BaseModel):
    """The `inference_retry_config` of such a body."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_attempts: int = Field(3, ge=1, le=10)
    initial_delay_ms: int = Field(1000, ge=0, le=10_000)
    max_delay_ms: int = Field(5000, ge=0, le=60_000)


def baseten_routes(jobs: Jobs) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["Baseten"], route_class=route_class(_error))

    async def async_predict(request: Request) -> Response:
        """Queues a request of /predict; its result goes to `webhook_endpoint` and is kept as a job's is."""
        submission = _submission(await json_fields(request))
        with renaming({name: f"model_input.{name}" for name in PredictRequest.model_fields}):
            [(job, _)] = await jobs.submit(key_name(request), [submission])
        return _json({"request_id": job.id}, 201)

    for prefix in _PREFIXES:
        router.add_api_route(
            f"{prefix}/async_predict",
            async_predict,
            methods=["POST"],
            status_code=201,
            include_in_schema=not prefix,
            openapi_extra=described(
                AsyncPredict, {"model_input": {"audio_file": "https://example.com/talk.mp3"}}
            ),
            dependencies=[Depends(options_in_body_only())],
        )

    @router.get("/async_request/{request_id}")
    async def async_request(request_id: str, request: Request) -> Response:
        """How far a request is."""
        return _json(_shown(await jobs.get(request_id, key_name(request))))

    @router.delete("/async_request/{request_id}")
    async def cancel(request_id: str, request: Request) -> Response:
        """Cancels a request that waits."""
        job = await jobs.cancel(request_id, key_name(request), only_queued=True)
        is_canceled = job.status == "canceled"
        message = "The request was canceled."
        if not is_canceled:
            message = f"The request is {_status(job)}; only QUEUED ones are canceled."
        if job.status == "running":
            message += f" POST /v1/jobs/{job.id}/cancel stops it."
        return _json({"request_id": job.id, "canceled": is_canceled, "message": message})

    return router


def _submission(fields: dict[str, Any]) -> Submission:
    """Raises InvalidRequest naming the field that is wrong."""
    asked = validate_or_400(AsyncPredict, fields)
    given = validated_in("model_input", PredictRequest, asked.model_input)
    retries = validated_in("inference_retry_config", RetryConfig, asked.inference_retry_config)
    source = Source(url=given.audio_file, headers=given.headers)
    if given.audio_b64 is not None:
        audio = io.BytesIO()
        try:
            decode_base64(given.audio_b64, audio.write)
        except ValueError as error:
            name = "model_input.audio_b64"
            raise InvalidRequest(f"{name}: not valid base64: {error}.", name) from None
        source = Source(file=audio)
    return Submission(
        source=source,
        options=Options.model_validate(given.model_dump(include=set(Options.model_fields))),
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
    is_awaited = job.webhook_url is not None
    webhook_status = "NO_WEBHOOK_PROVIDED"
    if is_awaited:
        webhook_status = job.webhook.status.upper() if job.webhook else "PENDING"
    changed_at_s = job.finished_at_s or job.started_at_s or job.created_at_s
    return {
        "request_id": job.id,
        "model_id": MODEL_ID,
        "deployment_id": DEPLOYMENT_ID,
        "status": _status(job),
        "webhook_status": webhook_status,
        "created_at": datetime.fromtimestamp(job.created_at_s, UTC),
        "status_at": datetime.fromtimestamp(changed_at_s, UTC),
        "errors": baseten_errors(job) if job.is_final else [],
    }


def _status(job: Job) -> str:
    # Baseten's clients get results by webhook alone, so SUCCEEDED would tell them that theirs has arrived.
    # A request that failed stays FAILED: there was no result to lose.
    if job.status == "succeeded" and job.webhook is not None and job.webhook.status == "failed":
        return "WEBHOOK_FAILED"
    return _STATUSES.get(job.status, job.status.upper())


def _error(status: int, told: Mapping[str, str]) -> dict[str, Any]:
    code = _ERROR_CODES.get(status, "client_error")
    return {"error": told["message"], "error_code": code, "detail": told["code"]}


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(to_json(content), status, media_type="application/json")
