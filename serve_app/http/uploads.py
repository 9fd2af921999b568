"""Receives the body of a request: it goes to disk as it arrives, and a file is never in memory as a whole."""

import asyncio
import io
import json
import re
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, Literal, Self, TypeVar

import pydantic
from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from serve_app.audio import Source
from serve_app.errors import EncodedBody, InvalidRequest, PayloadTooLarge
from serve_app.http.forms import MAX_TEXT_BYTES, FormBody, FormField, too_much_text
from serve_app.options import Options
from serve_app.options.validation import validate_or_400
from serve_app.spool import LimitedFile, anonymous_temp_file, decode_base64, disk_full_error

Parsed = TypeVar("Parsed")

PIECE_BYTES = 256 << 10  # that are written at once
MAX_SYNTAX_BYTES = 256 << 10  # of JSON, but for base64

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_="
_SPACE = b" \t\r\n"
# Not text/plain nor a form: a browser sends those for any web page, without asking the server first.
_JSON = re.compile(rb"(application|text)/([\w.-]+\+)?json")
_UTF_8 = (b"utf-8", b"utf8", b"us-ascii")
_NOT_ENCODED = ("", "identity", "utf-8", "none")  # the latter two are no codings, but the bytes are plain
_NON_ASCII = re.compile(rb"[\x80-\xff]+")

# Parsing takes up to three times the size of a JSON body in memory, so few are parsed at once.
_json_threads = ThreadPoolExecutor(2, "json")


class PredictRequest(Options):
    """The JSON body of `POST /predict`; exactly one of `audio_file` and `audio_b64`."""

    audio_file: str | None = pydantic.Field(None, description="http or https URL of the audio or video.")
    audio_b64: str | None = pydantic.Field(None, description="The file itself, base64.")
    headers: dict[str, str] = pydantic.Field(
        default_factory=dict, description="HTTP headers for fetching `audio_file`, such as Authorization."
    )

    @pydantic.model_validator(mode="after")
    def _has_one_source(self) -> Self:
        self._check_source()
        return self

    def _check_source(self) -> None:
        if (self.audio_file is None) == (self.audio_b64 is None):
            raise ValueError("give either audio_file (a URL) or audio_b64 (a file), or upload a form")
        if self.headers and self.audio_file is None:
            raise ValueError("headers are for fetching audio_file")

    def asked(self) -> Any:
        """All but the audio, as `received` gives it."""
        return Options.model_validate(self.model_dump(include=set(Options.model_fields)))

    def source(self, file: BinaryIO, max_file_bytes: int) -> Source:
        """The audio; that of `audio_b64` goes into `file`. Raises InvalidRequest and PayloadTooLarge."""
        if self.audio_b64 is None:
            return Source(url=self.audio_file, headers=self.headers)
        audio = LimitedFile(file, max_file_bytes, "audio_b64")
        try:
            decode_base64(self.audio_b64, audio.write)
        except ValueError as error:
            raise InvalidRequest(f"audio_b64: not valid base64: {error}.", "audio_b64") from None
        return Source(file=audio.from_start())


class JsonBody:
    """Collects a JSON body in `file`; `finish` gives what `read` makes of its fields, in a thread."""

    too_large_advice = "Give the URL of larger files, or POST them to /predict or /v1/jobs as a form."

    def __init__(self, file: BinaryIO, max_bytes: int, read: Callable[[dict[str, Any]], Any]) -> None:
        self.max_bytes = max_bytes
        self.write = file.write
        self._file, self._read = file, read

    def finish(self) -> Any:
        """Raises InvalidRequest, and PayloadTooLarge for the file in it or for the rest."""
        self._file.seek(0)
        fields = _parse(self._file.read())
        self._file.seek(0)
        self._file.truncate()  # the file in the body takes its place
        return self._read(fields)


@asynccontextmanager
async def received(
    request: Request,
    max_file_bytes: int,
    parse: Callable[[list[FormField]], Parsed],
    max_json_bytes: int = 0,
    json_model: type[PredictRequest] = PredictRequest,
    part: str = "file",
) -> AsyncIterator[tuple[Source, Parsed]]:
    """Receives the file or URL of a request, and what `parse` makes of the text fields of a form.

    The file of a form is in `part`. A route that takes JSON too has `max_json_bytes`, and a `json_model` for
    it. A file is closed at the end. Raises InvalidRequest, EncodedBody, PayloadTooLarge, Overloaded.
    """
    kind, parameters = _content_type(request)

    def read(fields: dict[str, Any]) -> tuple[Source, Any]:
        asked = validate_or_400(json_model, fields)
        return asked.source(file, max_file_bytes), asked.asked()

    with anonymous_temp_file() as file:
        body: FormBody | JsonBody
        if kind == b"multipart/form-data":
            boundary = parameters.get(b"boundary", b"")
            body = FormBody(boundary, file, max_file_bytes, part=part, or_json=max_json_bytes > 0)
        elif _JSON.fullmatch(kind) and max_json_bytes:
            body = JsonBody(file, max_json_bytes, read)
        else:
            or_json = ", or application/json with audio_file or audio_b64" if max_json_bytes else ""
            raise _wrong_type(request, f"multipart/form-data with a part named {part}{or_json}")
        source, parsed = await _receive(request, body)
        if isinstance(body, FormBody):
            parsed = parse(parsed)
        del body  # the request may run for an hour and does not need the text of its body
        if source.file is None:
            file.close()  # nor an open file
        yield source, parsed


