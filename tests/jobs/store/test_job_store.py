"""What clients see: submitting once, paging, results, deletion, retention, and a store that is busy."""

import asyncio
import os
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from job_stores import LEASE_S, Clock, claimed, finished, new_job, submit, using

from benchmarks.private_postgres import Postgres
from serve_app.errors import IdempotencyConflict, StoreBusy
from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.migration import migrate
from serve_app.jobs.store.records import Try


def test_a_submitted_job_is_found_as_it_was_sent(store_url: str, clock: Clock) -> None:
    """It has everything that a client may ask for, and no other key finds it."""

    async def story(store: JobStore) -> None:
        new = new_job(
            priority=2,
            max_queue_s=60,
            input_ref="spool/1",
            audio="upload",
            webhook_url="https://example.com",
        )
        job, is_new = await submit(store, new)
        assert is_new
        assert await store.get(job.id, "alice") == job
        assert (job.status, job.priority, job.attempt, job.progress) == ("queued", 2, 0, {})
        assert (job.created_at_s, job.expires_at_s) == (clock.now_s, clock.now_s + 60)
        assert (job.input_ref, job.webhook_url, job.webhook) == ("spool/1", "https://example.com", None)
        assert job.audio == "upload"
        assert await store.request(job.id, "alice") == new.request
        assert await store.result(job.id, "alice") is None

        assert await store.get(job.id, "bob") is None
        assert await store.request(job.id, "bob") is None
        assert await store.cancel(job.id, "bob") is None
        assert await store.delete(job.id, "bob") is None
        assert await store.list_jobs("bob") == []
        assert (await claimed(store)).job.id == job.id

    using(store_url, story, clock)


def test_operators_see_how_many_jobs_and_webhooks_there_are(store_url: str, clock: Clock) -> None:
    """Of each status, also where there are none; and how long the oldest job has waited."""

    async def story(store: JobStore) -> None:
        jobs, webhooks, oldest_s = await store.counts()
        assert (set(jobs.values()), set(webhooks.values()), oldest_s) == ({0}, {0}, 0.0)
        assert {*jobs} >= {"queued", "running", "succeeded", "failed"}
        for _ in range(2):
            await finished(store, webhook_url="https://example.com")
        delivery = await store.claim_delivery(60.0)
        assert delivery is not None
        made = Try(clock.now_s, 500, "The receiver answered 500.", 0.1)
        assert await store.record_try(delivery.id, delivery.claim_no, made, 60.0)
        await submit(store, new_job())
        clock.advance(30)
        await submit(store, new_job())
        await claimed(store)
        clock.advance(12)
        jobs, webhooks, oldest_s = await store.counts()
        assert (jobs["queued"], jobs["running"], jobs["succeeded"]) == (1, 1, 2)
        assert (webhooks["pending"], webhooks["retrying"], webhooks["failed"]) == (1, 1, 0)
        assert oldest_s == pytest.approx(12)

    using(store_url, story, clock)


def test_the_same_idempotency_key_gives_the_same_job(store_url: str, clock: Clock) -> None:
    """This holds also after its end; another body is refused; each API key has its own idempotency keys."""

    async def story(store: JobStore) -> None:
        new = new_job(idempotency_key="order 1")
        job, _ = await submit(store, new)
        assert await submit(store, new) == (job, False)
        held = (await claimed(store)).job
        await store.finish(held.id, held.attempt, b"")
        again, is_new = await submit(store, new)
        assert (again.id, again.status, is_new) == (job.id, "succeeded", False)
        with pytest.raises(IdempotencyConflict, match=job.id):
            await submit(store, replace(new, body_hash="b"))
        other, is_new = await submit(store, replace(new, key="bob", body_hash="b"))
        assert is_new
        assert other.id != job.id

    using(store_url, story, clock)


def test_one_of_many_equal_submits_makes_the_job(store_url: str, clock: Clock) -> None:
    """Clients that lose patience send again while the first request still runs, to another node."""

    async def story(store: JobStore) -> None:
        other = JobStore(store_url, clock=clock)
        new = new_job(idempotency_key="order 1")
        try:
            answers = await asyncio.gather(*(submit(one, new) for one in (store, other) for _ in range(10)))
        finally:
            await other.close()
        assert len({job.id for job, _ in answers}) == 1
        assert sum(is_new for _, is_new in answers) == 1

    using(store_url, story, clock)


