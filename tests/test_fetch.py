"""Fetching: what arrives, what is forwarded, and what is never reached. Loopback only."""

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from serve_app.errors import (
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    SourceUnavailable,
    TranscriptionError,
)
from serve_app.settings import IntakeSettings
from serve_app.stages import fetch as module
from serve_app.outbound import is_public
from serve_app.stages.fetch import fetch

BODY = bytes(range(256)) * 1_000
INSIDE = """
127.0.0.1 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.100.100.200 0.0.0.0 224.0.0.1
255.255.255.255 240.0.0.1 198.18.0.1 192.0.0.192 168.63.129.16 ::1 :: fe80::1 fe80::1%lo fc00::1
fd00:ec2::254 fec0::1 ff02::1 ::ffff:10.0.0.1 ::10.0.0.1 2002:7f00:1:: 2002:a00:1::1 64:ff9b::a00:1
64:ff9b:1::a00:1 2001:0:4136:e378:8000:63bf:f5ff:fffe 2001:db8::1
"""
OUTSIDE = "1.1.1.1 93.184.216.34 2606:4700::1111 ::ffff:1.1.1.1 64:ff9b::101:101 2002:101:101::1"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[int]:
    """A web server on 127.0.0.1 that answers every path with `handler`; gives its port."""
    app = web.Application()
    app.router.add_get("/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port: int = runner.addresses[0][1]
        yield port
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_serving(answer: bytes, *, then_hang: bool = False) -> AsyncIterator[int]:
    """A server that sends exactly these bytes after a request, then closes or says no more."""
    released = asyncio.Event()

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        if then_hang:
            await released.wait()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(each, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        released.set()
        server.close()
        await server.wait_closed()


def intake(**changes: Any) -> IntakeSettings:
    """Settings that open loopback, so that tests can serve from it."""
    return IntakeSettings(**{"allowed_hosts": ("127.0.0.1", "localhost"), "fetch_timeout_s": 20.0, **changes})


async def fetched(url: str, headers: dict[str, str] | None = None, **changes: Any) -> bytes:
    """The bytes behind a URL."""
    into = io.BytesIO()
    await fetch(url, headers or {}, into, intake(**changes))
    return into.getvalue()


async def failure(url: str, headers: dict[str, str] | None = None, **changes: Any) -> TranscriptionError:
    """The error of a fetch that must not succeed."""
    try:
        await fetched(url, headers, **changes)
    except TranscriptionError as error:
        return error
    raise AssertionError(f"{url} was fetched")


async def raw_failure(answer: bytes, *, then_hang: bool = False, **changes: Any) -> TranscriptionError:
    """The error of fetching from a server that sends exactly these bytes."""
    async with raw_serving(answer, then_hang=then_hang) as port:
        return await failure(f"http://127.0.0.1:{port}/", **changes)


def answering(body: bytes = BODY, **options: Any) -> Handler:
    """A handler that always answers the same."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, **options)

    return handler


def recording(requests: list[web.Request], handler: Handler) -> Handler:
    """The same handler, but remembering its requests."""

    async def recorded(request: web.Request) -> web.StreamResponse:
        requests.append(request)
        return await handler(request)

    return recorded


def test_body_arrives() -> None:
    """The file is what the server sent, with the query part of the request."""
    requests: list[web.Request] = []

    async def run() -> bytes:
        async with serving(recording(requests, answering())) as port:
            return await fetched(f"http://127.0.0.1:{port}/a%20b.mp3?signature=a%2Bb#part")

    assert asyncio.run(run()) == BODY
    assert requests[0].query["signature"] == "a+b"
    assert requests[0].headers["Accept-Encoding"] == "identity"
    assert requests[0].headers["User-Agent"].startswith("whisperx-serve/")


def test_headers_follow_on_the_same_origin_only() -> None:
    """The caller's headers reach the URL's host, through its own redirects, and nobody else."""
    here: list[web.Request] = []
    there: list[web.Request] = []

    async def run() -> bytes:
        async with serving(recording(there, answering())) as other_port:

            async def redirect(request: web.Request) -> web.StreamResponse:
                target = "/second" if request.path == "/first" else f"http://localhost:{other_port}/x"
                raise web.HTTPFound(target, headers={"Set-Cookie": "spy=1"})

            async with serving(recording(here, redirect)) as port:
                return await fetched(f"http://127.0.0.1:{port}/first", {"Authorization": "Bearer secret"})

    assert asyncio.run(run()) == BODY
    assert [request.headers["Authorization"] for request in here] == ["Bearer secret"] * 2
    assert "Authorization" not in there[0].headers
    assert all("Cookie" not in request.headers for request in here + there)


def test_headers_do_not_return_with_a_redirect_back() -> None:
    """Once another host had its say, it cannot send us back with the caller's credentials."""
    requests: list[web.Request] = []

    async def run() -> bytes:
        ports: list[int] = []

        async def bounce(request: web.Request) -> web.StreamResponse:
            if request.path == "/done":
                return web.Response(body=BODY)
            first = request.path == "/start"
            raise web.HTTPFound(
                f"http://localhost:{ports[1]}/" if first else f"http://127.0.0.1:{ports[0]}/done"
            )

        async with serving(recording(requests, bounce)) as one, serving(bounce) as two:
            ports.extend([one, two])
            return await fetched(f"http://127.0.0.1:{one}/start", {"Authorization": "Bearer secret"})

    assert asyncio.run(run()) == BODY
    assert [("Authorization" in request.headers) for request in requests] == [True, False]


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "0.0.0.0",
        "localhost",
        "LOCALHOST.",
        "１２７.０.０.１",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[0:0:0:0:0:ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
    ],
)
def test_loopback_is_blocked_in_every_notation(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However loopback is spelled, the server that listens there is never asked."""
    requests: list[web.Request] = []

    async def run() -> TranscriptionError:
        async with serving(recording(requests, answering())) as port:
            monkeypatch.setattr(module, "PORTS", frozenset({port}))
            return await failure(f"http://{host}:{port}/", allowed_hosts=())

    # Some notations do not even get as far as the check, depending on aiohttp and the resolver.
    assert asyncio.run(run()).code in ("blocked_address", "bad_address", "dns_failure")
    assert requests == []


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:{port}/", "//127.0.0.1:{port}/", "http://[::ffff:7f00:1]:{port}/"]
)
def test_redirect_to_a_private_address_is_blocked(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allowed host cannot lead us to an address that is not allowed."""
    requests: list[web.Request] = []

    async def run() -> TranscriptionError:
        async with serving(recording(requests, answering())) as port:
            monkeypatch.setattr(module, "PORTS", frozenset({port}))

            async def redirect(request: web.Request) -> web.StreamResponse:
                raise web.HTTPFound(location.format(port=port))

            async with serving(redirect) as first:
                return await failure(f"http://localhost:{first}/", allowed_hosts=(f"localhost:{first}",))

    error = asyncio.run(run())
    assert (error.status, error.code) == (424, "blocked_address")
    assert requests == []


def test_name_that_resolves_anew_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address checked is the address connected to: a name is looked up once, and judged by that."""
    requests: list[web.Request] = []
    lookups: list[str] = []
    real = socket.getaddrinfo

    def rebinding(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "rebind.example":
            return real(host, port, *args, **kwargs)
        lookups.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    async def run() -> TranscriptionError:
        async with serving(recording(requests, answering())) as port:
            monkeypatch.setattr(module, "PORTS", frozenset({port}))
            return await failure(f"http://rebind.example:{port}/", allowed_hosts=())

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    assert asyncio.run(run()).code == "blocked_address"
    assert lookups == ["rebind.example"]
    assert requests == []


def test_one_private_address_among_several_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with many addresses does not get one private address past the check."""

    def several(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        addresses = ("10.0.0.1", "127.0.0.1", "169.254.169.254")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", several)
    assert asyncio.run(failure("http://several.example/")).code == "blocked_address"


@pytest.mark.parametrize("address", INSIDE.split())
def test_addresses_inside(address: str) -> None:
    """Private, local, reserved, multicast and cloud metadata addresses, also wrapped in IPv6."""
    assert not is_public(address)


@pytest.mark.parametrize("address", OUTSIDE.split())
def test_addresses_outside(address: str) -> None:
    """Addresses of the public internet, also those that IPv6 wraps."""
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "song.mp3",
        "//host/song.mp3",
        "http://",
        "http:///song.mp3",
        "file:///etc/passwd",
        "ftp://host/song.mp3",
        "javascript:alert(1)",
        "http://host:99999/",
        "http://host:22/",
        "https://host:8443/",
        "http://user:secret@host/",
        "http://user@host/",
        "http://ho st/",
        "http://host/\r\nX: y",
        "http://host\\@127.0.0.1/",
        "http://host/" + "a" * 9_000,
    ],
)
def test_wrong_urls_are_the_callers_mistake(url: str) -> None:
    """What cannot be fetched by its form is a 400 that names the field and shows no secret."""
    error = asyncio.run(failure(url))
    assert isinstance(error, InvalidRequest)
    assert error.param == "audio_file"
    assert "secret" not in error.message


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "internal"},
        {"connection": "keep-alive"},
        {"Transfer-Encoding": "chunked"},
        {"Content-Length": "5"},
        {"Proxy-Authorization": "x"},
        {"Accept-Encoding": "gzip"},
        {"X-One": "a\r\nX-Two: b"},
        {"X-One": "a\0"},
        {"X One": "a"},
        {"": "a"},
    ],
)
def test_wrong_headers_are_the_callers_mistake(headers: dict[str, str]) -> None:
    """Headers of the connection, and those that would smuggle another one, are refused."""
    error = asyncio.run(failure("http://127.0.0.1/", headers))
    assert isinstance(error, InvalidRequest)
    assert error.param == "headers"


