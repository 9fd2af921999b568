"""How much one replica of the Ingress takes on at once: requests, and seconds of decoded audio.

Refuses instead of waiting: a client that is told to come back holds neither a file nor memory here. When that
will be worth while follows from what is held and from how fast audio was finished lately.
"""

import asyncio
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic
from typing import Any

from serve_app.errors import Overloaded

SHORT_S = 600.0  # so long is a short file at most,
SHORT_SHARE = 0.1  # and this part of the audio is kept for short files
SHORT_BYTES = 200 << 20  # twenty minutes at the quality of a CD; a larger upload is taken for a long file
MEASURED_S = 60.0  # of work, before the pace is believed enough to refuse anybody by it
LATELY_S = 120.0  # of work; what is older counts for a third and less
RETRY_AFTER_S = (1, 600)  # at least and at most, in whole seconds
FIRST_RETRY_AFTER_S = 5.0  # before anything has been finished; then as long again as has been worked


class Pace:
    """How fast audio is finished: an average over the last minutes of work, idle time left out."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._audio_s = self._requests = self._worked_s = 0.0
        self._since_s: float | None = None  # no work
        self._at_success = 0.0  # work for a second of audio, when last one was finished; 0: not known

    def work(self, going_on: bool) -> None:
        """Says whether there is any work from now on; what was until now fades as it gets older."""
        if self._since_s is not None:
            span_s = self._span_s()
            fade = math.exp(-span_s / LATELY_S)
            self._worked_s = self._worked_s * fade + span_s
            self._audio_s *= fade
            self._requests *= fade
        self._since_s = self._clock() if going_on else None

    def finished(self, audio_s: float) -> None:
        """A request with so much audio has got its answer."""
        self._audio_s += audio_s
        self._requests += 1
        worked_s = self._worked_s + self._span_s()
        if self._audio_s and worked_s >= MEASURED_S:
            self._at_success = worked_s / self._audio_s

    def wait_s(self, audio_s: float) -> float:
        """Seconds that so much audio will take."""
        worked_s = self._worked_s + self._span_s()  # time without any success counts, too
        if not self._audio_s:
            return max(FIRST_RETRY_AFTER_S, worked_s)
        return audio_s * worked_s / self._audio_s

    def least_wait_s(self, audio_s: float) -> float:
        """The same without the time since the last success, which a long file takes however fast it goes."""
        return self._at_success * audio_s

    def usual_s(self) -> float:
        """Seconds of audio that a file had lately, on average; 0 before any is finished."""
        return self._audio_s / self._requests if self._requests else 0.0

    def _span_s(self) -> float:
        return 0.0 if self._since_s is None else self._clock() - self._since_s


class Admission:
    """The requests that are being received, worked on or answered, and the decoded audio they hold.

    How long a file is shows only when it is decoded, so the last one let in may pass `most_audio_s`. Long
    files take nine tenths of it together, or one of them more, so that short ones still come in: they are
    done in seconds, and a house full of long files stays full for as long as those take. A file that would
    not be done after `within_s` beside those that are held is refused, too.
    """

    def __init__(
        self,
        most_requests: int,
        most_audio_s: float,
        clock: Callable[[], float] = monotonic,
        within_s: float = math.inf,
    ) -> None:
        self.draining = False
        self.none = asyncio.Event()  # set while there is no request
        self.none.set()
        self._most_requests = most_requests
        self._most_audio_s = most_audio_s
        self._within_s = within_s
        self._requests = 0
        self._held_s: dict[Any, float] = {}  # by what identifies the audio
        self._pace = Pace(clock)

    def one(self, body_bytes: int = 0) -> AbstractContextManager[None]:
        """Counts one more request while it is entered; raises Overloaded at once where that were too many.

        `body_bytes` is what its client says it will send.
        """
        self.refuse_new(2 * SHORT_S if body_bytes > SHORT_BYTES else 0.0)
        if self._requests >= self._most_requests:
            median_s = statistics.median_low(self._lengths_s())
            raise self._full("The server works on as many requests as it takes; try again later.", median_s)
        return self._counted()

    def refuse_new(self, audio_s: float = 0.0) -> None:
        """Raises Overloaded while no file of at least that length is begun on, also when shutting down."""
        if self.draining:
            raise Overloaded("The server is shutting down; try again.", None, "shutting_down")
        self._refuse_when_full(audio_s)

    def add(self, audio: Any, seconds: float) -> None:
        """Counts this audio until `remove`, anew when its length is better known; raises Overloaded instead
        when that is more, and too much.
        """
        counted_s = self._held_s.get(audio, 0.0)
        if seconds != counted_s:
            self._held_s.pop(audio, None)
            if seconds > counted_s:
                self._refuse_when_full(seconds)
            self._held_s[audio] = seconds
            self._pace.work(True)

    def remove(self, audio: Any) -> None:
        self._held_s.pop(audio, None)
        self._pace.work(bool(self._held_s))

    def finished(self, audio_s: float) -> None:
        """A request with so much audio has got its transcript: what the next refusal is computed from."""
        self._pace.finished(audio_s)

    def _refuse_when_full(self, audio_s: float) -> None:
        """`audio_s` is how long the file in question is, as far as that is known."""
        full = sum(self._held_s.values()) >= self._most_audio_s
        if audio_s > SHORT_S and not full:
            long_s = sum(seconds for seconds in self._held_s.values() if seconds > SHORT_S)
            full = long_s > 0 and long_s + audio_s > self._most_audio_s * (1 - SHORT_SHARE)
        if full:
            raise self._full("The server holds as much audio as it takes; try again later.")
        # Files take turns, window by window: until this one is done, none gets more of the work than it.
        all_s = audio_s + sum(min(seconds, audio_s) for seconds in self._held_s.values())
        if self._held_s and self._pace.least_wait_s(all_s) > self._within_s:
            raise self._full("The server could not do this much audio in time; try again later.")

    def _full(self, message: str, longest_s: float = math.inf) -> Overloaded:
        """Says to come back when half of the audio here, at most `longest_s` of each file, will be done.

        Files take turns and are half done on average, so those of up to `longest_s` have ended by then: half
        of too many requests, where it is their median. For too much audio it is a rule and no forecast.
        """
        audio_s = sum(min(seconds, longest_s) for seconds in self._lengths_s())
        least_s, most_s = RETRY_AFTER_S
        wait_s = min(max(least_s, self._pace.wait_s(audio_s) / 2), most_s)
        return Overloaded(message, None, None, math.ceil(wait_s))

    def _lengths_s(self) -> list[float]:
        """Seconds of audio of each file; one that is not decoded yet counts as the usual one."""
        unknown = max(0, self._requests - len(self._held_s))
        return [*self._held_s.values(), *[self._pace.usual_s()] * unknown]

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._requests += 1
        self.none.clear()
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self.none.set()


class CountRequests:
    """ASGI middleware: a request counts from before its body is read until its answer is sent.

    Raises Overloaded when the server is full. Counts only what can bring work: a full server still tells its
    load balancer that it is well.
    """

    def __init__(self, app: Any, admission: Admission) -> None:
        self.app = app
        self.admission = admission

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        with self.admission.one(_declared_bytes(scope)):
            await self.app(scope, receive, send)


def _declared_bytes(scope: Any) -> int:
    declared = dict(scope["headers"]).get(b"content-length", b"")
    # int() refuses thousands of digits, and no number of bytes has more than 20.
    return int(declared[:20]) if declared.isdigit() else 0
