"""Access to the API: keys, quotas, other machines, other web pages, full servers and slow bodies."""

import asyncio
import base64
import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from pydantic import ValidationError
from typer.testing import CliRunner

from serve_app.__main__ import cli
from serve_app.audio import Source
from serve_app.cli import local_ray
from serve_app.errors import (
    DeadlineExceeded,
    EmptyAudio,
    Overloaded,
    RateLimited,
    SourceUnavailable,
    UploadTooSlow,
)
from serve_app.http import middleware
from serve_app.http.app import create_app
from serve_app.http.middleware import Gate, in_time
from serve_app.options import Options
from serve_app.request import quotas
from serve_app.request.admission import Admission
from serve_app.settings import Settings
from serve_app.settings.access import AccessSettings, ApiKey
from serve_app.transcript import Transcript

KEY, OTHER = "wx_of-acme", "wx_of-others"
BEARER = {"Authorization": f"Bearer {KEY}"}
ELSEWHERE = ("203.0.113.9", 40_000)
PAGE = "https://page.example"


def key(secret: str = KEY, name: str = "acme", **limits: Any) -> ApiKey:
    return ApiKey(name=name, sha256=hashlib.sha256(secret.encode()).hexdigest(), **limits)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(quotas, "monotonic", clock)
    return clock


class Server:
    """The application with a pipeline that finds `audio_s` seconds and waits while `gate` is closed."""

    def __init__(
        self,
        *keys: ApiKey,
        receive_timeout_s: float = 60.0,
        admission: Any = None,
        on_error: Any = None,
        **settings: Any,
    ) -> None:
        self.audio_s = 0.0
        self.error: Exception | None = None
        self.started = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()
        self.app = create_app(
            self.transcribe,
            self.readiness,
            model="none",
            max_bytes=1 << 20,
            access=AccessSettings(keys=keys, **settings),
            receive_timeout_s=receive_timeout_s,
            admission=admission,
            on_error=on_error,
        )

    async def transcribe(self, source: Source, options: Options, report: object = None) -> Transcript:
        quotas.charge(self.audio_s)
        quotas.charge(self.audio_s)  # a stage that is tried again says so again
        self.started.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Transcript((), "en", self.audio_s, "fake")

    async def readiness(self) -> dict[str, bool]:
        return {}

    async def send(
        self, method: str, path: str, client: tuple[str, int] = ("127.0.0.1", 1), **kwargs: Any
    ) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.request(method, path, **kwargs)

    async def predict(self, secret: str = KEY) -> httpx.Response:
        headers = {"Authorization": f"Bearer {secret}"}
        return await self.send("POST", "/predict", files={"file": b"x"}, headers=headers)

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return asyncio.run(self.send(method, path, **kwargs))

    def post(self, **kwargs: Any) -> httpx.Response:
        return self.request("POST", "/predict", files={"file": b"x"}, **kwargs)


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


