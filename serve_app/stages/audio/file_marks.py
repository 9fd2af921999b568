"""What the bytes of a file show that ffmpeg does not say: encryption, further recordings, unknown lengths."""

import os
import re
from typing import BinaryIO, Literal

LONGEST_MARK = 16
_ENCRYPTED = re.compile(rb"enca\0{7}\x01")  # an MP4's sample entry: type, six reserved bytes, index 1
# Containers of which ffmpeg reads no further than the end of the first recording, and how much of their
# beginning is always the same. Bytes 4 to 8 of WAV and AIFF are a size.
_BEGINNING_BYTES = {"wav": 12, "aiff": 12, "w64": 16, "caf": 12, "flv": 9, "asf": 16, "tta": 6}
# Where they declare the bytes of their sound; for AVI, of the file.
_LENGTHS: dict[str, tuple[bytes, Literal["little", "big"]]] = {
    "wav": (rb"RIFF.{4}WAVE.*?data(.{4})|RF64.{4}WAVE.*?ds64.{12}(.{8})", "little"),
    "w64": (rb"riff.*?data\xf3\xac\xd3\x11.{8}(.{8})", "little"),
    "avi": (rb"RIFF(.{4})AVI ", "little"),
    "aiff": (rb"FORM.{4}AIF[FC].*?SSND(.{4})", "big"),
    "au": (rb"\.snd.{4}(.{4})", "big"),
    "caf": (rb"caff.*?data(.{8})", "big"),
}


def declares_no_length(file: BinaryIO, container: str) -> bool:
    """Whether the header has a placeholder for the length, as programs write it that write to a pipe.

    It is 0 or the greatest number of 31, 32, 63 or 64 bits; sox, arecord and others leave up to 16 MiB of it
    for headers and whole frames.
    """
    pattern, order = _LENGTHS.get(container, (b"(?!)", "little"))
    found = re.match(pattern, os.pread(file.fileno(), 1 << 16, 0), re.DOTALL)
    if not found:
        return False
    size = int.from_bytes(found[found.lastindex or 0], order)
    return size == 0 or any(-(1 << 24) <= size - (1 << bits) <= 1 << 10 for bits in (31, 32, 63, 64))


def is_encrypted(file: BinaryIO) -> bool:
    """Whether an MP4 holds an encrypted sound track, which ffmpeg takes for noise without a word."""
    return _count(file, _ENCRYPTED) > 0


def recordings(file: BinaryIO, container: str) -> int:
    """How many recordings of this container the file has one after another, where ffmpeg reads only one."""
    head = os.pread(file.fileno(), _BEGINNING_BYTES.get(container, 0), 0)
    if not head:
        return 1
    mark = re.escape(head)
    if container in ("wav", "aiff"):
        mark = re.escape(head[:4]) + b".{4}" + re.escape(head[8:])
    return _count(file, re.compile(mark, re.DOTALL))


def _count(file: BinaryIO, mark: re.Pattern[bytes]) -> int:
    found, offset, tail = 0, 0, b""
    while chunk := os.pread(file.fileno(), 1 << 20, offset):
        found += sum(match.end() > len(tail) for match in mark.finditer(tail + chunk))
        offset, tail = offset + len(chunk), (tail + chunk)[-LONGEST_MARK:]
    return found
