"""The order of the queue: priorities, then API keys in turn, then the job that waits longest.

In turn means: the key with the fewest running jobs, then the one whose last job began longest ago.
"""

import sqlalchemy as sa

from serve_app.jobs.records import Job
from serve_app.jobs.schema import jobs

PRIORITIES = range(3)  # 0 first

Time = sa.ColumnElement[float]


def is_due(table: sa.FromClause, now: Time) -> sa.ColumnElement[bool]:
    """Whether a worker may take the job."""
    return sa.and_(table.c.status == "queued", table.c.run_at_s <= now, sa.not_(_is_over_time(table, now)))


def is_overdue(table: sa.FromClause, now: Time) -> sa.ColumnElement[bool]:
    """Whether the job has waited in the queue for longer than it may."""
    return sa.and_(table.c.status == "queued", table.c.expires_at_s <= now)


def is_orphaned(table: sa.FromClause, now: Time) -> sa.ColumnElement[bool]:
    """Whether the job's worker has let its lease run out: it is dead, or hangs."""
    return sa.and_(table.c.status == "running", table.c.lease_until_s < now)


def waiting_keys(priority: int, now: Time) -> sa.Select[tuple[str]]:
    """The keys that have a due job of this priority, whose turn it is first.

    Each key is found by one seek of the index ("loose index scan" in PostgreSQL's wiki), so the cost grows
    with the keys that wait, not with their jobs.
    """
    job = jobs.alias("job")
    is_queued = sa.and_(job.c.status == "queued", job.c.priority == priority)

    def lowest(*more: sa.ColumnElement[bool]) -> sa.ScalarSelect[str]:
        return sa.select(sa.func.min(job.c.key)).where(is_queued, *more).scalar_subquery()

    keys = sa.select(lowest().label("key")).cte("keys", recursive=True)
    keys = keys.union_all(sa.select(lowest(job.c.key > keys.c.key)).where(keys.c.key.is_not(None)))

    of_key = job.c.key == keys.c.key
    run_at_s = sa.select(sa.func.min(job.c.run_at_s)).where(is_queued, of_key).scalar_subquery()
    running = sa.select(sa.func.count()).where(job.c.status == "running", of_key).scalar_subquery()
    served_at_s = sa.select(sa.func.max(job.c.started_at_s)).where(of_key).scalar_subquery()
    return (
        sa.select(keys.c.key)
        .where(keys.c.key.is_not(None), run_at_s <= now)
        .order_by(running, sa.func.coalesce(served_at_s, 0.0), run_at_s)
    )


def next_of(key: str, priority: int, now: Time) -> sa.Select[tuple[str]]:
    """The ids of a key's due jobs, the one that waits longest first."""
    job = jobs.alias("job")
    of_key = sa.and_(job.c.key == key, job.c.priority == priority)
    return sa.select(job.c.id).where(of_key, is_due(job, now)).order_by(job.c.run_at_s, job.c.id)


def ahead_of(job: Job) -> sa.Select[tuple[int]]:
    """About how many jobs begin before this one, as keys take turns."""
    other = jobs.alias("other")
    is_queued = other.c.status == "queued"
    is_before = sa.and_(other.c.key == job.key, other.c.run_at_s < job.run_at_s)
    same = sa.and_(is_queued, other.c.priority == job.priority)
    before = sa.select(sa.func.count()).where(same, is_before).scalar_subquery()
    higher = sa.select(sa.func.count()).where(is_queued, other.c.priority < job.priority).scalar_subquery()
    per_key = sa.select(sa.func.count().label("jobs")).where(same, other.c.key != job.key)
    others = per_key.group_by(other.c.key).subquery()
    turns = sa.case((others.c.jobs < before + 1, others.c.jobs), else_=before + 1)
    in_turn = sa.select(sa.func.coalesce(sa.func.sum(turns), 0)).scalar_subquery()
    return sa.select(before + higher + in_turn)


def _is_over_time(table: sa.FromClause, now: Time) -> sa.ColumnElement[bool]:
    return sa.func.coalesce(table.c.expires_at_s <= now, sa.false())
