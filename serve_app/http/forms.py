"""Multipart forms: the part `file` goes to disk as it arrives, every other part is a short text field."""

import logging
from collections.abc import Collection, Sequence
from typing import Any, BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve_app.errors import InvalidRequest, PayloadTooLarge
from serve_app.options import KNOWN_SPEAKERS, Options, parse_options
from serve_app.spool import LimitedFile
from serve_app.transcript import Source

Field = tuple[str, str]  # the name as the client sent it, and the value

MAX_TEXT_BYTES = 8 << 20  # of a body without its file; recordings of known speakers are the largest part
MAX_FIELDS = 1000

# The client gets an error for a malformed form; the operator's log needs no line about it.
logging.getLogger("python_multipart.multipart").setLevel(logging.ERROR)


class FormBody:
    """Parses a form piece by piece.

    Starlette's form parser is not used because it has no limit for the file alone, decodes text with any
    codec that the client names and accepts a form without its end as one without a file.
    """

    too_large_advice = "Send a shorter or smaller file."

    def __init__(self, boundary: bytes, file: BinaryIO, max_file_bytes: int) -> None:
        """Raises InvalidRequest for a boundary that is not valid."""
        self.max_bytes = max_file_bytes + MAX_TEXT_BYTES
        self._file = LimitedFile(file, max_file_bytes, "file")
        self._fields: list[Field] = []
        self._received_bytes = 0
        self._header_name, self._header_value = bytearray(), bytearray()
        self._disposition = b""  # of the current part, like the next two
        self._name, self._text = "", bytearray()
        self._is_file = self._has_file = self._is_complete = False
        if not boundary:
            raise InvalidRequest("The Content-Type has no boundary; let the HTTP library write that header.")
        callbacks: Any = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header_name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header_value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": lambda: setattr(self, "_is_complete", True),
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError:  # the boundary is too long
            raise _invalid_form() from None
        # The parser accepts no preamble. This part's text is the preamble, or empty where there is none.
        self._parser.write(b"--" + boundary + b'\r\nContent-Disposition: form-data; name=""\r\n\r\n\r\n')

    def write(self, piece: bytes) -> None:
        """Raises InvalidRequest and PayloadTooLarge."""
        self._received_bytes += len(piece)
        try:
            self._parser.write(piece)
        except UnicodeDecodeError:
            raise InvalidRequest("The text of a form must be UTF-8.") from None
        except FormParserError:
            raise _invalid_form() from None
        if self._received_bytes - self._file.size > MAX_TEXT_BYTES:
            raise too_much_text()

    def finish(self) -> tuple[Source, list[Field]]:
        """The file and the text fields. Raises InvalidRequest."""
        del self._parser  # it calls this object's methods: a cycle, which would keep the text for long
        if not self._is_complete:
            raise _invalid_form()
        if not self._has_file:
            raise _no_file()
        return Source(file=self._file.from_start()), self._fields[1:]  # without the preamble

    def _begin_part(self) -> None:
        self._disposition, self._text = b"", bytearray()

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        if b"name" not in parameters:
            raise InvalidRequest("A part of the form has no name.")
        self._name = parameters[b"name"].decode()
        self._is_file = self._name == "file"  # some clients send no file name
        if b"filename" in parameters and not self._is_file:
            raise _no_file()
        if self._is_file and self._has_file:
            raise InvalidRequest("file: given more than once; send it once.", "file")
        self._has_file |= self._is_file

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file.write(data[start:end])
        else:
            self._text += data[start:end]

    def _end_part(self) -> None:
        if not self._is_file:
            self._fields.append((self._name, self._text.decode()))
        if len(self._fields) > MAX_FIELDS:
            raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")


def form_options(fields: Sequence[Field]) -> Options:
    """The options of /predict, or InvalidRequest naming the one that is wrong."""
    return parse_options(collect_fields(fields, KNOWN_SPEAKERS))


def collect_fields(fields: Sequence[Field], arrays: Collection[str]) -> dict[str, Any]:
    """One entry per name; those in `arrays` are lists, sent as `name[]`, as `name` repeated, or as `name[0]`.

    Empty values are left out, because a browser also sends its empty inputs; in an array that has other
    values they keep their place. Raises InvalidRequest for any other name given more than once, and for an
    array whose numbers have gaps.
    """
    collected: dict[str, dict[str, str]] = {}  # name -> place in the array -> value
    for sent, value in fields:
        name, bracket, place = sent.removesuffix("]").partition("[")
        if name not in arrays or bool(bracket) != sent.endswith("]"):
            name, place = sent, "0"
        values = collected.setdefault(name, {})
        place = place or str(len(values))
        if place in values:
            raise InvalidRequest(f"{sent}: given more than once; send it once.", name)
        values[place] = value
    for name, values in collected.items():
        if values.keys() != {str(place) for place in range(len(values))}:
            raise InvalidRequest(f"{name}: send its values as {name}[0], {name}[1] and so on.", name)
    return {
        name: [values[str(place)] for place in range(len(values))] if name in arrays else values["0"]
        for name, values in collected.items()
        if any(values.values())
    }


def too_much_text() -> PayloadTooLarge:
    """The error for a body that is too large without its file."""
    return PayloadTooLarge(
        f"The request has over {MAX_TEXT_BYTES} bytes of text beside the audio; send shorter "
        "known_speaker_references or options."
    )


def _no_file() -> InvalidRequest:
    return InvalidRequest("file: upload the audio as a file part named file.", "file")


def _invalid_form() -> InvalidRequest:
    return InvalidRequest("The body is not valid multipart/form-data.")