def test_jobs_are_submitted_all_or_none(store_url: str, clock: Clock) -> None:
    """Where one of them conflicts, the client may send all of them again."""

    async def story(store: JobStore) -> None:
        taken, _ = await submit(store, new_job(idempotency_key="2"))
        many = [new_job(idempotency_key=str(n), body_hash="b") for n in range(4)]
        with pytest.raises(IdempotencyConflict):
            await store.submit_all(many)
        assert [job.id for job in await store.list_jobs("alice")] == [taken.id]
        made = await store.submit_all([job for job in many if job.idempotency_key != "2"])
        assert [is_new for _, is_new in made] == [True] * 3

    using(store_url, story, clock)


def test_pages_are_complete_under_inserts_and_deletions(store_url: str, clock: Clock) -> None:
    """Each job that was there at the first page, and still is, comes exactly once, newest first."""

    async def story(store: JobStore) -> None:
        before = [(await submit(store, new_job()))[0].id for _ in range(23)]
        await submit(store, new_job(key="bob"))
        seen: list[str] = []
        while page := await store.list_jobs("alice", after=seen[-1] if seen else None, limit=5):
            seen += [job.id for job in page]
            await store.submit_all([new_job() for _ in range(3)])
            if (
                len(seen) % 10
            ):  # in every second page its last job: the next page begins after it all the same
                await store.delete(seen[-1], "alice")
        assert sorted(seen) == sorted(before)
        assert seen == sorted(seen, reverse=True)

    using(store_url, story, clock)


def test_lists_are_filtered_by_status(store_url: str, clock: Clock) -> None:
    """Several statuses may be asked for."""

    async def story(store: JobStore) -> None:
        done = await finished(store)
        queued, _ = await submit(store, new_job())
        canceled, _ = await submit(store, new_job())
        await store.cancel(canceled.id, "alice")
        found = await store.list_jobs("alice", statuses=["succeeded", "canceled"])
        assert {job.id for job in found} == {done, canceled.id}
        assert [job.id for job in await store.list_jobs("alice", statuses=["queued"])] == [queued.id]

    using(store_url, story, clock)


def test_a_version_rises_with_every_change(store_url: str, clock: Clock) -> None:
    """A client that follows a job, and comes back, then gets what it has not seen."""

    async def story(store: JobStore) -> None:
        job, _ = await submit(store, new_job())
        held = (await claimed(store)).job
        versions = [job.version, held.version]

        async def note_version() -> None:
            found = await store.get(job.id, "alice")
            assert found is not None
            versions.append(found.version)

        await store.heartbeat(job.id, held.attempt, LEASE_S, {"asr": 0.5})
        await note_version()
        await store.cancel(job.id, "alice")
        await note_version()
        await store.canceled(job.id, held.attempt)
        await note_version()
        assert versions == sorted(set(versions))
        assert len(versions) == 5

    using(store_url, story, clock)


def test_a_result_of_20_mb_comes_back(store_url: str, clock: Clock) -> None:
    """It is the same byte by byte, although it does not compress well."""
    result = os.urandom(10_000_000).hex().encode()

    async def story(store: JobStore) -> bool:
        await submit(store, new_job())
        held = (await claimed(store)).job
        assert await store.finish(held.id, held.attempt, result)
        return await store.result(held.id, "alice") == result

    assert using(store_url, story, clock)


@pytest.mark.parametrize("odd", ["\0", "\ud800"])
def test_texts_that_no_database_can_hold(store_url: str, clock: Clock, odd: str) -> None:
    """A client can have such an id in its URL, and such text in an error's message: both are harmless."""

    async def story(store: JobStore) -> None:
        for ask in (store.get, store.request, store.result, store.cancel, store.delete):
            assert await ask(odd, "alice") is None
        job, _ = await submit(store, new_job(idempotency_key=odd, audio=odd, request=odd))
        held = (await claimed(store)).job
        assert await store.fail(held.id, held.attempt, odd, f"It said {odd}.", retry=False)
        failed = await store.get(job.id, "alice")
        assert failed is not None
        assert (failed.error_message or "").startswith("It said ")

    using(store_url, story, clock)


