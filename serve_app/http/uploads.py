"""Receives the body of a request: a file goes to disk as it arrives and is never in memory as a whole."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect, Request

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
    kind, parameters = parse_options_header(request.headers.get("content-type"))
    with anonymous_temp_file() as file:
        body: FormBody | JsonBody
        if kind == b"multipart/form-data":
            body = FormBody(parameters.get(b"boundary", b""), file, max_file_bytes)
        elif kind == b"application/json" and max_json_bytes:
            body = JsonBody(file, max_file_bytes, max_json_bytes)
        else:
            or_json = ", or application/json with audio_file or audio_b64" if max_json_bytes else ""
            message = f"Send multipart/form-data with a file{or_json}."
            raise InvalidRequest(message, None, "unsupported_content_type")
        source, parsed = await _receive(request, body)
        if isinstance(body, FormBody):
            parsed = parse(parsed)
        del body  # the request may run for an hour and does not need the text of its body
        if source.file is None:
            file.close()  # nor an open file
        yield source, parsed


def described_body(
    fields: dict[str, Any], required: Sequence[str] = (), *, json: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The OpenAPI description of a form with a file and these fields, or of JSON instead."""
    file = {"type": "string", "format": "binary", "description": "The audio or video file."}
    form = {"type": "object", "properties": {"file": file, **fields}, "required": ["file", *required]}
    content = {"multipart/form-data": {"schema": form}}
    if json:
        content["application/json"] = {"schema": json}
    return {"requestBody": {"required": True, "content": content}}


async def _receive(request: Request, body: FormBody | JsonBody) -> tuple[Source, Any]:
    """Asks for the next piece when the last one is written, so that a fast client waits for a slow disk.

    When a request is cancelled its file is closed while a thread may still use it: a write that has begun
    ends first, and the next one fails without consequences.
    """
    too_large = PayloadTooLarge(f"The request body is over {body.max_bytes} bytes. {body.too_large_advice}")
    declared = request.headers.get("content-length", "")
    # int() refuses thousands of digits, and no number of bytes has more than 20.
    if declared.isdecimal() and int(declared[:20]) > body.max_bytes:
        raise too_large
    received_bytes = 0
    pending = bytearray()
    try:
        async for chunk in request.stream():
            received_bytes += len(chunk)
            if received_bytes > body.max_bytes:
                raise too_large
            pending += chunk
            if len(pending) >= PIECE_BYTES or not chunk:  # an empty chunk is the end
                await asyncio.to_thread(body.write, bytes(pending))
                pending.clear()
        is_large = isinstance(body, JsonBody) and received_bytes > LARGE_JSON_BYTES
        threads = _large_json if is_large else None  # None: the event loop's own
        return await asyncio.get_running_loop().run_in_executor(threads, body.finish)
    except ClientDisconnect:  # nobody reads this answer, but a disconnect is no failure for the error log
        raise InvalidRequest("The connection closed before the whole body had come.") from None
    except OSError as error:
        raise disk_full_error() from error
