"""The bodies of webhooks: the event of Standard Webhooks, and those of Baseten's and AssemblyAI's APIs."""

from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from serve_app.jobs.store.records import Job

MAX_EMBEDDED_BYTES = 16_384  # of a result; the specification advises to keep the whole body under 20 kB
MODEL_ID = DEPLOYMENT_ID = "whisperx"  # Baseten's clients expect both

_EVENTS = {"succeeded": "completed"}  # other events are named after the status

ENDS = {"failed": "has failed", "canceled": "was canceled", "expired": "has expired"}

_INVALID_INPUT = (
    "invalid_request undecodable_audio empty_audio no_audio_stream encrypted_audio audio_too_long "
    "payload_too_large diarization_unavailable"
)
_BASETEN_CODES = {  # of our errors; MODEL_PREDICT_ERROR for all others
    **dict.fromkeys(_INVALID_INPUT.split(), "MODEL_INVALID_INPUT"),
    "deadline_exceeded": "MODEL_PREDICT_TIMEOUT",
    "internal_error": "INTERNAL_SERVER_ERROR",
    "model_not_found": "MODEL_DOES_NOT_EXIST",
    "model_unavailable": "MODEL_NOT_READY",
    "overloaded": "MODEL_UNAVAILABLE",
}


def standard_body(job: Job, answer: Any) -> bytes:
    """The event of a job's end, the same on every try; with the result if that is small."""
    ended_at = iso(job.finished_at_s or job.created_at_s)
    data: dict[str, Any] = {
        "job_id": job.id,
        "status": job.status,
        "created_at": iso(job.created_at_s),
        "finished_at": ended_at,
    }
    if job.status == "succeeded":
        data["result_url"] = f"/v1/jobs/{job.id}/result"
        if answer is not None and len(to_json(answer)) <= MAX_EMBEDDED_BYTES:
            data["result"] = answer
    if job.error_code or job.error_message:
        data["error"] = {"code": job.error_code, "message": job.error_message}
    event = f"transcription.{_EVENTS.get(job.status, job.status)}"
    return to_json({"type": event, "timestamp": ended_at, "data": data})


def baseten_body(job: Job, answer: Any, now_s: float) -> bytes:
    """Baseten's body has the whole result, because its clients look for it nowhere else.

    Compact and in the order of its fields: some receivers verify what they have parsed and written again.
    """
    return to_json(
        {
            "request_id": job.id,
            "model_id": MODEL_ID,
            "deployment_id": DEPLOYMENT_ID,
            "type": "async_request_completed",
            # In the form in which pydantic writes a time again.
            "time": datetime.fromtimestamp(now_s, UTC),
            "data": answer,
            "errors": baseten_errors(job),
        }
    )


def baseten_errors(job: Job) -> list[dict[str, str]]:
    """The `errors` of a job that has ended, as Baseten lists them."""
    if job.status == "succeeded":
        return []
    code = _BASETEN_CODES.get(job.error_code or "", "MODEL_PREDICT_ERROR")
    return [{"code": code, "message": job.error_message or f"The request {ENDS[job.status]}."}]


def assemblyai_body(job: Job) -> bytes:
    """AssemblyAI's body: its clients fetch the transcript when this arrives."""
    return to_json({"transcript_id": job.id, "status": "completed" if job.status == "succeeded" else "error"})


def iso(at_s: float) -> str:
    """A time as all answers and webhooks have it: ISO 8601 in UTC, with milliseconds."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