@pytest.mark.parametrize(
    "headers",
    [
        BEARER,
        {"authorization": f"bearer  {KEY}"},
        {"Authorization": f"Api-Key {KEY}"},
        {"Api-Key": KEY},
        {"X-Api-Key": KEY},
        {"Authorization": KEY},
        {"Authorization": "x", "X-Api-Key": KEY},
        {"Authorization": "Basic eDp5", "X-Api-Key": KEY},
        {"Authorization": basic("anybody", KEY)},
        {"Authorization": basic("", KEY)},
    ],
)
def test_a_key_opens_the_server_in_every_form(headers: dict[str, str]) -> None:
    """OpenAI's clients send Bearer, Baseten's Api-Key, AssemblyAI's none; a proxy may use Authorization.

    Nextcloud can be told to use Basic; the password is the key then, whatever the user's name.
    """
    assert Server(key(OTHER, "others"), key()).post(headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, "missing_api_key"),
        ({"Authorization": "Bearer"}, "missing_api_key"),
        ({"Authorization": "Api-Key"}, "missing_api_key"),
        ({"Authorization": f"{KEY}x"}, "invalid_api_key"),
        ({"Authorization": f"{KEY} {KEY}"}, "missing_api_key"),
        ({"Authorization": f"Basic {KEY}"}, "missing_api_key"),
        ({"Authorization": "Basic"}, "missing_api_key"),
        ({"Authorization": basic("x", "")}, "missing_api_key"),
        ({"Authorization": basic(KEY, "")}, "missing_api_key"),
        ({"Authorization": basic(KEY, "x")}, "invalid_api_key"),
        ({"Authorization": basic("x", f"{KEY}:")}, "invalid_api_key"),
        ({"Authorization": f"Bearer {KEY}x"}, "invalid_api_key"),
        ({"Authorization": f"Bearer {hashlib.sha256(KEY.encode()).hexdigest()}"}, "invalid_api_key"),
        ({"Authorization": b"Bearer \xff\xfe"}, "invalid_api_key"),
        ({"X-Api-Key": "acme"}, "invalid_api_key"),
    ],
)
def test_without_a_key_that_is_known_nothing_is_read(headers: dict[str, Any], expected: str) -> None:
    """The answer is a 401 before any of the body is read; the hash in the config file is no key."""
    asked = []

    async def body() -> AsyncIterator[bytes]:
        asked.append(1)
        yield b"x"

    response = Server(key()).request("POST", "/predict", content=body(), headers=headers)
    assert code(response) == (401, expected)
    assert response.json()["error"]["type"] == "authentication_error"
    assert response.headers["www-authenticate"] == "Bearer"
    assert asked == []


def test_health_and_documentation_need_no_key() -> None:
    """Load balancers and readers have no key; every other path needs one, even a path that does not exist."""
    server = Server(key())
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/static-offline-docs/swagger-ui.css"):
        assert server.request("GET", path).status_code == 200, path
    for path in ("/nothing", "/predict", "/healthz/x", "/Docs"):
        assert server.request("GET", path).status_code == 401, path
    assert server.request("GET", "/nothing", headers=BEARER).status_code == 404


def test_the_documentation_asks_for_a_key_where_one_is_needed() -> None:
    """/docs then has a field for it, so that requests can be tried there."""
    for server, needed in ((Server(key()), True), (Server(), False)):
        document = server.request("GET", "/openapi.json").json()
        assert ("security" in document["paths"]["/predict"]["post"]) == needed


def test_a_key_is_in_no_log_and_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a right nor a wrong key is logged, whatever fails; the key's name is."""
    caplog.set_level(logging.DEBUG)
    server = Server(key(max_requests=1, max_audio_s_per_minute=1))
    server.error = RuntimeError("a bug")
    server.audio_s = 100.0
    answers = [
        server.post(headers=BEARER),
        server.post(headers=BEARER),
        server.post(headers={"Authorization": f"Bearer {OTHER}"}),
        server.post(headers={"Authorization": f"Basic {OTHER}"}),
        server.post(headers={"Authorization": basic("acme", OTHER)}),
    ]
    assert [answer.status_code for answer in answers] == [500, 429, 401, 401, 401]
    assert "a bug" in caplog.text
    assert "API key acme" in caplog.text
    everything = caplog.text + "".join(answer.text + str(answer.headers) for answer in answers)
    assert KEY not in everything
    assert OTHER not in everything


def test_the_key_goes_no_further() -> None:
    """The application behind the check does not get the key, so it cannot log it or send it on."""
    seen: list[Any] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    server = Server()
    server.app = Gate(inner, AccessSettings(keys=(key(),)), 60.0, None)  # type: ignore[assignment]
    assert server.post(headers={**BEARER, "X-Api-Key": KEY, "Api-Key": KEY, "X-Kept": "1"}).status_code == 200
    assert (b"x-kept", b"1") in seen
    assert not any(KEY.encode() in value for _, value in seen)


