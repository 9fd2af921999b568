"""A worker in a process of its own, for tests that kill or stop it: one job, which it finishes when told.

`python job_worker.py URL` prints the job it has claimed, waits for a line, and says if its result was taken.
"""

import asyncio
import sys

from serve_app.jobs.store.job_store import JobStore


async def work(url: str) -> None:
    store = JobStore(url)
    held = await store.claim("worker", lease_s=60.0)
    assert held is not None
    print(held.job.id, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print(await store.finish(held.job.id, held.job.attempt, b"the worker's"), flush=True)
    await store.close()


if __name__ == "__main__":
    asyncio.run(work(sys.argv[1]))