def test_message_shows_no_secret_of_the_url() -> None:
    """Query, fragment and user never appear in an answer."""

    async def run() -> TranscriptionError:
        async with serving(answering(status=404)) as port:
            return await failure(f"http://127.0.0.1:{port}/song.mp3?token=secret#secret")

    error = asyncio.run(run())
    assert (error.status, error.code, error.param) == (424, "http_status", "audio_file")
    assert "/song.mp3 answered 404" in error.message
    assert "secret" not in error.message


def test_size_is_refused_by_its_header() -> None:
    """A declared size above the limit is refused before the body is read."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100000000000\r\n\r\n"
    error = asyncio.run(raw_failure(answer, then_hang=True, max_bytes=1_000))
    assert isinstance(error, PayloadTooLarge)


def test_size_is_refused_by_counting() -> None:
    """A body without a declared size, chunked or not, ends at the limit."""
    plain = b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2_000)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + bytes(2_000) + b"\r\n"
    for answer in (plain, chunked):
        error = asyncio.run(raw_failure(answer, then_hang=True, max_bytes=1_999))
        assert isinstance(error, PayloadTooLarge)


def test_size_of_the_limit_passes() -> None:
    """The limit itself is allowed."""

    async def run() -> bytes:
        async with serving(answering()) as port:
            return await fetched(f"http://127.0.0.1:{port}/", max_bytes=len(BODY))

    assert asyncio.run(run()) == BODY


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"], ids=["headers", "body"]
)
def test_hanging_server_meets_the_deadline(answer: bytes) -> None:
    """A server that accepts and then says nothing costs no more than the configured time."""
    error = asyncio.run(raw_failure(answer, then_hang=True, fetch_timeout_s=0.2))
    assert (error.status, error.code) == (424, "fetch_timeout")


def test_silent_server_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence in the middle of a body ends the fetch long before the deadline."""
    monkeypatch.setattr(module, "LOW_SPEED_WINDOW_S", 0.1)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
    assert asyncio.run(raw_failure(answer, then_hang=True)).code == "too_slow"


