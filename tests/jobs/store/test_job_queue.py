"""The order in which jobs are claimed."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from job_stores import LEASE_S, Clock, claimed, new_job, submit, using

from serve_app.jobs.store.job_store import JobStore


async def claim_keys(store: JobStore, number: int, *, is_finished: bool) -> list[str]:
    """The keys of the next jobs, which go on running or are finished one by one."""
    keys = []
    for _ in range(number):
        held = (await claimed(store)).job
        keys.append(held.key)
        if is_finished:
            assert await store.finish(held.id, held.attempt, b"")
    return keys


def test_twenty_keys_share_the_workers(store_url: str, clock: Clock) -> None:
    """The first twenty claims serve twenty keys although one of them came first with a hundred jobs."""

    async def story(store: JobStore) -> list[str]:
        await store.submit_all([new_job(key="first") for _ in range(100)])
        for n in range(19):
            clock.advance(1)
            await store.submit_all([new_job(key=f"key {n}") for _ in range(3)])
        return await claim_keys(store, 40, is_finished=False)

    keys = using(store_url, story, clock)
    assert len(set(keys[:20])) == 20
    assert set(Counter(keys).values()) == {2}


def test_keys_take_turns_on_one_worker(store_url: str, clock: Clock) -> None:
    """Where never more than one job runs, the key that was served longest ago is next."""

    async def story(store: JobStore) -> list[str]:
        await store.submit_all([new_job(key="first") for _ in range(10)])
        clock.advance(1)
        await store.submit_all([new_job(key=key) for key in ("second", "third") for _ in range(2)])
        keys = []
        for _ in range(7):
            clock.advance(1)
            keys += await claim_keys(store, 1, is_finished=True)
        return keys

    keys = using(store_url, story, clock)
    assert [sorted(keys[turn : turn + 3]) for turn in (0, 3)] == [["first", "second", "third"]] * 2
    assert keys[6] == "first"


def test_a_higher_priority_goes_first(store_url: str, clock: Clock) -> None:
    """It goes also before older jobs of keys that have nothing running."""

    async def story(store: JobStore) -> list[int]:
        for priority in (2, 1, 0, 2, 0):
            await submit(store, new_job(key=f"key {priority}", priority=priority))
            clock.advance(1)
        return [(await claimed(store)).job.priority for _ in range(5)]

    assert using(store_url, story, clock) == [0, 0, 1, 2, 2]


def test_jobs_of_a_key_go_in_order(store_url: str, clock: Clock) -> None:
    """Jobs are first in, first out, also those of one request."""

    async def story(store: JobStore) -> None:
        ids = []
        for number in range(1, 4):
            ids += [job.id for job, _ in await store.submit_all([new_job()] * number)]
            clock.advance(1)
        assert [(await claimed(store)).job.id for _ in ids] == ids

    using(store_url, story, clock)


@pytest.mark.parametrize("how", ["fails", "finds the server full"])
def test_a_job_keeps_its_place(store_url: str, clock: Clock, how: str) -> None:
    """One that has to wait is not put behind a thousand that came later."""

    async def story(store: JobStore) -> None:
        ids = [job.id for job, _ in await store.submit_all([new_job() for _ in range(3)])]
        held = (await claimed(store)).job
        if how == "fails":
            assert await store.fail(held.id, held.attempt, "internal_error", "No.", retry=True)
        else:
            assert await store.release(held.id, held.attempt, delay_s=1.0)
        assert (await claimed(store)).job.id == ids[1]
        clock.advance(2)
        again = await store.get(ids[0], "alice")
        assert again is not None
        assert await store.jobs_ahead(again) == 0
        assert (await claimed(store)).job.id == ids[0]

    using(store_url, story, clock)


def test_what_could_not_be_begun_stays_in_the_queue(store_url: str, clock: Clock) -> None:
    """Jobs of other keys and without uploads are claimed, whatever their priority."""

    async def story(store: JobStore) -> None:
        names = {}
        for key, priority, upload in (
            ("busy", 0, None),
            ("free", 0, "file"),
            ("busy", 1, "file"),
            ("free", 2, None),
        ):
            job, _ = await submit(store, new_job(key=key, priority=priority, input_ref=upload))
            names[job.id] = key, priority

        async def claim(**limits: Any) -> tuple[str, int] | None:
            held = await store.claim("worker", LEASE_S, **limits)
            return None if held is None else names[held.job.id]

        assert await claim(busy_keys=["busy"], with_uploads=False) == ("free", 2)
        assert await claim(busy_keys=["busy", "free"]) is None
        assert await claim(busy_keys=["busy"]) == ("free", 0)
        assert await claim(with_uploads=False) == ("busy", 0)
        assert await claim(with_uploads=False) is None
        assert await claim() == ("busy", 1)

    using(store_url, story, clock)


def test_what_waits_too_long_expires(store_url: str, clock: Clock) -> None:
    """It is never claimed; jobs behind it are; a sweep ends it and makes its webhook due."""

    async def story(store: JobStore) -> None:
        late, _ = await submit(store, new_job(max_queue_s=10, webhook_url="https://example.com"))
        in_time, _ = await submit(store, new_job(max_queue_s=20))
        clock.advance(11)
        patient, _ = await submit(store, new_job(max_queue_s=100))
        assert (await claimed(store)).job.id == in_time.id  # the oldest one of those that may still run
        assert (await claimed(store)).job.id == patient.id
        assert await store.claim("worker", LEASE_S) is None
        await store.sweep()
        ended = await store.get(late.id, "alice")
        assert ended is not None
        assert ended.status == "expired"
        assert ended.webhook is not None

    using(store_url, story, clock)


def test_the_number_of_jobs_ahead_allows_for_turns(store_url: str, clock: Clock) -> None:
    """A key with one job waits for one job of each other key, not for all of them."""

    async def story(store: JobStore) -> None:
        await store.submit_all([new_job(key="first") for _ in range(50)])
        await store.submit_all([new_job(key="second", priority=1) for _ in range(5)])
        await store.submit_all([new_job(key="urgent", priority=0) for _ in range(1)])
        clock.advance(1)
        mine, _ = await submit(store, new_job(key="mine"))
        assert await store.jobs_ahead(mine) == 2  # one of first, one of urgent
        clock.advance(1)
        later, _ = await submit(store, new_job(key="second", priority=1))
        assert await store.jobs_ahead(later) == 50 + 1 + 1 + 5

    using(store_url, story, clock)


ARRIVALS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcd")), min_size=1, max_size=12)


def test_claims_are_fair_in_any_queue(store_url: str, clock: Clock) -> None:
    """Each claim takes the first priority that waits, and there a key with the fewest running jobs."""

    @settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
    @given(ARRIVALS)
    def check(arrivals: list[tuple[int, str]]) -> None:
        async def story(store: JobStore) -> None:
            async with store.write() as connection:
                await connection.exec_driver_sql("DELETE FROM jobs")
            await store.submit_all([new_job(key=key, priority=priority) for priority, key in arrivals])
            waiting, running = Counter(arrivals), Counter[str]()
            for _ in arrivals:
                held = (await claimed(store)).job
                assert held.priority == min(priority for priority, _ in waiting)
                keys = {key for priority, key in waiting if priority == held.priority}
                assert running[held.key] == min(running[key] for key in keys)
                running[held.key] += 1
                waiting -= Counter([(held.priority, held.key)])
            assert await store.claim("worker", LEASE_S) is None

        using(store_url, story, clock)

    check()
