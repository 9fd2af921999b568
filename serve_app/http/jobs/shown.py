"""Jobs as clients see them."""

from contextlib import suppress
from typing import Annotated, Literal, NotRequired, cast

from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.errors import StoreBusy
from serve_app.jobs.service import Jobs
from serve_app.jobs.store.records import Job, Status, WebhookStatus
from serve_app.jobs.store.schema import WEBHOOK_ID_PREFIX
from serve_app.jobs.webhooks.payloads import iso
from serve_app.stages.audio import address


class ProgressOut(TypedDict):
    """How far a running job is."""

    windows_done: Annotated[int, Field(description="Windows of speech whose text and word times are known.")]
    windows_found: int
    all_found: Annotated[bool, Field(description="The whole file has been searched for speech.")]
    stage: Annotated[
        Literal["recognition", "diarization"],
        Field(description="What is waited for: the windows, or at last the speakers alone."),
    ]


class JobErrorOut(TypedDict):
    """Why a job failed, or its last attempt, or why it waits."""

    code: str | None
    message: str | None


class TryOut(TypedDict):
    """One attempt to deliver a webhook."""

    at: Annotated[str, Field(description="When it was made.")]
    status: Annotated[int | None, Field(description="Of the answer; null where there was none.")]
    error: Annotated[str | None, Field(description="Why it failed; null where it did not.")]
    took_s: float


class WebhookOut(TypedDict):
    """The webhook of a job that has one; it is sent when the job has ended."""

    id: Annotated[str, Field(description="`webhook-id`, the same on every try.")]
    url: Annotated[str, Field(description="Without its query.")]
    status: WebhookStatus
    next_try_at: Annotated[str | None, Field(description="While it is pending and the job has ended.")]
    tries: Annotated[list[TryOut], Field(description="What was tried so far.")]


class JobOut(TypedDict):
    """A job. Times are ISO 8601 in UTC."""

    id: str
    status: Status
    canceling: Annotated[bool, Field(description="It runs and will stop between two windows.")]
    priority: Annotated[int, Field(description="0 begins before 1 and 2.")]
    audio: Annotated[str | None, Field(description="Its URL without the query, or `upload`.")]
    created_at: str
    started_at: Annotated[str | None, Field(description="Of the last attempt.")]
    finished_at: str | None
    expires_at: Annotated[str | None, Field(description="While it waits, with `max_queue_s`.")]
    delete_at: Annotated[str | None, Field(description="When all of it will be erased.")]
    attempts: Annotated[int, Field(description="Times that work on it began.")]
    failures: Annotated[int, Field(description="Attempts that failed; `max_attempts` limits them.")]
    deaths: Annotated[int, Field(description="Attempts whose server died.")]
    jobs_ahead: NotRequired[
        Annotated[int, Field(description="While it waits: about how many begin before it. Not in lists.")]
    ]
    progress: Annotated[ProgressOut | None, Field(description="While it runs.")]
    error: Annotated[
        JobErrorOut | None, Field(description="Why it, or its last attempt, failed; or why it waits.")
    ]
    webhook: Annotated[WebhookOut | None, Field(description="If it has one.")]
    result_url: Annotated[str | None, Field(description="Once it has succeeded.")]


class JobList(TypedDict):
    """The jobs of one request, in its order."""

    jobs: list[JobOut]


class JobPage(TypedDict):
    """Some jobs, newest first."""

    jobs: list[JobOut]
    next: Annotated[str | None, Field(description="`after` of the next page; null on the last one.")]


def job_path(job: Job, root_path: str) -> str:
    """The path of the job, for a client that reaches the service at `root_path`."""
    return f"{root_path}/v1/jobs/{job.id}"


def shown(job: Job, root_path: str) -> JobOut:
    """The job, JSON-ready, without its place in the queue."""
    is_running = job.status == "running"
    has_error = not is_running and (job.error_code or job.error_message)
    # A runner of an older version does not tell the stage.
    progress = cast(ProgressOut, {"stage": "recognition", **job.progress})
    return {
        "id": job.id,
        "status": job.status,
        "canceling": is_running and job.is_cancel_requested,
        "priority": job.priority,
        "audio": job.audio,
        "created_at": iso(job.created_at_s),
        "started_at": _iso_or_none(job.started_at_s),
        "finished_at": _iso_or_none(job.finished_at_s),
        "expires_at": None if is_running else _iso_or_none(job.expires_at_s),
        "delete_at": _iso_or_none(job.delete_at_s),
        "attempts": job.attempt,
        "failures": job.failures,
        "deaths": job.deaths,
        "progress": progress if is_running and job.progress else None,
        "error": {"code": job.error_code, "message": job.error_message} if has_error else None,
        "webhook": _webhook(job),
        "result_url": f"{job_path(job, root_path)}/result" if job.status == "succeeded" else None,
    }


async def shown_with_place(jobs: Jobs, job: Job, root_path: str) -> JobOut:
    """The job, JSON-ready, with its place in the queue while it waits, if the store tells it.

    Without its place the answer is still true: a job that is stored must not look as if it were not.
    """
    out = shown(job, root_path)
    if job.status == "queued":
        with suppress(StoreBusy):
            out["jobs_ahead"] = await jobs.jobs_ahead(job)
    return out


def _webhook(job: Job) -> WebhookOut | None:
    if job.webhook_url is None:
        return None
    sent = job.webhook
    return {
        "id": WEBHOOK_ID_PREFIX + job.id,
        "url": address.without_secrets(address.parse(job.webhook_url)),
        "status": sent.status if sent else "pending",
        "next_try_at": iso(sent.due_at_s) if sent and sent.status == "pending" else None,
        "tries": [
            {
                "at": iso(made.at_s),
                "status": made.status,
                "error": made.error,
                "took_s": round(made.took_s, 3),
            }
            for made in (sent.log if sent else ())
        ],
    }


def _iso_or_none(at_s: float | None) -> str | None:
    return None if at_s is None else iso(at_s)
