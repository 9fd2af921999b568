"""Serve's own queues with an end, without a cluster: all arrives in order; and Rays that differ."""

import asyncio
import pickle
import threading
from importlib import import_module
from typing import Any

import pytest
from clients import until
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve._private.http_util import ASGIReceiveProxy, MessageQueue
from starlette.types import Message, Receive, Scope, Send

from serve_app.ray_patches import body_queues as backpressure
from serve_app.ray_patches.body_queues import MOST_UNREAD, BoundedReceive, bound_proxy

proxy: Any = import_module("ray.serve._private.proxy")


@pytest.fixture(autouse=True)
def _logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve keeps its log to itself."""
    monkeypatch.setattr(backpressure.logger, "propagate", True)


HTTP = {"type": "http"}
PIECES: list[Message] = [
    {"type": "http.request", "body": bytes([number]), "more_body": number < 29} for number in range(30)
]
LEFT: Message = {"type": "http.disconnect"}


class Application:
    """Takes what comes when it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.got: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.go.wait()
        while not self.got or self.got[-1] != LEFT:
            self.got.append(await receive())


async def nowhere(message: Message) -> None:
    """Nothing is answered here."""


async def stuck(fetched: list[Any]) -> None:
    """Until nothing more is fetched, however often others have their turn."""
    before = -1
    while before != len(fetched):
        before = len(fetched)
        for _ in range(100):
            await asyncio.sleep(0)


def test_a_replica_fetches_no_more_than_is_read() -> None:
    """Pieces come two at a time; a few wait while the application does nothing, then all come in order."""

    async def run() -> None:
        fetched: list[Message] = []

        async def fetch(_: Any) -> bytes:
            lot = [*PIECES, LEFT][len(fetched) : len(fetched) + 2]
            fetched.extend(lot)
            return pickle.dumps(lot)

        untyped: Any = ASGIReceiveProxy
        receive = untyped(HTTP, None, fetch)
        application = Application()
        call = asyncio.create_task(BoundedReceive(application)(HTTP, receive, nowhere))
        await asyncio.sleep(0)  # Serve starts the application before it fetches
        fetching = asyncio.create_task(receive.fetch_until_disconnect())
        await stuck(fetched)
        assert len(fetched) == MOST_UNREAD
        application.go.set()
        await asyncio.wait_for(asyncio.gather(call, fetching), 60)
        assert application.got == [*PIECES, LEFT]

    asyncio.run(run())


@pytest.mark.parametrize("how", ["answers", "fails", "is cancelled"])
def test_nothing_unread_outlives_a_request(how: str) -> None:
    """However it ends: Serve's objects may stay for a while, and with them they would keep megabytes."""

    async def ends(_scope: Scope, _receive: Receive, _send: Send) -> None:
        await go.wait()
        if how == "fails":
            raise OSError

    async def fetch(_: Any) -> bytes:
        fetched.extend(PIECES[:2])
        return pickle.dumps(PIECES[:2])

    async def run() -> None:
        untyped: Any = ASGIReceiveProxy
        receive = untyped(HTTP, None, fetch)
        call = asyncio.create_task(BoundedReceive(ends)(HTTP, receive, nowhere))
        await asyncio.sleep(0)
        fetching = asyncio.create_task(receive.fetch_until_disconnect())
        await stuck(fetched)
        assert receive.queue.qsize() == MOST_UNREAD
        if how == "is cancelled":
            call.cancel()
        go.set()
        await asyncio.gather(call, return_exceptions=True)
        fetching.cancel()
        await stuck(fetched)
        assert receive.queue.empty()

    go, fetched = asyncio.Event(), list[Message]()
    asyncio.run(run())


def test_behind_haproxy_too_where_another_thread_fetches() -> None:
    """There Serve's server runs in one thread of the replica and the application in another."""
    serving = asyncio.new_event_loop()
    thread = threading.Thread(target=serving.run_forever)
    thread.start()

    async def run() -> None:
        fetched: list[Message] = []

        async def fetch() -> Message:
            if len(fetched) == len(PIECES):  # a client leaves when it has its answer; Serve counts on that
                await asyncio.to_thread(until, lambda: len(application.got) == len(PIECES))
            fetched.append([*PIECES, LEFT][len(fetched)])
            return fetched[-1]

        application = Application()
        receive = ASGIDIReceiveProxy(HTTP, fetch, asyncio.get_running_loop())
        call = asyncio.create_task(BoundedReceive(application)(HTTP, receive, nowhere))
        await asyncio.sleep(0)
        fetching = asyncio.run_coroutine_threadsafe(receive._fetch_until_disconnect(), serving)
        await asyncio.to_thread(until, lambda: receive.queue.qsize() >= MOST_UNREAD)
        application.go.set()
        await asyncio.wait_for(asyncio.gather(call, asyncio.wrap_future(fetching)), 60)
        assert application.got == [*PIECES, LEFT]

    try:
        asyncio.run(run())
    finally:
        serving.call_soon_threadsafe(serving.stop)
        thread.join()
        serving.close()


