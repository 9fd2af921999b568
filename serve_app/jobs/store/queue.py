"""The order of the queue: priorities, then API keys in turn, then the oldest job, even one that was tried.

In turn means: the key with the fewest running jobs, then the one whose last job began longest ago.
"""

import sqlalchemy as sa

from serve_app.jobs.store.records import Job
from serve_app.jobs.store.schema import jobs

PRIORITIES = range(3)  # 0 first

Time = sa.ColumnElement[float]

queue = jobs.alias("queue")


def is_due(table: sa.FromClause, now: Time) -> sa.ColumnElement[bool]:
    """Whether a worker may take the job."""
    in_time = sa.or_(table.c.expires_at_s.is_(None), table.c.expires_at_s > now)
    return sa.and_(table.c.status == "queued", table.c.run_at_s <= now, in_time)


def is_overdue(table: sa.FromClause, now: Time) -> sa.ColumnElement[bool]:
    """Whether the job has waited in the queue for longer than it may."""
    return sa.and_(table.c.status == "queued", table.c.expires_at_s <= now)


def is_orphaned(table: sa.FromClause, now: Time) -> sa.ColumnElement[bool]:
    """Whether the job's worker has let its lease run out: it is dead, or hangs."""
    return sa.and_(table.c.status == "running", table.c.lease_until_s < now)


def waiting_keys(priority: int, now: Time, *wanted: sa.ColumnElement[bool]) -> sa.Select[str]:
    """The keys that have a due and `wanted` job of this priority, in the order of their turns.

    Each key is found by one seek of the index ("loose index scan" in PostgreSQL's wiki), so the cost grows
    with the keys that wait, not with their jobs, except for jobs that wait for another attempt.
    """
    is_queued = sa.and_(queue.c.status == "queued", queue.c.priority == priority)

    def next_key(*more: sa.ColumnElement[bool]) -> sa.ScalarSelect[str]:
        # Not min(): without statistics PostgreSQL reads all rows for it.
        key = sa.select(queue.c.key).where(is_queued, *more)
        return key.order_by(queue.c.key).limit(1).scalar_subquery()

    keys = sa.select(next_key().label("key")).cte("keys", recursive=True)
    more_keys = sa.select(next_key(queue.c.key > keys.c.key)).where(keys.c.key.is_not(None))
    keys = keys.union_all(more_keys)

    of_key = queue.c.key == keys.c.key
    first = next_of(keys.c.key, priority, now).where(*wanted).limit(1).scalar_subquery()
    running = sa.select(sa.func.count()).where(queue.c.status == "running", of_key).scalar_subquery()
    served_at_s = sa.select(sa.func.max(queue.c.started_at_s)).where(of_key).scalar_subquery()
    return (
        sa.select(keys.c.key)
        .where(keys.c.key.is_not(None), first.is_not(None))
        .order_by(running, sa.func.coalesce(served_at_s, 0.0), first)
    )


def next_of(key: str | sa.ColumnElement[str], priority: int, now: Time) -> sa.Select[str]:
    """The ids of a key's due jobs, the oldest one first."""
    of_key = sa.and_(queue.c.key == key, queue.c.priority == priority)
    return sa.select(queue.c.id).where(of_key, is_due(queue, now)).order_by(queue.c.id)


def orphans(now: Time) -> sa.Select[str]:
    """The ids of jobs whose worker is dead; those that many workers died of come last."""
    return (
        sa.select(queue.c.id).where(is_orphaned(queue, now)).order_by(queue.c.deaths, queue.c.lease_until_s)
    )


def queued_of(key: str) -> sa.Select[int]:
    """How many jobs of a key wait."""
    is_queued = sa.and_(queue.c.status == "queued", queue.c.priority.in_(PRIORITIES))
    return sa.select(sa.func.count()).where(is_queued, queue.c.key == key)


def ahead_of(job: Job) -> sa.Select[int]:
    """About how many jobs begin before this one, as keys take turns."""
    is_queued, count = queue.c.status == "queued", sa.select(sa.func.count().label("jobs"))
    is_same = sa.and_(is_queued, queue.c.priority == job.priority)
    is_own, is_higher = queue.c.key == job.key, queue.c.priority < job.priority
    own = count.where(is_same, is_own, queue.c.id < job.id).scalar_subquery()
    higher = count.where(is_queued, is_higher).scalar_subquery()
    others = count.where(is_same, ~is_own).group_by(queue.c.key).subquery()
    turns = sa.case((others.c.jobs < own + 1, others.c.jobs), else_=own + 1)
    in_turn = sa.select(sa.func.coalesce(sa.func.sum(turns), 0)).scalar_subquery()
    return sa.select(own + higher + in_turn)
