"""What a page shows of a job's sound: the upload itself, and the peaks of its waveform."""

import asyncio
import os
from contextlib import AsyncExitStack
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field
from starlette.types import Receive, Scope, Send
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.errors import StoreBusy, TranscriptionError
from serve_app.http.jobs.result import WrongState, no_transcript
from serve_app.http.responses import OTHER_ERRORS, described_errors
from serve_app.jobs.service import Jobs, NoSuchJob
from serve_app.transcript import PEAKS_PER_S

PIECE_BYTES = 1 << 20
# Whatever was uploaded, a browser must not take it for a page of this server.
_AS_DATA = {"X-Content-Type-Options": "nosniff", "Content-Disposition": "attachment; filename=audio"}


class NoUpload(TranscriptionError, status=404, type="invalid_request_error", code="no_upload"):
    """The server keeps the audio of uploads only, and as long as their job."""


class PeaksOut(TypedDict):
    """The waveform of a job's audio."""

    per_second: Annotated[int, Field(description="How many there are for a second of audio.")]
    peaks: Annotated[str, Field(description="Base64 of a byte for each: the loudest sample, in 128ths.")]


def audio_routes(jobs: Jobs) -> APIRouter:
    """The routes of the sound of these jobs."""
    known = described_errors(StoreBusy) | OTHER_ERRORS
    router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["Jobs"], responses=known)
    content: dict[str, Any] = {"application/octet-stream": {}}
    found: dict[int | str, dict[str, Any]] = {
        200: {"content": content, "description": "The file as it came."},
        **described_errors(NoSuchJob, NoUpload),
    }

    @router.get("/audio", response_class=Response, responses=found)
    async def get_audio(request: Request, job_id: str) -> Response:
        """The uploaded file, byte for byte. Audio that came by its URL is not kept."""
        job = await jobs.get(job_id, request.scope["api_key_name"])
        async with AsyncExitStack() as held:
            if job.input_ref is not None:
                try:
                    file = await held.enter_async_context(jobs.spool.opened(job.input_ref))
                    return _Upload(file, held.pop_all())
                except FileNotFoundError:
                    pass
            raise NoUpload("The server does not have this job's audio; it keeps uploads only.")

    @router.get("/peaks", response_model=PeaksOut, responses=described_errors(NoSuchJob, WrongState))
    async def get_peaks(request: Request, job_id: str) -> PeaksOut:
        """The peaks of the waveform, for drawing it without the audio; empty for jobs of older versions."""
        key = request.scope["api_key_name"]
        transcript = await jobs.transcript(job_id, key)
        if transcript is None:
            raise no_transcript(await jobs.get(job_id, key))
        return {"per_second": PEAKS_PER_S, "peaks": transcript.peaks}

    return router


class _Upload(Response):
    """An answer with all of a file; `held` closes it."""

    def __init__(self, file: BinaryIO, held: AsyncExitStack) -> None:
        size = os.fstat(file.fileno()).st_size
        super().__init__(
            media_type="application/octet-stream", headers={**_AS_DATA, "Content-Length": str(size)}
        )
        self._file, self._held = file, held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while piece := await asyncio.to_thread(self._file.read, PIECE_BYTES):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
