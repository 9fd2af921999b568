"""Webhooks that wait: due with the job's end, taken under a lease, recorded once."""

import asyncio

from job_stores import LEASE_S, Clock, claimed, finished, new_job, submit, using

from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.records import Delivery, Try

URL = "https://example.com/hook"


async def claimed_delivery(store: JobStore) -> Delivery:
    """The next delivery, which must be there."""
    delivery = await store.claim_delivery(LEASE_S)
    assert delivery is not None
    return delivery


def test_a_webhook_is_due_when_its_job_ends(store_url: str, clock: Clock) -> None:
    """It is not due before, and only jobs that have a URL have one."""

    async def story(store: JobStore) -> None:
        await submit(store, new_job(webhook_url=URL, webhook_style="baseten"))
        held = (await claimed(store)).job
        assert await store.claim_delivery(LEASE_S) is None
        await store.finish(held.id, held.attempt, b"")
        await finished(store)
        due = await claimed_delivery(store)
        assert (due.job.id, due.job.status, due.url, due.job.webhook_style) == (
            held.id,
            "succeeded",
            URL,
            "baseten",
        )
        assert due.tries == 0
        assert await store.claim_delivery(LEASE_S) is None

    using(store_url, story, clock)


def test_a_failed_try_comes_again_with_the_same_id(store_url: str, clock: Clock) -> None:
    """The next try waits until it is due; the job's log has all tries, and the last one ends them."""

    async def story(store: JobStore) -> None:
        job_id = await finished(store, webhook_url=URL)
        first = await claimed_delivery(store)
        refused = Try(clock.now_s, 500, "The receiver answered 500.", 0.25)
        assert await store.record_try(first.id, first.claim_no, refused, 5.0)
        clock.advance(4)
        assert await store.claim_delivery(LEASE_S) is None
        clock.advance(2)
        second = await claimed_delivery(store)
        assert (second.id, second.tries) == (first.id, 1)
        accepted = Try(clock.now_s, 204, None, 0.1)
        assert await store.record_try(second.id, second.claim_no, accepted, None)
        clock.advance(LEASE_S * 10)
        assert await store.claim_delivery(LEASE_S) is None
        job = await store.get(job_id, "alice")
        assert job is not None
        assert job.webhook is not None
        assert (job.webhook.status, job.webhook.log) == ("succeeded", (refused, accepted))

    using(store_url, story, clock)


def test_webhooks_of_busy_keys_wait(store_url: str, clock: Clock) -> None:
    """They wait however long they have been due."""

    async def story(store: JobStore) -> None:
        for key in ("slow", "slow", "quick"):
            await finished(store, key=key, webhook_url=URL)
            clock.advance(1)
        quick = await store.claim_delivery(LEASE_S, {"slow"})
        assert quick is not None
        assert quick.job.key == "quick"
        assert await store.claim_delivery(LEASE_S, {"slow"}) is None
        assert (await claimed_delivery(store)).job.key == "slow"

    using(store_url, story, clock)


def test_a_sender_that_dies_is_replaced(store_url: str, clock: Clock) -> None:
    """After its lease another one sends under the same id, and a late record of the first is refused."""

    async def story(store: JobStore) -> None:
        job_id = await finished(store, webhook_url=URL)
        late = await claimed_delivery(store)
        assert await store.claim_delivery(LEASE_S) is None
        clock.advance(LEASE_S + 1)
        second = await claimed_delivery(store)
        assert second.id == late.id
        made = Try(clock.now_s, 200, None, 0.1)
        assert not await store.record_try(late.id, late.claim_no, made, None)
        assert await store.record_try(second.id, second.claim_no, made, None)
        assert not await store.record_try(second.id, second.claim_no, made, None)
        job = await store.get(job_id, "alice")
        assert job is not None
        assert job.webhook is not None
        assert (job.webhook.status, len(job.webhook.log)) == ("succeeded", 1)

    using(store_url, story, clock)


def test_a_client_may_have_it_sent_again(store_url: str, clock: Clock) -> None:
    """It has a new schedule and the same id; only the job's own key can do this, once the job has ended."""

    async def story(store: JobStore) -> None:
        job_id = await finished(store, webhook_url=URL)
        first = await claimed_delivery(store)
        gone = Try(clock.now_s, 410, "The receiver answered 410.", 0.1)
        assert await store.record_try(first.id, first.claim_no, gone, None)
        assert await store.claim_delivery(LEASE_S) is None

        assert not await store.retry_delivery(job_id, "bob")
        assert await store.retry_delivery(job_id, "alice")
        again = await claimed_delivery(store)
        assert (again.id, again.tries) == (first.id, 0)
        queued, _ = await submit(store, new_job(webhook_url=URL))
        assert not await store.retry_delivery(queued.id, "alice")

    using(store_url, story, clock)


def test_the_log_of_tries_is_bounded(store_url: str, clock: Clock) -> None:
    """A client that asks for the webhook again and again does not fill the database."""

    async def story(store: JobStore) -> int:
        job_id = await finished(store, webhook_url=URL)
        for status in range(500, 530):
            delivery = await claimed_delivery(store)
            made = Try(clock.now_s, status, "No.", 0.1)
            assert await store.record_try(delivery.id, delivery.claim_no, made, 0.0)
        job = await store.get(job_id, "alice")
        assert job is not None
        assert job.webhook is not None
        assert job.webhook.log[-1].status == 529
        return len(job.webhook.log)

    assert using(store_url, story, clock) == 20


def test_senders_that_claim_at_once_never_share_a_webhook(store_url: str, clock: Clock) -> None:
    """Two processes with four claims each get every webhook once."""

    async def story(store: JobStore) -> None:
        ids = [await finished(store, webhook_url=URL) for _ in range(20)]
        other = JobStore(store_url, clock=clock)

        taken = []

        async def claim_all(one: JobStore) -> None:
            while (delivery := await one.claim_delivery(LEASE_S)) is not None:
                taken.append(delivery.job.id)

        try:
            await asyncio.gather(*(claim_all(one) for one in (store, other) for _ in range(4)))
        finally:
            await other.close()
        assert sorted(taken) == sorted(ids)

    using(store_url, story, clock)
