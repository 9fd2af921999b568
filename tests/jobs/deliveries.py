"""Webhooks to send, and an outbox in memory that a test's clock drives."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from serve_app.jobs.records import Delivery, Job, Try, WebhookStyle
from serve_app.jobs.signatures import new_secret
from serve_app.jobs.webhooks import AnswerOf, claim, deliver, send
from serve_app.settings.jobs import WebhookSettings

NEW, OLD = new_secret(), new_secret()
HIDDEN = "hidden-in-the-url"


def job(**changes: Any) -> Job:
    """A job that has ended well."""
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
    return Delivery("msg_1", job(**of_job), url, style, claim_no=0, tries=0, first_try_at_s=None)


def settings(**changes: Any) -> WebhookSettings:
    """Settings that open loopback, so that tests can receive there."""
    return WebhookSettings(**{"allowed_hosts": ("127.0.0.1",), **changes})


async def tried(
    url: str, answer: Any = None, signers: Sequence[str] = (NEW, OLD), **changes: Any
) -> tuple[Try, float | None]:
    """One try at a URL; whatever comes of it, its error shows neither secrets nor what the URL hides."""
    made, wait_s = await send(delivery(url), answer, signers, settings(**changes))
    assert not [hidden for hidden in (HIDDEN, NEW, OLD, "secret@") if hidden in (made.error or "")]
    return made, wait_s


async def deliver_due(
    outbox: "MemoryOutbox", answer_of: AnswerOf, settings: WebhookSettings, worker: str, clock: "Clock"
) -> bool:
    """Sends the webhook that is due; False where none is."""
    claimed = await claim(outbox, settings, worker)
    if claimed is None:
        return False
    await deliver(outbox, *claimed, answer_of, settings, clock)
    return True


@dataclass
class Clock:
    """A clock that stands still until a test moves it."""

    now_s: float = field(default_factory=time.time)

    def __call__(self) -> float:
        return self.now_s


@dataclass
class MemoryOutbox:
    """One webhook."""

    delivery: Delivery
    clock: Clock
    due_at_s: float = 0.0
    status: str | None = None
    log: list[Try] = field(default_factory=list)

    async def claim_delivery(self, worker: str, lease_s: float) -> Delivery | None:
        if self.status or self.due_at_s > self.clock():
            return None
        self.due_at_s = self.clock() + lease_s
        self.delivery = replace(self.delivery, claim_no=self.delivery.claim_no + 1, tries=len(self.log))
        return self.delivery

    async def record_try(
        self,
        delivery_id: str,
        claim_no: int,
        made: Try,
        next_due_at: float | None,
        final_status: Literal["succeeded", "failed"] | None,
    ) -> bool:
        assert (next_due_at is None) != (final_status is None)
        if (delivery_id, claim_no) != (self.delivery.id, self.delivery.claim_no):
            return False
        self.log.append(made)
        self.due_at_s, self.status = next_due_at or 0.0, final_status
        return True
