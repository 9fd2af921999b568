"""The routes of `/v1/jobs`: requests that outlive their connections."""

import asyncio
import re
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from serve_app import errors
from serve_app.formats.table import FORMATS
from serve_app.http.answer_types import PredictResponse, WordsResponse, described_answers
from serve_app.http.auth import key_name
from serve_app.http.errors import OTHER_ERRORS, described_errors
from serve_app.http.forms import collect_fields, described_body, described_query
from serve_app.http.jobs.events import event_stream
from serve_app.http.jobs.result import RENDERING, WrongState, check_shows, rendering, transcript_of
from serve_app.http.jobs.shown import JobList, JobOut, JobPage, job_path, shown, shown_with_place
from serve_app.http.jobs.submission import (
    IDEMPOTENCY_HEADER,
    JobBody,
    JobOptions,
    form_job,
    idempotency_key,
)
from serve_app.http.other_apis import BASETEN_PREFIXES, JOBS
from serve_app.http.responses import transcript_response
from serve_app.http.uploads import received
from serve_app.jobs.service import Jobs, NoSuchJob
from serve_app.jobs.spool import SpoolUnavailable
from serve_app.jobs.store.records import Job, Status
from serve_app.options import Options
from serve_app.options.validation import validate_or_400


class JobsOff(errors.TranscriptionError, status=404, type="invalid_request_error", code="jobs_off"):
    """This server keeps no jobs."""


