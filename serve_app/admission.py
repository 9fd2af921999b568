"""How much one replica of the Ingress takes on at once: requests, and seconds of decoded audio.

Both refuse instead of waiting: a client that is told to come back holds neither a file nor memory here.
"""

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from serve_app.answers import error_response
from serve_app.errors import Overloaded


class InFlight:
    """How many requests are being received, worked on or answered; `none` is set while there are none."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self.none = asyncio.Event()
        self.none.set()

    def one(self) -> AbstractContextManager[None]:
        """Counts one more while it is entered; raises Overloaded at once where that were too many."""
        if self._count >= self._most:
            raise Overloaded("The server works on as many requests as it takes; try again later.")
        return self._counted()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._count += 1
        self.none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self.none.set()


class CountInFlight:
    """ASGI middleware: a request counts from before its body is read until its answer is sent.

    Only what can bring work: a full server still tells its load balancer that it is well.
    """

    def __init__(self, app: Any, in_flight: InFlight) -> None:
        self.app = app
        self.in_flight = in_flight

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        try:
            one = self.in_flight.one()
        except Overloaded as error:
            await error_response(error)(scope, receive, send)
            return
        with one:
            await self.app(scope, receive, send)


class AudioInFlight:
    """Seconds of decoded audio that running requests hold in memory.

    How long a file is shows only when it is decoded, so the last one let in may pass `most_s`; one file
    alone always fits.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._seconds: dict[Any, float] = {}  # by what identifies the audio

    def refuse_when_full(self) -> None:
        """Raises Overloaded while there is as much as the server takes."""
        if sum(self._seconds.values()) >= self._most_s:
            raise Overloaded("The server holds as much audio as it takes; try again later.")

    def add(self, audio: Any, seconds: float) -> None:
        """Counts this audio, if it is new, until `remove`; raises Overloaded instead when full."""
        if audio not in self._seconds:
            self.refuse_when_full()
            self._seconds[audio] = seconds

    def remove(self, audio: Any) -> None:
        self._seconds.pop(audio, None)
