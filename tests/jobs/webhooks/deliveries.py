"""Webhooks to send."""

from collections.abc import Callable, Sequence
from typing import Any

from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.records import Delivery, Job, Try, Webhook, WebhookStyle
from serve_app.jobs.webhooks.sending import AnswerOf, claim, deliver, send
from serve_app.jobs.webhooks.signatures import new_secret
from serve_app.settings.jobs import WebhookSettings

NEW, OLD = new_secret(), new_secret()
HIDDEN = "hidden-in-the-url"


def job(**changes: Any) -> Job:
    """A job that has succeeded."""
    ended_at_s = 1_795_860_000.25
    plain: dict[str, Any] = {
        "id": "0c6f4b1e9d3a4c55b6d1a2f3e4c5d6e7",
        "version": 3,
        "key": "a",
        "status": "succeeded",
        "priority": 0,
        "created_at_s": ended_at_s - 60,
        "run_at_s": ended_at_s - 60,
        "expires_at_s": None,
        "started_at_s": ended_at_s - 50,
        "finished_at_s": ended_at_s,
        "delete_at_s": None,
        "attempt": 1,
        "failures": 0,
        "deaths": 0,
        "max_attempts": 3,
        "is_cancel_requested": False,
        "progress": {},
        "error_code": None,
        "error_message": None,
        "input_ref": None,
        "webhook_url": None,
        "webhook_style": "standard",
    }
    return Job(**{**plain, **changes})


def delivery(url: str = "https://example.com", style: WebhookStyle = "standard", **of_job: Any) -> Delivery:
    return Delivery("msg_1", job(webhook_style=style, **of_job), url, claim_no=0, tries=0)


def settings(**changes: Any) -> WebhookSettings:
    """Settings that open loopback, so that tests can receive there."""
    return WebhookSettings(**{"allowed_hosts": ("127.0.0.1",), **changes})


async def tried(
    url: str, answer: Any = None, signers: Sequence[str] = (NEW, OLD), **changes: Any
) -> tuple[Try, float | None]:
    """One try at a URL; its error never shows a secret or the hidden part of the URL."""
    made, wait_s = await send(delivery(url), answer, signers, settings(**changes))
    assert not [hidden for hidden in (HIDDEN, NEW, OLD, "secret@") if hidden in (made.error or "")]
    return made, wait_s


async def deliver_due(
    store: JobStore, answer_of: AnswerOf, settings: WebhookSettings, clock: Callable[[], float]
) -> bool:
    """Sends a webhook that is due; False if there is none."""
    claimed = await claim(store, settings)
    if claimed is None:
        return False
    await deliver(store, *claimed, answer_of, settings, clock)
    return True


async def webhook_of(store: JobStore, job_id: str) -> Webhook:
    """The state of this job's webhook."""
    job = await store.get(job_id, "alice")
    assert job is not None
    assert job.webhook is not None
    return job.webhook
