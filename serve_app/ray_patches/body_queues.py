"""Bounds Serve's two queues of an upload, so that an upload waits at its client until it is read.

Serve reads a body as fast as it arrives, into a queue in its proxy and another in the replica, both
unbounded, and has no setting for it. Tried on Ray 2.60.0.
"""

import asyncio
from typing import Any

from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve._private.http_util import ASGIReceiveProxy, MessageQueue
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_UNREAD_MESSAGES = 4  # of a body; each has 64 to 320 KiB when the client is fast

# Serve's two types of `receive`, behind its proxy and behind HAProxy, and the attribute that fetches more.
_FETCH_ATTRIBUTES: dict[type, str] = {
    ASGIReceiveProxy: "_receive_asgi_messages",
    ASGIDIReceiveProxy: "_receive",
}


class BoundedQueue(MessageQueue):
    """The proxy's queue of what a client sends; a piece of a body waits while it is full."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._taken = asyncio.Event()

    async def __call__(self, message: Message) -> None:
        # Only pieces of a body wait: the application must hear at once that a client has left.
        while message["type"] == "http.request" and len(self._message_queue) >= MAX_UNREAD_MESSAGES:
            self._taken.clear()
            await self._taken.wait()
        await super().__call__(message)

    def get_messages_nowait(self) -> Any:
        self._taken.set()
        return super().get_messages_nowait()


class BoundedReceive:
    """ASGI middleware in the replica: it fetches more from the proxy only when little is unread.

    It must be the outermost middleware, because it needs the `receive` that Serve gives; any other `receive`
    passes unchanged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fetch_attribute = _FETCH_ATTRIBUTES.get(type(receive))
        if not fetch_attribute or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        queue = receive.queue  # type: ignore[attr-defined]
        try:
            await self.app(scope, _bounded(receive, fetch_attribute), send)
        finally:
            # Serve's objects may wait for the garbage collector, which does not run in an idle server. Behind
            # HAProxy a few more pieces may arrive, until Serve's thread hears that the request has ended.
            while not queue.empty():
                queue.get_nowait()


def _bounded(receive: Any, fetch_attribute: str) -> Receive:
    """The same `receive`; the task that fetches (behind HAProxy in another thread) waits for the reader."""
    fetch = getattr(receive, fetch_attribute)
    queue = receive.queue  # the closures below hold only this: with `receive` they would make a cycle
    was_read = asyncio.Event()
    fetching_loop: asyncio.AbstractEventLoop | None = None

    async def fetch_when_read(*args: Any) -> Any:
        nonlocal fetching_loop
        fetching_loop = asyncio.get_running_loop()
        while queue.qsize() >= MAX_UNREAD_MESSAGES:
            was_read.clear()
            await was_read.wait()
        return await fetch(*args)

    async def receive_one() -> Message:
        message: Message = await receive()
        if fetching_loop:
            fetching_loop.call_soon_threadsafe(was_read.set)
        return message

    setattr(receive, fetch_attribute, fetch_when_read)
    return receive_one
