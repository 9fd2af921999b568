"""Sends answers to HTTP/1.0 clients without chunks, which HTTP/1.0 does not know.

uvicorn, the web server of Serve's proxy, sends an answer without a Content-Length in chunks, whatever the
client's version: streams, and Serve's own short answers. Here such an answer ends where its connection does.
This uses private names of uvicorn's protocol for httptools; its other one, for h11, does it by itself.
Tried on uvicorn 0.54.0.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


class EndWithConnection:
    """ASGI middleware in the proxy. It must be the outermost one, because it needs uvicorn's own `send`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        cycle = getattr(send, "__self__", None)
        if scope.get("http_version") == "1.0" and isinstance(cycle, RequestResponseCycle):
            send = _unchunked(cycle, send)
        await self.app(scope, receive, send)


def _unchunked(cycle: RequestResponseCycle, send: Send) -> Send:
    """As `send`, which is the cycle's, but what has no length is written as it is."""
    has_length = False

    async def send_plain(message: Message) -> None:
        nonlocal has_length
        if message["type"] == "http.response.start":
            has_length = any(name.lower() == b"content-length" for name, _ in message["headers"])
            if not has_length:
                cycle.chunked_encoding = False  # None would make uvicorn choose chunks
        elif not has_length:
            cycle.expected_content_length = len(message.get("body", b""))  # else uvicorn finds it too long
        await send(message)

    return send_plain
