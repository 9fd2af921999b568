"""The tables of the job store, alike in SQLite and PostgreSQL, and how their rows become records.

A change of a table needs a migration.
"""

import json
from dataclasses import fields
from typing import Any

import sqlalchemy as sa

from serve_app.jobs.store.records import Job, Try, Webhook

metadata = sa.MetaData()


class Text(sa.TypeDecorator[str]):
    """A text of any characters: NUL and lone surrogates, which PostgreSQL refuses, are replaced."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else value.replace("\0", "\ufffd").encode(errors="replace").decode()


jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", Text, primary_key=True),
    sa.Column("version", sa.Integer, nullable=False, default=1),
    sa.Column("key", Text, nullable=False),
    sa.Column("idempotency_key", Text),
    sa.Column("body_hash", Text, nullable=False),
    sa.Column("audio", Text),
    sa.Column("secrets", sa.LargeBinary),
    sa.Column("input_ref", Text),
    sa.Column("status", sa.String(12), nullable=False, default="queued"),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("created_at_s", sa.Double, nullable=False),
    sa.Column("run_at_s", sa.Double, nullable=False),
    sa.Column("expires_at_s", sa.Double),
    sa.Column("started_at_s", sa.Double),
    sa.Column("finished_at_s", sa.Double),
    sa.Column("keep_s", sa.Double, nullable=False),
    sa.Column("delete_at_s", sa.Double),
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.Column("deaths", sa.Integer, nullable=False, default=0),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    sa.Column("initial_delay_s", sa.Double, nullable=False),
    sa.Column("max_delay_s", sa.Double, nullable=False),
    sa.Column("worker", Text),  # for people who look into the database
    sa.Column("lease_until_s", sa.Double),
    sa.Column("is_cancel_requested", sa.Boolean, nullable=False, default=False),
    sa.Column("progress", Text, nullable=False, default="{}"),  # JSON
    sa.Column("error_code", Text),
    sa.Column("error_message", Text),
    sa.Column("webhook_url", Text),
    sa.Column("webhook_style", sa.String(12), nullable=False),
    sa.UniqueConstraint("key", "idempotency_key", name="jobs_idempotent"),
    # A claim seeks the keys that wait, one by one, and the head of each key's queue.
    sa.Index("jobs_waiting", "status", "priority", "key", "id"),
    sa.Index("jobs_expiring", "status", "expires_at_s"),
    sa.Index("jobs_leased", "status", "lease_until_s"),
    sa.Index("jobs_served", "key", "started_at_s"),
    sa.Index("jobs_listed", "key", "id"),
    sa.Index("jobs_kept", "delete_at_s"),
)


def _job_id() -> sa.Column[str]:
    return sa.Column("job_id", Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)


# A request can have megabytes. Here no list reads it, and no heartbeat makes SQLite write it again.
requests = sa.Table("job_requests", metadata, _job_id(), sa.Column("request", Text, nullable=False))

# One row a job: a second result is refused.
results = sa.Table("job_results", metadata, _job_id(), sa.Column("body", sa.LargeBinary, nullable=False))

# The segments of a running job so far, in batches, for clients that follow it; erased when it ends.
segments = sa.Table(
    "job_segments",
    metadata,
    _job_id(),
    sa.Column("attempt", sa.Integer, primary_key=True),
    sa.Column("first", sa.Integer, primary_key=True),  # number of the batch's first segment in the transcript
    sa.Column("body", Text, nullable=False),  # JSON: a list
)

# The outbox: a row is inserted by the transaction that ends a job, so that none is lost and none comes early.
webhooks = sa.Table(
    "job_webhooks",
    metadata,
    _job_id(),
    sa.Column("key", Text, nullable=False),  # the job's
    sa.Column("status", sa.String(12), nullable=False, default="pending"),
    sa.Column("due_at_s", sa.Double, nullable=False),  # of the next try; while claimed, the end of the lease
    sa.Column("claim_no", sa.Integer, nullable=False, default=0),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("log", Text, nullable=False, default="[]"),  # JSON
    sa.Index("job_webhooks_due", "status", "due_at_s", "key"),
)

WEBHOOK_ID_PREFIX = "msg_"  # a webhook's id is this and the id of its job

JOB_COLUMNS = [jobs.c[field.name] for field in fields(Job) if field.name != "webhook"]
# With these a row becomes a job that has its webhook.
SELECT_JOBS = sa.select(
    *JOB_COLUMNS,
    webhooks.c.status.label("webhook_status"),
    webhooks.c.due_at_s.label("webhook_due_at_s"),
    webhooks.c.log.label("webhook_log"),
).outerjoin_from(jobs, webhooks)


def job_of(row: sa.Row[*tuple[Any, ...]]) -> Job:
    """The record of a row that has at least JOB_COLUMNS."""
    values = row._mapping
    of_job = {column.name: values[column.name] for column in JOB_COLUMNS}
    return Job(**{**of_job, "progress": json.loads(values["progress"]), "webhook": _webhook_of(values)})


def _webhook_of(values: sa.RowMapping) -> Webhook | None:
    if values.get("webhook_status") is None:
        return None
    return Webhook(
        status=values["webhook_status"],
        due_at_s=values["webhook_due_at_s"],
        log=tuple(Try(**made) for made in json.loads(values["webhook_log"])),
    )
