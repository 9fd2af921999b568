"""Leases: how workers take jobs and what they may write while they hold one.

A job is held by the worker that has its attempt number. Every claim raises the number, so a worker that was
away for too long writes nothing any more: its methods return False (or "lost"), and it drops the work.
"""

import asyncio
import json
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs.store.database import to_the_end
from serve_app.jobs.store.outbox import Outbox, end_jobs
from serve_app.jobs.store.queue import PRIORITIES, is_due, is_orphaned, next_of, orphans, queue, waiting_keys
from serve_app.jobs.store.records import SUSPECT_DEATHS, ClaimedJob, Heartbeat, SegmentBatch
from serve_app.jobs.store.schema import JOB_COLUMNS, job_of, jobs, requests, results, segments

MAX_DEATHS = 20  # of a job's workers; a rolling restart causes some, but not this many
CRASHED = ("model_crashed", "Every worker that took this job died of it; it is not tried again.")


class Claims(Outbox):
    """What workers do."""

    @to_the_end
    async def claim(
        self,
        worker: str,
        lease_s: float,
        max_deaths: int = MAX_DEATHS,
        *,
        held: Collection[str] = (),
        only_orphans: bool = False,
        busy_keys: Collection[str] = (),
        with_uploads: bool = True,
    ) -> ClaimedJob | None:
        """The next job: first those whose worker died, then the highest priority, API keys in turn.

        A worker without a free place takes `only_orphans`, so that those do not wait a second time.
        `held` are the ids of the jobs that the worker runs: it is not given them again, although an outage
        of the store may have let their leases run out. A job that several workers died of would take others
        with it, so only a worker that holds none gets it. While it waits, workers that hold jobs get nothing:
        else, under load, no worker would ever be free. Due jobs of `busy_keys` stay in the queue; without
        `with_uploads` so do jobs with uploads.
        """
        now = self.now()
        wanted = [queue.c.key.not_in(busy_keys)]
        if not with_uploads:
            wanted.append(queue.c.input_ref.is_(None))
        questions = [
            sa.exists().where(is_due(queue, now), *wanted),
            sa.exists().where(is_orphaned(queue, now)),
        ]
        async with self.read() as connection:  # a worker with nothing to do takes no lock
            any_due, any_orphaned = tuple((await connection.execute(sa.select(*questions))).one())
        if not (any_orphaned or (any_due and not only_orphans)):
            return None

        async with self.write() as connection:
            lease = {"worker": worker, "lease_until_s": now + lease_s, "started_at_s": now}
            may_take = sa.or_(sa.literal(not held), jobs.c.deaths < SUSPECT_DEATHS)
            if any_orphaned:
                is_dead = sa.and_(is_orphaned(jobs, now), jobs.c.id.not_in(held))
                is_last_death = jobs.c.deaths + 1 >= max_deaths
                await end_jobs(connection, now, "canceled", is_dead, jobs.c.is_cancel_requested)
                await end_jobs(connection, now, "failed", is_dead, is_last_death, error=CRASHED)
                dead = orphans(now).where(queue.c.id.not_in(held))
                may_take_dead = sa.or_(sa.literal(not held), queue.c.deaths + 1 < SUSPECT_DEATHS)
                died = {"deaths": jobs.c.deaths + 1, "expires_at_s": None}
                orphan = await _take(connection, dead.where(may_take_dead), **died, **lease)
                if orphan is not None or only_orphans or (held and (await connection.execute(dead)).first()):
                    return orphan
            for priority in PRIORITIES:
                for key in (await connection.execute(waiting_keys(priority, now, *wanted))).scalars().all():
                    jobs_of_key = next_of(key, priority, now).where(*wanted)
                    taken = await _take(connection, jobs_of_key, may_take, **lease)
                    if taken is not None:
                        return taken
                    suspect = jobs_of_key.where(queue.c.deaths >= SUSPECT_DEATHS)
                    if held and (await connection.execute(suspect)).first():  # else other workers were faster
                        return None
        return None

    @to_the_end
    async def heartbeat(
        self,
        job_id: str,
        attempt: int,
        lease_s: float,
        progress: Mapping[str, Any] | None = None,
        new_segments: SegmentBatch | None = None,
    ) -> Heartbeat:
        """Prolongs the lease; "cancel" asks the worker to stop and to call `canceled`.

        `new_segments` are those that have become final since the last heartbeat that was answered.
        """
        changes: dict[str, Any] = {"lease_until_s": self.now() + lease_s}
        if progress is not None:
            changes |= {"progress": json.dumps(progress), "version": jobs.c.version + 1}
        async with self.write() as connection:
            beat = await connection.execute(
                jobs.update()
                .where(_is_held(job_id, attempt))
                .values(**changes)
                .returning(jobs.c.is_cancel_requested)
            )
            is_cancel_requested = beat.scalar_one_or_none()
            if new_segments is not None and is_cancel_requested is not None:
                await _add_segments(connection, job_id, new_segments)
        if is_cancel_requested is None:
            return "lost"
        return "cancel" if is_cancel_requested else "ok"

    @to_the_end
    async def release(
        self,
        job_id: str,
        attempt: int,
        delay_s: float | None = None,
        why: tuple[str, str] | None = None,
        *,
        has_begun: bool = True,
    ) -> bool:
        """Gives the job back without counting an attempt; it keeps its place, or waits for `delay_s`.

        `why` it waits is a code and a message. A job on which no work has begun can still expire.
        """
        is_held, now = _is_held(job_id, attempt), self.now()
        async with self.write() as connection:
            if await end_jobs(connection, now, "canceled", is_held, jobs.c.is_cancel_requested):
                return True
            changes: dict[str, Any] = {"expires_at_s": None} if has_begun else {}
            if delay_s is not None:
                changes["run_at_s"] = now + delay_s
            if why is not None:
                changes |= {"error_code": why[0], "error_message": why[1]}
            return await _queue_again(connection, is_held, **changes)

    @to_the_end
    async def finish(self, job_id: str, attempt: int, result: bytes) -> bool:
        """Ends the job with its result."""
        body = await asyncio.to_thread(zlib.compress, result, 1)
        async with self.write() as connection:
            if not await end_jobs(connection, self.now(), "succeeded", _is_held(job_id, attempt)):
                return False
            await connection.execute(results.insert().values(job_id=job_id, body=body))
        return True

    @to_the_end
    async def canceled(self, job_id: str, attempt: int) -> bool:
        """Ends the job whose work was stopped because a heartbeat said so."""
        async with self.write() as connection:
            return bool(await end_jobs(connection, self.now(), "canceled", _is_held(job_id, attempt)))

    @to_the_end
    async def fail(self, job_id: str, attempt: int, error_code: str, message: str, *, retry: bool) -> bool:
        """Ends the job, or queues it again after a delay where `retry` and there are attempts left."""
        is_held, now = _is_held(job_id, attempt), self.now()
        async with self.write() as connection:
            found = await connection.execute(sa.select(jobs).where(is_held).with_for_update())
            row = found.one_or_none()
            if row is None:
                return False
            failures = row.failures + 1
            await connection.execute(jobs.update().where(is_held).values(failures=failures))
            if row.is_cancel_requested:
                await end_jobs(connection, now, "canceled", is_held)
            elif not retry or failures >= row.max_attempts:
                await end_jobs(connection, now, "failed", is_held, error=(error_code, message))
            else:
                delay_s = min(row.max_delay_s, row.initial_delay_s * 2.0 ** min(row.failures, 100))
                error = {"error_code": error_code, "error_message": message}
                await _queue_again(connection, is_held, run_at_s=now + delay_s, expires_at_s=None, **error)
        return True


