"""Uploads wait for whoever reads them, all the way back to the client's socket.

Ray Serve takes a body as fast as it comes into two queues without an end: one in its proxy, one in the
replica. Here both get an end. Serve has no setting for it, so this leans on its private names; where they
look otherwise than expected, a warning is logged and Serve stays as it is.
"""

import asyncio
import inspect
import logging
import os
from importlib import import_module
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("ray.serve")

# Serve's proxy calls the function that this variable of its environment names, when it starts.
PROXY_HOOK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
AT_PROXY_START = "serve_app.proxy:at_start"

MOST_UNREAD = 4  # messages of a body, of 64 to 320 KiB when they come fast


def bound_proxy() -> None:
    """Called in Serve's proxy: it stops reading from clients whose body nobody takes."""
    try:
        proxy: Any = import_module("ray.serve._private.proxy")
        queue = proxy.MessageQueue
        _expect(queue.__call__, "self message", "put_nowait")
        _expect(queue.get_messages_nowait, "self", "_message_queue")
        _expect(proxy.HTTPProxy.proxy_asgi_receive, "self receive queue", "receive queue")
        _expect(proxy.HTTPProxy.receive_asgi_messages, "self request_metadata", "get_messages_nowait")
        proxy.MessageQueue = _with_an_end(queue)
    except (ImportError, AttributeError):
        _warn("This Ray's proxy is not the one that the server knows")


def _with_an_end(queue: Any) -> Any:
    class BoundedQueue(queue):  # type: ignore[misc]
        """Serve's queue of what a client sends, in which a piece of a body waits while enough is unread."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._taken = asyncio.Event()

        async def __call__(self, message: Message) -> None:
            # Only these: that the client has left must be told at once.
            while message["type"] == "http.request" and len(self._message_queue) >= MOST_UNREAD:
                self._taken.clear()
                await self._taken.wait()
            await super().__call__(message)

        def get_messages_nowait(self) -> Any:
            self._taken.set()
            return super().get_messages_nowait()

    return BoundedQueue


class BoundedReceive:
    """ASGI middleware in the replica: more is fetched from the proxy only when little is unread.

    Outermost, where it gets Serve's own `receive`; any other is left alone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.fetches = _fetches()
        if (
            os.environ.get(PROXY_HOOK) != AT_PROXY_START
            and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") != "1"
        ):
            _warn(f"{PROXY_HOOK} is not {AT_PROXY_START} in the environment of Ray")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fetch = self.fetches.get(type(receive))
        if not fetch or scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        queue = receive.queue  # type: ignore[attr-defined]
        try:
            await self.app(scope, _bounded(receive, fetch), send)
        finally:
            # Serve's objects may wait for the garbage collector, which an idle server does not run. (Behind
            # HAProxy a few pieces may still come, until Serve's thread hears that this has ended.)
            while not queue.empty():
                queue.get_nowait()


def _fetches() -> dict[type, str]:
    """What Serve gives as `receive`, behind its proxy or HAProxy, and the attribute by which it fetches."""
    try:
        from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
        from ray.serve._private.http_util import ASGIReceiveProxy

        _expect(ASGIReceiveProxy.fetch_until_disconnect, "self", "_receive_asgi_messages queue")
        _expect(ASGIDIReceiveProxy._fetch_until_disconnect, "self", "_receive queue")
    except (ImportError, AttributeError):
        _warn("This Ray's replicas are not those that the server knows")
        return {}
    return {ASGIReceiveProxy: "_receive_asgi_messages", ASGIDIReceiveProxy: "_receive"}


def _bounded(receive: Any, fetch: str) -> Receive:
    """The same `receive`, whose task that fetches (behind HAProxy in another thread) waits to be read."""
    fetch_more = getattr(receive, fetch)
    queue = (
        receive.queue
    )  # not `receive` itself below: what is unread goes with the request, no cycle keeps it
    read = asyncio.Event()
    read.set()
    fetching_in: asyncio.AbstractEventLoop | None = None

    async def fetch_when_read(*args: Any) -> Any:
        nonlocal fetching_in
        fetching_in = asyncio.get_running_loop()
        while queue.qsize() >= MOST_UNREAD:
            read.clear()
            if queue.qsize() >= MOST_UNREAD:  # still, now that who reads sees that it is waited for
                await read.wait()
        return await fetch_more(*args)

    async def receive_one() -> Message:
        message: Message = await receive()
        if fetching_in and not read.is_set() and queue.qsize() < MOST_UNREAD:
            fetching_in.call_soon_threadsafe(read.set)
        return message

    setattr(receive, fetch, fetch_when_read)
    return receive_one


def _expect(function: Any, parameters: str, names: str) -> None:
    """Raises AttributeError where Serve's function takes something else, or no longer uses what is put in its
    way here.
    """
    if [*inspect.signature(function).parameters] != parameters.split():
        raise AttributeError(f"{function.__qualname__} with other parameters than {parameters}")
    code = function.__code__
    if missing := set(names.split()) - {*code.co_names, *code.co_varnames}:
        raise AttributeError(f"{function.__qualname__} without {', '.join(missing)}")


def _warn(reason: str) -> None:
    logger.warning("%s: uploads are kept in memory as fast as they come (docs/intake.md, Bodies).", reason)
