"""Web servers on loopback, well-behaved, hostile or forbidden ones, and fetches from them."""

import asyncio
import io
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from aiohttp import web

from serve_app.audio import Source
from serve_app.errors import TranscriptionError
from serve_app.http.app import create_app
from serve_app.options import Options
from serve_app.settings import IntakeSettings
from serve_app.stages.audio.fetch import fetch
from serve_app.transcript import Transcript

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Files:
    """A loopback HTTP server whose files a test sets."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.seen_headers: dict[str, dict[str, str]] = {}
        self._requested: dict[str, threading.Event] = {}
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                files.seen_headers[self.path] = dict(self.headers)
                files.requested(self.path).set()
                body = files.content.get(self.path)
                self.send_response(404 if body is None else 200)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, *_: object) -> None:
                """Tests read results, not access logs."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def url(self, path: str, content: bytes) -> str:
        self.content[path] = content
        self._requested.pop(path, None)
        return f"http://{self.host}{path}"

    def requested(self, path: str) -> threading.Event:
        """An event that is set when the file is requested."""
        return self._requested.setdefault(path, threading.Event())

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class SlowFile(io.BytesIO):
    """A file whose operation `slow` ("write" or "flush") waits until `go_on` is set, for 5 s at most."""

    def __init__(self, slow: str) -> None:
        super().__init__()
        self._slow = slow
        self.asked, self.go_on = threading.Event(), threading.Event()
        self.gave_up = False

    def write(self, data: Any, /) -> int:
        self._wait("write")
        return super().write(data)

    def flush(self) -> None:
        self._wait("flush")
        super().flush()

    def _wait(self, name: str) -> None:
        if name == self._slow:
            self.asked.set()
            self.gave_up |= not self.go_on.wait(5)


class Canary:
    """A server that must never be reached: it listens on loopback and counts connections.

    It answers every request, so that an attack that got through would succeed.
    """

    def __init__(self) -> None:
        self.hits = 0
        self._servers: list[asyncio.Server] = []

    async def __aenter__(self) -> "Canary":
        loop, canary = asyncio.get_running_loop(), self

        class Connection(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                canary.hits += 1
                self.transport = transport

            def data_received(self, _: bytes) -> None:
                self.transport.write(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret"
                )
                self.transport.close()

        first = await loop.create_server(Connection, "127.0.0.1", 0)
        self._servers.append(first)
        self.port: int = first.sockets[0].getsockname()[1]
        with suppress(OSError):  # a machine without IPv6
            self._servers.append(await loop.create_server(Connection, "::1", self.port))
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self._servers:
            server.close()
            await server.wait_closed()


@asynccontextmanager
async def serving(handler: Handler, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """A web server that answers every path with `handler`; gives its port."""
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_serving(
    *answer: bytes | Iterable[bytes],
    then_hang: bool = False,
    pause_s: float = 0.0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """A server that answers a request with exactly these bytes, then closes or hangs; gives its port.

    Iterables may be endless; `pause_s` passes before each of their pieces.
    """
    ended, connections = asyncio.Event(), set[asyncio.Task[None] | None]()

    async def pause(seconds: float | None) -> None:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), seconds)

    async def say(writer: asyncio.StreamWriter) -> None:
        for part in answer:
            for piece in [part] if isinstance(part, bytes) else part:
                if pause_s and not isinstance(part, bytes):
                    await pause(pause_s)
                if ended.is_set():
                    return
                writer.write(piece)
                await writer.drain()
        if then_hang:
            await pause(None)

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await say(writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(each, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        ended.set()
        server.close()
        await asyncio.gather(*(connection for connection in connections if connection))
        await server.wait_closed()


def answering(body: bytes, **options: Any) -> Handler:
    """A handler that always gives the same answer."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(body=body, **options)

    return handler


def recording(requests: list[web.Request], handler: Handler) -> Handler:
    """The same handler, which also records its requests."""

    async def recorded(request: web.Request) -> web.StreamResponse:
        requests.append(request)
        return await handler(request)

    return recorded


def resolving(names: dict[str, list[list[str]]]) -> Callable[..., Any]:
    """A `socket.getaddrinfo` that knows these names; each look-up takes a name's next list of addresses."""
    real = socket.getaddrinfo
    left = {name: list(answers) for name, answers in names.items()}

    def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in left:
            return real(host, port, *args, **kwargs)
        addresses = left[host].pop(0) if len(left[host]) > 1 else left[host][0]
        return [found for address in addresses for found in real(address, port, type=socket.SOCK_STREAM)]

    return getaddrinfo


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


class Served:
    """The HTTP application with a pipeline that only fetches."""

    def __init__(self, *, breaks: bool = False, **changes: Any) -> None:
        self.breaks = breaks
        self.intake = intake(**{"allowed_hosts": (), **changes})
        self.app = create_app(self.transcribe, self.readiness, model="none", max_bytes=1 << 20)

    async def transcribe(self, source: Source, options: Options, report: object = None) -> Transcript:
        assert source.url is not None
        await fetch(source.url, source.headers, io.BytesIO(), self.intake)
        if self.breaks:
            raise ValueError("a programming error")
        return Transcript((), "en", 1.0, "none")

    async def readiness(self) -> dict[str, bool]:
        return {}

    async def answer(self, url: str) -> httpx.Response:
        """The answer to a request with this URL and a secret header for fetching it."""
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        body = {"audio_file": url, "headers": {"Authorization": "Bearer secret"}}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post("/predict", json=body)