async def _take(
    connection: AsyncConnection, pick: sa.Select[str], *which: sa.ColumnElement[bool], **changes: Any
) -> ClaimedJob | None:
    """Claims the first job of `pick` that no other transaction is about to claim, if it meets `which`."""
    picked = pick.limit(1).with_for_update(skip_locked=True).scalar_subquery()
    taken = await connection.execute(
        jobs.update()
        .where(jobs.c.id == picked, *which)
        .values(
            status="running",
            version=jobs.c.version + 1,
            attempt=jobs.c.attempt + 1,
            progress="{}",
            **changes,
        )
        .returning(*JOB_COLUMNS, jobs.c.secrets)
    )
    row = taken.one_or_none()
    if row is None:
        return None
    request = await connection.execute(sa.select(requests.c.request).where(requests.c.job_id == row.id))
    return ClaimedJob(job_of(row), request.scalar_one(), row.secrets)


async def _queue_again(connection: AsyncConnection, is_held: sa.ColumnElement[bool], **changes: Any) -> bool:
    queued = {"status": "queued", "version": jobs.c.version + 1, "lease_until_s": None, **changes}
    return (await connection.execute(jobs.update().where(is_held).values(**queued))).rowcount == 1


async def _add_segments(connection: AsyncConnection, job_id: str, batch: SegmentBatch) -> None:
    """Adds the segments that are not stored yet: the answer to a heartbeat that stored them may be lost.

    Rows do not change, so a client that has read some of them continues after the last.
    """
    last = (
        sa.select(segments.c.first, segments.c.body)
        .where(segments.c.job_id == job_id, segments.c.attempt == batch.attempt)
        .order_by(segments.c.first.desc())
        .limit(1)
    )
    row = (await connection.execute(last)).one_or_none()
    first = row.first + len(json.loads(row.body)) if row else batch.first
    if new := batch.segments[first - batch.first :]:
        added = {"job_id": job_id, "attempt": batch.attempt, "first": first, "body": json.dumps(new)}
        await connection.execute(segments.insert().values(**added))


def _is_held(job_id: str, attempt: int) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.id == job_id, jobs.c.attempt == attempt, jobs.c.status == "running")