def test_errors_do_not_show_what_clients_sent(store_url: str) -> None:
    """Errors of the database end in logs."""

    async def story(store: JobStore) -> str:
        with pytest.raises(sa.exc.DBAPIError) as raised:
            await submit(store, new_job(request="a private request", key=None))
        return str(raised.value)

    assert "a private request" not in using(store_url, story)


def test_heartbeats_do_not_write_a_long_request_again(tmp_path: Path) -> None:
    """A form of 8 MB would keep the disk busy for as long as its job runs."""
    file = tmp_path / "jobs.db"
    url = f"sqlite:///{file}"
    asyncio.run(migrate(url))

    async def story(store: JobStore) -> None:
        await submit(store, new_job(request="x" * 8_000_000))
        async with store.read() as connection:
            await connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        held = (await claimed(store)).job
        for _ in range(10):
            await store.heartbeat(held.id, held.attempt, LEASE_S, {"asr": 0.5})
        assert (tmp_path / "jobs.db-wal").stat().st_size < 1_000_000

    using(url, story)


@pytest.mark.parametrize("has_ended", [True, False])
def test_deletion_takes_everything(store_url: str, clock: Clock, has_ended: bool) -> None:
    """Request, result and webhook are gone; the caller is told once where the audio is."""

    async def story(store: JobStore) -> None:
        new = new_job(idempotency_key="1", input_ref="spool/1", webhook_url="https://example.com")
        job, _ = await submit(store, new)
        if has_ended:
            held = (await claimed(store)).job
            assert await store.finish(held.id, held.attempt, b"the transcript")
        deleted = await store.delete(job.id, "alice")
        assert deleted is not None
        assert deleted.input_ref == "spool/1"
        assert await store.delete(job.id, "alice") is None
        assert await store.get(job.id, "alice") is None
        assert await store.result(job.id, "alice") is None
        assert await store.claim_delivery(LEASE_S) is None
        assert await store.claim("worker", LEASE_S) is None
        assert (await submit(store, new))[1]  # the idempotency key is free again

    using(store_url, story, clock)


def test_deleted_text_is_not_in_the_file(tmp_path: Path) -> None:
    """SQLite leaves deleted rows in its pages unless it is told otherwise."""
    file = tmp_path / "jobs.db"
    url = f"sqlite:///{file}"
    asyncio.run(migrate(url))

    async def stored(store: JobStore) -> str:
        return (await submit(store, new_job(request="a private request")))[0].id

    job_id = using(url, stored)
    assert b"a private request" in file.read_bytes()
    using(url, lambda store: store.delete(job_id, "alice"))
    assert b"a private request" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_jobs_are_kept_for_their_time(store_url: str, clock: Clock) -> None:
    """The time begins with their end; then a sweep erases them, but not while a webhook is due."""

    async def story(store: JobStore) -> None:
        kept = await finished(store, keep_s=100, input_ref="spool/1")
        unsent = await finished(store, keep_s=100, input_ref="spool/2", webhook_url="https://example.com")
        queued, _ = await submit(store, new_job(keep_s=1, input_ref="spool/3"))
        clock.advance(99)
        assert await store.sweep() == []
        assert await store.get(kept, "alice") is not None
        clock.advance(2)
        assert await store.sweep() == ["spool/1"]
        assert await store.get(kept, "alice") is None
        assert await store.result(kept, "alice") is None
        assert await store.get(unsent, "alice") is not None
        assert await store.get(queued.id, "alice") is not None
        assert await store.input_refs() == {"spool/3"}

    using(store_url, story, clock)


def test_a_locked_store_is_busy(store_url: str) -> None:
    """Writes get an error that says when to try again; reads and idle workers are not affected."""

    async def story(_: JobStore) -> None:
        store, locker = JobStore(store_url, busy_timeout_s=0.1), JobStore(store_url)
        try:
            async with locker.write() as connection:
                if not locker.is_sqlite:
                    await connection.exec_driver_sql("LOCK TABLE jobs IN EXCLUSIVE MODE")
                with pytest.raises(StoreBusy) as refused:
                    await submit(store, new_job())
                assert refused.value.status == 503
                assert refused.value.retry_after_s
                assert await store.list_jobs("alice") == []
                assert await store.claim("worker", LEASE_S) is None
                assert await store.claim_delivery(LEASE_S) is None
                assert await store.sweep() == []
            assert (await submit(store, new_job()))[1]
        finally:
            await store.close()
            await locker.close()

    using(store_url, story)


