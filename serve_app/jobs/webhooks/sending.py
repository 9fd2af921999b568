"""Sends webhooks: where they may go, and when they are tried again.

A webhook is sent at least once. A sender may die after the request and before it is recorded; then the
webhook is sent again under the same id.
"""

import asyncio
import io
import logging
import random
import re
import time
from asyncio import timeout
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import Any

import aiohttp
from yarl import URL

from serve_app.errors import InvalidRequest
from serve_app.jobs.store.database import until_stored
from serve_app.jobs.store.outbox import Outbox
from serve_app.jobs.store.records import Delivery, Job, Try
from serve_app.jobs.webhooks.payloads import assemblyai_body, baseten_body, standard_body
from serve_app.jobs.webhooks.signatures import baseten_headers, read_secrets, standard_headers
from serve_app.settings.jobs import MAX_DELAY_S, WebhookSettings
from serve_app.stages.audio import address, ssrf

logger = logging.getLogger("ray.serve")

PORTS = frozenset({443})
LEASE_MARGIN_S = 30.0  # to read the result and to record the try
JITTER = 0.1

_NOT_IN_A_URL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # not in its fragment either

AnswerOf = Callable[[Job], Awaitable[Any]]  # what `/predict` would have answered, None if deleted
Signers = Sequence[str]  # secrets
Clock = Callable[[], float]


async def claim(
    outbox: Outbox, settings: WebhookSettings, busy_keys: Collection[str] = ()
) -> tuple[Delivery, Signers] | None:
    """A webhook that is due, for `deliver`, with the secrets that sign it; None where none is due.

    Secrets are read each time, so new ones need no restart. Raises UnusableSecrets, and then claims nothing.
    """
    signers = read_secrets(settings.secrets_file)
    delivery = await outbox.claim_delivery(settings.timeout_s + LEASE_MARGIN_S, busy_keys)
    return None if delivery is None else (delivery, signers)


async def deliver(
    outbox: Outbox,
    delivery: Delivery,
    signers: Signers,
    answer_of: AnswerOf,
    settings: WebhookSettings,
    clock: Clock = time.time,
) -> None:
    """Sends a claimed webhook once and records the try."""
    asked_s = retry_in_s = None
    try:
        has_answer = delivery.job.status == "succeeded" and delivery.job.webhook_style != "assemblyai"
        answer = await answer_of(delivery.job) if has_answer else None
        made, asked_s = await send(delivery, answer, signers, settings, clock)
    except Exception:  # it must wait like others, else it would be claimed again and again
        logger.exception("The webhook of job %s could not be made.", delivery.job.id)
        made = Try(clock(), None, "The server could not make the webhook; its log says why.", 0.0)
    if made.error is not None and made.status != HTTPStatus.GONE:
        jitter = random.random()  # noqa: S311  (it spreads load and protects nothing)
        retry_in_s = next_try_in_s(delivery.tries, settings, asked_s, jitter)
    # A try that is not recorded would be made again.
    if not await until_stored(partial(outbox.record_try, delivery.id, delivery.claim_no, made, retry_in_s)):
        logger.warning("Webhook %s was sent by another worker in the meantime.", delivery.id)


def next_try_in_s(
    tries_before: int, settings: WebhookSettings, asked_s: float | None, jitter: float
) -> float | None:
    """How long to wait after one more failed try; None if it was the last one. `jitter` is from 0 to 1.

    A receiver can ask to wait for `asked_s`, a day at most; the next try is never earlier than planned.
    """
    if tries_before >= len(settings.retry_delays_s):
        return None
    wait_s = max(settings.retry_delays_s[tries_before], min(asked_s or 0.0, MAX_DELAY_S))
    return wait_s * (1 + JITTER * jitter)


