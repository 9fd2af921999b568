"""The bytes of an upload: read from base64, and kept in a temporary file on disk that has no name."""

import base64
import binascii
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, cast

from serve_app.errors import Overloaded, PayloadTooLarge

PIECE_CHARS = 1 << 20

DATA_URL = re.compile(r"\s*data:[^,]{0,200};[ ]?base64,", re.IGNORECASE)
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
_SPACE_IN_A_LINE = re.compile(r"\S +\S")


@contextmanager
def anonymous_temp_file() -> Iterator[BinaryIO]:
    """A file in TMPDIR without a name. Raises Overloaded where none can be opened.

    Nobody can open it by a name, and the kernel frees it with its last descriptor, also after SIGKILL.
    """
    try:
        file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  (closed below)
    except OSError as error:
        raise disk_full_error() from error
    try:
        yield file
    finally:
        with suppress(OSError):  # what a full disk refused before is refused again, and closed all the same
            file.close()


class LimitedFile:
    """Writes to `file` and counts: PayloadTooLarge, with `param`, before there are more than `max_bytes`."""

    def __init__(self, file: BinaryIO, max_bytes: int, param: str) -> None:
        self.size = 0
        self._file, self._max_bytes, self._param = file, max_bytes, param

    def write(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self._max_bytes:
            raise PayloadTooLarge(
                f"The file is over {self._max_bytes} bytes; send a shorter or smaller one.", self._param
            )
        self._file.write(data)

    def from_start(self) -> BinaryIO:
        """The file, all of it written, at its first byte."""
        self._file.seek(0)
        return self._file


def disk_full_error() -> Overloaded:
    return Overloaded("The server has no room to store the audio now; try again later.")


def decode_base64(text: str, write: Callable[[bytes], object]) -> None:
    """Decodes base64 as clients send it: as a data: URL, with white space, URL-safe, without padding.

    Raises ValueError, which says what is wrong, where it is not base64.
    """
    data_url = DATA_URL.match(text)
    text = text.rstrip("= \t\r\n")
    start = data_url.end() if data_url else 0
    if " " in text and _SPACE_IN_A_LINE.search(text, start):
        raise ValueError("it has spaces within a line; if they were +, encode the form or URL it came in")
    rest = b""
    try:
        for place in range(start, len(text), PIECE_CHARS):
            piece = text[place : place + PIECE_CHARS].encode("ascii")
            rest += piece.translate(_STANDARD_ALPHABET, b" \t\r\n")
            if b"=" in rest:  # padding that is not at the end
                raise binascii.Error
            whole = len(rest) // 4 * 4
            write(base64.b64decode(rest[:whole], validate=True))
            rest = rest[whole:]
        write(base64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True))
    except ValueError:
        raise ValueError("send base64, plain or as data:TYPE;base64,...") from None
