"""Multipart forms: the part with the file goes to disk as it arrives, others are short text fields."""

import codecs
import logging
from collections.abc import Collection, Sequence
from typing import Any, BinaryIO

from pydantic import BaseModel
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serve_app.audio import Source
from serve_app.errors import InvalidRequest, PayloadTooLarge
from serve_app.options import Options, parse_options
from serve_app.options.fields import LISTS
from serve_app.spool import LimitedFile

FormField = tuple[str, str]  # the name as the client sent it, and the value

MAX_TEXT_BYTES = 8 << 20  # of a body without its file; recordings of known speakers are the largest part
MAX_FIELDS = 1000

_CODECS = {b"utf-8": "utf-8", b"utf8": "utf-8", b"us-ascii": "utf-8", b"iso-8859-1": "latin-1"}
_AS_THEY_ARE = ("", "7bit", "8bit", "binary", "identity")

# The client gets an error for a malformed form; the operator's log needs no line about it.
logging.getLogger("python_multipart.multipart").setLevel(logging.ERROR)


class FormBody:
    """Parses a form piece by piece.

    Starlette's form parser is not used because it has no limit for the file alone, decodes text with any
    codec that the client names and accepts a form without its end as one without a file.
    """

    too_large_advice = "Send a shorter or smaller file."

    def __init__(
        self,
        boundary: bytes,
        file: BinaryIO,
        max_file_bytes: int,
        *,
        part: str = "file",
        or_json: bool = False,
    ) -> None:
        """The file is in `part`. Raises InvalidRequest for a boundary that is not valid."""
        self.max_bytes = max_file_bytes + MAX_TEXT_BYTES
        self._part, self._file_name = part, ""
        self._file = LimitedFile(file, max_file_bytes, part)
        self._fields: list[FormField] = []
        self._received_bytes, self._or_json = 0, or_json
        self._header_name, self._header_value = bytearray(), bytearray()
        self._headers: dict[str, str] = {}  # of the current part, like the next three
        self._name, self._text = "", list[str]()
        self._decoder: codecs.IncrementalDecoder = codecs.getincrementaldecoder("utf-8")()
        self._in_preamble = True
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
            what = f"{self._name}: not text in UTF-8; upload the audio as a file part named {self._part}."
            raise InvalidRequest(what, self._name) from None
        except FormParserError:
            raise _invalid_form() from None
        if self._received_bytes - self._file.size > MAX_TEXT_BYTES:
            raise too_much_text()

    def finish(self) -> tuple[Source, list[FormField]]:
        """The file and the text fields. Raises InvalidRequest."""
        del self._parser  # it calls this object's methods: a cycle, which would keep the text for long
        if not self._is_complete:
            raise _invalid_form()
        if not self._has_file:
            where = "this path" if self._or_json else "POST /predict"
            also = f"{where} also takes a URL in JSON, as audio_file"
            message = f"{self._part}: upload the audio as a file part named {self._part}; {also}."
            raise InvalidRequest(message, self._part)
        return Source(file=self._file.from_start(), name=self._file_name), self._fields

    def _begin_part(self) -> None:
        self._headers, self._text = {}, []

    def _end_header(self) -> None:
        self._headers[self._header_name.decode().lower()] = self._header_value.decode("latin-1")
        self._header_name, self._header_value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, parameters = parse_options_header(self._headers.get("content-disposition"))
        if b"name" not in parameters:
            raise InvalidRequest("A part of the form has no name.")
        # The name alone decides: some clients send no file name, others send one with every part.
        self._name = parameters[b"name"].decode(errors="backslashreplace")
        self._is_file = self._name == self._part
        if self._is_file:
            self._file_name = parameters.get(b"filename", b"").decode(errors="replace")
        for header in ("content-transfer-encoding", "content-encoding"):
            if (coding := self._headers.get(header, "")).strip().lower() not in _AS_THEY_ARE:
                raise InvalidRequest(
                    f"{self._name}: send its bytes as they are, not with {header}: {coding}.", self._name
                )
        _, parameters = parse_options_header(self._headers.get("content-type"))
        codec = _CODECS.get(parameters.get(b"charset", b"utf-8").lower(), "")
        if not (codec or self._is_file):
            raise InvalidRequest(f"{self._name}: send text in UTF-8.", self._name)
        self._decoder = codecs.getincrementaldecoder(codec or "utf-8")()
        if self._is_file and self._has_file:
            raise InvalidRequest(f"{self._part}: given more than once; send it once.", self._part)
        self._has_file |= self._is_file

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file.write(data[start:end])
        elif not self._in_preamble:
            self._text.append(self._decoder.decode(data[start:end]))  # a file is refused at its first piece

    def _end_part(self) -> None:
        if not (self._is_file or self._in_preamble):
            self._text.append(self._decoder.decode(b"", final=True))
            self._fields.append((self._name, "".join(self._text)))
        self._in_preamble = False
        if len(self._fields) > MAX_FIELDS:
            raise InvalidRequest(f"The form has more than {MAX_FIELDS} fields.")


def form_options(fields: Sequence[FormField]) -> Options:
    """The options of /predict, or InvalidRequest naming the one that is wrong."""
    return parse_options(collect_fields(fields, LISTS))


def collect_fields(fields: Sequence[FormField], arrays: Collection[str]) -> dict[str, Any]:
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


def described_body(
    fields: dict[str, Any],
    *required: str,
    json_model: type[BaseModel] | None = None,
    part: str = "file",
) -> dict[str, Any]:
    """The OpenAPI description of a form with a file and these fields, or else of this model in JSON.

    JSON is the first: Swagger UI keeps the values of a form when its user goes on to JSON.
    """
    file = {"type": "string", "format": "binary", "description": "The audio or video file."}
    properties = {part: file, **{name: _with_example(field) for name, field in fields.items()}}
    form = {"type": "object", "properties": properties, "required": [part, *required]}
    # Else Swagger UI joins the values of a list with commas.
    arrays = [name for name, field in fields.items() if field.get("type") == "array"]
    encoding = {name: {"style": "form", "explode": True} for name in arrays}
    content: dict[str, Any] = {}
    if json_model:
        example = {"audio_file": "https://example.com/talk.mp3"}
        content["application/json"] = {"schema": json_model.model_json_schema(), "example": example}
    content["multipart/form-data"] = {"schema": form, "encoding": encoding}
    return {"requestBody": {"required": True, "content": content}}


def described_query(model: type[BaseModel], names: Any = ()) -> list[dict[str, Any]]:
    """The OpenAPI description of a query with these fields of a model."""
    fields = model.model_json_schema()["properties"]
    about = {"in": "query", "required": False}
    return [
        {"name": name, **about, "description": fields[name]["description"], "schema": fields[name]}
        for name in names or fields
    ]


def _with_example(field: dict[str, Any]) -> dict[str, Any]:
    """The field with an empty example, unless it is a choice: else Swagger UI sends "string", 1 or true."""
    if field.get("type") == "array":
        return {**field, "examples": [[]]}
    is_empty = field.get("default") in (None, "") or field.get("type") in ("integer", "number")
    return {**field, "examples": [""]} if is_empty else field


def too_much_text() -> PayloadTooLarge:
    """The error for a body that is too large without its file."""
    return PayloadTooLarge(
        f"The request has over {MAX_TEXT_BYTES} bytes of text besides the audio; send shorter "
        "known_speaker_references or options."
    )


def _invalid_form() -> InvalidRequest:
    return InvalidRequest(
        "The body is not valid multipart/form-data: it needs the boundary of its Content-Type before each "
        "part and, with -- behind it, at the end; lines end with CR LF."
    )
