"""JSON bodies of `POST /predict`. They are kept on disk while they arrive and parsed when complete."""

import base64
import binascii
import json
import re
from codecs import BOM_UTF8
from typing import Any, BinaryIO, Self

from pydantic import Field, model_validator

from serve_app.errors import InvalidRequest, PayloadTooLarge
from serve_app.http.forms import MAX_TEXT_BYTES, too_much_text
from serve_app.options import Options, validate_or_400
from serve_app.spool import LimitedFile
from serve_app.transcript import Source

MAX_SYNTAX_BYTES = 256 << 10
PIECE_CHARS = 1 << 20

_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_="
_SPACE = b" \t\r\n"
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_DATA_URL = re.compile(r"\s*data:[^,]{0,200};base64,", re.IGNORECASE)
_NON_ASCII = re.compile(rb"[\x80-\xff]+")


class PredictRequest(Options):
    """The JSON body of `POST /predict`; exactly one of `audio_file` and `audio_b64`."""

    audio_file: str | None = Field(None, description="http or https URL of the audio or video.")
    audio_b64: str | None = Field(None, description="The file itself, base64.")
    headers: dict[str, str] = Field(
        default_factory=dict, description="HTTP headers for fetching `audio_file`, such as Authorization."
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.audio_file is None) == (self.audio_b64 is None):
            raise ValueError("give either audio_file (a URL) or audio_b64 (a file), or upload a form")
        if self.headers and self.audio_file is None:
            raise ValueError("headers are for fetching audio_file")
        return self


class JsonBody:
    """Collects a JSON body in `file`; the file in its `audio_b64`, if any, then takes its place there."""

    too_large_advice = "Send larger files as multipart/form-data or give their URL in audio_file."

    def __init__(self, file: BinaryIO, max_file_bytes: int, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._file = file
        self._max_file_bytes = max_file_bytes

    def write(self, piece: bytes) -> None:
        self._file.write(piece)

    def finish(self) -> tuple[Source, Options]:
        """Raises InvalidRequest, and PayloadTooLarge for the file in it or for the rest."""
        self._file.seek(0)
        request = validate_or_400(PredictRequest, _parse(self._file.read()))
        options = Options.model_validate(request.model_dump(include=set(Options.model_fields)))
        if request.audio_b64 is None:
            return Source(url=request.audio_file, headers=request.headers), options
        self._file.seek(0)
        self._file.truncate()
        audio = LimitedFile(self._file, self._max_file_bytes, "audio_b64")
        try:
            _decode_base64(request.audio_b64, audio)
        except ValueError:
            raise InvalidRequest("audio_b64: not valid base64.", "audio_b64") from None
        return Source(file=audio.from_start()), options


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
            raise InvalidRequest('The body must be a JSON object such as {"audio_file": "https://..."}.')
        rest = {name: value for name, value in fields.items() if name != "audio_b64"}
        rest_bytes = len(json.dumps(rest, ensure_ascii=False).encode())  # fails for lone surrogates
    except (ValueError, RecursionError):
        raise InvalidRequest("The body is not valid JSON.") from None
    if rest_bytes > MAX_TEXT_BYTES:
        raise too_much_text()
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


def _decode_base64(text: str, file: LimitedFile) -> None:
    """Decodes base64 as clients send it: as a data: URL, with white space, URL-safe, without padding.

    Raises ValueError where it is not base64.
    """
    data_url = _DATA_URL.match(text)
    text = text.rstrip("= \t\r\n")
    rest = b""
    for start in range(data_url.end() if data_url else 0, len(text), PIECE_CHARS):
        rest += text[start : start + PIECE_CHARS].encode("ascii").translate(_STANDARD_ALPHABET, _SPACE)
        if b"=" in rest:  # padding that is not at the end
            raise binascii.Error
        whole = len(rest) // 4 * 4
        file.write(base64.b64decode(rest[:whole], validate=True))
        rest = rest[whole:]
    file.write(base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True))
