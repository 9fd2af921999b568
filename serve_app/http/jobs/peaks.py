"""The peaks of the waveform of a job's audio, for a page that draws it."""

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.http.jobs.result import WrongState, no_transcript
from serve_app.http.responses import ErrorResponse, described_errors
from serve_app.jobs.service import Jobs, NoSuchJob
from serve_app.transcript import PEAKS_PER_S


class PeaksOut(TypedDict):
    """The waveform of a job's audio."""

    per_second: int
    peaks: Annotated[str, Field(description="Base64 of a byte each: the loudest sample, in 128ths.")]


def peaks_routes(jobs: Jobs) -> APIRouter:
    """The route of the peaks of these jobs."""
    other = {"model": ErrorResponse, "description": "Any other error."}
    router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"], responses={"default": other})

    @router.get("/peaks", response_model=PeaksOut, responses=described_errors(NoSuchJob, WrongState))
    async def get_peaks(request: Request, job_id: str) -> PeaksOut:
        """The peaks of the waveform, for drawing it without the audio. Empty for jobs of older versions."""
        key = request.scope["api_key_name"]
        transcript = await jobs.transcript(job_id, key)
        if transcript is None:
            raise no_transcript(await jobs.get(job_id, key))
        return {"per_second": PEAKS_PER_S, "peaks": transcript.peaks}

    return router
