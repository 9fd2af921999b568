"""A job's transcript: the options that can be chosen after submission, and the peaks of the waveform."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.audio import PEAKS_PER_S
from serve_app.errors import InvalidRequest, StoreBusy, TranscriptionError
from serve_app.http.auth import key_name
from serve_app.http.errors import OTHER_ERRORS, described_errors
from serve_app.http.forms import collect_fields
from serve_app.http.model_names import with_defaults
from serve_app.jobs.service import Jobs, NoSuchJob
from serve_app.jobs.webhooks.payloads import ENDS
from serve_app.options import Options, parse_options
from serve_app.options.conflicts import LINE_OPTIONS
from serve_app.options.validation import conflict
from serve_app.transcript import Transcript

KEPT_IF_ASKED = ("logprobs", "confidence", "char_timestamps", "embeddings")
RENDERING = ("response_format", "word_timestamps", *KEPT_IF_ASKED, *LINE_OPTIONS)


class WrongState(TranscriptionError, status=409, type="invalid_request_error", code="job_not_finished"):
    """The job's state does not allow it; also `job_failed`, `job_canceled`, `job_expired`, `no_webhook`."""


async def transcript_of(jobs: Jobs, job_id: str, key: str) -> Transcript:
    """The transcript of a job. Raises WrongState where there is none, with the reason."""
    job = await jobs.get(job_id, key)  # before its transcript: a job that is not done now may be done then
    if not job.is_final:
        raise WrongState(f"The job is {job.status}; ask again when it has succeeded, or follow its events.")
    if job.status == "succeeded":
        if (transcript := await jobs.transcript(job_id, key)) is None:
            raise NoSuchJob("The job was deleted.")
        return transcript
    why = f": {job.error_message}" if job.error_message else "; there is no transcript."
    raise WrongState(f"The job {ENDS[job.status]}{why}", None, f"job_{job.status}")


def rendering(request: Request, submitted: Options) -> Options:
    """How to show the transcript: as it was asked for at submission, or as the URL says.

    With `response_format` in the URL, all options for rendering are the URL's; without it, those of the URL
    replace those of the submission, of which those go that do not fit the URL's. Raises InvalidRequest for
    what the transcript cannot show.
    """
    given = request.query_params.multi_items()
    for name, _ in given:
        if name not in RENDERING:
            message = f"{name}: the transcript is made; only {', '.join(RENDERING)} can be chosen now."
            raise InvalidRequest(message, name)
    chosen: dict[str, Any] = collect_fields(given, ())
    kept: dict[str, Any] = {}
    if "response_format" not in chosen:
        kept = submitted.model_dump(include=set(RENDERING), exclude_defaults=True)
        chosen["response_format"] = submitted.response_format
    # Of the other options only these limit what can be shown: speakers that were wanted may be left out.
    has_no_speakers = submitted.diarize is False and submitted.channels == "mix"
    diarize = False if has_no_speakers else None
    made = {"task": submitted.task, "align": submitted.align, "diarize": diarize}
    options, _ = with_defaults(kept, chosen, lambda shown: parse_options({**shown, **made}))
    for name in KEPT_IF_ASKED:
        if getattr(options, name) and not getattr(submitted, name):
            raise conflict(name, f"kept only of a job that was submitted with {name}=true")
    # What was found out about languages is in the transcript, and so are the channels.
    heard = {name: getattr(submitted, name) for name in ("language", "languages", "channels")}
    return options.model_copy(update=heard)


def check_shows(transcript: Transcript, options: Options) -> None:
    """Raises InvalidRequest if the format would show nothing of the transcript."""
    if options.response_format == "rttm" and transcript.segments and not transcript.turns:
        raise conflict(
            "response_format",
            "the speakers of this transcript are not known; choose another format, or submit the audio again "
            "with diarize=true",
        )


class PeaksOut(TypedDict):
    """The waveform of a job's audio."""

    per_second: Annotated[int, Field(description="How many there are for a second of audio.")]
    peaks: Annotated[str, Field(description="Base64 of a byte for each: the loudest sample, in 128ths.")]


def peaks_routes(jobs: Jobs) -> APIRouter:
    """The route of the peaks of these jobs."""
    known = described_errors(StoreBusy) | OTHER_ERRORS
    router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["Jobs"], responses=known)

    @router.get("/peaks", response_model=PeaksOut, responses=described_errors(NoSuchJob, WrongState))
    async def get_peaks(request: Request, job_id: str) -> PeaksOut:
        """The peaks of the waveform, for drawing it without the audio. Empty for jobs of older versions."""
        transcript = await transcript_of(jobs, job_id, key_name(request))
        return {"per_second": PEAKS_PER_S, "peaks": transcript.peaks}

    return router