def test_trickling_server_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then keeps the connection alive, but not the fetch."""
    monkeypatch.setattr(module, "LOW_SPEED_WINDOW_S", 0.2)

    async def trickle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(1_000):
            await response.write(b"x")
            await asyncio.sleep(0.01)  # the trickle itself
        return response

    async def run() -> TranscriptionError:
        async with serving(trickle) as port:
            return await failure(f"http://127.0.0.1:{port}/")

    assert asyncio.run(run()).code == "too_slow"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", "truncated"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", "truncated"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "encoded_response"),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc", "http_status"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "http_status"),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "http_status"),
        (b"HTTP/1.1 302 Found\r\nLocation: ftp://host/x\r\nContent-Length: 0\r\n\r\n", "bad_redirect"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://host:22/\r\nContent-Length: 0\r\n\r\n", "bad_redirect"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://u:p@host/\r\nContent-Length: 0\r\n\r\n", "bad_redirect"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://host:99999/\r\nContent-Length: 0\r\n\r\n", "bad_redirect"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", "bad_redirect"),
        (b"SSH-2.0-OpenSSH_9.7\r\n\r\n", "bad_response"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", "bad_response"),
        (b"", "connection_failed"),
    ],
)
def test_faults_of_the_source_are_typed(answer: bytes, code: str) -> None:
    """Whatever the other server does wrong is a 424 whose code says what."""
    error = asyncio.run(raw_failure(answer))
    assert isinstance(error, SourceUnavailable)
    assert error.code == code


def test_redirects_end() -> None:
    """Five redirects are followed, a loop is not."""

    async def countdown(request: web.Request) -> web.StreamResponse:
        left = int(request.path.strip("/"))
        if left == 0:
            return web.Response(body=BODY)
        raise web.HTTPFound(f"/{left - 1}")

    async def run() -> tuple[bytes, TranscriptionError]:
        async with serving(countdown) as port:
            return await fetched(f"http://127.0.0.1:{port}/5"), await failure(f"http://127.0.0.1:{port}/6")

    body, error = asyncio.run(run())
    assert body == BODY
    assert error.code == "too_many_redirects"


def test_server_that_is_not_there_is_a_failed_connection() -> None:
    """A closed port is the source's fault, and typed."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = asyncio.run(failure(f"http://127.0.0.1:{unused.getsockname()[1]}/"))
    assert error.code == "connection_failed"


