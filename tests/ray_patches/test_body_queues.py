"""Serve's own queues are bounded and keep the order. No cluster."""

import asyncio
import pickle
import threading
from typing import Any

import pytest
from clients import until
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy
from ray.serve._private.http_util import ASGIReceiveProxy
from starlette.types import Message, Receive, Scope, Send

from serve_app.ray_patches.body_queues import MAX_UNREAD_MESSAGES, BoundedQueue, BoundedReceive

HTTP = {"type": "http"}
PIECES: list[Message] = [
    {"type": "http.request", "body": bytes([number]), "more_body": number < 29} for number in range(30)
]
LEFT: Message = {"type": "http.disconnect"}


class Application:
    """Reads its whole body once `go` is set."""

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
    """Waits until nothing more is fetched, however often the other tasks run."""
    before = -1
    while before != len(fetched):
        before = len(fetched)
        for _ in range(100):
            await asyncio.sleep(0)


def test_a_replica_fetches_no_more_than_is_read() -> None:
    """A few pieces wait while the application does nothing; then all of them arrive in order."""

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
        assert len(fetched) == MAX_UNREAD_MESSAGES
        application.go.set()
        await asyncio.wait_for(asyncio.gather(call, fetching), 60)
        assert application.got == [*PIECES, LEFT]

    asyncio.run(run())


@pytest.mark.parametrize("how", ["answers", "fails", "is cancelled"])
def test_nothing_unread_outlives_a_request(how: str) -> None:
    """Serve's objects may live on for a while and would hold megabytes, however the request ended."""

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
        assert receive.queue.qsize() == MAX_UNREAD_MESSAGES
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
    """Serve's server then runs in one thread of the replica and the application in another."""
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
        await asyncio.to_thread(until, lambda: receive.queue.qsize() >= MAX_UNREAD_MESSAGES)
        application.go.set()
        await asyncio.wait_for(asyncio.gather(call, asyncio.wrap_future(fetching)), 60)
        assert application.got == [*PIECES, LEFT]

    try:
        asyncio.run(run())
    finally:
        serving.call_soon_threadsafe(serving.stop)
        thread.join()
        serving.close()


def test_the_proxy_takes_no_more_than_is_fetched() -> None:
    """A piece waits while a few are unread; that the client has left does not, nor does a websocket."""

    async def run() -> None:
        queue: Any = BoundedQueue()
        taken: list[Message] = []

        async def take() -> None:
            for piece in PIECES:
                await queue(piece)
                taken.append(piece)
            await queue(LEFT)

        taking = asyncio.create_task(take())
        await stuck(taken)
        assert len(taken) == MAX_UNREAD_MESSAGES
        got: list[Message] = []
        while LEFT not in got:
            await asyncio.wait_for(queue.wait_for_message(), 60)
            got += queue.get_messages_nowait()
        assert got == [*PIECES, LEFT]
        await taking
        for message in [*PIECES[:MAX_UNREAD_MESSAGES], *[{"type": "websocket.receive"}] * 9, LEFT]:
            await asyncio.wait_for(queue(message), 60)
        assert len(queue.get_messages_nowait()) == MAX_UNREAD_MESSAGES + 10

    asyncio.run(run())
