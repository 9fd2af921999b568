"""Answers that every API here gives alike: to an error, and in the formats that are text."""

import json
import logging
import re
from typing import Any
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import TranscriptionError
from serve_app.formats.text import MEDIA_TYPES
from serve_app.http.schemas import warnings_out
from serve_app.transcript import Transcript

logger = logging.getLogger("ray.serve")

SANE_REQUEST_ID = re.compile("[ -~]{1,128}")  # printable ASCII: it is logged, and sent back


def text_response(text: str, response_format: str, transcript: Transcript) -> Response:
    """`text` in one of MEDIA_TYPES, which have no place for warnings: those are in a header."""
    response = Response(text, media_type=MEDIA_TYPES[response_format])
    if warnings := warnings_out(transcript):
        in_ascii = json.dumps([warning.model_dump() for warning in warnings])  # as a header must be
        response.headers["X-Warnings"] = in_ascii
    return response


def error_body(error: Exception) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`. What is not an error of ours is logged, and told nobody."""
    if not isinstance(error, TranscriptionError):
        logger.error("request failed", exc_info=error)
        error = TranscriptionError("The server failed; the operator's log has the details.")
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": body}


def error_response(error: Exception) -> JSONResponse:
    """The body of an error, with Retry-After where it passes by itself.

    The `openai` package would send what took too long twice more, unless `x-should-retry` tells it not to.
    """
    if not isinstance(error, TranscriptionError):
        return JSONResponse(error_body(error), TranscriptionError.status)
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 504:
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 408:
        headers["Connection"] = "close"  # else the client could go on sending
    return JSONResponse(error_body(error), error.status, headers)


class RequestId:
    """ASGI middleware: every answer has `X-Request-ID`, the client's where that is sane, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope}  # the server's own keeps its headers
        headers = MutableHeaders(scope=scope)
        given = headers.get("X-Request-ID", "")
        request_id = given if SANE_REQUEST_ID.fullmatch(given) else uuid4().hex
        headers["X-Request-ID"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class ErrorAnswers:
    """ASGI middleware: what is raised behind it is answered here, inside the CORS headers.

    Starlette answers unexpected errors outside of all middleware, where a web page cannot read them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def send_and_note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            if started or scope["type"] != "http":
                raise  # the web server logs it and closes the connection
            await error_response(error)(scope, receive, send)
