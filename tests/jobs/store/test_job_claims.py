"""Leases: who may write what, and for how long."""

import asyncio

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from job_stores import LEASE_S, Clock, claimed, new_job, submit, using

from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.records import SUSPECT_DEATHS, ClaimedJob, Status


def test_a_claim_gives_the_attempt_that_writes_are_accepted_with(store_url: str, clock: Clock) -> None:
    """The number that a worker gets is the one that counts: it can heartbeat, and finish."""

    async def story(store: JobStore) -> None:
        submitted, _ = await submit(store, new_job(secrets=b"sealed"))
        held = await claimed(store)
        assert (held.job.id, held.job.attempt, held.job.status) == (submitted.id, 1, "running")
        assert (held.request, held.secrets) == ('{"language": "en"}', b"sealed")
        assert await store.heartbeat(held.job.id, 1, LEASE_S, {"asr": 0.5}) == "ok"
        seen = await store.get(held.job.id, "alice")
        assert seen is not None
        assert seen.progress == {"asr": 0.5}
        assert await store.finish(held.job.id, 1, b"the transcript")
        assert await store.result(held.job.id, "alice") == b"the transcript"

    using(store_url, story, clock)


def test_a_late_worker_writes_nothing(store_url: str, clock: Clock) -> None:
    """A worker that hung for longer than its lease, and wakes up when another has the job, is refused."""

    async def story(store: JobStore) -> None:
        await submit(store, new_job(webhook_url="https://example.com"))
        late = (await claimed(store, "late")).job
        clock.advance(LEASE_S + 1)
        second = (await claimed(store, "second")).job
        assert (second.id, second.attempt, second.deaths) == (late.id, late.attempt + 1, 1)

        assert await store.heartbeat(late.id, late.attempt, LEASE_S, {"asr": 1.0}) == "lost"
        assert not await store.fail(late.id, late.attempt, "internal_error", "Late.", retry=False)
        assert not await store.canceled(late.id, late.attempt)
        assert not await store.release(late.id, late.attempt)
        assert not await store.finish(late.id, late.attempt, b"late")

        assert await store.finish(second.id, second.attempt, b"second")
        assert not await store.finish(second.id, second.attempt, b"again")
        assert not await store.finish(late.id, late.attempt, b"late")
        job = await store.get(second.id, "alice")
        assert job is not None
        assert (job.status, job.input_ref, job.progress) == ("succeeded", None, {})
        assert await store.result(second.id, "alice") == b"second"

    using(store_url, story, clock)


def test_heartbeats_keep_a_job(store_url: str, clock: Clock) -> None:
    """A long job is not taken from a worker that is alive."""

    async def story(store: JobStore) -> None:
        await submit(store, new_job())
        held = (await claimed(store)).job
        for _ in range(5):
            clock.advance(LEASE_S - 1)
            assert await store.heartbeat(held.id, held.attempt, LEASE_S) == "ok"
            assert await store.claim("other", LEASE_S) is None
        assert await store.finish(held.id, held.attempt, b"")

    using(store_url, story, clock)