def test_operators_count_errors_by_code_and_status() -> None:
    """Those that were raised anywhere, expected or not, and answers to unknown paths and methods."""
    errors: list[tuple[str, int]] = []
    raised: list[Exception] = [RateLimited("Wait.", None, "too_many_jobs"), ValueError("a bug")]

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        raise raised.pop(0)

    server = Server()
    gate = Gate(inner, AccessSettings(keys=(key(),)), 60.0, None, lambda *error: errors.append(error))
    server.app = gate  # type: ignore[assignment]
    statuses = [server.post(headers=headers).status_code for headers in (BEARER, BEARER, {})]
    assert statuses == [429, 500, 401]
    assert errors == [("too_many_jobs", 429), ("internal_error", 500), ("missing_api_key", 401)]
    errors.clear()
    server = Server(on_error=lambda *error: errors.append(error))
    asked = [("GET", "/nothing"), ("PUT", "/predict"), ("GET", "/healthz"), ("OPTIONS", "/predict")]
    statuses = [server.request(method, path).status_code for method, path in asked]
    assert statuses == [404, 405, 200, 204]
    assert errors == [("http_404", 404), ("http_405", 405)]


def test_errors_that_cannot_be_counted_are_answered_all_the_same() -> None:
    """A metric that fails changes neither an error of the service nor one of its framework."""

    def fail(code: str, status: int) -> None:
        raise OSError

    server = Server(key(), on_error=fail)
    assert server.request("GET", "/nothing", headers=BEARER).status_code == 404
    assert server.post().status_code == 401


def test_a_key_has_a_limit_of_requests_at_once() -> None:
    """One request more is a 429 with Retry-After; other keys and GET requests are not affected."""

    async def scenario() -> None:
        server = Server(key(max_requests=1), key(OTHER, "others", max_requests=1))
        server.gate.clear()
        first = asyncio.create_task(server.predict())
        await server.started.wait()
        refused = await server.predict()
        assert code(refused) == (429, "too_many_requests")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert "Each server replica" in refused.json()["error"]["message"]  # it is no limit of the service
        assert int(refused.headers["retry-after"]) > 0
        assert (await server.send("GET", "/nothing", headers=BEARER)).status_code == 404
        server.started.clear()
        other = asyncio.create_task(server.predict(OTHER))
        await server.started.wait()
        server.gate.set()
        assert [(await first).status_code, (await other).status_code] == [200, 200]
        server.error = RuntimeError("a bug")
        assert (await server.predict()).status_code == 500
        server.error = None
        assert (await server.predict()).status_code == 200

    asyncio.run(scenario())


def test_a_key_has_a_limit_of_audio_a_minute(clock: Clock) -> None:
    """A file longer than what is left is served, and the next one waits as long as Retry-After says."""
    server = Server(key(max_audio_s_per_minute=120))
    server.audio_s = 119.0
    assert server.post(headers=BEARER).status_code == 200
    assert server.post(headers=BEARER).status_code == 200
    refused = server.post(headers=BEARER)
    assert (code(refused), refused.headers["retry-after"]) == ((429, "audio_limit_reached"), "60")
    clock.now_s += 59.0  # the debt of 118 s is paid at 2 s a second
    assert server.post(headers=BEARER).headers["retry-after"] == "1"
    clock.now_s += 1.0
    assert server.post(headers=BEARER).status_code == 200


def test_idle_minutes_are_not_saved_up(clock: Clock) -> None:
    """After an hour's pause a key has one minute's audio, not sixty."""
    server = Server(key(max_audio_s_per_minute=60))
    clock.now_s += 3600
    server.audio_s = 60.0
    assert server.post(headers=BEARER).status_code == 200
    assert server.post(headers=BEARER).status_code == 429


def test_audio_counts_from_when_its_length_is_known(clock: Clock) -> None:
    """A request that fails later, or whose client leaves, has used the machine all the same."""
    server = Server(key(max_audio_s_per_minute=60))
    server.audio_s, server.error = 60.0, RuntimeError("a bug")
    assert server.post(headers=BEARER).status_code == 500
    assert code(server.post(headers=BEARER)) == (429, "audio_limit_reached")


@pytest.mark.parametrize("client", ["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"])
def test_without_keys_the_own_machine_is_served(client: str) -> None:
    """The first steps need no keys."""
    assert Server().post(client=(client, 1)).status_code == 200