def test_the_proxy_takes_no_more_than_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece waits while a few are unread; that the client has left does not, nor does a websocket."""
    monkeypatch.setattr(proxy, "MessageQueue", MessageQueue)
    bound_proxy()

    async def run() -> None:
        queue: Any = proxy.MessageQueue()
        taken: list[Message] = []

        async def take() -> None:
            for piece in PIECES:
                await queue(piece)
                taken.append(piece)
            await queue(LEFT)

        taking = asyncio.create_task(take())
        await stuck(taken)
        assert len(taken) == MOST_UNREAD
        got: list[Message] = []
        while LEFT not in got:
            await asyncio.wait_for(queue.wait_for_message(), 60)
            got += queue.get_messages_nowait()
        assert got == [*PIECES, LEFT]
        await taking
        for message in [*PIECES[:MOST_UNREAD], *[{"type": "websocket.receive"}] * 9, LEFT]:
            await asyncio.wait_for(queue(message), 60)
        assert len(queue.get_messages_nowait()) == MOST_UNREAD + 10

    asyncio.run(run())


async def _other(self: Any, *_: Any) -> None:
    """What a function of another Ray could look like."""


@pytest.mark.parametrize(
    ("changed", "name"), [(proxy.HTTPProxy, "proxy_asgi_receive"), (proxy, "MessageQueue")]
)
def test_the_proxy_of_another_ray_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, changed: Any, name: str
) -> None:
    """It starts, unbounded, and says so."""
    monkeypatch.setattr(changed, name, _other)
    before = proxy.MessageQueue
    bound_proxy()
    assert proxy.MessageQueue is before
    assert "kept in memory" in caplog.text


async def _with_more(self: Any, message: Message, more: bool) -> None:
    """Serve's MessageQueue.__call__, had it another parameter."""
    self._message_queue.put_nowait(message)


async def _fetching_more(self: Any, most: int) -> None:
    """Serve's fetch_until_disconnect, had it another parameter."""
    self._queue = await self._receive_asgi_messages(most, self.queue)


def test_parameters_that_serve_adds_are_seen_before_a_body_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the proxy and in the replica, which then stay as they are."""
    monkeypatch.setattr(proxy.MessageQueue, "__call__", _with_more)
    before = proxy.MessageQueue
    bound_proxy()
    assert proxy.MessageQueue is before
    assert "proxy is not the one" in caplog.text
    monkeypatch.setattr(ASGIReceiveProxy, "fetch_until_disconnect", _fetching_more)
    assert BoundedReceive(Application()).fetches == {}
    assert "replicas are not those" in caplog.text


@pytest.mark.parametrize("gone", [True, False])
def test_the_replica_of_another_ray_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, gone: bool
) -> None:
    """So is that, whether the function has gone or is another one."""
    if gone:
        monkeypatch.delattr(ASGIReceiveProxy, "fetch_until_disconnect")
    else:
        monkeypatch.setattr(ASGIReceiveProxy, "fetch_until_disconnect", _other)
    seen: list[Any] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(receive)

    untyped: Any = ASGIReceiveProxy
    receive = untyped(HTTP, None, _other)
    asyncio.run(BoundedReceive(application)(HTTP, receive, nowhere))
    assert seen == [receive]
    assert "replicas are not those" in caplog.text


def test_a_ray_without_the_variable_is_told_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever starts a cluster must export it; behind HAProxy there is no such queue."""
    monkeypatch.delenv(backpressure.PROXY_HOOK, raising=False)
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    BoundedReceive(Application())
    assert caplog.text == ""
    monkeypatch.delenv("RAY_SERVE_ENABLE_HA_PROXY")
    BoundedReceive(Application())
    assert backpressure.PROXY_HOOK in caplog.text