def test_a_job_that_kills_every_worker_fails(store_url: str, clock: Clock) -> None:
    """Deaths are counted apart from failures, and have a limit of their own."""

    async def story(store: JobStore) -> None:
        await submit(store, new_job(max_attempts=1, webhook_url="https://example.com"))
        for deaths in range(3):
            held = await store.claim("worker", LEASE_S, max_deaths=3)
            assert held is not None
            assert (held.job.deaths, held.job.failures) == (deaths, 0)
            clock.advance(LEASE_S + 1)
        assert await store.claim("worker", LEASE_S, max_deaths=3) is None
        job = (await store.list_jobs("alice"))[0]
        assert (job.status, job.error_code) == ("failed", "model_crashed")
        assert job.webhook is not None

    using(store_url, story, clock)


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(["a", "b", "poison", "c"], 3, 4)
@given(st.permutations(["poison", "a", "b", "c"]), st.integers(0, 3), st.integers(1, 4))
def test_a_job_that_kills_its_worker_takes_no_others_with_it(
    store_url: str, keys: list[str], later: int, places: int
) -> None:
    """The job fails; the jobs that ran at the same time succeed, and so do new ones."""

    async def story(store: JobStore, clock: Clock) -> None:
        async with store.write() as connection:
            await connection.exec_driver_sql("DELETE FROM jobs")
        names = {job.id: job.key for job, _ in await store.submit_all([new_job(key=key) for key in keys])}
        held: list[ClaimedJob] = []
        for step in range(100):
            if step < later:
                job, _ = await submit(store, new_job(key=f"later {step}"))
                names[job.id] = job.key
            while len(held) < places and not any(each.runs_alone for each in held):
                ids = [each.job.id for each in held]
                taken = await store.claim("worker", LEASE_S, max_deaths=8, held=ids)
                if taken is None:
                    break
                held.append(taken)
            if "poison" in {names[each.job.id] for each in held}:
                clock.advance(LEASE_S + 1)
                held = []
            elif held:
                done = held.pop().job
                assert await store.finish(done.id, done.attempt, b"")
        for job_id, key in names.items():
            ended = await store.get(job_id, key)
            assert ended is not None
            expected = ("failed", "model_crashed") if key == "poison" else ("succeeded", None)
            assert (ended.status, ended.error_code) == expected
            assert key == "poison" or ended.deaths <= SUSPECT_DEATHS

    clock = Clock()
    using(store_url, lambda store: story(store, clock), clock)


def test_a_worker_is_not_given_what_it_runs(store_url: str, clock: Clock) -> None:
    """After an outage of the store the lease may have run out before a heartbeat gets through."""

    async def story(store: JobStore) -> None:
        await submit(store, new_job())
        own = (await claimed(store)).job
        clock.advance(LEASE_S + 1)
        assert await store.claim("worker", LEASE_S, max_deaths=1, held=[own.id]) is None
        assert await store.heartbeat(own.id, own.attempt, LEASE_S) == "ok"
        assert await store.finish(own.id, own.attempt, b"")

    using(store_url, story, clock)


@pytest.mark.parametrize("how", ["its worker died", "it was given back"])
def test_a_job_that_workers_died_of_waits_for_one_that_holds_none(
    store_url: str, clock: Clock, how: str
) -> None:
    """It does not wait for ever: busy workers get no new job until one of them is free."""

    async def story(store: JobStore) -> None:
        suspect, _ = await submit(store, new_job())
        for _ in range(SUSPECT_DEATHS):
            await claimed(store)
            clock.advance(LEASE_S + 1)
        if how == "it was given back":
            held = (await claimed(store)).job
            assert await store.release(held.id, held.attempt)
        await submit(store, new_job(priority=0))
        assert await store.claim("busy", LEASE_S, held=["another"]) is None
        alone = await store.claim("free", LEASE_S)
        assert alone is not None
        assert (alone.job.id, alone.job.deaths, alone.runs_alone) == (suspect.id, SUSPECT_DEATHS, True)
        other = await store.claim("busy", LEASE_S, held=["another"])
        assert other is not None
        assert not other.runs_alone

    using(store_url, story, clock)


def test_failed_attempts_wait_longer_each_time(store_url: str, clock: Clock) -> None:
    """Delays double up to their maximum; the last failure ends the job, with its error."""

    async def story(store: JobStore) -> list[float]:
        await submit(store, new_job(max_attempts=5, initial_delay_s=1.0, max_delay_s=5.0))
        waits = []
        for _ in range(4):
            held = (await claimed(store)).job
            assert await store.fail(held.id, held.attempt, "overloaded", "Too busy.", retry=True)
            job = await store.get(held.id, "alice")
            assert job is not None
            assert (job.status, job.error_code) == ("queued", "overloaded")
            waits.append(job.run_at_s - clock.now_s)
            clock.advance(waits[-1] - 0.01)
            assert await store.claim("worker", LEASE_S) is None
            clock.advance(0.02)
        held = (await claimed(store)).job
        assert await store.fail(held.id, held.attempt, "overloaded", "Too busy.", retry=True)
        job = await store.get(held.id, "alice")
        assert job is not None
        assert (job.status, job.failures, job.error_message) == ("failed", 5, "Too busy.")
        return waits

    assert using(store_url, story, clock) == pytest.approx([1, 2, 4, 5])


