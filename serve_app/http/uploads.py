"""Request bodies: a file goes to disk as it comes and is never whole in memory.

Held in memory per request: one piece of the body, and what it says beside the file, OVERHEAD_BYTES at most,
and REFERENCES_BYTES of known speakers' voices.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import BinaryIO, Protocol, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

from serve_app.errors import InvalidRequest, PayloadTooLarge
from serve_app.http.form_fields import Field, form_options
from serve_app.http.forms import FormBody
from serve_app.http.json_body import JsonBody
from serve_app.http.references import REFERENCES_BYTES
from serve_app.options import Options
from serve_app.spool import nameless_file, no_room
from serve_app.transcript import Source

PIECE_BYTES = 256 << 10
OVERHEAD_BYTES = 256 << 10  # parsed JSON can take thirty times the memory of its text
BESIDE_BYTES = OVERHEAD_BYTES + REFERENCES_BYTES


Parsed = TypeVar("Parsed")
Parsed_co = TypeVar("Parsed_co", covariant=True)


class Body(Protocol[Parsed_co]):
    """Takes a body in pieces. The methods may wait for the disk, so they are called in threads."""

    most_file_bytes: int  # what the largest file there may be takes in such a body

    def write(self, piece: bytes) -> None: ...

    def beside_bytes(self) -> int:
        """How much of what was written is neither the file nor a reference."""

    def finish(self) -> tuple[Source, Parsed_co]: ...


@asynccontextmanager
async def received(request: Request, max_bytes: int) -> AsyncIterator[tuple[Source, Options]]:
    """What a request to /predict asks for. A file that came with it is at its first byte, and closed in the
    end.

    Raises InvalidRequest, PayloadTooLarge (a file over `max_bytes`, or over OVERHEAD_BYTES beside it) and
    Overloaded (no room for the file).
    """
    with nameless_file() as file:
        source, options = await _receive(request, _body(request, file, max_bytes), max_bytes)
        if source.file is None:
            file.close()  # to fetch a URL and transcribe what is there may take an hour
        yield source, options


@asynccontextmanager
async def received_form(
    request: Request, max_bytes: int, parse: Callable[[list[Field]], Parsed]
) -> AsyncIterator[tuple[Source, Parsed]]:
    """The same for a route that takes forms only, and what `parse` makes of their fields."""
    with nameless_file() as file:
        kind, parameters = parse_options_header(request.headers.get("content-type"))
        if kind != b"multipart/form-data":
            raise InvalidRequest("Send multipart/form-data with a file.", None, "unsupported_content_type")
        boundary = parameters.get(b"boundary", b"")
        # Nothing here keeps the body, whose text may have megabytes, while the request runs.
        yield await _receive(request, FormBody(boundary, file, max_bytes, parse), max_bytes)


def _body(request: Request, file: BinaryIO, max_bytes: int) -> Body[Options]:
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    if kind == b"multipart/form-data":
        return FormBody(parameters.get(b"boundary", b""), file, max_bytes, form_options)
    if kind == b"application/json":
        return JsonBody(file, max_bytes)
    raise InvalidRequest(
        "Send application/json with audio_file or audio_b64, or multipart/form-data with a file.",
        None,
        "unsupported_content_type",
    )


async def _receive(request: Request, body: Body[Parsed], max_bytes: int) -> tuple[Source, Parsed]:
    """Asks for more only when a piece is written, so that a fast client waits for a slow disk.

    A request that is cancelled closes the file under its thread: a write that has begun ends first, the
    next one fails where nobody sees it.
    """
    declared = request.headers.get("content-length", "")
    # int() refuses thousands of digits, and no number of bytes has more than 20.
    if declared.isdecimal() and int(declared[:20]) > body.most_file_bytes + BESIDE_BYTES:
        raise PayloadTooLarge(
            f"The request body is too large for a file of {max_bytes} bytes; send a shorter or smaller file."
        )
    pending = bytearray()
    try:
        async for chunk in request.stream():
            pending += chunk
            while len(pending) >= PIECE_BYTES:
                piece = bytes(pending[:PIECE_BYTES])
                del pending[:PIECE_BYTES]
                await asyncio.to_thread(_write, body, piece)
        await asyncio.to_thread(_write, body, bytes(pending))
        return await asyncio.to_thread(body.finish)
    except ClientDisconnect:  # nobody reads this answer; it keeps a client's leaving out of the error log
        raise InvalidRequest("The connection closed before the whole body had come.") from None
    except OSError as error:
        raise no_room() from error


def _write(body: Body[object], piece: bytes) -> None:
    body.write(piece)
    if body.beside_bytes() > OVERHEAD_BYTES:
        raise PayloadTooLarge(f"The request body has more than {OVERHEAD_BYTES} bytes beside the file.")
