"""Sending webhooks: to receivers that fail in every way, by a clock that is passed in, and never inside."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from datetime import datetime, tzinfo
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks.webhooks
from aiohttp import web
from deliveries import HIDDEN, NEW, OLD, deliver_due, delivery, settings, tried, webhook_of
from job_stores import Clock, finished, using
from loopback import Canary, answering, raw_serving, recording, resolving, serving
from standardwebhooks import Webhook
from test_ssrf import CONFUSING, LOOPBACK, NAMES, NOT_HTTP, PRIVATE, REDIRECTS, in_url, reached

from serve_app.errors import InvalidRequest, StoreBusy
from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.records import Job, Try
from serve_app.jobs.store.records import Webhook as Sent
from serve_app.jobs.store.schema import WEBHOOK_ID_PREFIX
from serve_app.jobs.webhooks import sending
from serve_app.jobs.webhooks.sending import checked_url, next_try_in_s, retry_after_s
from serve_app.settings.jobs import WebhookSettings

HOUR_S = 3600.0
SELF_SIGNED = Path(__file__).parents[2] / "stages" / "audio" / "self_signed.pem"


async def no_answer(job: Job) -> Any:
    """The result of a job that was deleted."""
    return None


@pytest.fixture
def secrets_file(tmp_path: Path) -> str:
    (tmp_path / "secrets").write_text(NEW)
    return str(tmp_path / "secrets")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the verifying package goes by too."""
    clock = Clock()

    class Datetime(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Datetime":
            return cls.fromtimestamp(clock(), tz)

    monkeypatch.setattr(standardwebhooks.webhooks, "datetime", Datetime)
    return clock


def verifying(requests: list[dict[str, str]], clock: Clock, answer: Callable[..., Any]) -> Any:
    """A receiver that verifies what comes before it answers in its way."""

    async def handler(request: web.Request) -> web.StreamResponse:
        headers, body = dict(request.headers), await request.read()
        event = Webhook(NEW).verify(body, headers)
        assert event["type"] == "transcription.completed"
        requests.append(headers)
        response: web.StreamResponse = await answer(request)
        return response

    return handler


def test_a_receiver_with_troubles(store_url: str, secrets_file: str, clock: Clock) -> None:
    """The receiver is down, slow, faulty, busy, moved inside and back: six tries with valid signatures."""
    requests: list[dict[str, str]] = []

    async def story(store: JobStore) -> tuple[str, Sent]:
        ended = asyncio.Event()

        async def slow(request: web.Request) -> web.StreamResponse:
            await ended.wait()
            return web.Response()

        async with Canary() as canary:
            inside = {"Location": f"http://127.0.0.1:{canary.port}/"}
            answers = [
                slow,
                answering(b"<secret page>", status=500, reason="Oh no"),
                answering(b"", status=429, headers={"Retry-After": "9000"}),
                answering(b"", status=307, headers=inside),
                answering(b"", status=204),
            ]
            with socket.socket() as place:
                place.bind(("127.0.0.1", 0))  # and nobody listens
                port = place.getsockname()[1]
                url = f"http://127.0.0.1:{port}/hook?token={HIDDEN}"
                job_id = await finished(store, webhook_url=url)
                given = settings(allowed_hosts=(f"127.0.0.1:{port}",), secrets_file=secrets_file)
                assert await deliver_due(store, no_answer, given, clock)
            for answer in answers:
                assert not await deliver_due(store, no_answer, given, clock)  # not due yet
                clock.now_s = (await webhook_of(store, job_id)).due_at_s
                limit_s = 0.3 if answer is slow else 20.0
                hurried = given.model_copy(update={"timeout_s": limit_s})
                async with serving(verifying(requests, clock, answer), port=port):
                    assert await deliver_due(store, no_answer, hurried, clock)
                    ended.set()
            assert canary.hits == 0
        return job_id, await webhook_of(store, job_id)

    job_id, sent = using(store_url, story, clock)
    assert [(made.status, made.error) for made in sent.log] == [
        (None, "The receiver cannot be reached or hung up."),
        (None, "The receiver did not answer within 0.3 s."),
        (500, "The receiver answered 500 Internal Server Error."),
        (429, "The receiver answered 429 Too Many Requests."),
        (307, "The receiver answered 307 Temporary Redirect: redirects are not followed."),
        (204, None),
    ]
    assert sent.status == "succeeded"
    at_s = [made.at_s for made in sent.log]
    waits_s = [later - earlier for earlier, later in pairwise(at_s)]
    planned_s = [5.0, 300.0, 1800.0, 9000.0, 5 * HOUR_S]
    assert all(plan <= wait <= 1.1 * plan + 1e-3 for plan, wait in zip(planned_s, waits_s, strict=True))
    assert [headers["webhook-timestamp"] for headers in requests] == [str(int(each)) for each in at_s[1:]]
    assert {headers["webhook-id"] for headers in requests} == {WEBHOOK_ID_PREFIX + job_id}


def test_a_receiver_that_never_works(store_url: str, secrets_file: str, clock: Clock) -> None:
    """There are ten tries in a bit more than 75 hours, and then none."""
    start_s = clock()

    async def story(store: JobStore) -> Sent:
        async with serving(answering(b"", status=503)) as port:
            job_id = await finished(store, webhook_url=f"http://127.0.0.1:{port}/")
            while await deliver_due(store, no_answer, settings(secrets_file=secrets_file), clock):
                clock.now_s = max(clock.now_s, (await webhook_of(store, job_id)).due_at_s)
        return await webhook_of(store, job_id)

    sent = using(store_url, story, clock)
    assert (len(sent.log), sent.status) == (10, "failed")
    assert 75 * HOUR_S <= clock() - start_s <= 1.11 * 76 * HOUR_S


def test_a_sender_whose_clock_is_wrong(store_url: str, secrets_file: str, clock: Clock) -> None:
    """The schedule goes by the store's clock, which all nodes share."""

    async def story(store: JobStore) -> None:
        async with serving(answering(b"", status=503)) as port:
            job_id = await finished(store, webhook_url=f"http://127.0.0.1:{port}/")
            given = settings(secrets_file=secrets_file)
            assert await deliver_due(store, no_answer, given, lambda: clock() - 24 * HOUR_S)
            assert 5 <= (await webhook_of(store, job_id)).due_at_s - clock() <= 5.5

    using(store_url, story, clock)


def test_a_receiver_that_is_gone(store_url: str, secrets_file: str, clock: Clock) -> None:
    """410 ends the tries at once."""

    async def story(store: JobStore) -> Sent:
        async with serving(answering(b"", status=410)) as port:
            job_id = await finished(store, webhook_url=f"http://127.0.0.1:{port}/")
            assert await deliver_due(store, no_answer, settings(secrets_file=secrets_file), clock)
        return await webhook_of(store, job_id)

    sent = using(store_url, story, clock)
    assert sent.status == "failed"
    assert [made.error for made in sent.log] == ["The receiver answered 410 Gone: nothing more is sent."]


def test_a_new_secret_needs_no_restart(store_url: str, secrets_file: str, clock: Clock) -> None:
    """A secret that is written before the old one signs the next webhook, and so does the old one."""
    requests: list[web.Request] = []
    bodies: list[bytes] = []

    async def accept(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.read())
        return web.Response()

    async def story(store: JobStore) -> None:
        async with serving(recording(requests, accept)) as port:
            job_id = await finished(store, webhook_url=f"http://127.0.0.1:{port}/")
            for content in (OLD, f"{NEW}\n{OLD}", NEW):
                await asyncio.to_thread(Path(secrets_file).write_text, content)
                await store.retry_delivery(job_id, "alice")
                assert await deliver_due(store, no_answer, settings(secrets_file=secrets_file), clock)

    using(store_url, story, clock)
    by_old, by_both, by_new = [request.headers["webhook-signature"].split() for request in requests]
    assert by_both == by_new + by_old
    assert len(set(bodies)) == 1


def test_a_webhook_that_cannot_be_made(store_url: str, secrets_file: str, clock: Clock) -> None:
    """It waits like one that failed, so that it does not come again and again before all others."""

    async def broken(job: Job) -> Any:
        raise OSError("the store does not answer")

    async def story(store: JobStore) -> Sent:
        job_id = await finished(store, webhook_url="https://example.com/")
        assert await deliver_due(store, broken, settings(secrets_file=secrets_file), clock)
        return await webhook_of(store, job_id)

    sent = using(store_url, story, clock)
    assert sent.due_at_s >= clock() + 5
    assert [made.error for made in sent.log] == ["The server could not make the webhook; its log says why."]


def test_a_try_is_recorded_once_the_store_answers(
    store_url: str, secrets_file: str, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receiver has the webhook, so that a busy store does not have it sent again."""
    bodies: list[bytes] = []

    async def accept(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.read())
        return web.Response()

    async def story(store: JobStore) -> Sent:
        record_try, busy = store.record_try, [StoreBusy("Busy.")]

        async def record(*made: Any) -> bool:
            if busy:
                raise busy.pop()
            return await record_try(*made)

        monkeypatch.setattr(store, "record_try", record)
        async with serving(accept) as port:
            job_id = await finished(store, webhook_url=f"http://127.0.0.1:{port}/")
            assert await deliver_due(store, no_answer, settings(secrets_file=secrets_file), clock)
            clock.advance(60)
            assert not await deliver_due(store, no_answer, settings(secrets_file=secrets_file), clock)
        return await webhook_of(store, job_id)

    sent = using(store_url, story, clock)
    assert (sent.status, len(sent.log), len(bodies)) == ("succeeded", 1, 1)


def test_a_webhook_without_the_answer_does_not_need_it(
    store_url: str, secrets_file: str, clock: Clock
) -> None:
    """AssemblyAI's clients fetch the transcript themselves."""

    async def broken(job: Job) -> Any:
        raise OSError("the result cannot be read")

    async def accept(request: web.Request) -> web.StreamResponse:
        return web.Response()

    async def story(store: JobStore) -> Sent:
        async with serving(accept) as port:
            url = f"http://127.0.0.1:{port}/"
            job_id = await finished(store, webhook_url=url, webhook_style="assemblyai")
            assert await deliver_due(store, broken, settings(secrets_file=secrets_file), clock)
        return await webhook_of(store, job_id)

    assert using(store_url, story, clock).status == "succeeded"


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        (None, None),
        ("120", 120.0),
        (formatdate(1_000_600, usegmt=True), 600.0),
        (formatdate(999_000, usegmt=True), 0.0),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("9" * 400, float("inf")),
        ("Mon, 99 Foo 2026 00:00:00 GMT", None),
    ],
)
def test_what_retry_after_says(header: str | None, wait_s: float | None) -> None:
    """It is whole seconds or a date, as HTTP has it; anything else is ignored."""
    assert retry_after_s(header, 1_000_000.0) == wait_s


