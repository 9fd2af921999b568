"""When a request is sent again, and how long a caller waits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf
from time import monotonic
from typing import Any

from tenacity import RetryCallState, retry_if_exception, stop_before_delay, wait_random_exponential

from serve_app.client.answers import StreamBroken, Unreachable
from serve_app.errors import TranscriptionError

RECONNECT_S = 1.0
PASSING = (408, 429, 502, 503)  # statuses after which a request is sent again

OnRetry = Callable[[TranscriptionError], object]

_backoff = wait_random_exponential(multiplier=0.5, max=30)


class Deadline:
    """The end of a caller's patience; None is never."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = inf if timeout_s is None else timeout_s
        self._at_s = monotonic() + self._timeout_s

    def capped_s(self, wait_s: float) -> float:
        """This wait, shortened to the time that is left; never zero, which httpx would not wait at all."""
        return max(min(self._at_s - monotonic(), wait_s), 0.01)

    def pause_s(self) -> float:
        """How long to wait before connecting again. Raises TimeoutError."""
        self.check()
        return self.capped_s(RECONNECT_S)

    def has_passed(self) -> bool:
        """Whether the caller no longer waits."""
        return monotonic() >= self._at_s

    def check(self) -> None:
        """Raises TimeoutError when it has passed."""
        if self.has_passed():
            raise TimeoutError(f"The job has not ended within {self._timeout_s:g} s; it goes on.")

    @contextmanager
    def reconnecting(self) -> Iterator[None]:
        """Ends quietly when a stream breaks: a server that stops cuts its streams. Raises TimeoutError."""
        try:
            yield
        except StreamBroken:
            pass
        except TranscriptionError:
            self.check()
            raise


NEVER = Deadline(None)


def policy(retry_for_s: float, deadline: Deadline, on_retry: OnRetry) -> dict[str, Any]:
    """The arguments of tenacity: passing errors are retried, after the answer's Retry-After if it has one."""
    has_tried_long = stop_before_delay(retry_for_s)

    def tell(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, TranscriptionError):
            on_retry(error)

    return {
        "retry": retry_if_exception(_is_passing),
        "wait": lambda state: deadline.capped_s(_wait_s(state)),
        "stop": lambda state: deadline.has_passed() or has_tried_long(state),
        "before_sleep": tell,
        "reraise": True,
    }


def _is_passing(error: BaseException) -> bool:
    return isinstance(error, Unreachable) or (
        isinstance(error, TranscriptionError) and error.status in PASSING
    )


def _wait_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked_s = error.retry_after_s if isinstance(error, TranscriptionError) else None
    return float(asked_s) if asked_s else _backoff(state)
