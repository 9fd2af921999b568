"""Receives the body of a request: a file goes to disk as it arrives and is never in memory as a whole."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, HTTPConnection, Request

from serve_app.errors import InvalidRequest, PayloadTooLarge
from serve_app.http.forms import Field, FormBody
from serve_app.http.json_body import JsonBody
from serve_app.spool import anonymous_temp_file, disk_full_error
from serve_app.transcript import Source

Parsed = TypeVar("Parsed")

PIECE_BYTES = 256 << 10
LARGE_JSON_BYTES = 1 << 20

# Parsing takes up to three times the size of a JSON body in memory, so few large ones are parsed at once.
_large_json = ThreadPoolExecutor(2, "large-json")


@asynccontextmanager
async def received(
    request: Request, max_file_bytes: int, parse: Callable[[list[Field]], Parsed], max_json_bytes: int = 0
) -> AsyncIterator[tuple[Source, Parsed]]:
    """Receives the file or URL of a request, and what `parse` makes of the text fields of a form.

    A route that takes JSON too, which is parsed as PredictRequest, has `max_json_bytes`. An uploaded file is
    closed at the end. Raises InvalidRequest, PayloadTooLarge, and Overloaded where the disk is full.
    """
    with anonymous_temp_file() as file:
        kind, parameters = parse_options_header(request.headers.get("content-type"))
        body: Any
        if kind == b"multipart/form-data":
            body = FormBody(parameters.get(b"boundary", b""), file, max_file_bytes, parse)
        elif kind == b"application/json" and max_json_bytes:
            body = JsonBody(file, max_file_bytes, max_json_bytes)
        else:
            or_json = ", or application/json with audio_file or audio_b64" if max_json_bytes else ""
            message = f"Send multipart/form-data with a file{or_json}."
            raise InvalidRequest(message, None, "unsupported_content_type")
        source, parsed = await _receive(request, body)
        del body  # the request may run for an hour and does not need the text of its body
        if source.file is None:
            file.close()  # nor an open file
        yield source, parsed


def declared_bytes(connection: HTTPConnection) -> int:
    """The size of the body by its Content-Length; 0 where that is missing or not a number."""
    declared = connection.headers.get("content-length", "")
    # int() refuses thousands of digits, and no number of bytes has more than 20.
    return int(declared[:20]) if declared.isdecimal() else 0


async def _receive(request: Request, body: FormBody[Any] | JsonBody) -> tuple[Source, Any]:
    """Asks for the next piece when the last one is written, so that a fast client waits for a slow disk.

    When a request is cancelled its file is closed while a thread may still use it: a write that has begun
    ends first, and the next one fails without consequences.
    """
    too_large = PayloadTooLarge(f"The request body is over {body.max_bytes} bytes. {body.too_large_advice}")
    if declared_bytes(request) > body.max_bytes:
        raise too_large
    received_bytes = 0
    pending = bytearray()
    try:
        async for chunk in request.stream():
            received_bytes += len(chunk)
            if received_bytes > body.max_bytes:
                raise too_large
            pending += chunk
            while len(pending) >= PIECE_BYTES:
                piece = bytes(pending[:PIECE_BYTES])
                del pending[:PIECE_BYTES]
                await asyncio.to_thread(body.write, piece)
        await asyncio.to_thread(body.write, bytes(pending))
        is_large = isinstance(body, JsonBody) and received_bytes > LARGE_JSON_BYTES
        threads = _large_json if is_large else None  # None: the event loop's own
        return await asyncio.get_running_loop().run_in_executor(threads, body.finish)
    except ClientDisconnect:  # nobody reads this answer, but a disconnect is no failure for the error log
        raise InvalidRequest("The connection closed before the whole body had come.") from None
    except OSError as error:
        raise disk_full_error() from error
