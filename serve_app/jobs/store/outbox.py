"""The outbox: the transaction that ends a job makes its webhook due, and senders take it under a lease."""

import json
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from serve_app.jobs.store.database import Database, to_the_end
from serve_app.jobs.store.records import Delivery, Status, Try
from serve_app.jobs.store.schema import JOB_COLUMNS, WEBHOOK_ID_PREFIX, job_of, jobs, segments, webhooks

MAX_LOGGED_TRIES = 20


async def end_jobs(
    connection: AsyncConnection,
    now: sa.ColumnElement[float],
    status: Status,
    *which: sa.ColumnElement[bool],
    error: tuple[Any, Any] | None = None,
) -> list[str | None]:
    """Ends these jobs, and makes their webhooks due. `error` is code and message, or their columns.

    Gives the `input_ref` of each, which is None for those without an upload.
    """
    code, message = error or (None, None)
    ended = await connection.execute(
        jobs.update()
        .where(*which)
        .values(
            status=status,
            version=jobs.c.version + 1,
            finished_at_s=now,
            delete_at_s=now + jobs.c.keep_s,
            error_code=code,
            error_message=message,
            secrets=None,
            lease_until_s=None,
        )
        .returning(jobs.c.id, jobs.c.key, jobs.c.webhook_url, jobs.c.finished_at_s, jobs.c.input_ref)
    )
    rows = ended.all()
    due = [
        {"job_id": row.id, "key": row.key, "due_at_s": row.finished_at_s}
        for row in rows
        if row.webhook_url is not None
    ]
    if due:
        await connection.execute(webhooks.insert(), due)
    await connection.execute(segments.delete().where(segments.c.job_id.in_([row.id for row in rows])))
    return [row.input_ref for row in rows]


class Outbox(Database):
    """Webhooks that wait to be delivered."""

    @to_the_end
    async def claim_delivery(self, lease_s: float, busy_keys: Collection[str] = ()) -> Delivery | None:
        """The webhook that has been due longest. No other sender gets it before the lease ends.

        Webhooks of `busy_keys` wait, so that one API key's hanging receivers do not take all places.
        """
        now, waiting = self.now(), webhooks.alias("waiting")
        is_due = sa.and_(waiting.c.status == "pending", waiting.c.due_at_s <= now)
        is_free = waiting.c.key.not_in(busy_keys)
        longest_due = sa.select(waiting.c.job_id).where(is_due, is_free).order_by(waiting.c.due_at_s).limit(1)
        async with self.read() as connection:  # a sender with nothing to do takes no lock
            if (await connection.execute(longest_due)).first() is None:
                return None
        picked = longest_due.with_for_update(skip_locked=True).scalar_subquery()
        async with self.write() as connection:
            claimed = await connection.execute(
                webhooks.update()
                .where(webhooks.c.job_id == picked)
                .values(claim_no=webhooks.c.claim_no + 1, due_at_s=now + lease_s)
                .returning(webhooks)
            )
            row = claimed.one_or_none()
            if row is None:
                return None
            found = await connection.execute(sa.select(*JOB_COLUMNS).where(jobs.c.id == row.job_id))
            job = job_of(found.one())
        assert job.webhook_url is not None
        return Delivery(
            id=WEBHOOK_ID_PREFIX + job.id,
            job=job,
            url=job.webhook_url,
            claim_no=row.claim_no,
            tries=row.tries,
        )

    @to_the_end
    async def record_try(self, delivery_id: str, claim_no: int, made: Try, retry_in_s: float | None) -> bool:
        """Logs a try. The next one is due in `retry_in_s`; with None, the delivery ends with this try.

        False where the lease was lost: then another sender delivers it, or the job was deleted.
        """
        held = sa.and_(
            webhooks.c.job_id == delivery_id.removeprefix(WEBHOOK_ID_PREFIX),
            webhooks.c.claim_no == claim_no,
            webhooks.c.status == "pending",
        )
        final_status = "failed" if made.error else "succeeded"
        async with self.write() as connection:
            found = await connection.execute(sa.select(webhooks.c.log).where(held).with_for_update())
            log = found.scalar_one_or_none()
            if log is None:
                return False
            tries = [*json.loads(log), asdict(made)][-MAX_LOGGED_TRIES:]
            await connection.execute(
                webhooks.update()
                .where(held)
                .values(
                    status=final_status if retry_in_s is None else "pending",
                    due_at_s=self.now() + (retry_in_s or 0.0),
                    claim_no=claim_no + 1,  # a claim is recorded once
                    tries=webhooks.c.tries + 1,
                    log=json.dumps(tries),
                )
            )
        return True

    @to_the_end
    async def retry_delivery(self, job_id: str, key: str) -> bool:
        """Makes a job's webhook due now, with a new schedule and the same id. False where there is none."""
        async with self.write() as connection:
            due = await connection.execute(
                webhooks.update()
                .where(webhooks.c.job_id == job_id, webhooks.c.key == key)
                .values(
                    status="pending",
                    due_at_s=self.now(),
                    claim_no=webhooks.c.claim_no + 1,  # a try that is being made now no longer counts
                    tries=0,
                )
            )
        return due.rowcount == 1