def test_clients_that_leave_in_the_middle_leave_no_lock(store_url: str) -> None:
    """Wherever a submit is cancelled, it is stored whole or not at all, and others do not wait for it."""

    async def story(store: JobStore) -> None:
        other = JobStore(store_url, busy_timeout_s=3.0)
        try:
            for steps in range(100):
                submitting = asyncio.create_task(submit(store, new_job(idempotency_key=str(steps))))
                for _ in range(steps % 25):
                    await asyncio.to_thread(int)  # some time for the threads of SQLite
                submitting.cancel()
                await asyncio.gather(submitting, return_exceptions=True)
                await submit(other, new_job(idempotency_key=str(steps)))
            assert len(await store.list_jobs("alice", limit=1000)) == 100
        finally:
            await other.close()

    using(store_url, story)


def test_a_full_disk_is_busy(tmp_path: Path) -> None:
    """What fails is not lost silently, and works again with room; here the file may have no more pages."""
    url = f"sqlite:///{tmp_path}/jobs.db"
    asyncio.run(migrate(url))

    async def story(store: JobStore) -> None:
        async with store.write() as connection:
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
            await connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        with pytest.raises(StoreBusy):
            await submit(store, new_job(request="x" * 100_000))
        async with store.write() as connection:
            await connection.exec_driver_sql("PRAGMA max_page_count=100000")
        assert (await submit(store, new_job(request="x" * 100_000)))[1]

    using(url, story)


def test_a_postgresql_that_restarts_is_busy_for_a_while(postgres: Postgres) -> None:
    """Nothing that was answered is lost, a worker keeps its job, and no connection stays broken."""

    async def story(store: JobStore) -> None:
        await store.submit_all([new_job() for _ in range(3)])
        held = (await claimed(store)).job
        postgres.stop()
        try:
            for _ in range(2):
                with pytest.raises(StoreBusy):
                    await store.heartbeat(held.id, held.attempt, LEASE_S)
        finally:
            postgres.start()
        assert await store.heartbeat(held.id, held.attempt, LEASE_S) == "ok"
        assert await store.finish(held.id, held.attempt, b"done")
        assert len(await store.list_jobs("alice", statuses=["queued"])) == 2

    using(postgres.emptied_database(), story)


@pytest.mark.parametrize("setting", ["default_transaction_read_only = on", "statement_timeout = 100"])
def test_a_postgresql_that_cannot_write_now_is_busy(postgres: Postgres, setting: str) -> None:
    """It was demoted, or its operator limits statements and a lock is held: a client may come again."""
    url = postgres.new_database()
    asyncio.run(migrate(url))

    async def limit(store: JobStore) -> None:
        async with store.write() as connection:
            database = (await connection.exec_driver_sql("SELECT current_database()")).scalar_one()
            await connection.exec_driver_sql(f"ALTER DATABASE {database} SET {setting}")

    async def story(store: JobStore) -> None:
        async with store.read() as locker:
            if "timeout" in setting:
                await locker.exec_driver_sql("LOCK TABLE jobs IN EXCLUSIVE MODE")
            with pytest.raises(StoreBusy):
                await submit(store, new_job())
        assert await store.list_jobs("alice") == []

    using(url, limit)
    using(url, story)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    """Waiting does not bring missing tables, so the store is not called busy."""
    file = tmp_path / "jobs.db"
    sqlite3.connect(file).close()
    with pytest.raises(Exception, match="no such table") as raised:
        using(f"sqlite:///{file}", lambda store: store.list_jobs("alice"))
    assert not isinstance(raised.value, StoreBusy)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///relative.db",
        "jobs.db",
        "",
        "mysql://host/db",
        "postgresql://user:hidden@host:hidden/db",
    ],
)
def test_other_stores_are_refused(url: str) -> None:
    """SQLite in memory keeps nothing, a relative path is another file elsewhere; no password is shown."""
    with pytest.raises(ValueError, match="sqlite:////a/file") as raised:
        JobStore(url)
    assert "hidden" not in str(raised.value)
