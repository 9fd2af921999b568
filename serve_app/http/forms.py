"""A multipart form whose file goes to disk as it comes."""

import logging
from collections.abc import Callable
from typing import BinaryIO, Generic, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve_app.errors import InvalidRequest
from serve_app.http.form_fields import Field, named
from serve_app.http.references import REFERENCES, limited
from serve_app.spool import LimitedFile
from serve_app.transcript import Source

Parsed = TypeVar("Parsed")

# A client's mistake is answered to the client; it does not fill the operator's log.
logging.getLogger("python_multipart.multipart").setLevel(logging.ERROR)


class FormBody(Generic[Parsed]):
    """Writes the part `file` into `file`; every other part is a text field, for `parse`.

    Not Starlette's form: that has no limit for the file alone, decodes text by any codec that the client
    names (some of them raise what is answered 500) and takes a form without its end for one without a file.
    """

    def __init__(
        self, boundary: bytes, file: BinaryIO, max_bytes: int, parse: Callable[[list[Field]], Parsed]
    ) -> None:
        """Raises InvalidRequest where `boundary` (of the Content-Type) cannot be one."""
        self.most_file_bytes = max_bytes
        self._parse = parse
        self._file = LimitedFile(file, max_bytes, "file")
        self._fields: list[Field] = []
        self._references_bytes = 0
        self._received = 0
        self._header_name, self._header_value = bytearray(), bytearray()
        self._disposition = b""
        self._name = ""  # of the part
        self._is_file = self._has_file = self._ended = False
        self._text = bytearray()
        if not boundary:
            raise InvalidRequest("The Content-Type has no boundary; let the HTTP library write that header.")
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._add_header_name,
                    "on_header_value": self._add_header_value,
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._end_headers,
                    "on_part_data": self._add_data,
                    "on_part_end": self._end_part,
                    "on_end": self._end,
                },
            )
        except FormParserError:  # longer than any client's
            raise _not_a_form() from None

    def write(self, piece: bytes) -> None:
        """Raises InvalidRequest and PayloadTooLarge."""
        self._received += len(piece)
        try:
            self._parser.write(piece)
        except FormParserError:
            raise _not_a_form() from None

    def beside_bytes(self) -> int:
        return self._received - self._file.size - self._references_bytes

    def finish(self) -> tuple[Source, Parsed]:
        """Raises InvalidRequest, and what `parse` raises."""
        if not self._ended:
            raise _not_a_form()
        if not self._has_file:
            raise _no_file()
        return Source(file=self._file.from_start()), self._parse(self._fields)

    def _begin(self) -> None:
        self._disposition, self._text = b"", bytearray()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, parameters = parse_options_header(self._disposition)
        if b"name" not in parameters:
            raise InvalidRequest("A part of the form has no name.")
        self._name = _text(parameters[b"name"])
        self._is_file = b"filename" in parameters
        if self._is_file and self._name != "file":
            raise _no_file()
        if self._name == "file" and self._has_file:
            raise InvalidRequest("file: given more than once; send it once.", "file")
        self._has_file |= self._is_file

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file.write(data[start:end])
        else:
            if named(self._name)[0] == REFERENCES:
                self._references_bytes = limited(self._references_bytes + end - start)
            self._text += data[start:end]

    def _end_part(self) -> None:
        if not self._is_file:
            self._fields.append((self._name, _text(self._text)))

    def _end(self) -> None:
        self._ended = True


def _text(data: bytes | bytearray) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("The text of a form must be UTF-8.") from None


def _no_file() -> InvalidRequest:
    return InvalidRequest("file: upload the audio as a file part named file.", "file")


def _not_a_form() -> InvalidRequest:
    return InvalidRequest("The body is not valid multipart/form-data.")
