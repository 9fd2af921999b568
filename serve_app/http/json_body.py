"""A JSON body whose base64 file is decoded on its way to disk."""

import base64
import binascii
import json
import re
import secrets
from typing import Any, BinaryIO

from serve_app.errors import InvalidRequest
from serve_app.http.json_escapes import LONGEST_BYTES, begun, unescaped
from serve_app.http.references import references_bytes
from serve_app.http.schemas import parse_predict
from serve_app.options import Options
from serve_app.spool import LimitedFile
from serve_app.transcript import Source

_NAME = re.compile(rb'[{,][ \t\n\r]*"audio_b64"[ \t\n\r]*:[ \t\n\r]*"')


class JsonBody:
    """Decodes the value of `audio_b64` into `file` and parses the rest at the end.

    The value is found without parsing: no unescaped quote stands inside a JSON string, so in valid JSON the
    bytes of `_NAME` can only be a name and the first quote of its value. The value is replaced by a random
    word, and text that is not JSON with the value is not JSON with the word either. That the name is the one
    at the top level is seen from where the parser finds the word.
    """

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        # Base64 takes 4/3, and each of its characters may be an escape.
        self.most_file_bytes = (max_bytes + 2) // 3 * 4 * LONGEST_BYTES
        self._file = LimitedFile(file, max_bytes, "audio_b64")
        self._base64 = Base64Decoder(self._file)
        self._word: str | None = None  # in the place of the value, once there is one
        self._in_value = False
        self._rest = bytearray()
        self._references_bytes = 0

    def write(self, piece: bytes) -> None:
        """Raises InvalidRequest and PayloadTooLarge for the file; the rest is looked at in the end."""
        if self._word is None:
            self._rest += piece
            # The plain search is fifty times as fast, which counts where voices come before the file.
            name = _NAME.search(self._rest) if b'"audio_b64"' in self._rest else None
            if name is None:
                self._references_bytes = references_bytes(self._rest)
                return
            piece = bytes(self._rest[name.end() :])
            del self._rest[name.end() :]
            self._word = secrets.token_hex(16)  # new for each request, so that no client can send it
            self._rest += self._word.encode()
            self._in_value = True
        if self._in_value:
            value, quote, piece = piece.partition(b'"')
            self._base64.write(value)
            if quote:
                self._base64.finish()
                self._in_value = False
                piece = quote + piece
        if piece:
            self._rest += piece
            self._references_bytes = references_bytes(self._rest)

    def beside_bytes(self) -> int:
        return len(self._rest) - self._references_bytes

    def finish(self) -> tuple[Source, Options]:
        """Raises InvalidRequest."""
        body = parse_predict(_parsed(self._rest))
        if body.audio_b64 != self._word:
            raise InvalidRequest(
                "audio_b64: must stand at the top level, its name written without escapes.", "audio_b64"
            )
        if body.audio_b64 is None:
            return Source(url=body.audio_file, headers=body.headers), body.options()
        return Source(file=self._file.from_start()), body.options()


class Base64Decoder:
    """Strict base64, as it stands inside a JSON string, into `file`."""

    def __init__(self, file: LimitedFile) -> None:
        self._file = file
        self._carry = b""  # less than four characters, and the beginning of an escape
        self._padded = False

    def write(self, text: bytes) -> None:
        text = unescaped(self._carry + text)
        ready = len(text) - begun(text)
        if b"\\" in text[:ready]:  # refused here, for a carry is unescaped again
            raise _not_base64()
        whole = ready // 4 * 4
        self._carry = text[whole:]
        self._decode(text[:whole])

    def finish(self) -> None:
        self._decode(self._carry)

    def _decode(self, text: bytes) -> None:
        if not text:
            return
        if self._padded:  # something after the end
            raise _not_base64()
        try:
            self._file.write(base64.b64decode(text, validate=True))
        except binascii.Error:
            raise _not_base64() from None
        self._padded = text.endswith(b"=")


def _not_base64() -> InvalidRequest:
    return InvalidRequest("audio_b64: not valid base64.", "audio_b64")


def _parsed(text: bytearray) -> dict[str, Any]:
    """An object in UTF-8 (with a byte order mark or without), no name given twice; or InvalidRequest."""
    try:
        fields = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_not_json)
    except (
        ValueError,
        RecursionError,
    ):  # ValueError: also numbers of thousands of digits and lone surrogates
        raise InvalidRequest("The body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise InvalidRequest('The body must be a JSON object such as {"audio_file": "https://..."}.')
    return fields


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        for text in (name, value):
            if isinstance(text, str):
                text.encode()  # a lone surrogate cannot be sent on, not even in an error's message
        if name in fields:
            raise InvalidRequest(f"{name}: given more than once; send it once.", name)
        fields[name] = value
    return fields


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
