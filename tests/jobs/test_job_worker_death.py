"""Workers that are killed, and workers that hang and wake up: real processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from job_stores import LEASE_S, claimed, new_job, submit, using

from serve_app.jobs.store.job_store import JobStore

WORKER = Path(__file__).parents[1] / "job_worker.py"


def later() -> float:
    """A time at which all leases have run out."""
    return time.time() + LEASE_S + 1


@contextmanager
def worker(url: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A worker's process and the job that it has claimed."""
    process = subprocess.Popen(
        [sys.executable, WORKER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    with process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def test_the_job_of_a_killed_worker_is_claimed_again(store_url: str) -> None:
    """It is claimed when the lease has run out, not before."""
    job, _ = using(store_url, lambda store: submit(store, new_job()))
    with worker(store_url) as (process, job_id):
        assert job_id == job.id
        process.kill()
        process.wait()
    assert using(store_url, lambda store: store.claim("second", LEASE_S)) is None

    async def finish(store: JobStore) -> bytes | None:
        held = (await claimed(store)).job
        assert (held.id, held.attempt, held.deaths) == (job.id, 2, 1)
        assert await store.finish(held.id, held.attempt, b"the second's")
        return await store.result(job.id, "alice")

    assert using(store_url, finish, later) == b"the second's"


def test_a_worker_that_was_stopped_and_wakes_up_is_refused(store_url: str) -> None:
    """Another one had its job meanwhile: the late result is not stored."""
    using(store_url, lambda store: submit(store, new_job()))

    async def claim(store: JobStore) -> int:
        return (await claimed(store)).job.attempt

    with worker(store_url) as (process, job_id):
        process.send_signal(signal.SIGSTOP)
        attempt = using(store_url, claim, later)
        process.send_signal(signal.SIGCONT)
        late, _ = process.communicate("go on\n", timeout=60)
    assert late.strip() == "False"

    async def finish(store: JobStore) -> bytes | None:
        assert await store.finish(job_id, attempt, b"the second's")
        return await store.result(job_id, "alice")

    assert using(store_url, finish) == b"the second's"