@pytest.mark.parametrize(
    "client", ["203.0.113.9", "10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "localhost.evil"]
)
def test_without_keys_other_machines_are_refused(client: str) -> None:
    """`serve run` with host 0.0.0.0 is not open by mistake, and the answer says what its operator can do."""
    refused = Server().post(client=(client, 1))
    assert code(refused) == (403, "no_api_keys")
    assert "public_without_keys" in refused.json()["error"]["message"]
    assert Server().request("GET", "/healthz", client=(client, 1)).status_code == 200


async def answer_where_asked_for(*hosts: bytes) -> httpx.Response:
    """Sends a request with these Host headers from this machine to a server without keys."""
    request = httpx.Request("POST", "http://127.0.0.1/predict", files={"file": b"x"})
    others = [pair for pair in request.headers.raw if pair[0].lower() != b"host"]
    request.headers = httpx.Headers([*others, *((b"host", host) for host in hosts)])
    transport = httpx.ASGITransport(Server().app, client=("127.0.0.1", 1))
    async with httpx.AsyncClient(transport=transport) as client:
        return await client.send(request)


@pytest.mark.parametrize(
    "host", [b"127.0.0.1:8000", b"[::1]:8000", b"[::1]", b"LocalHost", b"localhost:8000"]
)
def test_without_keys_the_own_machine_is_asked_for_by_its_own_names(host: bytes) -> None:
    """All names of this machine are accepted, on any port."""
    assert asyncio.run(answer_where_asked_for(host)).status_code == 200


@pytest.mark.parametrize(
    "hosts",
    [
        (b"rebind.example:8000",),
        (b"127.0.0.1.rebind.example",),
        (b"localhost.rebind.example:8000",),
        (b"10.0.0.1:8000",),
        (b"",),
        (),
        (b"127.0.0.1", b"rebind.example"),
    ],
)
def test_without_keys_a_web_pages_own_name_does_not_lead_in(hosts: tuple[bytes, ...]) -> None:
    """A page whose name is made to resolve to 127.0.0.1 (DNS rebinding) could else read every answer."""
    refused = asyncio.run(answer_where_asked_for(*hosts))
    assert code(refused) == (403, "no_api_keys")
    assert "localhost" in refused.json()["error"]["message"]


def test_without_keys_nobody_is_served_behind_haproxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve's HAProxy makes every stranger look like this machine."""
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert code(Server().post()) == (403, "no_api_keys")
    assert Server(key()).post(headers=BEARER).status_code == 200
    assert Server(public_without_keys=True).post().status_code == 200


def test_other_machines_are_served_with_a_key_or_when_told_to() -> None:
    """The operator chooses between keys and access.public_without_keys."""
    assert Server(key()).post(client=ELSEWHERE, headers=BEARER).status_code == 200
    assert Server(key()).post(client=ELSEWHERE).status_code == 401
    assert Server(public_without_keys=True).post(client=ELSEWHERE).status_code == 200


def test_web_pages_may_not_use_the_api_by_default() -> None:
    """No answer of ours lets a browser hand it to another origin's page."""
    answer = Server().post(headers={"Origin": PAGE})
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_named_origins_may_use_the_api() -> None:
    """A browser asks first, without a key; the page can read refusals; other origins are refused."""
    server = Server(key(), cors_origins=(PAGE,))
    question = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    asked = server.request("OPTIONS", "/predict", headers={"Origin": PAGE, **question})
    assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, PAGE)
    assert "authorization" in asked.headers["access-control-allow-headers"]
    for headers, status in ((BEARER, 200), ({}, 401)):
        answer = server.post(headers={"Origin": PAGE, **headers})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
    other = server.request("OPTIONS", "/predict", headers={"Origin": "https://evil.example", **question})
    assert (other.status_code, other.headers.get("access-control-allow-origin")) == (400, None)