@pytest.mark.parametrize(
    ("tries_before", "asked_s", "jitter", "wait_s"),
    [
        (0, None, 0.0, 5.0),
        (0, None, 1.0, 5.5),
        (8, None, 0.0, 24 * HOUR_S),
        (9, None, 0.0, None),
        (9, 60.0, 0.0, None),
        (1, 60.0, 0.0, 300.0),
        (1, 600.0, 0.5, 630.0),
        (1, float("inf"), 0.0, 24 * HOUR_S),
    ],
)
def test_when_the_next_try_is(
    tries_before: int, asked_s: float | None, jitter: float, wait_s: float | None
) -> None:
    """The schedule says when; a receiver can ask for a later time, by a day at most."""
    found_s = next_try_in_s(tries_before, WebhookSettings(), asked_s, jitter)
    assert found_s == (None if wait_s is None else pytest.approx(wait_s))


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299, 300, 301, 302, 304, 308, 400, 404, 500, 599])
def test_only_2xx_is_success(status: int) -> None:
    """Any other answer is a failure, whose message has the status code."""

    async def run() -> Try:
        async with serving(answering(b"", status=status)) as port:
            return (await tried(f"http://127.0.0.1:{port}/?token={HIDDEN}"))[0]

    made = asyncio.run(run())
    assert made.status == status
    assert (made.error is None) == (status < 300)
    assert str(status) in (made.error or str(status))