async def send(
    delivery: Delivery,
    answer: Any,
    signers: Signers,
    settings: WebhookSettings,
    clock: Clock = time.time,
) -> tuple[Try, float | None]:
    """Sends a webhook once; gives the try, and the seconds that the receiver asks to wait if it does.

    The try has failed where it has an `error`; errors of the network are not raised. Of the answer, only the
    status and Retry-After are looked at.
    """
    at_s, started_s = clock(), time.monotonic()
    try:
        url = checked_url(delivery.url, settings)
    except InvalidRequest as refused:
        return Try(at_s, None, refused.message, 0.0), None
    headers, body = await asyncio.to_thread(signed, delivery, answer, signers, at_s)  # it may have megabytes
    status, wait_s = None, None
    try:
        async with (
            timeout(settings.timeout_s),
            ssrf.session(allow_private=ssrf.is_allowed(url, settings.allowed_hosts)) as session,
        ):
            response = await session.post(url, data=io.BytesIO(body), headers=headers, allow_redirects=False)
            response.close()  # its body may be endless
        status, wait_s = response.status, retry_after_s(response.headers.get("Retry-After"), at_s)
        error = _why_failed(status)
    except (aiohttp.ClientError, OSError, UnicodeError) as failure:  # OSError: TimeoutError, too
        error = f"The receiver {_what(failure, settings)}."
    return Try(at_s, status, error, time.monotonic() - started_s), wait_s


def checked_url(url: str, settings: WebhookSettings, param: str = "webhook_url") -> URL:
    """The address in a webhook's URL. Raises InvalidRequest where nothing may be sent there."""
    try:
        target = URL() if _NOT_IN_A_URL.search(url) else address.parse(url)
    except ValueError:
        target = URL()
    is_allowed = ssrf.is_allowed(target, settings.allowed_hosts)
    if not target.host or target.scheme not in ("http", "https"):
        what = "is no URL; send a complete https address."
    elif target.user is not None or target.password is not None:
        what = "holds a user name or a password; remove them, webhooks are signed."
    elif target.scheme != "https" and not is_allowed:
        what = "is not https; use https, or have the host added to jobs.webhooks.allowed_hosts."
    elif target.port not in PORTS and not is_allowed:
        what = "uses an unusual port; use 443, or have the host added to jobs.webhooks.allowed_hosts."
    else:
        return target
    raise InvalidRequest(f"{param} {what}", param)


def signed(delivery: Delivery, answer: Any, signers: Signers, now_s: float) -> tuple[dict[str, str], bytes]:
    """Headers and body of a try at `now_s`; `answer` is what `/predict` would have answered, or None."""
    style = delivery.job.webhook_style
    if style == "baseten":
        body = baseten_body(delivery.job, answer, now_s)
        headers = baseten_headers(delivery.job.id, body, signers)
    else:
        job = delivery.job
        body = standard_body(job, answer) if style == "standard" else assemblyai_body(job)
        headers = standard_headers(delivery.id, now_s, body, signers)
    return {"Content-Type": "application/json", **headers}, body


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """The seconds that a Retry-After header asks to wait; None where it is missing or makes no sense."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        return max(0.0, parsedate_to_datetime(header).replace(tzinfo=UTC).timestamp() - now_s)
    except (ValueError, OverflowError):
        return None


def _why_failed(status: int) -> str | None:
    """Why an answer of this status is a failure, None if it is none; in our words, not in the receiver's."""
    if 200 <= status < 300:
        return None
    try:
        name = f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        name = str(status)
    if status == HTTPStatus.GONE:
        return f"The receiver answered {name}: nothing more is sent."
    if 300 <= status < 400:
        return f"The receiver answered {name}: redirects are not followed."
    return f"The receiver answered {name}."


def _what(failure: aiohttp.ClientError | OSError | UnicodeError, settings: WebhookSettings) -> str:
    if isinstance(failure, TimeoutError) and not isinstance(failure, aiohttp.ClientError):
        return f"did not answer within {settings.timeout_s:g} s"
    code, what = ssrf.reason(failure)
    if code == "blocked_address":
        what += " (jobs.webhooks.allowed_hosts opens a private host)"
    return what
