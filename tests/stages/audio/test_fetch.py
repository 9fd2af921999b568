"""Fetching: what arrives, what is forwarded, and what is never reached. Loopback only."""

import asyncio
import logging

import pytest
from aiohttp import web
from loopback import Served, SlowFile, answering, failure, fetched, intake, recording, serving

from serve_app.errors import (
    InvalidRequest,
    Overloaded,
    TranscriptionError,
)
from serve_app.stages.audio.fetch import fetch
from serve_app.stages.audio.ssrf import is_public

BODY = bytes(range(256)) * 1_000
OUTSIDE = "1.1.1.1 93.184.216.34 2606:4700::1111 ::ffff:1.1.1.1 64:ff9b::101:101 2002:101:101::1"


def test_body_arrives() -> None:
    """The file is what the server sent, with the query part of the request."""
    requests: list[web.Request] = []

    async def run() -> bytes:
        async with serving(recording(requests, answering(BODY))) as port:
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
        async with serving(recording(there, answering(BODY))) as other_port:

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
        "http://host:99999/",
        "https://host:8443/",
        "http://user:secret@host/",
        "http://ho st/",
        "http://host/\r\nX: y",
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
        {"X-One": "\ud800"},
        {"X-One": "a" * 20_000},
        {f"X-{number}": "a" * 100 for number in range(200)},
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
        async with serving(answering(BODY, status=404)) as port:
            return await failure(f"http://127.0.0.1:{port}/song.mp3?token=secret#secret")

    error = asyncio.run(run())
    assert (error.status, error.code, error.param) == (424, "http_status", "audio_file")
    assert "/song.mp3 answered 404" in error.message
    assert "secret" not in error.message


def test_nothing_private_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """No query, password or header value of a request is in any log, however the request ends."""
    caplog.set_level(logging.DEBUG)

    async def run() -> list[int]:
        async with serving(answering(BODY)) as good, serving(answering(BODY, status=403)) as bad:
            opened = Served(allowed_hosts=("127.0.0.1",))
            closed = Served()
            url = f"http://127.0.0.1:{good}/a.mp3?token=secret#secret"
            answers = [
                await opened.answer(url),
                await Served(allowed_hosts=("127.0.0.1",), breaks=True).answer(url),
                await opened.answer(url.replace(str(good), str(bad))),
                await opened.answer(url.replace("http", "https", 1)),
                await Served(allowed_hosts=("127.0.0.1",), max_bytes=1).answer(url),
                await closed.answer("http://127.0.0.1:80/a.mp3?token=secret"),
                await closed.answer("http://[2606:4700::1%25a%25b]/?token=secret"),
                await closed.answer("http://nowhere.invalid/?token=secret"),
                await closed.answer(f"http://secret:secret@127.0.0.1:{good}/"),
                await closed.answer("ftp://127.0.0.1/a.mp3?token=secret"),
            ]
            return [answer.status_code for answer in answers]

    assert asyncio.run(run(), debug=True) == [200, 500, 424, 424, 413, 424, 424, 424, 400, 400]
    assert "a programming error" in caplog.text  # the log is on, and has tracebacks
    assert "secret" not in caplog.text
    assert all("secret" not in repr(record.__dict__) for record in caplog.records)


def test_size_of_the_limit_passes() -> None:
    """The limit itself is allowed."""

    async def run() -> bytes:
        async with serving(answering(BODY)) as port:
            return await fetched(f"http://127.0.0.1:{port}/", max_bytes=len(BODY))

    assert asyncio.run(run()) == BODY


def test_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would connect on our behalf, past the address check."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def run() -> bytes:
        async with serving(answering(BODY)) as port:
            return await fetched(f"http://127.0.0.1:{port}/")

    assert asyncio.run(run()) == BODY


def test_full_disk_is_a_typed_error() -> None:
    """No room for the file is our trouble, to be tried again later."""

    async def run() -> None:
        async with serving(answering(BODY)) as port:
            with open("/dev/full", "wb", buffering=0) as full:  # noqa: ASYNC230 - a device
                await fetch(f"http://127.0.0.1:{port}/", {}, full, intake())

    with pytest.raises(Overloaded, match="room"):
        asyncio.run(run())


@pytest.mark.parametrize("slow", ["write", "flush"])
def test_a_slow_disk_stops_nothing_else(slow: str) -> None:
    """While the disk takes its time, other calls of the replica go on: a health check, other files."""

    async def run() -> None:
        async with serving(answering(BODY)) as port:
            with SlowFile(slow) as file:
                fetching = asyncio.create_task(fetch(f"http://127.0.0.1:{port}/", {}, file, intake()))
                assert await asyncio.to_thread(file.asked.wait, 60)
                file.go_on.set()  # which nobody could if the write stopped the event loop
                await fetching
                assert file.getvalue() == BODY
                assert not file.gave_up

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
