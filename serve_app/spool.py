"""Where the bytes of an upload are kept: a temporary file on disk that has no name."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, cast

from serve_app.errors import Overloaded, PayloadTooLarge


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
