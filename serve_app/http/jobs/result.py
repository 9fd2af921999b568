"""A job's transcript in any format: which options may be chosen late, and when there is nothing to show."""

from typing import Any

from starlette.requests import Request

from serve_app.errors import InvalidRequest, TranscriptionError
from serve_app.http.forms import collect_fields
from serve_app.jobs.payloads import ENDS
from serve_app.jobs.records import Job
from serve_app.options import LINE_OPTIONS, Options, conflict, parse_options
from serve_app.transcript import Transcript

RENDERING = ("response_format", "word_timestamps", *LINE_OPTIONS)


class WrongState(TranscriptionError, status=409, type="invalid_request_error", code="job_not_finished"):
    """The job's state does not allow it; also `job_failed`, `job_canceled`, `job_expired`, `no_webhook`."""


def no_transcript(job: Job) -> WrongState:
    """Why there is no transcript of this job."""
    if not job.is_final:
        return WrongState(f"The job is {job.status}; ask again when it has succeeded, or follow its events.")
    why = f": {job.error_message}" if job.error_message else "; there is no transcript."
    return WrongState(f"The job {ENDS[job.status]}{why}", None, f"job_{job.status}")


def rendering(request: Request, submitted: Options) -> Options:
    """How to show the transcript: as it was asked for at submission, or as the URL says.

    With `response_format` in the URL, all options for rendering are the URL's; without it, those of the URL
    replace those of the submission. Raises InvalidRequest for what the transcript cannot show.
    """
    given = request.query_params.multi_items()
    for name, _ in given:
        if name not in RENDERING:
            message = f"{name}: the transcript is made; only {', '.join(RENDERING)} can be chosen now."
            raise InvalidRequest(message, name)
    chosen: dict[str, Any] = collect_fields(given, ())
    if "response_format" not in chosen:
        chosen = {**submitted.model_dump(include=set(RENDERING), exclude_defaults=True), **chosen}
    # Of the other options only these limit what can be shown: speakers that were wanted may be left out.
    diarize = False if submitted.diarize is False else None
    return parse_options({**chosen, "task": submitted.task, "diarize": diarize})


def check_shows(transcript: Transcript, options: Options) -> None:
    """Raises InvalidRequest where the format would have nothing of the transcript in it."""
    if options.response_format == "rttm" and transcript.segments and not transcript.turns:
        raise conflict(
            "response_format",
            "the speakers of this transcript are not known; choose another format, or submit the audio again "
            "with diarize=true",
        )