def _is_id(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{32}", text):
        raise ValueError("send `next` of the page before")
    return text


class ListQuery(BaseModel):
    """The parameters of `GET /v1/jobs`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    status: tuple[Status, ...] = Field((), description="Only jobs in one of these states.")
    limit: Annotated[int, Field(ge=1, le=100)] = Field(20, description="Jobs of a page.")
    after: Annotated[str, AfterValidator(_is_id)] | None = Field(
        None, description="`next` of the page before."
    )


def job_routes(jobs: Jobs, max_bytes: int, max_json_bytes: int, *, has_list: bool = True) -> APIRouter:
    """The routes in front of these jobs; each API key has its own.

    Where strangers share the jobs, there is no list: only who knows a job's id can see it.
    """
    known = described_errors(errors.StoreBusy) | OTHER_ERRORS
    router = APIRouter(prefix=JOBS, tags=["Jobs"], responses=known)

    async def answer(request: Request, job: Job, status: int = 200) -> JSONResponse:
        root_path = _root_path(request)
        headers = {"Location": job_path(job, root_path)} if status == 201 else None
        return JSONResponse(await shown_with_place(jobs, job, root_path), status, headers)

    @router.post("", status_code=201, **_described_submission())
    async def submit(request: Request) -> Response:
        """Stores a job, or with `items` many at once: all of them or none. They run when there is room.

        The same `Idempotency-Key` with the same request gives the same job again, with status 200.
        """
        unique = idempotency_key(request)
        body = received(request, max_bytes, form_job, max_json_bytes, JobBody)
        async with body as (source, asked):
            stored = await jobs.submit(key_name(request), asked.with_source(source), unique)
        status = 201 if any(is_new for _, is_new in stored) else 200
        if not asked.is_list:
            return await answer(request, stored[0][0], status)
        listed = [shown(job, _root_path(request)) for job, _ in stored]
        return JSONResponse({"jobs": listed}, status)

    @router.get("", **_described(JobPage, errors.InvalidRequest, parameters=described_query(ListQuery)))
    async def list_jobs(request: Request) -> Response:
        """Lists jobs, newest first."""
        if not has_list:
            raise errors.NoApiKeys(
                "This server is open to everybody, so it does not list jobs; ask for a job by its id. Its "
                "operator can add API keys (whisperx-serve key NAME); each key lists its own jobs."
            )
        query = _list_query(request)
        found = await jobs.page(key_name(request), query.status, query.after, query.limit + 1)
        page = found[: query.limit]
        listed = [shown(job, _root_path(request)) for job in page]
        return JSONResponse({"jobs": listed, "next": page[-1].id if len(found) > len(page) else None})

    @router.get("/{job_id}", **_described(JobOut, NoSuchJob))
    async def get_job(request: Request, job_id: str) -> Response:
        """One job: its state, progress, attempts and webhook."""
        return await answer(request, await jobs.get(job_id, key_name(request)))

    @router.get("/{job_id}/result", **_described_result())
    async def get_result(request: Request, job_id: str) -> Response:
        """The transcript, in the format asked for at submission or in any other that can show it.

        With `response_format` here, the rendering options of the submission no longer count.
        """
        key = key_name(request)
        options = rendering(request, (await jobs.request(job_id, key)).options)
        transcript = await transcript_of(jobs, job_id, key)
        check_shows(transcript, options)
        return await asyncio.to_thread(transcript_response, transcript, options)

    @router.get("/{job_id}/events", **_described_events())
    async def get_events(request: Request, job_id: str) -> Response:
        """The job as server-sent events: one at once, one after each change, one when it has ended.

        An event has the job's status as its name and the job as its data. Between them, events `segments`
        have what has been transcribed since: `attempt`, `first`, and `segments` with their times.
        """
        key, root_path = key_name(request), _root_path(request)
        return await event_stream(
            request,
            lambda: jobs.get(job_id, key),
            lambda job: shown_with_place(jobs, job, root_path),
            lambda attempt, first: jobs.store.segments_so_far(job_id, key, attempt, first),
        )

    @router.post("/{job_id}/cancel", **_described(JobOut, NoSuchJob))
    async def cancel(request: Request, job_id: str) -> Response:
        """Ends a queued job; a running one stops between two windows. One that has ended does not change."""
        return await answer(request, await jobs.cancel(job_id, key_name(request)))

    @router.delete("/{job_id}", status_code=204, responses=described_errors(NoSuchJob))
    async def delete(request: Request, job_id: str) -> Response:
        """Erases a job in any state, with its audio, its transcript and its webhook."""
        await jobs.delete(job_id, key_name(request))
        return Response(status_code=204)

    @router.post("/{job_id}/webhook/retry", status_code=202, **_described(JobOut, NoSuchJob, WrongState))
    async def retry_webhook(request: Request, job_id: str) -> Response:
        """Sends the webhook of a job that has ended once more, with the same id."""
        job = await jobs.retry_webhook(job_id, key_name(request))
        if job is None:
            message = "The job has no webhook_url, or has not ended yet: there is no webhook to send."
            raise WrongState(message, None, "no_webhook")
        return await answer(request, job, 202)

    return router


def routes_without_jobs() -> APIRouter:
    """The paths of jobs, other vendors' too, on a server that keeps none."""
    router = APIRouter(include_in_schema=False)

    async def refuse() -> None:
        raise JobsOff("This server keeps no jobs (its jobs.store is off); send the audio to /predict.")

    for path in (JOBS, f"{JOBS}/{{rest:path}}", "/v2/{rest:path}", "/async_request/{rest:path}"):
        router.add_api_route(path, refuse, methods=["GET", "POST", "DELETE"])
    for prefix in BASETEN_PREFIXES:
        router.add_api_route(f"{prefix}/async_predict", refuse, methods=["POST"])
    return router


def _root_path(request: Request) -> str:
    """The path under which the client reaches the service."""
    return str(request.scope.get("root_path", ""))


def _list_query(request: Request) -> ListQuery:
    given = request.query_params.multi_items()
    for name, _ in given:
        if name not in ListQuery.model_fields:
            message = f"{name}: unknown parameter; known are {', '.join(ListQuery.model_fields)}."
            raise errors.InvalidRequest(message, name)
    fields = collect_fields(given, ("status",))
    if "status" in fields:
        fields["status"] = [one.strip() for value in fields["status"] for one in value.split(",")]
    return validate_or_400(ListQuery, fields)


def _described(
    model: Any, *known: type[errors.TranscriptionError], parameters: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The OpenAPI description of a route that answers with this model, or one of these errors."""
    described: dict[str, Any] = {"response_model": model, "responses": described_errors(*known)}
    return described | ({"openapi_extra": {"parameters": parameters}} if parameters else {})


def _described_submission() -> dict[str, Any]:
    fields = JobOptions.model_json_schema()["properties"]
    refused = (
        errors.InvalidRequest,
        errors.UploadTooSlow,
        errors.IdempotencyConflict,
        errors.PayloadTooLarge,
        errors.EncodedBody,
        errors.RateLimited,
        errors.StoreBusy,
        SpoolUnavailable,
    )
    again = {200: {"model": JobOut | JobList, "description": "The same request came before."}}
    return {
        "response_model": JobOut | JobList,
        "responses": {**again, **described_errors(*refused)},
        "openapi_extra": {**described_body(fields, json_model=JobBody), "parameters": [IDEMPOTENCY_HEADER]},
    }


def _described_result() -> dict[str, Any]:
    media_types = [each.media_type for each in FORMATS.values() if each.write]
    known = (errors.InvalidRequest, NoSuchJob, WrongState)
    return {
        "responses": described_answers(PredictResponse | WordsResponse, media_types, *known),
        "openapi_extra": {"parameters": described_query(Options, RENDERING)},
    }


def _described_events() -> dict[str, Any]:
    about = "The id of the last event that the client has; only later ones are sent."
    last = {"name": "Last-Event-ID", "in": "header", "description": about, "schema": {"type": "integer"}}
    stream = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}
    ended = {"description": "The client has seen the end already."}
    return {
        "response_class": Response,
        "responses": {200: stream, 204: ended, **described_errors(NoSuchJob)},
        "openapi_extra": {"parameters": [last]},
    }