@pytest.mark.parametrize("host", ["nowhere.invalid", "a" * 70 + ".invalid", "a..invalid"])
def test_unknown_host_is_a_dns_failure(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve, or cannot, is told apart from a server that is down."""
    real = socket.getaddrinfo

    def offline(name: Any, *args: Any, **kwargs: Any) -> Any:
        if name == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    assert asyncio.run(failure(f"http://{host}/")).code == "dns_failure"


def test_plain_server_on_an_https_url_is_a_tls_failure() -> None:
    """A server that does not speak TLS is named as such."""

    async def run() -> TranscriptionError:
        async with serving(answering()) as port:
            return await failure(f"https://127.0.0.1:{port}/")

    assert asyncio.run(run()).code == "tls_failure"


def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect on our behalf, past the address check."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def run() -> bytes:
        async with serving(answering()) as port:
            return await fetched(f"http://127.0.0.1:{port}/")

    assert asyncio.run(run()) == BODY


def test_full_disk_is_a_typed_error() -> None:
    """No room for the file is our trouble, to be tried again later."""

    async def run() -> None:
        async with serving(answering()) as port:
            with open("/dev/full", "wb", buffering=0) as full:  # noqa: ASYNC230 - a device
                await fetch(f"http://127.0.0.1:{port}/", {}, full, intake())

    with pytest.raises(Overloaded, match="room"):
        asyncio.run(run())


def test_cancelled_fetch_closes_its_connection() -> None:
    """When the caller goes, the connection goes."""

    async def run() -> None:
        asked, gone = asyncio.Event(), asyncio.Event()

        async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            asked.set()
            assert await reader.read() == b""
            gone.set()
            writer.close()

        server = await asyncio.start_server(each, "127.0.0.1", 0)
        async with server:
            task = asyncio.create_task(fetched(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"))
            await asked.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(gone.wait(), 5)

    asyncio.run(run())
