"""What the service answers: errors, transcripts and server-sent events. Pure."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx

from serve_app import errors
from serve_app.errors import InvalidRequest, TranscriptionError

ENDS = ("succeeded", "failed", "canceled", "expired")  # final states of jobs
SEGMENTS = "segments"  # events with the text of a job so far

_KNOWN = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, TranscriptionError)
]
# Of several classes with one code the first counts: it is the base class of the others.
_BY_CODE = {each.code: each for each in reversed(_KNOWN)}
# 404 and 409 have many meanings, which only the code tells apart.
_BY_STATUS = {each.status: each for each in _BY_CODE.values()} | {404: InvalidRequest, 409: InvalidRequest}


class Unreachable(TranscriptionError, code="unreachable"):
    """The service does not answer, or the connection broke."""


class StreamBroken(Unreachable):
    """The connection broke after the answer had begun."""


@contextmanager
def connected(url: httpx.URL, kind: type[Unreachable] = Unreachable) -> Iterator[None]:
    """Turns errors of the connection into this kind of Unreachable."""
    try:
        yield
    except httpx.TransportError as error:
        reason = str(error) or type(error).__name__
        raise kind(
            f"{shown(url)} does not answer ({reason}); look whether the service runs there."
        ) from error


def shown(url: httpx.URL) -> str:
    """A URL for messages, without the parts that may be secret."""
    return str(url.copy_with(username=None, password=None, query=None, fragment=None))


def error_of(response: httpx.Response) -> TranscriptionError:
    """The error in an answer whose body was read; its `status` is the answer's."""
    code, param, status = None, None, response.status_code
    answered = f"{shown(response.url)} answered {status} {response.reason_phrase}"
    message = f"{answered}; this does not seem to be a whisperx service."
    with suppress(ValueError, KeyError, TypeError):
        body = response.json()["error"]
        message, code, param = body["message"], body["code"], body["param"]
    waits = response.headers.get("Retry-After", "")
    retry_after_s = int(waits) if waits.isascii() and waits.isdecimal() else 0
    fallback = InvalidRequest if status < 500 else TranscriptionError
    kind = _BY_CODE.get(code or "") or _BY_STATUS.get(status, fallback)
    error = kind(message, param, code, retry_after_s)
    error.status = status
    return error


def is_of_type(response: httpx.Response, media_type: str) -> bool:
    """Whether the answer says that it is of this type."""
    return bool(response.headers.get("Content-Type", "").startswith(media_type))


def dict_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object in an answer. Raises TranscriptionError if there is none: another service answered."""
    answer = _json_of(response)
    if not isinstance(answer, dict):
        raise error_of(response)
    return answer


def list_of(response: httpx.Response) -> list[Any]:
    """The JSON array in an answer. Raises TranscriptionError if there is none."""
    answer = _json_of(response)
    if not isinstance(answer, list):
        raise error_of(response)
    return answer


def _json_of(response: httpx.Response) -> object:
    try:
        return response.json()
    except ValueError:  # not JSON, or not text
        return None


def transcript_of(response: httpx.Response) -> dict[str, Any] | str:
    """A dict for the formats that are JSON, else the text. Raises TranscriptionError for a web page."""
    if is_of_type(response, "application/json"):
        return dict_of(response)
    if is_of_type(response, "text/html"):
        raise error_of(response)
    return response.content.decode()


def has_ended(job: dict[str, Any]) -> bool:
    """Whether this job is in a final state."""
    return job["status"] in ENDS


@dataclass(frozen=True, slots=True)
class Event:
    """A server-sent event; its data is JSON."""

    id: str
    name: str
    data: dict[str, Any]


def piece_of(event: Event | None) -> str:
    """The text that an event of a streamed transcription adds, or ""."""
    if event is None or event.data["type"] != "transcript.text.delta":
        return ""
    return str(event.data["delta"])


class EventReader:
    """Puts server-sent events together, line by line; None for comments and blank lines."""

    def __init__(self) -> None:
        self._id, self._name, self._data = "", "", ""

    def read(self, line: str) -> Event | None:
        """The event that ends with this line. Raises TranscriptionError for one that is an error."""
        if line.startswith("id: "):
            self._id = line.removeprefix("id: ")
        if line.startswith("event: "):
            self._name = line.removeprefix("event: ")
        if line.startswith("data: "):
            self._data = line.removeprefix("data: ")
        if line or not self._data:
            return None
        data, self._data = self._data, ""
        if data == "[DONE]":
            return None
        content: dict[str, Any] = json.loads(data)
        if isinstance(error := content.get("error"), dict) and "type" in error:
            fallback = InvalidRequest if error["type"] == InvalidRequest.type else TranscriptionError
            kind = _BY_CODE.get(error["code"], fallback)
            raise kind(error["message"], error["param"], error["code"])
        return Event(self._id, self._name, content)
