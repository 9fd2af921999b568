"""How many requests and how much audio each API key may have.

They are counted in this process: with several Ingress replicas, each of them allows a key its full quota.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from time import monotonic

from serve_app.errors import RateLimited
from serve_app.settings.access import AccessSettings, ApiKey

logger = logging.getLogger("ray.serve")


class Quota:
    """Limits the running requests and the audio of one key.

    The audio is a bucket that holds one minute's allowance and fills evenly. A request may start while
    anything is left in it; a long file leaves a debt, and the next request waits until that is paid. The
    `limits` package cannot do this: it books a cost only where it still fits, but the length of a file is
    known only after it was let in.
    """

    def __init__(self, key: ApiKey) -> None:
        self.key_name = key.name
        self._running = 0
        self._max_requests = key.max_requests or math.inf
        self._per_minute_s = key.max_audio_s_per_minute or math.inf
        self._full_at_s = monotonic()  # when the bucket is full again; a minute before, it is empty

    @contextmanager
    def count_request(self) -> Iterator[None]:
        """Counts a request and its audio while it runs. Raises RateLimited."""
        if self._running >= self._max_requests:
            raise self._over_limit(f"{self._max_requests} requests at once; wait for one to end")
        with self.count_audio():
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1

    @contextmanager
    def count_audio(self) -> Iterator[None]:
        """While entered, `charge` books audio here. Raises RateLimited where none is left."""
        empty_for_s = self._full_at_s - 60 - monotonic()
        if empty_for_s >= 0:
            wait_s = int(empty_for_s) + 1
            allowed = f"{self._per_minute_s:g} s of audio a minute; wait {wait_s} s"
            raise self._over_limit(allowed, "audio_limit_reached", wait_s)
        booked_s = 0.0

        def book(audio_s: float) -> None:
            nonlocal booked_s
            fills_in_s = max(0.0, audio_s - booked_s) * 60 / self._per_minute_s
            self._full_at_s = max(self._full_at_s, monotonic()) + fills_in_s
            booked_s = max(booked_s, audio_s)

        before = _book.set(book)
        try:
            yield
        finally:
            _book.reset(before)

    def _over_limit(self, allowed: str, code: str | None = None, wait_s: int = 0) -> RateLimited:
        error = RateLimited(f"Each server replica allows this API key {allowed}.", None, code, wait_s)
        logger.info("API key %s: %s", self.key_name, error.code)
        return error


_book: ContextVar[Callable[[float], None]] = ContextVar("book", default=lambda audio_s: None)


def charge(audio_s: float) -> None:
    """Books the running request's audio, in seconds, on its key, if it has one.

    Called as soon as the length is known, so that a client that leaves early has paid. Calling it again with
    the same length, when a stage is retried, books nothing more.
    """
    _book.get()(audio_s)


class AudioQuotas:
    """How much audio the jobs of each key may have, in this process."""

    def __init__(self, settings: AccessSettings) -> None:
        self._quotas = {key.name: Quota(key) for key in settings.keys}

    def of(self, key_name: str) -> AbstractContextManager[None]:
        """While entered, `charge` books audio on this key. Entering it raises RateLimited."""
        quota = self._quotas.get(key_name)
        return quota.count_audio() if quota else nullcontext()
