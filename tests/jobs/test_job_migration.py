"""Migrations: from nothing, from the first version, at the same time, and not backwards."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from job_stores import LEASE_S, claimed, new_job, using

from serve_app.errors import StoreBusy
from serve_app.jobs.migration import VERSION_TABLE, NotMigrated, SchemaTooNew, check, migrate
from serve_app.jobs.records import FINAL
from serve_app.jobs.schema import metadata
from serve_app.jobs.store import JobStore

# As the first version wrote them. This stays as it is when the tables change.
FIRST_VERSION = """
INSERT INTO jobs (
    id, version, key, body_hash, status, priority, created_at_s, run_at_s, keep_s, attempt, failures,
    deaths, max_attempts, initial_delay_s, max_delay_s, is_cancel_requested, progress, webhook_style,
    webhook_url, lease_until_s, expires_at_s, finished_at_s, delete_at_s
) VALUES (
    '{id}', 1, 'alice', 'a', '{status}', 0, 1000.0, 1000.0, 1e12, {attempt}, 0,
    0, 3, 1.0, 5.0, {cancel}, '{{}}', 'standard',
    'https://example.com', {lease}, {expires}, {finished}, {delete}
)"""
DEFAULTS = {
    "attempt": 0,
    "cancel": "false",
    **dict.fromkeys(("lease", "expires", "finished", "delete"), "NULL"),
}
WAITING: dict[str, dict[str, object]] = {
    "queued": {"status": "queued"},
    "overdue": {"status": "queued", "expires": 1060.0},
    "running": {"status": "running", "attempt": 1, "lease": 1060.0},
    "canceling": {"status": "running", "attempt": 1, "lease": 1060.0, "cancel": "true"},
}
ENDED: dict[str, dict[str, object]] = {
    status: {"status": status, "attempt": 1, "finished": 1060.0, "delete": 4e9} for status in FINAL
}


def test_a_new_database_is_migrated_and_fits(empty_url: str) -> None:
    """Until then the service refuses it; the tables are those that the code expects; again is no error."""
    with pytest.raises(NotMigrated, match="jobs migrate"):
        asyncio.run(check(empty_url))
    for _ in range(2):
        asyncio.run(migrate(empty_url))
        asyncio.run(check(empty_url))

    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return list(compare_metadata(context, metadata))

    async def story(store: JobStore) -> list[object]:
        async with store.read() as connection:
            return await connection.run_sync(differences)

    assert using(empty_url, story) == []


def test_jobs_of_the_first_version_finish(empty_url: str) -> None:
    """A database with jobs in every state is upgraded, and each of them ends as it should."""
    asyncio.run(migrate(empty_url, "0001"))

    async def write(store: JobStore) -> None:
        async with store.write() as connection:
            for name, changes in (WAITING | ENDED).items():
                row = FIRST_VERSION.format(**{**DEFAULTS, "id": name, **changes})
                await connection.exec_driver_sql(row)
                await connection.exec_driver_sql(f"INSERT INTO job_requests VALUES ('{name}', '{{}}')")
            await connection.exec_driver_sql(
                "INSERT INTO job_webhooks (job_id, key, status, due_at_s, claim_no, tries, log) "
                "VALUES ('succeeded', 'alice', 'pending', 1060.0, 1, 0, '[]')"
            )

    async def work(store: JobStore) -> dict[str, str]:
        for _ in range(2):
            held = (await claimed(store)).job
            assert await store.finish(held.id, held.attempt, b"done")
            assert await store.result(held.id, "alice") == b"done"
        assert await store.claim("worker", LEASE_S) is None
        sent = set()
        while (delivery := await store.claim_delivery(LEASE_S)) is not None:
            sent.add(delivery.job.id)
        assert sent == {"queued", "overdue", "running", "canceling", "succeeded"}
        return {job.id: job.status for job in await store.list_jobs("alice", limit=100)}

    using(empty_url, write)
    asyncio.run(migrate(empty_url))
    asyncio.run(check(empty_url))
    ended: dict[str, str] = {status: status for status in FINAL}
    worked_on = {"queued": "succeeded", "running": "succeeded", "overdue": "expired", "canceling": "canceled"}
    assert using(empty_url, work) == worked_on | ended


def test_a_newer_database_is_refused(empty_url: str) -> None:
    """By the service and by the migration, which leaves it as it is."""
    asyncio.run(migrate(empty_url))

    async def upgrade(store: JobStore) -> None:
        async with store.write() as connection:
            await connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")

    using(empty_url, upgrade)
    for action in (check, migrate):
        with pytest.raises(SchemaTooNew, match="9999"):
            asyncio.run(action(empty_url))


def test_a_migration_that_fails_leaves_nothing(empty_url: str) -> None:
    """A table that is in the way is told, and no half of the others is made."""

    async def obstruct(store: JobStore) -> None:
        async with store.write() as connection:
            await connection.exec_driver_sql("CREATE TABLE job_webhooks (something INTEGER)")

    async def tables(store: JobStore) -> list[str]:
        async with store.read() as connection:
            return await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())

    if empty_url.startswith("sqlite"):
        Path(empty_url.removeprefix("sqlite:///")).parent.mkdir()
    using(empty_url, obstruct)
    with pytest.raises(sa.exc.DBAPIError, match="job_webhooks"):
        asyncio.run(migrate(empty_url))
    assert using(empty_url, tables) == ["job_webhooks"]


def test_two_processes_may_migrate_at_once(empty_url: str) -> None:
    """Nodes that start together."""
    code = (
        f"import asyncio; from serve_app.jobs.migration import migrate; asyncio.run(migrate({empty_url!r}))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)}
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    using(empty_url, lambda store: store.submit(new_job()))


def test_a_database_that_cannot_be_reached_is_busy(tmp_path: Path) -> None:
    """Whoever starts the service before its database is told so, in one sentence."""
    with pytest.raises(StoreBusy, match="reached"):
        asyncio.run(check(f"postgresql://jobs@/jobs?host={tmp_path}"))
