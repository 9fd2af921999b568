"""What is sent: requests with audio, and when one is sent again."""

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import Any, BinaryIO
from urllib.parse import quote
from uuid import uuid4

import httpx
from tenacity import RetryCallState, retry_if_exception, stop_before_delay, wait_random_exponential

from serve_app import __version__
from serve_app.client.answers import Unreachable
from serve_app.errors import InvalidRequest, TranscriptionError

Audio = str | os.PathLike[str] | bytes | BinaryIO

DEFAULT_URL = "http://127.0.0.1:8000"
SILENCE_S = 60.0  # of a stream, which says something every 15 s
RECONNECT_S = 1.0
PASSING = (408, 429, 502, 503)  # statuses after which a request is sent again

Body = Callable[[], dict[str, Any]]  # makes the body of a request, again for each attempt

JOBS = "/v1/jobs"

_backoff = wait_random_exponential(multiplier=0.5, max=30)


class Deadline:
    """When a caller no longer wants to wait; None is never."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = inf if timeout_s is None else timeout_s
        self._at_s = monotonic() + self._timeout_s

    def left_s(self, at_most_s: float) -> float:
        """Seconds to wait still, but not more than these and not none at all."""
        return max(min(self._at_s - monotonic(), at_most_s), 0.01)

    def check(self) -> None:
        """Raises TimeoutError when it has passed."""
        if monotonic() >= self._at_s:
            raise TimeoutError(f"The job has not ended within {self._timeout_s:g} s; it goes on.")


@dataclass(frozen=True, slots=True)
class Call:
    """A request without its body. Of a stream, `silence_s` is how long it may say nothing."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    silence_s: float | None = None

    def arguments(self, timeout: httpx.Timeout) -> dict[str, Any]:
        """What httpx is told to build it."""
        if self.silence_s is not None:
            timeout = httpx.Timeout(self.silence_s, connect=timeout.connect, pool=None)
        return {
            "method": self.method,
            "url": self.path,
            "headers": self.headers,
            "params": self.params,
            "timeout": timeout,
        }


def submission(idempotency_key: str | None) -> Call:
    """Sends a job, so that sending it again gives the same one."""
    return Call("POST", JOBS, headers={"Idempotency-Key": idempotency_key or uuid4().hex})


def page(status: Sequence[str], limit: int, after: str | None) -> Call:
    """Asks for a page of jobs."""
    chosen = {"status": ",".join(status), "limit": limit, "after": after}
    return Call("GET", JOBS, params={name: value for name, value in chosen.items() if value})


def of_job(
    method: str, job_id: str, what: str = "", params: Mapping[str, Any] | None = None, **more: Any
) -> Call:
    """Asks for one job, or for something of it."""
    return Call(method, f"{JOBS}/{quote(job_id, safe='')}{what}", params=params or {}, **more)


def events(job_id: str, seen: str, deadline: Deadline) -> Call:
    """Asks for the changes of a job after that one."""
    headers = {"Last-Event-ID": seen} if seen else {}
    return of_job("GET", job_id, "/events", headers=headers, silence_s=deadline.left_s(SILENCE_S))


def connection(base_url: str | None, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """How httpx's clients reach the service. Raises InvalidRequest for what is no URL of one."""
    url = httpx.URL(base_url or os.environ.get("WHISPERX_URL") or DEFAULT_URL)
    if url.scheme not in ("http", "https") or not url.host:
        message = f"base_url: {url} is no address of a service; write it as {DEFAULT_URL}."
        raise InvalidRequest(message, "base_url")
    key = api_key or os.environ.get("WHISPERX_API_KEY")
    headers = {"User-Agent": f"whisperx-serve/{__version__}"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(timeout_s, connect=10, pool=None)
    limits = httpx.Limits(max_connections=None)  # a job that is followed holds one
    return {"base_url": url, "headers": headers, "timeout": timeout, "limits": limits}


def is_url(audio: Audio) -> bool:
    """Whether the service is to fetch this, and not this machine to read it."""
    return isinstance(audio, str) and audio.lower().startswith(("http://", "https://"))


@contextmanager
def body(audio: Audio, options: Mapping[str, Any]) -> Iterator[Body]:
    """Gives what makes the body of a request: JSON for a URL, else a form. A file is read as it is sent.

    Options that are None are those of the service. Raises OSError for a file that cannot be read.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if is_url(audio):
        yield lambda: {"json": {"audio_file": audio, **given}}
        return
    with ExitStack() as held:
        file: BinaryIO
        if isinstance(audio, bytes):
            file = io.BytesIO(audio)
        elif isinstance(audio, str | os.PathLike):
            file = held.enter_context(open(audio, "rb"))
        else:
            file = audio if audio.seekable() else io.BytesIO(audio.read())

        def form() -> dict[str, Any]:
            file.seek(0)
            return {"data": given, "files": {"file": ("audio", file)}}

        yield form


def streamed() -> Call:
    """Asks for the text of a file while it becomes final."""
    return Call("POST", "/v1/audio/transcriptions", silence_s=SILENCE_S)


def streaming(audio: Audio, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that go with it. Raises InvalidRequest for a URL, which that route does not take."""
    if is_url(audio):
        message = "audio: only files can be streamed; have a URL transcribed by transcribe or a job."
        raise InvalidRequest(message, "audio")
    return {"model": "whisper-1", "stream": True, **options}


def policy(retry_for_s: float) -> dict[str, Any]:
    """When tenacity sends a request again: if it can help, and as the answer's Retry-After says."""
    return {
        "retry": retry_if_exception(_is_passing),
        "wait": _wait_s,
        "stop": stop_before_delay(retry_for_s),
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
