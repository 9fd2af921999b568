"""Answers to HTTP/1.0 clients over a real socket, from the web server that Serve's proxy uses."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from ray.serve._private.http_util import convert_object_to_asgi_messages  # of the proxy's own answers
from starlette.responses import JSONResponse, StreamingResponse

from serve_app.ray_patches.http10 import EndWithConnection


@asynccontextmanager
async def connected(app: Any, http: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to this application."""
    listener = socket.create_server(("127.0.0.1", 0))  # who connects early waits in its queue
    server = uvicorn.Server(uvicorn.Config(app, http=http, lifespan="off", log_level="critical"))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await serving


def answer(
    app: Any, version: str = "1.0", method: str = "GET", http: str = "httptools"
) -> tuple[bytes, bytes]:
    """The head in lower case and the body of an answer, as they came over the socket until it closed."""

    async def ask() -> bytes:
        async with connected(EndWithConnection(app), http) as (reader, writer):
            writer.write(f"{method} / HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
            return await asyncio.wait_for(reader.read(), 10)

    head, _, body = asyncio.run(ask()).partition(b"\r\n\r\n")
    return head.lower(), body


async def stream(scope: Any, receive: Any, send: Any) -> None:
    async def events() -> AsyncIterator[bytes]:
        yield b"data: one\n\n"
        yield b""
        yield b"data: two\n\n"

    await StreamingResponse(events(), media_type="text/event-stream")(scope, receive, send)


async def serves_own(scope: Any, receive: Any, send: Any) -> None:
    """Serve's own answers, which have no length."""
    for message in convert_object_to_asgi_messages("Path '/' not found.", status_code=404):
        await send(message)


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize(
    ("app", "body"), [(stream, b"data: one\n\ndata: two\n\n"), (serves_own, b"Path '/' not found.")]
)
def test_an_http10_client_gets_no_chunks(app: Any, body: bytes, http: str) -> None:
    """The answer ends where the connection does."""
    head, found = answer(app, http=http)
    assert found == body
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head


def test_an_answer_with_a_length_keeps_it() -> None:
    """It is the same in both versions."""
    for version in ("1.0", "1.1"):
        head, body = answer(JSONResponse({"a": 1}), version)
        assert (b"content-length: 7" in head, body) == (True, b'{"a":1}')


def test_a_stream_to_an_http11_client_has_chunks() -> None:
    """Only so can the client see that it has all of it."""
    head, body = answer(stream, "1.1")
    assert b"transfer-encoding: chunked" in head
    assert body.endswith(b"0\r\n\r\n")


def test_the_head_of_a_stream_is_complete() -> None:
    """HEAD has no body in any version."""
    for version in ("1.0", "1.1"):
        head, body = answer(stream, version, "HEAD")
        assert (head.split()[1], body) == (b"200", b"")


def test_events_are_sent_as_they_come() -> None:
    """An HTTP/1.0 client, such as a reverse proxy, does not wait for the end of a stream."""
    go_on = asyncio.Event()

    async def paused(scope: Any, receive: Any, send: Any) -> None:
        async def events() -> AsyncIterator[bytes]:
            yield b"data: one\n\n"
            await go_on.wait()
            yield b"data: two\n\n"

        await StreamingResponse(events())(scope, receive, send)

    async def ask() -> bytes:
        async with connected(EndWithConnection(paused), "httptools") as (reader, writer):
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"data: one\n\n"), 10)
            go_on.set()
            return await asyncio.wait_for(reader.read(), 10)

    assert asyncio.run(ask()) == b"data: two\n\n"
