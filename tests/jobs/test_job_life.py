"""In any order of events a job ends once, with one result and one webhook."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from job_stores import LEASE_S, Clock, new_job, submit

from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.records import FINAL, Status

T = TypeVar("T")

MAX_DEATHS = 3


@dataclass
class Model:
    """What a job should be."""

    key: str
    priority: int
    max_attempts: int
    has_webhook: bool
    run_at_s: float
    expires_at_s: float
    status: Status = "queued"
    attempt: int = 0
    failures: int = 0
    deaths: int = 0
    lease_until_s: float = 0.0
    is_cancel_requested: bool = False
    ends: list[Status] = field(default_factory=list)

    def end(self, status: Status) -> None:
        self.status = status
        self.ends.append(status)


class Life(RuleBasedStateMachine):
    """Jobs of two keys and two priorities, and workers that may hold leases for too long."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.loop, self.clock = asyncio.Runner(), Clock()
        self.store = JobStore(url, clock=self.clock)
        self.jobs: dict[str, Model] = {}
        self.holds: list[tuple[str, int]] = []  # of all workers there have been, the late ones too
        self.sent = Counter[str]()
        self.do(self.empty())

    def do(self, step: Awaitable[T]) -> T:
        async def run() -> T:
            return await step

        return self.loop.run(run())

    async def empty(self) -> None:
        async with self.store.write() as connection:
            await connection.exec_driver_sql("DELETE FROM jobs")

    def teardown(self) -> None:
        try:
            self.finish_all()
        finally:
            self.do(self.store.close())
            self.loop.close()

    @property
    def orphans(self) -> set[str]:
        now_s = self.clock.now_s
        return {i for i, job in self.jobs.items() if job.status == "running" and job.lease_until_s < now_s}

    @property
    def due(self) -> set[str]:
        now_s = self.clock.now_s
        return {
            i
            for i, job in self.jobs.items()
            if job.status == "queued" and job.run_at_s <= now_s < job.expires_at_s
        }

    def expire(self) -> None:
        for job in self.jobs.values():
            if job.status == "queued" and job.expires_at_s <= self.clock.now_s:
                job.end("expired")

    @rule(
        key=st.sampled_from("ab"),
        priority=st.integers(0, 1),
        max_attempts=st.integers(1, 2),
        has_webhook=st.booleans(),
        max_queue_s=st.sampled_from([10.0, 1e9]),
    )
    def submit(
        self, key: str, priority: int, max_attempts: int, has_webhook: bool, max_queue_s: float
    ) -> None:
        url = "https://example.com" if has_webhook else None
        new = new_job(
            key=key, priority=priority, max_attempts=max_attempts, max_queue_s=max_queue_s, webhook_url=url
        )
        job, is_new = self.do(submit(self.store, new))
        assert is_new
        now_s = self.clock.now_s
        self.jobs[job.id] = Model(key, priority, max_attempts, has_webhook, now_s, now_s + max_queue_s)

    @rule(by_s=st.sampled_from([0.5, 11.0, LEASE_S + 1]))
    def wait(self, by_s: float) -> None:
        self.clock.advance(by_s)

    @rule()
    def claim(self) -> None:
        held = self.do(self.store.claim("worker", LEASE_S, MAX_DEATHS))
        for job_id in self.orphans:
            job = self.jobs[job_id]
            if job.is_cancel_requested:
                job.end("canceled")
            elif job.deaths + 1 >= MAX_DEATHS:
                job.end("failed")
        orphans, due = self.orphans, self.due
        if held is None:
            assert not orphans | due
            return
        job = self.jobs[held.job.id]
        if orphans:
            assert held.job.id in orphans
            job.deaths += 1
        else:
            first = min(self.jobs[job_id].priority for job_id in due)
            running = Counter(one.key for one in self.jobs.values() if one.status == "running")
            keys = {self.jobs[job_id].key for job_id in due if self.jobs[job_id].priority == first}
            assert held.job.id in due
            assert job.priority == first
            assert running[job.key] == min(running[key] for key in keys)
        job.status, job.attempt, job.expires_at_s = "running", job.attempt + 1, float("inf")
        job.lease_until_s = self.clock.now_s + LEASE_S
        assert (held.job.attempt, held.job.deaths) == (job.attempt, job.deaths)
        self.holds.append((held.job.id, job.attempt))

    @precondition(lambda self: self.holds)
    @rule(
        data=st.data(), act=st.sampled_from(["heartbeat", "finish", "fail", "retry", "release", "canceled"])
    )
    def write(self, data: st.DataObject, act: str) -> None:
        job_id, attempt = data.draw(st.sampled_from(self.holds))
        job = self.jobs[job_id]
        is_held = job.status == "running" and job.attempt == attempt
        if act == "heartbeat":
            beat = self.do(self.store.heartbeat(job_id, attempt, LEASE_S, {"asr": 0.5}))
            assert beat == ("lost" if not is_held else "cancel" if job.is_cancel_requested else "ok")
            if is_held:
                job.lease_until_s = self.clock.now_s + LEASE_S
            return
        if act == "finish":
            accepted = self.do(self.store.finish(job_id, attempt, str(attempt).encode()))
        elif act == "release":
            accepted = self.do(self.store.release(job_id, attempt))
        elif act == "canceled":
            accepted = self.do(self.store.canceled(job_id, attempt))
        else:
            accepted = self.do(self.store.fail(job_id, attempt, "no", "No.", retry=act == "retry"))
        assert accepted == is_held
        if is_held:
            self.written(job, act)

    def written(self, job: Model, act: str) -> None:
        is_last = act == "fail" or job.failures + 1 >= job.max_attempts
        job.failures += act in {"fail", "retry"}
        if act == "finish":
            job.end("succeeded")
        elif act == "canceled" or job.is_cancel_requested:
            job.end("canceled")
        elif act in {"fail", "retry"} and is_last:
            job.end("failed")
        else:
            job.status = "queued"
            if act == "retry":
                job.run_at_s = self.clock.now_s + 1.0

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(sorted(self.jobs)))
        job = self.jobs[job_id]
        found = self.do(self.store.cancel(job_id, job.key))
        if job.status == "queued":
            job.end("canceled")
        job.is_cancel_requested |= job.status == "running"
        assert found is not None
        assert found.status == job.status

    @rule()
    def sweep(self) -> None:
        self.do(self.store.sweep())
        self.expire()

    @rule()
    def send(self) -> None:
        delivery = self.do(self.store.claim_delivery(1e9))
        if delivery is not None:
            self.sent[delivery.job.id] += 1
            assert self.jobs[delivery.job.id].status == delivery.job.status

    @invariant()
    def agrees(self) -> None:
        for key in "ab":
            for job in self.do(self.store.list_jobs(key, limit=1000)):
                expected = self.jobs[job.id]
                assert (job.status, job.attempt) == (expected.status, expected.attempt)
                assert (job.failures, job.deaths) == (expected.failures, expected.deaths)
                assert (job.webhook is not None) == (expected.has_webhook and job.status in FINAL)

    def finish_all(self) -> None:
        """In the end time passes, and one worker that does not fail does the rest."""
        self.clock.advance(LEASE_S + 1)
        self.sweep()
        while any(job.status not in FINAL for job in self.jobs.values()):
            self.claim()
            if self.holds and self.jobs[self.holds[-1][0]].status == "running":
                job_id, attempt = self.holds[-1]
                assert self.do(self.store.finish(job_id, attempt, str(attempt).encode()))
                self.written(self.jobs[job_id], "finish")
        for _ in self.jobs:
            self.send()
        for job_id, job in self.jobs.items():
            assert len(job.ends) == 1
            result = str(job.attempt).encode() if job.status == "succeeded" else None
            assert self.do(self.store.result(job_id, job.key)) == result
            assert self.sent[job_id] == job.has_webhook


def test_a_job_ends_once(store_url: str) -> None:
    """It has the result of the worker that held it, and one webhook if it has a URL."""

    class OfThisStore(Life):
        def __init__(self) -> None:
            super().__init__(store_url)

    run_state_machine_as_test(
        OfThisStore,
        settings=settings(
            max_examples=20,
            stateful_step_count=30,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