async def received_json(request: Request, max_bytes: int, read: Callable[[dict[str, Any]], Parsed]) -> Parsed:
    """What `read` makes of a small body, where only JSON is taken. Raises what `received` does."""
    kind, _ = _content_type(request)
    if not _JSON.fullmatch(kind):
        raise _wrong_type(request, "a JSON object as application/json")
    parsed: Parsed = await _receive(request, JsonBody(io.BytesIO(), max_bytes, read))
    return parsed


def _content_type(request: Request) -> tuple[bytes, dict[bytes, bytes]]:
    """The type of the body and its parameters. Raises EncodedBody, and InvalidRequest for other charsets."""
    coding = ", ".join(request.headers.getlist("content-encoding"))
    if coding.strip().lower() not in _NOT_ENCODED:
        raise EncodedBody(f"Send the body without Content-Encoding; {coding[:100]} is not supported.")
    kind, parameters = parse_options_header(request.headers.get("content-type", ""))
    if _JSON.fullmatch(kind) and parameters.get(b"charset", b"utf-8").lower() not in _UTF_8:
        raise InvalidRequest("JSON is UTF-8; send it so, and Content-Type: application/json.")
    return kind, parameters


def _wrong_type(request: Request, right: str) -> InvalidRequest:
    given = request.headers.get("content-type", "")[:100]
    not_given = f"not as {given}" if given else "and say so in the header Content-Type"
    return InvalidRequest(f"Send {right}, {not_given}.", None, "unsupported_content_type")


def options_in_body_only(
    *models: type[pydantic.BaseModel], in_url: Collection[str] | Literal["all"] = ()
) -> Callable[[Request], Awaitable[None]]:
    """A check that raises InvalidRequest for options of these models that are sent where they have no effect.

    The URL may have the parameters `in_url`. Other headers pass: proxies add theirs. A GET has no options.
    """
    names = {name for model in models for name in model.model_fields} - {"priority"}  # browsers send it

    async def check(request: Request) -> None:
        if request.method != "POST":
            return
        for name in () if in_url == "all" else request.query_params.keys() - set(in_url):
            raise InvalidRequest(f"{name}: the URL takes no parameters; send options in the body.", name)
        for header in request.headers:
            if (name := header.replace("-", "_")) in names:
                place = "URL" if in_url == "all" else "body"
                raise InvalidRequest(f"{name}: send it in the {place}, not as the header {header}.", name)

    return check


async def _receive(request: Request, body: FormBody | JsonBody) -> Any:
    """Asks for the next piece when the last one is written, so that a fast client waits for a slow disk.

    When a request is cancelled its file is closed while a thread may still use it: a write that has begun
    ends first, and the next one fails without consequences.
    """
    too_large = PayloadTooLarge(f"The request body is over {body.max_bytes} bytes. {body.too_large_advice}")
    declared = request.headers.get("content-length", "")
    # int() refuses thousands of digits, and no number of bytes has more than 20.
    if declared.isdecimal() and int(declared[:20]) > body.max_bytes:
        raise too_large
    received_bytes = 0
    pending = bytearray()
    try:
        async for chunk in request.stream():
            received_bytes += len(chunk)
            if received_bytes > body.max_bytes:
                raise too_large
            pending += chunk
            if len(pending) >= PIECE_BYTES or not chunk:  # an empty chunk is the end
                await asyncio.to_thread(body.write, bytes(pending))
                pending.clear()
        threads = _json_threads if isinstance(body, JsonBody) else None  # None: the event loop's own
        return await asyncio.get_running_loop().run_in_executor(threads, body.finish)
    except ClientDisconnect:  # nobody reads this answer, but a disconnect is no failure for the error log
        raise InvalidRequest("The connection closed before the whole body had come.") from None
    except OSError as error:
        raise disk_full_error() from error


def _parse(body: bytes) -> dict[str, Any]:
    """Parses a JSON object in UTF-8 that has nothing large but base64.

    Parsed JSON can take thirty times the memory of its text, but not where nearly all of it is base64: that
    is checked first. The body and its text are dropped as soon as possible, because both are large.
    """
    body = body.removeprefix(BOM_UTF8)
    if len(body.translate(None, _BASE64 + _SPACE + b"\\")) > MAX_SYNTAX_BYTES:
        raise PayloadTooLarge(f"The JSON has over {MAX_SYNTAX_BYTES} characters that are not base64.")
    try:
        # A single emoji would make the text take four bytes per character.
        text = _NON_ASCII.sub(_escape, body).decode("ascii")
        del body
        # Not strict: the output of the base64 command, pasted into a string, has line breaks.
        fields = json.loads(text, object_pairs_hook=_unique, strict=False)
        del text
        if not isinstance(fields, dict):
            raise InvalidRequest("The body must be a JSON object.")
        rest = json.dumps({**fields, "audio_b64": None}, ensure_ascii=False)
        if len(rest.encode()) > MAX_TEXT_BYTES:  # encode() fails for lone surrogates
            raise too_much_text()
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not valid JSON in UTF-8.") from None
    return fields


def _escape(found: re.Match[bytes]) -> bytes:
    return json.dumps(found[0].decode())[1:-1].encode()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            shown = ascii(name[:64])[1:-1]
            raise InvalidRequest(f"{shown}: given more than once; send it once.", shown)
        fields[name] = value
    return fields
