"""One attempt at a job: it is transcribed under a lease, and its result or error is stored."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Any, Literal

from serve_app.errors import (
    DeadlineExceeded,
    ModelCrashed,
    NoRoom,
    RateLimited,
    StoreBusy,
    TranscriptionError,
)
from serve_app.jobs.service import Jobs, NoSuchJob
from serve_app.jobs.spool import SpoolUnavailable
from serve_app.jobs.store.database import until_stored
from serve_app.jobs.store.records import ClaimedJob, SegmentBatch
from serve_app.jobs.stored import JobRequest, OtherVersion, dump_transcript
from serve_app.request.progress import Transcribe
from serve_app.transcript import Progress

logger = logging.getLogger("ray.serve")

MAX_WAIT_S = 30  # until a job that could not begin is tried again
MAX_BEAT_S = 2.0  # between two heartbeats; the progress that clients see is at most this old
LOST = "Job %s was given to another worker, or deleted; this attempt is dropped."

Interruption = Literal["cancel", "lost", "drain"]
Ending = Callable[[], Awaitable[bool]]  # stores how the attempt ended; False where the lease was lost


class UploadLost(TranscriptionError, status=404, type="invalid_request_error", code="audio_lost"):
    """The audio of a job is no longer where it was put."""


# The job does not cause these. It may cause other overload of a stage, such as too little memory.
NO_ATTEMPT = (NoRoom, RateLimited, StoreBusy, SpoolUnavailable, OtherVersion)


class Attempt:
    """The work on a job that this process has claimed."""

    def __init__(
        self,
        jobs: Jobs,
        transcribe: Transcribe,
        claimed: ClaimedJob,
        on_wait: Callable[[TranscriptionError], None] = lambda why: None,
    ) -> None:
        """`on_wait` gets the reason where the job has to wait for something that it does not cause."""
        self._jobs, self._store, self._lease_s = jobs, jobs.store, jobs.settings.lease_s
        self._transcribe = transcribe
        self.claimed, self._on_wait = claimed, on_wait
        self._held = claimed.job.id, claimed.job.attempt
        self._progress: dict[str, Any] = {}
        self._segments: list[dict[str, Any]] = []  # as they become final
        self._interruption: asyncio.Future[Interruption] = asyncio.get_running_loop().create_future()

    def interrupt(self, why: Interruption) -> None:
        """Stops the work, unless it is done."""
        if not self._interruption.done():
            self._interruption.set_result(why)

    async def run(self) -> None:
        """Works on the job while its lease is held, and stores how that ended."""
        tasks: list[asyncio.Task[Any]] = [
            working := asyncio.create_task(self._result()),
            beating := asyncio.create_task(self._beat()),
        ]
        try:
            first: list[asyncio.Future[Any]] = [working, self._interruption]
            await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                ending: Ending | None = self._ending(working)
            else:
                working.cancel()
                await asyncio.wait([working])
                ending = self._interrupted(self._interruption.result())
            if ending is not None:
                tasks.append(told := asyncio.create_task(until_stored(ending)))
                await asyncio.wait([told, beating], return_when=asyncio.FIRST_COMPLETED)
                if told.done() and not told.result():
                    logger.warning(LOST, self._held[0])
            with suppress(NoSuchJob, StoreBusy):  # else the sweep does it
                await self._jobs.remove_upload(await self._jobs.get(self._held[0], self.claimed.job.key))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _result(self) -> bytes:
        """The transcript as JSON; its progress is noted meanwhile."""

        def report(news: Progress) -> None:
            self._progress = {
                "windows_done": news.windows_done,
                "windows_found": news.windows_found,
                "all_found": news.all_found,
                "stage": news.stage,
            }
            self._segments += [
                {"start": round(each.start_s, 3), "end": round(each.end_s, 3), "text": each.text}
                for each in news.segments
            ]

        options = JobRequest.load(self.claimed.request).to_run
        async with AsyncExitStack() as held:
            held.enter_context(self._jobs.audio_quota(self.claimed.job.key))
            try:
                source = await held.enter_async_context(self._jobs.source(self.claimed))
            except FileNotFoundError:
                message = "The job's audio is no longer in the server's spool; submit it again."
                raise UploadLost(message) from None
            transcript = await self._transcribe(source, options, report)
        return await asyncio.to_thread(dump_transcript, transcript)

    async def _beat(self) -> None:
        """Prolongs the lease until it is lost, and interrupts the work if the client cancels it."""
        lease_s, written, first = self._lease_s, dict[str, Any](), 0
        while True:
            await asyncio.sleep(min(MAX_BEAT_S, lease_s / 3))
            news, new = self._progress, tuple(self._segments[first:])
            batch = SegmentBatch(self._held[1], first, new) if new else None
            try:
                said = await self._store.heartbeat(
                    *self._held, lease_s, None if news == written else news, batch
                )
            except Exception as error:  # noqa: BLE001  (if the lease is lost, a later heartbeat says so)
                logger.warning("The lease of job %s is not prolonged: %s", self._held[0], in_one_line(error))
                continue
            written, first = news, first + len(new)
            if said != "ok":
                self.interrupt(said)
            if said == "lost":
                return

    def _interrupted(self, why: Interruption) -> Ending | None:
        if why == "cancel":
            return partial(self._store.canceled, *self._held)
        if why == "drain":
            return partial(self._store.release, *self._held)
        logger.warning(LOST, self._held[0])
        return None

    def _ending(self, working: "asyncio.Task[bytes]") -> Ending:
        """How to store the outcome of the work."""
        error = asyncio.CancelledError() if working.cancelled() else working.exception()
        if error is None:
            return partial(self._finish, working.result())
        if isinstance(error, NO_ATTEMPT):
            level = logging.WARNING if isinstance(error, OtherVersion) else logging.INFO
            logger.log(level, "Job %s has to wait: %s", self._held[0], error.message)
            self._on_wait(error)
            is_known = isinstance(error, RateLimited)  # when a key has audio left; room may come at any time
            delay_s = error.retry_after_s if is_known else min(error.retry_after_s, MAX_WAIT_S)
            why, has_begun = (error.code, error.message), bool(self._progress)
            return partial(self._store.release, *self._held, delay_s, why, has_begun=has_begun)
        return partial(self._fail, error)

    async def _finish(self, result: bytes) -> bool:
        try:
            return await self._store.finish(*self._held, result)
        except StoreBusy:
            raise
        except Exception as error:  # noqa: BLE001  (if the result cannot be stored, the attempt failed)
            return await self._fail(error)

    async def _fail(self, error: BaseException) -> bool:
        if not isinstance(error, TranscriptionError):
            logger.error("Job %s failed.", self._held[0], exc_info=error)
            error = TranscriptionError("The server failed; the operator's log has the details.")
        retry = _may_pass(error)
        return await self._store.fail(*self._held, error.code, error.message, retry=retry)


def _may_pass(error: TranscriptionError) -> bool:
    """Whether another attempt may succeed."""
    is_ours = error.status >= 500 and not isinstance(error, ModelCrashed | DeadlineExceeded)
    # Another node may have the audio that is not here.
    return is_ours or error.type == "source_error" or isinstance(error, UploadLost)


def in_one_line(error: BaseException | None) -> str:
    """The message of an error on one line, for the log; with the reason if the store is busy."""
    if isinstance(error, StoreBusy) and error.__cause__ is not None:
        return f"{error.message} {in_one_line(error.__cause__)}"
    if isinstance(error, TranscriptionError):
        return error.message
    return f"{type(error).__name__}: {error}".partition("\n")[0]
