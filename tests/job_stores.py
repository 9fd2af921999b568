"""For tests of jobs: a clock that tests move, and jobs to submit."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.records import ClaimedJob, Job, NewJob

T = TypeVar("T")

LEASE_S = 60.0


class Clock:
    """Time stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, by_s: float) -> None:
        self.now_s += by_s


def using(url: str, story: Callable[[JobStore], Awaitable[T]], clock: Callable[[], float] | None = None) -> T:
    """Runs a story on the store at `url`, which is closed after it."""

    async def opened() -> T:
        store = JobStore(url, clock=clock)
        try:
            return await story(store)
        finally:
            await store.close()

    return asyncio.run(opened())


def new_job(**changes: Any) -> NewJob:
    """A job of one key, kept for an hour."""
    values: dict[str, Any] = {
        "key": "alice",
        "request": '{"language": "en"}',
        "body_hash": "a",
        "keep_s": 3600.0,
        "priority": 0,
        "max_attempts": 3,
        "initial_delay_s": 1.0,
        "max_delay_s": 5.0,
    }
    return NewJob(**{**values, **changes})


async def submit(store: JobStore, new: NewJob) -> tuple[Job, bool]:
    """The job, and whether it is new."""
    return (await store.submit_all([new]))[0]


async def claimed(store: JobStore, worker: str = "worker") -> ClaimedJob:
    """The next job, which must be there."""
    job = await store.claim(worker, LEASE_S)
    assert job is not None
    return job


async def finished(store: JobStore, **changes: Any) -> str:
    """The id of a new job that has succeeded; no other may be waiting."""
    await submit(store, new_job(**changes))
    held = await claimed(store)
    assert await store.finish(held.job.id, held.job.attempt, b"{}")
    return held.job.id
