"""The requests that both clients send."""

import io
import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO
from urllib.parse import quote
from uuid import uuid4

import httpx

from serve_app import __version__
from serve_app.client.answers import is_of_type, shown
from serve_app.client.retries import NEVER, Deadline
from serve_app.errors import InvalidRequest

Audio = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

DEFAULT_URL = "http://127.0.0.1:8000"
SILENCE_S = 60.0  # of a stream, which says something every 15 s

Body = Callable[[], dict[str, Any]]  # makes the body of a request, again for each attempt

JOBS = "/v1/jobs"


@dataclass(frozen=True, slots=True)
class Call:
    """A request without its body. A stream is wanted until `deadline`."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    is_stream: bool = False
    deadline: Deadline = NEVER

    def arguments(self, timeout: httpx.Timeout) -> dict[str, Any]:
        """The arguments with which httpx builds it."""
        if self.is_stream:
            connect_s = self.deadline.capped_s(timeout.connect or SILENCE_S)
            timeout = httpx.Timeout(self.deadline.capped_s(SILENCE_S), connect=connect_s, pool=None)
        return {
            "method": self.method,
            "url": self.path,
            "headers": self.headers,
            "params": self.params,
            "timeout": timeout,
        }

    def expects(self, response: httpx.Response) -> bool:
        """Whether this response has the kind of answer that the call asks for."""
        return response.is_success and (not self.is_stream or is_of_type(response, "text/event-stream"))


def prediction() -> Call:
    """Asks for a transcript."""
    return Call("POST", "/predict")


def speakers() -> Call:
    """Asks who speaks when."""
    return Call("POST", "/v1/audio/diarization")


def speech() -> Call:
    """Asks where speech is."""
    return Call("POST", "/v1/audio/speech/timestamps")


def submission(idempotency_key: str | None) -> Call:
    """Sends a job, so that sending it again gives the same one."""
    return Call("POST", JOBS, headers={"Idempotency-Key": idempotency_key or uuid4().hex})


def page(status: Sequence[str], limit: int, after: str | None) -> Call:
    """Asks for a page of jobs."""
    chosen = {"status": ",".join(status), "limit": limit, "after": after}
    return Call("GET", JOBS, params={name: value for name, value in chosen.items() if value})


def of_job(method: str, job_id: str, subpath: str = "", **more: Any) -> Call:
    """Asks for one job, or with a `subpath` for a part of it."""
    return Call(method, f"{JOBS}/{quote(job_id, safe='')}{subpath}", **more)


def result(job_id: str, rendering: Mapping[str, Any]) -> Call:
    """Asks for the transcript of a job."""
    return of_job("GET", job_id, "/result", params=_given(rendering))


def events(job_id: str, seen: str, deadline: Deadline) -> Call:
    """Asks for the changes of a job after the event `seen`."""
    headers = {"Last-Event-ID": seen} if seen else {}
    return of_job("GET", job_id, "/events", headers=headers, is_stream=True, deadline=deadline)


def connection(base_url: str | None, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """How httpx's clients reach the service. Raises InvalidRequest for a URL or a key that cannot be one."""
    url = _service_url(base_url or os.environ.get("WHISPERX_URL") or DEFAULT_URL)
    key = (api_key or os.environ.get("WHISPERX_API_KEY") or "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InvalidRequest("api_key: it has characters that no key has; copy it again.", "api_key")
    if key and url.userinfo:
        message = f"base_url: {shown(url)} has a user, who would replace the API key; leave one of them out."
        raise InvalidRequest(message, "base_url")
    headers = {"User-Agent": f"whisperx-serve/{__version__}"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(timeout_s, connect=10, pool=None)
    limits = httpx.Limits(max_connections=None)  # a job that is followed holds one
    # A proxy would look for a loopback address on its own machine.
    mounts = {f"all://{url.netloc.decode()}": None} if _is_this_machine(url.host) else {}
    return {"base_url": url, "headers": headers, "timeout": timeout, "limits": limits, "mounts": mounts}


def _service_url(given: str) -> httpx.URL:
    example = f"write for example {DEFAULT_URL}"
    try:
        url = httpx.URL(given)
    except (httpx.InvalidURL, ValueError):
        hidden = "what was given" if "@" in given else given
        raise InvalidRequest(f"base_url: {hidden} is not a URL; {example}.", "base_url") from None
    is_whole = url.scheme in ("http", "https") and url.host and 0 < (url.port or 80) < 1 << 16
    if not is_whole or url.query or url.fragment:
        raise InvalidRequest(f"base_url: {shown(url)} is not the URL of a service; {example}.", "base_url")
    return url


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None; the service chooses the others."""
    return {name: value for name, value in options.items() if value is not None}


def is_url(audio: Audio) -> bool:
    """Whether this is a URL, which the service fetches."""
    return isinstance(audio, str) and audio.lower().startswith(("http://", "https://"))


@contextmanager
def body(audio: Audio, options: Mapping[str, Any]) -> Iterator[Body]:
    """Yields the maker of a request's body: JSON for a URL, else a form. A file is read while it is sent.

    The service chooses options that are None. Raises OSError for a file that cannot be read.
    """
    given = _given(options)
    if is_url(audio):
        yield lambda: {"json": {"audio_file": audio, **given}}
        return
    with ExitStack() as held:
        file: BinaryIO
        if isinstance(audio, bytes | bytearray | memoryview):
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
    return Call("POST", "/v1/audio/transcriptions", is_stream=True)


def streaming(audio: Audio, options: Mapping[str, Any]) -> dict[str, Any]:
    """The form fields of `streamed`. Raises InvalidRequest for a URL, which that route does not take."""
    if is_url(audio):
        message = "audio: only files can be streamed; have a URL transcribed by transcribe or a job."
        raise InvalidRequest(message, "audio")
    return {"model": "whisper-1", "stream": True, **options}