@pytest.mark.parametrize(
    ("path", "headers", "error", "status"),
    [
        ("/predict?a=1", BEARER, None, 400),
        ("/predict", {}, None, 401),
        ("/nothing", BEARER, None, 404),
        ("/v1/models", BEARER, None, 405),
        ("/predict", BEARER, UploadTooSlow("Too slow."), 408),
        ("/predict", {**BEARER, "Content-Length": "999999999"}, None, 413),
        ("/predict", {**BEARER, "Content-Encoding": "gzip"}, None, 415),
        ("/predict", BEARER, EmptyAudio("Nothing to decode."), 422),
        ("/predict", BEARER, SourceUnavailable("Gone."), 424),
        ("/predict", BEARER, RateLimited("Too many."), 429),
        ("/predict", BEARER, RuntimeError("a bug"), 500),
        ("/predict", BEARER, Overloaded("Later."), 503),
        ("/predict", BEARER, DeadlineExceeded("Slow."), 504),
    ],
)
def test_named_origins_can_read_every_error(
    path: str, headers: dict[str, str], error: Exception | None, status: int
) -> None:
    """A browser would show a page neither the status nor the message of an answer without CORS headers."""
    server = Server(key(), cors_origins=(PAGE,))
    server.error = error
    asked = {"Origin": PAGE, "X-Request-ID": "7", **headers}
    answer = server.request("POST", path, files={"file": b"x"}, headers=asked)
    assert (answer.status_code, answer.headers.get("access-control-allow-origin")) == (status, PAGE)
    assert answer.json()["error"]["message"]
    assert answer.headers.get_list("x-request-id") == ["7"]
    assert "X-Request-ID" in answer.headers["access-control-expose-headers"]


