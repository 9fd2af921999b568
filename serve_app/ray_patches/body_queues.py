"""Bounds Serve's two queues of an upload, so that an upload waits at its client until it is read.

Serve reads a body as fast as it arrives, into a queue in its proxy and another in the replica, both
unbounded, and has no setting for it. This uses private names of Serve. It was tried on Ray 2.60.0; where a
name is missing or takes other parameters, Serve stays as it is and a warning is logged.
"""

import asyncio
import inspect
import logging
from importlib import import_module
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("ray.serve")

MAX_UNREAD_MESSAGES = 4  # of a body; each has 64 to 320 KiB when the client is fast


def bound_proxy_queues() -> None:
    """Makes Serve's proxy stop reading from a client whose body nobody takes. Called in the proxy."""
    try:
        proxy: Any = import_module("ray.serve._private.proxy")
        queue = proxy.MessageQueue
        _require(queue.__call__, "self message", "put_nowait")
        _require(queue.get_messages_nowait, "self", "_message_queue")
        _require(proxy.HTTPProxy.proxy_asgi_receive, "self receive queue", "receive queue")
        _require(proxy.HTTPProxy.receive_asgi_messages, "self request_metadata", "get_messages_nowait")
        proxy.MessageQueue = _bounded_queue(queue)
    except (ImportError, AttributeError):
        _warn("This version of Ray has another proxy than the patch expects")


def _bounded_queue(queue: Any) -> Any:
    class BoundedQueue(queue):  # type: ignore[misc]
        """Serve's queue of what a client sends; a piece of a body waits while it is full."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
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

    return BoundedQueue


class BoundedReceive:
    """ASGI middleware in the replica: it fetches more from the proxy only when little is unread.

    It must be the outermost middleware, because it needs the `receive` that Serve gives; any other `receive`
    passes unchanged.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._fetch_attributes = _fetch_attributes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        fetch_attribute = self._fetch_attributes.get(type(receive))
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


def _fetch_attributes() -> dict[type, str]:
    """Serve's two types of `receive`, behind its proxy and behind HAProxy, and how each fetches more."""
    try:
        from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
        from ray.serve._private.http_util import ASGIReceiveProxy

        _require(ASGIReceiveProxy.fetch_until_disconnect, "self", "_receive_asgi_messages queue")
        _require(ASGIDIReceiveProxy._fetch_until_disconnect, "self", "_receive queue")
    except (ImportError, AttributeError):
        _warn("This version of Ray has other replicas than the patch expects")
        return {}
    return {ASGIReceiveProxy: "_receive_asgi_messages", ASGIDIReceiveProxy: "_receive"}


def _bounded(receive: Any, fetch_attribute: str) -> Receive:
    """The same `receive`; the task that fetches (behind HAProxy in another thread) waits for the reader."""
    fetch = getattr(receive, fetch_attribute)
    queue = receive.queue  # the closures below hold only this: with `receive` they would make a cycle
    was_read = asyncio.Event()
    was_read.set()
    fetching_loop: asyncio.AbstractEventLoop | None = None

    async def fetch_when_read(*args: Any) -> Any:
        nonlocal fetching_loop
        fetching_loop = asyncio.get_running_loop()
        while queue.qsize() >= MAX_UNREAD_MESSAGES:
            was_read.clear()
            if queue.qsize() >= MAX_UNREAD_MESSAGES:  # the reader may have been faster
                await was_read.wait()
        return await fetch(*args)

    async def receive_one() -> Message:
        message: Message = await receive()
        if fetching_loop and not was_read.is_set() and queue.qsize() < MAX_UNREAD_MESSAGES:
            fetching_loop.call_soon_threadsafe(was_read.set)
        return message

    setattr(receive, fetch_attribute, fetch_when_read)
    return receive_one


def _require(function: Any, parameters: str, names: str) -> None:
    """Raises AttributeError where Serve's function takes other parameters or no longer uses these names."""
    if [*inspect.signature(function).parameters] != parameters.split():
        raise AttributeError(f"{function.__qualname__} has other parameters than {parameters}")
    code = function.__code__
    if missing := set(names.split()) - {*code.co_names, *code.co_varnames}:
        raise AttributeError(f"{function.__qualname__} does not use {', '.join(missing)}")


def _warn(reason: str) -> None:
    logger.warning("%s: uploads are kept in memory as fast as they arrive (docs/deploy.md).", reason)