def test_what_cannot_succeed_is_not_tried_again(store_url: str, clock: Clock) -> None:
    """A worker says whether another attempt makes sense."""

    async def story(store: JobStore) -> Status:
        await submit(store, new_job(max_attempts=5))
        held = (await claimed(store)).job
        assert await store.fail(held.id, held.attempt, "empty_audio", "Nothing to decode.", retry=False)
        job = await store.get(held.id, "alice")
        assert job is not None
        return job.status

    assert using(store_url, story, clock) == "failed"


def test_a_released_job_costs_no_attempt_and_keeps_its_place(store_url: str, clock: Clock) -> None:
    """A job that a draining worker gives back is claimed next, unless the worker asks for a delay."""

    async def story(store: JobStore) -> None:
        first, _ = await submit(store, new_job(max_queue_s=10))
        clock.advance(1)
        await submit(store, new_job())
        held = (await claimed(store)).job
        assert await store.release(held.id, held.attempt)
        clock.advance(100)  # work has begun once, so it does not expire any more
        again = (await claimed(store)).job
        assert (again.id, again.attempt, again.failures, again.deaths) == (first.id, 2, 0, 0)
        assert await store.release(again.id, again.attempt, delay_s=30)
        assert (await claimed(store)).job.id != first.id
        assert await store.claim("worker", LEASE_S) is None

    using(store_url, story, clock)


def test_a_job_that_no_worker_could_begin_expires(store_url: str, clock: Clock) -> None:
    """One was claimed and given back, because there was no room or its key's quota was used up."""

    async def story(store: JobStore) -> Status:
        await submit(store, new_job(max_queue_s=10))
        held = (await claimed(store)).job
        clock.advance(11)
        await store.sweep()  # while a worker holds it, it does not expire
        why = ("overloaded", "The server is full.")
        assert await store.release(held.id, held.attempt, 5, why, has_begun=False)
        clock.advance(6)
        assert await store.claim("worker", LEASE_S) is None
        await store.sweep()
        job = await store.get(held.id, "alice")
        assert job is not None
        assert (job.error_code, job.error_message) == why
        return job.status

    assert using(store_url, story, clock) == "expired"


@pytest.mark.parametrize("how", ["dies", "fails", "drains", "finds no room"])
def test_a_job_that_was_begun_does_not_expire(store_url: str, clock: Clock, how: str) -> None:
    """It is begun again, also if there is no room for it at first."""

    async def story(store: JobStore) -> None:
        await submit(store, new_job(max_queue_s=10))
        held = (await claimed(store)).job
        clock.advance(LEASE_S + 1)
        if how == "fails":
            assert await store.fail(held.id, held.attempt, "overloaded", "Too busy.", retry=True)
        elif how == "drains":
            assert await store.release(held.id, held.attempt)
        elif how == "finds no room":
            assert await store.release(held.id, held.attempt, delay_s=5)
        clock.advance(10)
        again = (await claimed(store)).job
        assert await store.release(again.id, again.attempt, delay_s=5, has_begun=False)
        await store.sweep()
        clock.advance(10)
        assert (await claimed(store)).job.id == held.id

    using(store_url, story, clock)