def test_named_origins_can_read_that_strangers_are_refused() -> None:
    """The 403 of a server without keys has the CORS headers, too, and so has the answer to HEAD."""
    server = Server(cors_origins=(PAGE,))
    refused = server.post(client=ELSEWHERE, headers={"Origin": PAGE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (403, PAGE)
    assert refused.headers["x-request-id"]
    head = server.request("HEAD", "/healthz", headers={"Origin": PAGE})
    assert (head.status_code, head.headers["access-control-allow-origin"]) == (200, PAGE)
    asking = {"Origin": PAGE, "Access-Control-Request-Method": "HEAD"}
    assert server.request("OPTIONS", "/v1/models", headers=asking).status_code == 200


class Full(Admission):
    """Admission to a server that takes nothing more."""

    def __init__(self) -> None:
        super().__init__(0, 1.0)


def test_a_full_server_is_readable_for_web_pages_and_healthy_for_load_balancers() -> None:
    """Its 503 has the CORS headers, a request without a key is a 401, and any Content-Length is safe."""
    server = Server(key(), cors_origins=(PAGE,), admission=Full())
    refused = server.post(headers={"Origin": PAGE, **BEARER, "Content-Length": "7"})
    assert (code(refused), refused.headers["retry-after"]) == ((503, "overloaded"), "5")
    assert refused.headers["access-control-allow-origin"] == PAGE
    assert code(server.post()) == (401, "missing_api_key")
    assert server.request("GET", "/healthz").status_code == 200
    for length in ("9" * 5000, "x", ""):
        assert server.post(headers={**BEARER, "Content-Length": length}).status_code == 503


def test_a_bug_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The log has its traceback, and no second one from the web server."""
    server = Server()
    server.error = RuntimeError("a bug")
    transport = httpx.ASGITransport(server.app, raise_app_exceptions=True)

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return await http.post("/predict", files={"file": b"x"})

    assert asyncio.run(post()).status_code == 500
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [server.error]


def test_every_origin_may_use_the_api_where_keys_keep_strangers_out() -> None:
    """Keys are sent by the page's own code, never by the browser itself; without keys * opens everything."""
    answer = Server(key(), cors_origins=("*",)).post(headers={"Origin": PAGE, **BEARER})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
    assert "access-control-allow-credentials" not in answer.headers
    with pytest.raises(ValidationError, match=r"access\.keys"):
        AccessSettings(cors_origins=("*",), public_without_keys=True)


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data; boundary=b"])
def test_a_body_that_never_ends_is_given_up(content_type: str) -> None:
    """The answer is a 408 in the usual shape, and the connection is closed."""

    async def trickle() -> AsyncIterator[bytes]:
        yield b"--b\r\n"
        await asyncio.Event().wait()

    server = Server(receive_timeout_s=0.05)
    headers = {"content-type": content_type}
    response = server.request("POST", "/predict", content=trickle(), headers=headers)
    assert code(response) == (408, "upload_too_slow")
    assert response.headers["connection"] == "close"


def test_the_time_for_a_body_ends_with_the_body(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the body is complete, waiting for a disconnect may take as long as the answer."""
    clock = Clock()
    monkeypatch.setattr(middleware, "monotonic", clock)
    messages = [{"type": "http.request", "more_body": more} for more in (True, False)]
    messages.append({"type": "http.disconnect"})
    seen = []

    async def receive() -> Any:
        return messages.pop(0)

    async def inner(receive: Any) -> None:
        seen.extend([await receive(), await receive()])
        clock.now_s += 3600
        seen.append(await receive())

    asyncio.run(inner(in_time(receive, 60.0)))
    assert [message["type"] for message in seen] == ["http.request", "http.request", "http.disconnect"]


@pytest.mark.parametrize(("bytes_each", "arrives"), [(1 << 10, 3), (11 << 10, 100)])
def test_a_body_that_trickles_is_given_up(
    monkeypatch: pytest.MonkeyPatch, bytes_each: int, arrives: int
) -> None:
    """Less than 30 KiB in 30 s of waiting is too slow; the time for storing it does not count."""
    clock = Clock()
    monkeypatch.setattr(middleware, "monotonic", clock)
    arrived: list[Any] = []

    async def receive() -> Any:
        clock.now_s += 10
        return {"type": "http.request", "body": bytes(bytes_each), "more_body": len(arrived) < 99}

    async def inner(receive: Any) -> None:
        while len(arrived) < 100:
            arrived.append(await receive())
            clock.now_s += 100

    async def run() -> None:
        with suppress(UploadTooSlow):
            await inner(in_time(receive, 1e6))

    asyncio.run(run())
    assert len(arrived) == arrives


@pytest.mark.parametrize("steps", range(4))
def test_a_request_that_is_cancelled_as_its_body_comes_is_cancelled(steps: int) -> None:
    """This holds for each of the event loop's next steps."""

    async def run() -> None:
        arrived, ended = asyncio.Event(), asyncio.Event()

        async def receive() -> Any:
            await arrived.wait()
            return {"type": "http.request", "more_body": False}

        async def inner(receive: Any) -> None:
            await receive()
            await ended.wait()  # the work on the request

        task = asyncio.create_task(inner(in_time(receive, 60.0)))
        for _ in range(3):  # until it waits for the body
            await asyncio.sleep(0)
        arrived.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        for _ in range(9):
            await asyncio.sleep(0)
        ended.set()
        await asyncio.wait({task})
        assert task.cancelled()

    asyncio.run(run())


def test_a_fresh_key_and_its_lines_fit_together() -> None:
    """The lines that `python -m serve_app key` prints make a server accept the key, and do not contain it."""
    done = CliRunner().invoke(cli, ["key", "007"])
    secret, *lines = done.stdout.splitlines()
    pasted = Settings.model_validate(yaml.safe_load("\n".join(lines))).access
    assert secret not in "".join(lines)
    assert [known.name for known in pasted.keys] == ["007"]
    assert Server(*pasted.keys).post(headers={"Api-Key": secret}).status_code == 200
    assert CliRunner().invoke(cli, ["key", "two words"]).exit_code != 0


def test_a_key_in_place_of_its_hash_is_not_repeated_in_the_error() -> None:
    """The config file is refused without the key in the log."""
    with pytest.raises(ValidationError) as raised:
        Settings.model_validate({"access": {"keys": [{"name": "acme", "sha256": KEY}]}})
    assert "sha256" in str(raised.value)
    assert KEY not in str(raised.value)


@pytest.mark.parametrize("twin", [key(OTHER, "acme"), key(KEY, "others")])
def test_no_two_keys_share_a_name_or_a_hash(twin: ApiKey) -> None:
    """Otherwise it would not be clear whose quota counts."""
    with pytest.raises(ValidationError, match="of its own"):
        AccessSettings(keys=(key(), twin))


def test_rays_token_is_for_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray makes it readable for all users of the machine, and its owner can run code here."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for _ in range(2):
        local_ray._hide_ray_token()
        assert (tmp_path / ".ray").stat().st_mode & 0o777 == 0o700
        (tmp_path / ".ray").chmod(0o755)
