"""Bounds how many windows of all requests of one Ingress are in flight at once.

In front of a full replica Serve's router is first come, first served: behind a few long files it would keep
every later request waiting for minutes. So windows wait here instead, and enter in turn.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class WindowGate:
    """Lets `max_windows` in at a time, one window per waiting request in turn.

    A request that has no window inside enters at once, so inside are at most `max_windows` and one more for
    each other request.
    """

    def __init__(self, max_windows: int) -> None:
        self._max_windows = max_windows
        self._inside: Counter[str] = Counter()  # request -> its windows
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def place(self, request_id: str) -> AsyncIterator[None]:
        """Waits until the request may have one more window inside, which it has while entered."""
        if request_id not in self._inside or self._inside.total() < self._max_windows:
            self._inside[request_id] += 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(request_id, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # it was let in at that very moment
                    self._leave(request_id)
                raise
        try:
            yield
        finally:
            self._leave(request_id)

    def _leave(self, request_id: str) -> None:
        self._inside[request_id] -= 1
        if not self._inside[request_id]:
            del self._inside[request_id]
        if self._inside.total() < self._max_windows:
            self._let_in_next()

    def _let_in_next(self) -> None:
        while self._waiting:
            request_id, turns = next(iter(self._waiting.items()))
            turn = turns.popleft()
            if turns:
                self._waiting.move_to_end(request_id)
            else:
                del self._waiting[request_id]
            if not turn.done():  # else its request has gone
                self._inside[request_id] += 1
                turn.set_result(None)
                return