def test_a_running_job_learns_of_its_cancellation_by_heartbeat(store_url: str, clock: Clock) -> None:
    """The worker stops, says so, and the job ends as canceled; a queued one ends at once."""

    async def story(store: JobStore) -> None:
        await submit(store, new_job(webhook_url="https://example.com"))
        held = (await claimed(store)).job
        asked = await store.cancel(held.id, "alice")
        assert asked is not None
        assert (asked.status, asked.is_cancel_requested) == ("running", True)
        assert await store.heartbeat(held.id, held.attempt, LEASE_S) == "cancel"
        assert await store.canceled(held.id, held.attempt)
        job = await store.get(held.id, "alice")
        assert job is not None
        assert job.status == "canceled"
        assert job.webhook is not None

        queued, _ = await submit(store, new_job())
        ended = await store.cancel(queued.id, "alice")
        assert ended is not None
        assert ended.status == "canceled"
        assert await store.claim("worker", LEASE_S) is None

    using(store_url, story, clock)


@pytest.mark.parametrize("how", ["dies", "fails", "drains"])
def test_a_job_that_is_to_be_canceled_is_not_begun_again(store_url: str, clock: Clock, how: str) -> None:
    """This holds also where the worker dies or gives the job back before it hears of the wish."""

    async def story(store: JobStore) -> Status:
        await submit(store, new_job())
        held = (await claimed(store)).job
        await store.cancel(held.id, "alice")
        if how == "dies":
            clock.advance(LEASE_S + 1)
        elif how == "fails":
            assert await store.fail(held.id, held.attempt, "overloaded", "Too busy.", retry=True)
        else:
            assert await store.release(held.id, held.attempt)
        clock.advance(10)
        assert await store.claim("worker", LEASE_S) is None
        job = await store.get(held.id, "alice")
        assert job is not None
        return job.status

    assert using(store_url, story, clock) == "canceled"


def test_a_deleted_job_is_lost_to_its_worker(store_url: str, clock: Clock) -> None:
    """Its result is refused, so nothing of a deleted job comes back."""

    async def story(store: JobStore) -> None:
        await submit(store, new_job())
        held = (await claimed(store)).job
        assert await store.delete(held.id, "alice") is not None
        assert await store.heartbeat(held.id, held.attempt, LEASE_S) == "lost"
        assert not await store.finish(held.id, held.attempt, b"late")
        assert await store.result(held.id, "alice") is None

    using(store_url, story, clock)


def test_secrets_are_erased(store_url: str, clock: Clock) -> None:
    """They are erased when the job ends, and not before."""

    async def story(store: JobStore) -> None:
        await submit(store, new_job(secrets=b"sealed"))
        held = (await claimed(store)).job
        assert await store.release(held.id, held.attempt)
        again = await claimed(store)
        assert again.secrets == b"sealed"
        assert await store.finish(held.id, again.job.attempt, b"")

        canceled, _ = await submit(store, new_job(secrets=b"sealed"))
        await store.cancel(canceled.id, "alice")
        async with store.read() as connection:
            left = await connection.exec_driver_sql("SELECT count(*) FROM jobs WHERE secrets IS NOT NULL")
            assert left.scalar_one() == 0

    using(store_url, story, clock)


def test_workers_that_claim_at_once_never_share_a_job(store_url: str, clock: Clock) -> None:
    """Two processes with eight claims each get every job once."""

    async def story(store: JobStore) -> None:
        other = JobStore(store_url, clock=clock)
        submitted = await store.submit_all([new_job(key=f"key {n % 7}") for n in range(60)])

        taken = []

        async def claim_all(one: JobStore) -> None:
            while (held := await one.claim("worker", LEASE_S)) is not None:
                taken.append(held.job.id)

        try:
            await asyncio.gather(*(claim_all(one) for one in (store, other) for _ in range(8)))
        finally:
            await other.close()
        assert sorted(taken) == sorted(job.id for job, _ in submitted)

    using(store_url, story, clock)


def test_the_store_has_a_clock_of_its_own(store_url: str) -> None:
    """Without the test's clock, leases run out by themselves."""

    async def story(store: JobStore) -> None:
        await submit(store, new_job())
        first = await store.claim("worker", lease_s=-1)
        second = await store.claim("worker", lease_s=LEASE_S)
        assert first is not None
        assert second is not None
        assert second.job.id == first.job.id
        assert await store.claim("worker", LEASE_S) is None

    using(store_url, story)