def test_an_endless_answer() -> None:
    """Only the status is read."""
    endless = iter(lambda: b"x" * 65_536, b"")

    async def run() -> Try:
        async with raw_serving(b"HTTP/1.1 200 OK\r\n\r\n", endless) as port:
            return (await tried(f"http://127.0.0.1:{port}/"))[0]

    made = asyncio.run(run())
    assert (made.status, made.error) == (200, None)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"nonsense\r\n\r\n", "The receiver does not answer in proper HTTP."),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, "The receiver does not answer in proper HTTP."),
        (b"", "The receiver cannot be reached or hung up."),
    ],
)
def test_answers_that_are_no_http(answer: bytes, error: str) -> None:
    """They are failures like any other."""

    async def run() -> Try:
        async with raw_serving(answer) as port:
            return (await tried(f"http://127.0.0.1:{port}/?token={HIDDEN}"))[0]

    assert asyncio.run(run()).error == error


def test_a_certificate_of_nobody() -> None:
    """TLS is checked for allowed hosts, too."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(SELF_SIGNED)

    async def run() -> Try:
        async with raw_serving(b"HTTP/1.1 200 OK\r\n\r\n", tls=tls) as port:
            return (await tried(f"https://127.0.0.1:{port}/"))[0]

    assert "certificate" in (asyncio.run(run()).error or "")


def test_a_long_body_arrives_whole() -> None:
    """Baseten's bodies have results of megabytes."""
    sizes: list[int] = []

    async def accept(request: web.Request) -> web.StreamResponse:
        request._client_max_size = 0
        sizes.append(len(await request.read()))
        return web.Response()

    async def run() -> Try:
        async with serving(accept) as port:
            long = delivery(f"http://127.0.0.1:{port}/", "baseten")
            return (await sending.send(long, "x" * 5_000_000, (NEW,), settings()))[0]

    assert asyncio.run(run()).error is None
    assert 5_000_000 < sizes[0] < 5_001_000


