"""What each API key uses: requests at once, and seconds of audio a minute.

Counted in one process, so every replica of the Ingress allows as much again.

Not the `limits` package: it books a cost only where it still fits, but how long a file is shows only
after it was let in, and a file that does not fit must be booked all the same.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic

from serve_app.errors import RateLimited
from serve_app.settings import ApiKey


class Usage:
    """One key's requests and audio.

    The audio is a bucket that holds one minute's allowance and fills evenly. A request may start while
    anything is left in it; a long file leaves a debt, and the next request waits until that is paid.
    """

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self._running = 0
        self._left_s = key.max_audio_s_per_minute or 0.0
        self._filled_at_s = monotonic()

    def refuse_over_limit(self) -> None:
        """Raises RateLimited while the key may not start another request."""
        if self.key.max_requests is not None and self._running >= self.key.max_requests:
            raise RateLimited(
                f"This API key may have {self.key.max_requests} requests at once; wait for one to end."
            )
        per_minute_s = self.key.max_audio_s_per_minute
        if per_minute_s is None:
            return
        self._fill(per_minute_s)
        if self._left_s <= 0:
            wait_s = int(-self._left_s / (per_minute_s / 60)) + 1
            raise RateLimited(
                f"This API key may use {per_minute_s:g} s of audio a minute; wait {wait_s} s.",
                None,
                "audio_limit_reached",
                wait_s,
            )

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts a request while it runs; inside, `charge` books its audio on this key."""
        self._running += 1
        before = _current.set(_Request(self))
        try:
            yield
        finally:
            _current.reset(before)
            self._running -= 1

    def spend(self, audio_s: float) -> None:
        if self.key.max_audio_s_per_minute is not None:
            self._fill(self.key.max_audio_s_per_minute)
            self._left_s -= audio_s

    def _fill(self, per_minute_s: float) -> None:
        now_s = monotonic()
        earned_s = (now_s - self._filled_at_s) * per_minute_s / 60
        self._left_s = min(per_minute_s, self._left_s + earned_s)
        self._filled_at_s = now_s


class _Request:
    def __init__(self, usage: Usage) -> None:
        self.usage = usage
        self.charged_s = 0.0


_current: ContextVar[_Request | None] = ContextVar("request", default=None)


def charge(audio_s: float) -> None:
    """Books the running request's audio, in seconds, on its key, if it has one.

    Called as soon as the length is known, so that whoever leaves early has paid. Saying it again, with a
    stage that is tried again, books nothing more.
    """
    request = _current.get()
    if request is not None and audio_s > request.charged_s:
        request.usage.spend(audio_s - request.charged_s)
        request.charged_s = audio_s
