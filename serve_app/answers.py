"""The answer to an error: its status, its headers, and the body that every error has."""

import logging
from typing import Any

from starlette.responses import JSONResponse

from serve_app.errors import TranscriptionError

logger = logging.getLogger("ray.serve")


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
