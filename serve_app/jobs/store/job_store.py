"""The job store: the methods for clients; those for workers and senders are in claims.py and outbox.py.

Every method but `close` raises StoreBusy where the database is locked or cannot be reached.
"""

import asyncio
import json
import secrets
import sys
import time
import zlib
from collections.abc import Collection, Sequence
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.errors import IdempotencyConflict, RateLimited, StoreBusy
from serve_app.jobs.store.claims import Claims
from serve_app.jobs.store.database import to_the_end
from serve_app.jobs.store.outbox import end_jobs
from serve_app.jobs.store.queue import ahead_of, is_overdue, queued_of
from serve_app.jobs.store.records import STATUSES, WEBHOOK_COUNTS, Job, NewJob, SegmentBatch, Status
from serve_app.jobs.store.schema import (
    JOB_COLUMNS,
    SELECT_JOBS,
    job_of,
    jobs,
    requests,
    results,
    segments,
    webhooks,
)

RETRY_AFTER_S = 60  # when a key has too many jobs that wait
MAX_DELETED = 500  # in one transaction, so that others do not wait


class JobStore(Claims):
    """The store. Methods for clients take the name of an API key, and see and change only its jobs."""

    @to_the_end
    async def submit_all(
        self, new: Sequence[NewJob], max_queued: int = sys.maxsize
    ) -> list[tuple[Job, bool]]:
        """The jobs, each with whether it is new: the same idempotency key and body give the same job.

        All are submitted or none. Raises IdempotencyConflict for another body, RateLimited where a key would
        have more than `max_queued` jobs that wait.
        """
        async with self.write() as connection:
            submitted = [await self._submit(connection, job) for job in new]
            asked = [
                {"job_id": job.id, "request": one.request}
                for one, (job, is_new) in zip(new, submitted, strict=True)
                if is_new
            ]
            if asked:
                await connection.execute(requests.insert(), asked)
            for key in {job.key for job, is_new in submitted if is_new}:
                waiting = await connection.execute(queued_of(key))
                if waiting.scalar_one() > max_queued:
                    whose = "of this API key " if key else ""
                    message = f"{max_queued} jobs {whose}may wait at once; wait for some to end."
                    raise RateLimited(message, None, "too_many_jobs", RETRY_AFTER_S)
            return submitted

    async def _submit(self, connection: AsyncConnection, new: NewJob) -> tuple[Job, bool]:
        now, values = self.now(), asdict(new)
        del values["request"]  # has a table of its own
        max_queue_s = values.pop("max_queue_s")
        expires_at_s = None if max_queue_s is None else now + max_queue_s
        insert = sqlite.insert(jobs) if self.is_sqlite else postgresql.insert(jobs)
        inserted = await connection.execute(
            insert.values(id=_new_id(), created_at_s=now, run_at_s=now, expires_at_s=expires_at_s, **values)
            .on_conflict_do_nothing(index_elements=["key", "idempotency_key"])
            .returning(*JOB_COLUMNS)
        )
        row = inserted.one_or_none()
        if row is not None:
            return job_of(row), True
        found = await connection.execute(
            SELECT_JOBS.add_columns(jobs.c.body_hash).where(
                jobs.c.key == new.key, jobs.c.idempotency_key == new.idempotency_key
            )
        )
        row = found.one_or_none()
        if row is None:
            raise StoreBusy("The job of this idempotency key is being deleted; try again.", None, None, 1)
        if row.body_hash != new.body_hash:
            raise IdempotencyConflict(
                f"This Idempotency-Key was used for job {row.id}, with another request; choose a new one."
            )
        return job_of(row), False

    @to_the_end
    async def get(self, job_id: str, key: str) -> Job | None:
        """The job. A client that follows it asks again, and sees by `version` whether it has changed."""
        async with self.read() as connection:
            found = await connection.execute(SELECT_JOBS.where(_is_own(job_id, key)))
            row = found.one_or_none()
        return None if row is None else job_of(row)

    @to_the_end
    async def list_jobs(
        self, key: str, *, statuses: Collection[Status] = (), after: str | None = None, limit: int = 20
    ) -> list[Job]:
        """A page, newest first. `after` is the id of the last job of the page before.

        Over all pages each job comes once, also if others are submitted or deleted meanwhile.
        """
        page = SELECT_JOBS.where(jobs.c.key == key).order_by(jobs.c.id.desc()).limit(limit)
        if statuses:
            page = page.where(jobs.c.status.in_(statuses))
        if after is not None:
            page = page.where(jobs.c.id < after)
        async with self.read() as connection:
            return [job_of(row) for row in await connection.execute(page)]

    @to_the_end
    async def jobs_ahead(self, job: Job) -> int:
        """About how many jobs begin before a queued one."""
        async with self.read() as connection:
            # PostgreSQL gives a Decimal for a sum.
            return int((await connection.execute(ahead_of(job))).scalar_one())

    @to_the_end
    async def request(self, job_id: str, key: str) -> str | None:
        """What the job was submitted with, for answers that repeat it."""
        request = sa.select(requests.c.request).join_from(requests, jobs).where(_is_own(job_id, key))
        async with self.read() as connection:
            return (await connection.execute(request)).scalar_one_or_none()

    @to_the_end
    async def segments_so_far(self, job_id: str, key: str, attempt: int, first: int) -> list[SegmentBatch]:
        """The segments of this attempt, from number `first` on; none once the job has ended."""
        batches = (
            sa.select(segments.c.first, segments.c.body)
            .join_from(segments, jobs)
            .where(_is_own(job_id, key), segments.c.attempt == attempt, segments.c.first >= first)
            .order_by(segments.c.first)
        )
        async with self.read() as connection:
            found = (await connection.execute(batches)).all()
        return [SegmentBatch(attempt, row.first, tuple(json.loads(row.body))) for row in found]

    @to_the_end
    async def result(self, job_id: str, key: str) -> bytes | None:
        """What the job's worker gave to `finish`; None until then."""
        body = sa.select(results.c.body).join_from(results, jobs).where(_is_own(job_id, key))
        async with self.read() as connection:
            packed = (await connection.execute(body)).scalar_one_or_none()
        return None if packed is None else await asyncio.to_thread(zlib.decompress, packed)

    @to_the_end
    async def cancel(self, job_id: str, key: str, *, only_queued: bool = False) -> Job | None:
        """Ends a queued job, and tells a running one's worker to stop it. The job as it is then."""
        is_own = _is_own(job_id, key)
        async with self.write() as connection:
            is_queued = jobs.c.status == "queued"
            has_ended = await end_jobs(connection, self.now(), "canceled", is_own, is_queued)
            if not (has_ended or only_queued):
                await connection.execute(
                    jobs.update()
                    .where(is_own, jobs.c.status == "running", sa.not_(jobs.c.is_cancel_requested))
                    .values(is_cancel_requested=True, version=jobs.c.version + 1)
                )
            row = (await connection.execute(SELECT_JOBS.where(is_own))).one_or_none()
        return None if row is None else job_of(row)

    @to_the_end
    async def delete(self, job_id: str, key: str) -> Job | None:
        """Erases a job in any state with its request, result and webhook; its worker finds its lease lost.

        The job as it was; the caller removes the audio at its `input_ref`.
        """
        async with self.write() as connection:
            erased = await connection.execute(
                jobs.delete().where(_is_own(job_id, key)).returning(*JOB_COLUMNS)
            )
            row = erased.one_or_none()
        return None if row is None else job_of(row)

    @to_the_end
    async def sweep(self) -> list[str | None]:
        """Ends jobs that waited too long, erases up to MAX_DELETED of those that were kept long enough.

        Gives the `input_ref` of each. Jobs whose webhook is still to be delivered are kept.
        """
        now = self.now()
        has_webhook_due = sa.exists().where(webhooks.c.job_id == jobs.c.id, webhooks.c.status == "pending")
        old = sa.select(jobs.c.id).where(jobs.c.delete_at_s <= now, ~has_webhook_due).limit(MAX_DELETED)
        any_overdue = sa.exists().where(is_overdue(jobs, now))
        async with self.read() as connection:
            if not any((await connection.execute(sa.select(any_overdue, sa.exists(old)))).one()):
                return []
        async with self.write() as connection:
            why = (jobs.c.error_code, jobs.c.error_message)  # why each waited
            ended = await end_jobs(connection, now, "expired", is_overdue(jobs, now), error=why)
            erased = await connection.execute(
                jobs.delete().where(jobs.c.id.in_(old)).returning(jobs.c.input_ref)
            )
            return [*ended, *erased.scalars()]

    @to_the_end
    async def counts(self) -> tuple[dict[str, int], dict[str, int], float]:
        """How many jobs and webhooks of each status there are, and for how long the oldest job has waited.

        A webhook that is pending after a try that failed counts as `retrying`. What has ended is counted in
        indexes alone: there may be a million of them.
        """
        found = []
        async with self.read() as connection:
            for status, known in ((jobs.c.status, STATUSES), (webhooks.c.status, WEBHOOK_COUNTS)):
                rows = await connection.execute(sa.select(status, sa.func.count()).group_by(status))
                found.append(dict.fromkeys(known, 0) | dict(map(tuple, rows)))
            pending = sa.select(sa.func.count()).where(webhooks.c.status == "pending", webhooks.c.tries > 0)
            retrying = (await connection.execute(pending)).scalar_one()
            waited_s = sa.select(self.now() - sa.func.min(jobs.c.created_at_s))
            oldest = await connection.execute(waited_s.where(jobs.c.status == "queued"))
            oldest_s = float(oldest.scalar_one() or 0.0)
        of_jobs, of_webhooks = found
        # PostgreSQL's statements may see different moments.
        more = {"pending": max(0, of_webhooks["pending"] - retrying), "retrying": retrying}
        return of_jobs, of_webhooks | more, oldest_s

    @to_the_end
    async def input_refs(self) -> set[str]:
        """The `input_ref` of all jobs that have not ended. Old audio that is not among them is not needed."""
        is_needed = jobs.c.input_ref.is_not(None) & jobs.c.status.in_(("queued", "running"))
        async with self.read() as connection:
            found = await connection.execute(sa.select(jobs.c.input_ref).where(is_needed))
            return set(found.scalars())


def _is_own(job_id: str, key: str) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.id == job_id, jobs.c.key == key)


def _new_id() -> str:
    """32 hex digits: nanoseconds, then random ones. Sorted by id, jobs are sorted by age."""
    return f"{time.time_ns():016x}{secrets.token_hex(8)}"
