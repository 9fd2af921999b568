"""How much one replica of the Ingress takes on at once: requests, seconds of audio, windows.

New requests are refused instead of queued: a client that is told to come back holds neither a file nor memory
here. Windows of running requests wait in turn.
"""

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

from serve_app.errors import NoRoom

SHORT_FILE_S = 600.0  # a file up to this long counts as short
RESERVED_SHARE = 0.1  # of the audio, kept for short files
MIN_RETRY_AFTER_S, MAX_RETRY_AFTER_S = 1, 600
USUAL_REQUEST_S = 10.0  # before any has ended
NEWEST_WEIGHT = 0.2  # of the newest request in the moving average

# An upload is a job that is being submitted, a call concerns jobs and brings no audio.
Kind = Literal["request", "upload", "call"]


class Admission:
    """The requests that are being received, worked on or answered, and the audio they hold.

    How long a file is shows only as it is decoded, so the last one let in may pass `max_audio_s`. Long files
    share all but the reserved tenth, so that short ones, which are done in seconds, still come in. One alone
    may take more, and counts as all but that tenth.
    """

    def __init__(self, max_requests: int, max_audio_s: float) -> None:
        self.is_draining = False
        self.idle = asyncio.Event()  # set while there is no request
        self.idle.set()
        self._max_requests = max_requests
        self._max_audio_s = max_audio_s
        self._max_long_s = max_audio_s * (1 - RESERVED_SHARE)  # what long files may hold together
        self._inside: Counter[Kind] = Counter()
        self._held_s: dict[Any, float] = {}  # audio -> its seconds
        self._usual_request_s = USUAL_REQUEST_S  # moving average

    @contextmanager
    def admit(self, kind: Kind = "request") -> Iterator[None]:
        """Counts one more of its kind while entered; raises NoRoom at once where that is one too many.

        Jobs wait until there is room for them, so a server that is full of requests still takes uploads, as
        many at once as requests, and any number of calls.
        """
        self._refuse_when_draining()
        if kind == "request":
            self._refuse_when_full(0.0)
        if kind != "call" and self._inside[kind] >= self._max_requests:
            raise self._overloaded(f"The server works on as many {kind}s as it takes; try again later.")
        self._inside[kind] += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._inside[kind] -= 1
            if not self._inside.total():
                self.idle.set()

    @property
    def open(self) -> int:
        """Requests, uploads and calls that are inside."""
        return self._inside.total()

    @property
    def held_s(self) -> float:
        """The audio that requests hold."""
        return sum(self._held_s.values())

    def refuse_new(self) -> None:
        """Raises NoRoom where no request can be begun now, also when shutting down."""
        self._refuse_when_draining()
        self._refuse_when_full(0.0)

    def _refuse_when_draining(self) -> None:
        if self.is_draining:
            raise NoRoom("The server is shutting down; try again.", None, "shutting_down")

    def _refuse_when_full(self, audio_s: float) -> None:
        counted_s = sum(min(seconds, self._max_long_s) for seconds in self._held_s.values())
        is_full = counted_s >= self._max_audio_s
        if audio_s > SHORT_FILE_S:
            long_s = sum(seconds for seconds in self._held_s.values() if seconds > SHORT_FILE_S)
            is_full |= long_s > 0 and long_s + audio_s > self._max_long_s
        if is_full:
            raise self._overloaded("The server holds as much audio as it takes; try again later.")

    def hold(self, audio: Any, seconds: float) -> None:
        """Counts this audio until `release`, with its length as far as it is known.

        Raises NoRoom where it has grown, and there is no room for more.
        """
        before_s = self._held_s.pop(audio, 0.0)
        if seconds > before_s:
            self._refuse_when_full(seconds)
        self._held_s[audio] = seconds

    def release(self, audio: Any) -> None:
        """Counts this audio no longer."""
        self._held_s.pop(audio, None)

    def finished(self, wall_s: float) -> None:
        """A request has got its transcript after this time: what Retry-After follows from."""
        self._usual_request_s += NEWEST_WEIGHT * (wall_s - self._usual_request_s)

    def _overloaded(self, message: str) -> NoRoom:
        """Running requests are half done on average, so half a request's time frees about half the places."""
        wait_s = min(max(MIN_RETRY_AFTER_S, self._usual_request_s / 2), MAX_RETRY_AFTER_S)
        return NoRoom(message, None, None, math.ceil(wait_s))


class WindowGate:
    """Lets `max_windows` of all requests in at a time, one window per waiting request in turn.

    In front of a full replica Serve's router is first come, first served: behind a few long files it would
    keep every later request waiting for minutes. So windows wait here. A request that has no window inside
    enters at once, so inside are at most `max_windows` and one more for each other request.
    """

    def __init__(self, max_windows: int) -> None:
        self._max_windows = max_windows
        self._inside: Counter[str] = Counter()  # request -> its windows
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many windows wait to be let in."""
        return sum(not turn.done() for turns in self._waiting.values() for turn in turns)

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
