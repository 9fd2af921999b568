"""Records that the job store takes and gives. Frozen, no I/O. Times are seconds of the store's clock."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

Status = Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]
WebhookStatus = Literal["pending", "succeeded", "failed"]
WebhookStyle = Literal["standard", "baseten", "assemblyai"]
STATUSES: tuple[Status, ...] = get_args(Status)
WEBHOOK_COUNTS = (*get_args(WebhookStatus), "retrying")  # what operators see them counted as
Heartbeat = Literal["ok", "cancel", "lost"]

SUSPECT_DEATHS = 4  # fewer may have other causes: updates, a machine that is short of memory

FINAL: tuple[Status, ...] = ("succeeded", "failed", "canceled", "expired")


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to submit."""

    key: str  # name of the API key that owns the job; keys share the workers fairly
    request: str  # what to do, as text that the store does not read; it can have megabytes
    body_hash: str  # of what the client sent; with the same idempotency key it must be the same again
    keep_s: float  # how long after its end the job is kept
    priority: int  # 0 to 2, 0 first
    max_attempts: int
    initial_delay_s: float  # before the second attempt; doubles from attempt to attempt
    max_delay_s: float
    audio: str | None = None  # its URL as clients may see it, or `upload`
    idempotency_key: str | None = None
    max_queue_s: float | None = None  # it expires if work on it has not begun by then
    input_ref: str | None = None  # where the caller keeps the audio
    secrets: bytes | None = None  # encrypted; erased when the job ends
    webhook_url: str | None = None
    webhook_style: WebhookStyle = "standard"


@dataclass(frozen=True, slots=True)
class SegmentBatch:
    """Some consecutive segments of a running job, as they become final; without speakers."""

    attempt: int  # the one that transcribed them
    first: int  # number of the first one in the transcript
    segments: tuple[Mapping[str, Any], ...]  # start, end, text


@dataclass(frozen=True, slots=True)
class Try:
    """One attempt to deliver a webhook."""

    at_s: float
    status: int | None  # of the answer; None where there was none
    error: str | None
    took_s: float


@dataclass(frozen=True, slots=True)
class Webhook:
    """How far the delivery of a job's webhook is."""

    status: WebhookStatus
    due_at_s: float  # of the next try, while it is pending
    log: tuple[Try, ...]  # the last tries, oldest first


@dataclass(frozen=True, slots=True)
class Job:
    """A job as clients see it, without its request and its result, which may be large."""

    id: str  # 32 hex digits that rise with time
    version: int  # rises with every change that a client can see
    key: str
    status: Status
    priority: int
    created_at_s: float
    run_at_s: float  # not before: back-off after a failed attempt
    expires_at_s: float | None  # it expires if it waits then; None when it is queued again after some work
    started_at_s: float | None  # of the last attempt
    finished_at_s: float | None
    delete_at_s: float | None
    attempt: int  # times that a worker took the job: the fencing token of its lease
    failures: int  # attempts that failed
    deaths: int  # attempts whose worker did not come back before its lease ran out
    max_attempts: int
    is_cancel_requested: bool
    progress: dict[str, Any]
    error_code: str | None
    error_message: str | None
    input_ref: str | None
    webhook_url: str | None
    webhook_style: WebhookStyle
    audio: str | None = None
    webhook: Webhook | None = None  # from the end of a job that has a webhook URL

    @property
    def is_final(self) -> bool:
        return self.status in FINAL


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that a worker holds until its lease runs out."""

    job: Job
    request: str
    secrets: bytes | None

    @property
    def runs_alone(self) -> bool:
        """Whether the worker may hold no other job: this one may have killed earlier workers."""
        return self.job.deaths >= SUSPECT_DEATHS


@dataclass(frozen=True, slots=True)
class Delivery:
    """A webhook that its sender holds until the lease runs out."""

    id: str  # the same on every try
    job: Job
    url: str
    claim_no: int  # the fencing token of the lease
    tries: int  # before this one, since the job's end or the client's wish to try again
