"""Takes jobs and webhooks from the store while there are places for them, and erases old ones.

A store that fails ends none of this: each step is tried again until it succeeds.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from tenacity import AsyncRetrying, RetryCallState

from serve_app.errors import RateLimited, TranscriptionError
from serve_app.jobs.attempt import Attempt, in_one_line
from serve_app.jobs.service import Jobs
from serve_app.jobs.spool import SpoolAway
from serve_app.jobs.store.database import PAUSE
from serve_app.jobs.store.records import Delivery, Job
from serve_app.jobs.webhooks import sending
from serve_app.jobs.webhooks.signatures import UnusableSecrets
from serve_app.options import Options
from serve_app.request.progress import Transcribe
from serve_app.transcript import Transcript

logger = logging.getLogger("ray.serve")

COUNT_S = 30.0  # between two counts of what is in the store
POLL_S = 0.5  # between two looks for work, which only read
SWEEP_S = 60.0
WITH_ORPHANS = 2  # a full runner still takes a dead runner's jobs, up to this many times `concurrency`
MAX_WEBHOOKS, MAX_WEBHOOKS_OF_A_KEY = 32, 8  # that are sent at once

T = TypeVar("T")


class Runner:
    """One process's share of the jobs. Everything runs on one event loop."""

    def __init__(
        self,
        jobs: Jobs,
        transcribe: Transcribe,
        answer: Callable[[Transcript, Options], Any],
        worker: str,
        on_count: Callable[[Mapping[str, int], Mapping[str, int], float], None] | None = None,
        on_store_error: Callable[[], None] = lambda: None,
        on_begin: Callable[[str], None] = lambda job_id: None,
    ) -> None:
        """`answer` turns a transcript into the answer of `/predict`, for webhooks.

        `on_count` gets the number of jobs and of webhooks of each status, and how many seconds the oldest
        job has waited, every half minute. `on_store_error` is called each time that the store fails.
        `on_begin` gets a job's id, in the task that works on the job.
        """
        self._on_count, self._on_store_error, self._on_begin = on_count, on_store_error, on_begin
        self._jobs, self._store, self._settings = jobs, jobs.store, jobs.settings
        self._transcribe = transcribe
        self._answer = answer
        self._worker = worker
        self._draining = asyncio.Event()
        self._drained = asyncio.Event()
        self._attempts: set[Attempt] = set()  # one for each job that is held
        self._sending = Counter[str]()  # webhooks, by API key
        # Until when no job of an API key, and no job with an upload, is taken, because it could not begin.
        self._busy_until_s: dict[str, float] = {}
        self._no_uploads_until_s = 0.0

    async def run(self) -> None:
        """Works until `drain`."""
        try:
            async with asyncio.TaskGroup() as tasks:
                places = self._settings.concurrency * WITH_ORPHANS
                tasks.create_task(self._take(self._claim_job, self._work_on, places))
                tasks.create_task(self._take(self._claim_webhook, self._deliver, MAX_WEBHOOKS))
                tasks.create_task(self._sweep())
                tasks.create_task(self._count())
        finally:
            await self._store.close()
            self._drained.set()

    async def drain(self) -> None:
        """Gives running jobs back, so that other runners take them at once, and ends `run`.

        Webhooks that are being sent are sent to their end.
        """
        self._draining.set()
        for attempt in self._attempts:
            attempt.interrupt("drain")
        await self._drained.wait()

    async def _take(
        self, claim: Callable[[], Awaitable[T | None]], work: Callable[[T], Awaitable[None]], places: int
    ) -> None:
        """Claims one thing after the other while there is a place, and works on them side by side."""
        free = asyncio.Semaphore(places)

        async def in_its_place(claimed: T) -> None:
            try:
                await work(claimed)
            except Exception:  # it is claimed again when its lease has run out
                logger.exception("A job or a webhook was dropped.")
            finally:
                free.release()

        async with asyncio.TaskGroup() as working:
            while True:
                await free.acquire()
                claimed = None if self._draining.is_set() else await self._persistently(claim)
                if claimed is not None:
                    working.create_task(in_its_place(claimed))
                    continue
                if self._draining.is_set():
                    return
                free.release()
                await self._pause(POLL_S)

    async def _sweep(self) -> None:
        while not self._draining.is_set():
            if not await self._persistently(self._jobs.sweep):  # else more may be left
                await self._pause(SWEEP_S)

    async def _count(self) -> None:
        while self._on_count and not self._draining.is_set():
            if (counts := await self._persistently(self._store.counts)) is not None:
                self._on_count(*counts)
            await self._pause(COUNT_S)

    async def _persistently(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """The result of the call, once it succeeds; None if the runner drains before that."""
        retrying = AsyncRetrying(
            wait=PAUSE,
            sleep=self._pause,
            stop=lambda _: self._draining.is_set(),
            before_sleep=self._note_failure,
            retry_error_callback=lambda _: None,
        )
        return await retrying(call)

    def _note_failure(self, failed: RetryCallState) -> None:
        error = failed.outcome.exception() if failed.outcome else None
        if isinstance(error, UnusableSecrets):
            logger.warning("Webhooks wait: %s", error)
            return
        self._on_store_error()
        logger.warning("Jobs wait: %s", in_one_line(error))

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._draining.wait()

    async def _claim_job(self) -> Attempt | None:
        if any(attempt.claimed.runs_alone for attempt in self._attempts):
            return None
        held = [attempt.claimed.job.id for attempt in self._attempts]
        now_s = monotonic()
        claimed = await self._store.claim(
            self._worker,
            self._settings.lease_s,
            held=held,
            only_orphans=len(held) >= self._settings.concurrency,
            busy_keys=[key for key, until_s in self._busy_until_s.items() if until_s > now_s],
            with_uploads=self._no_uploads_until_s <= now_s,
        )
        if claimed is None:
            return None
        attempt = Attempt(self._jobs, self._transcribe, claimed, partial(self._note_wait, claimed.job.key))
        self._attempts.add(attempt)
        return attempt

    def _note_wait(self, key: str, why: TranscriptionError) -> None:
        until_s = monotonic() + (why.retry_after_s or 0.0)
        if isinstance(why, RateLimited):
            self._busy_until_s[key] = until_s
        elif isinstance(why, SpoolAway):
            self._no_uploads_until_s = until_s

    async def _work_on(self, attempt: Attempt) -> None:
        self._on_begin(attempt.claimed.job.id)
        if self._draining.is_set():
            attempt.interrupt("drain")
        try:
            await attempt.run()
        finally:
            self._attempts.remove(attempt)

    async def _claim_webhook(self) -> tuple[Delivery, sending.Signers] | None:
        busy = [key for key, count in self._sending.items() if count >= MAX_WEBHOOKS_OF_A_KEY]
        claimed = await sending.claim(self._store, self._settings.webhooks, busy)
        if claimed is not None:
            self._sending[claimed[0].job.key] += 1
        return claimed

    async def _deliver(self, claimed: tuple[Delivery, sending.Signers]) -> None:
        delivery, signers = claimed
        try:
            await sending.deliver(self._store, delivery, signers, self._answer_of, self._settings.webhooks)
        finally:
            self._sending[delivery.job.key] -= 1

    async def _answer_of(self, job: Job) -> Any:
        transcript = await self._jobs.transcript(job.id, job.key)
        if transcript is None:
            return None
        request = await self._jobs.request(job.id, job.key)
        return await asyncio.to_thread(self._answer, transcript, request.options)