async def attack(url: str, monkeypatch: pytest.MonkeyPatch, *, live_host: str = "") -> str:
    """The error of a webhook to a URL whose `{port}` is the canary's and an ordinary port; it was not hit."""
    async with Canary() as canary:
        if live_host and not await reached(canary, live_host):
            pytest.skip(f"{live_host} does not lead to this machine")
        monkeypatch.setattr(sending, "PORTS", frozenset({443, canary.port}))
        made, _ = await tried(url.format(port=canary.port), allowed_hosts=())
        assert canary.hits == 0
    assert made.status is None
    assert made.error is not None
    return made.error


@pytest.mark.parametrize("host", LOOPBACK.split())
def test_loopback_in_every_notation(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notation by which any other client reaches the canary leads to no connection, with TLS or without."""
    error = asyncio.run(attack(f"https://{in_url(host)}:{{port}}/", monkeypatch, live_host=host))
    assert error.startswith("The receiver ")
    assert "https" in asyncio.run(attack(f"http://{in_url(host)}:{{port}}/", monkeypatch))


@pytest.mark.parametrize("host", NAMES.split())
def test_names_that_lead_inside(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a name looks like does not matter, only where it leads."""
    monkeypatch.setattr(socket, "getaddrinfo", resolving({host: [["127.0.0.1"]]}))
    error = asyncio.run(attack(f"https://{host}:{{port}}/", monkeypatch, live_host=host))
    assert "is not on the public internet" in error


@pytest.mark.parametrize("host", PRIVATE.split())
def test_addresses_inside(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Private, local, reserved, multicast and metadata addresses are not even tried, also inside IPv6."""
    error = asyncio.run(attack(f"https://{in_url(host)}/", monkeypatch))
    assert "is not on the public internet" in error


@pytest.mark.parametrize("url", NOT_HTTP.split() + CONFUSING)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_urls_that_are_not_plain_https(scheme: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other schemes, and URLs that two parsers read differently, are refused before any connection."""
    url = url.replace("http:", f"{scheme}:")
    assert asyncio.run(attack(url, monkeypatch)).startswith("webhook_url ")
    with pytest.raises(InvalidRequest):
        checked_url(url.format(port=443), WebhookSettings())


@pytest.mark.parametrize("location", REDIRECTS)
def test_redirects_inside(location: str) -> None:
    """They are not followed."""

    async def run() -> Try:
        async with Canary() as canary:
            headers = {"Location": location.format(port=canary.port)}
            async with serving(answering(b"", status=302, headers=headers)) as port:
                made, _ = await tried(f"http://127.0.0.1:{port}/", allowed_hosts=(f"127.0.0.1:{port}",))
            assert canary.hits == 0
            return made

    assert asyncio.run(run()).status == 302


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_host_that_the_operator_opened_is_reached(scheme: str) -> None:
    """A webhook can reach the canary if its host is opened; this opens no other host."""

    async def run() -> int:
        async with Canary() as canary:
            url = f"{scheme}://127.0.0.1:{canary.port}/"
            made, _ = await tried(url, allowed_hosts=("127.0.0.1:1", "localhost"))
            assert made.error
            assert canary.hits == 0
            await tried(url, allowed_hosts=(f"127.0.0.1:{canary.port}",))
            return canary.hits

    assert asyncio.run(run()) == 1


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("http://example.com/", "not https"),
        ("https://example.com:8443/", "unusual port"),
        ("https://user:secret@example.com/", "password"),
        ("example.com/hook", "no URL"),
        ("https://example.com/" + "x" * 8_192, "no URL"),
        ("https://example.com/#\0", "no URL"),
        ("https://example.com/\udc80", "no URL"),
        ("https://example.com/\x85", "no URL"),
    ],
)
def test_urls_that_are_refused_when_a_job_comes_in(url: str, what: str) -> None:
    """The message says what to change, names the field, and repeats nothing of the URL."""
    with pytest.raises(InvalidRequest, match=what) as caught:
        checked_url(url, WebhookSettings(), "webhook_endpoint")
    assert caught.value.param == "webhook_endpoint"
    assert "example" not in caught.value.message


def test_urls_go_out_as_they_came() -> None:
    """A signed query keeps its escapes."""
    paths: list[str] = []

    async def accept(request: web.Request) -> web.StreamResponse:
        paths.append(request.raw_path)
        return web.Response()

    async def run() -> None:
        async with serving(accept) as port:
            assert (await tried(f"http://127.0.0.1:{port}/a%2Fb?sig=a%2Bb%2F%3D&x"))[0].error is None

    asyncio.run(run())
    assert paths == ["/a%2Fb?sig=a%2Bb%2F%3D&x"]
