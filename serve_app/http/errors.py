"""Errors as answers: their JSON, their status and headers, and how the API's description tells of them."""

import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app import errors
from serve_app.errors import TranscriptionError
from serve_app.http.other_apis import shaped

logger = logging.getLogger("ray.serve")

MAX_HEADER_CHARS = 1000
_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},  # else the client could go on sending
    415: {"Accept-Encoding": "identity"},  # RFC 7694
    504: {"x-should-retry": "false"},  # else the `openai` package sends it twice more
}


class ErrorResponse(TypedDict):
    """The body of every answer that is not 2xx."""

    error: Annotated[dict[str, str | None], Field(description="`message`, `type`, `param`, `code`.")]


OTHER_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorResponse, "description": "Any other error."}
}

# What a request that transcribes at once may be answered.
ERRORS_AT_ONCE = (
    errors.InvalidRequest,
    errors.Unauthorized,
    errors.NoApiKeys,
    errors.UploadTooSlow,
    errors.PayloadTooLarge,
    errors.EncodedBody,
    errors.UnusableAudio,
    errors.EmptyAudio,
    errors.NoAudioStream,
    errors.EncryptedAudio,
    errors.AudioTooLong,
    errors.AudioTooCostly,
    errors.SourceUnavailable,
    errors.RateLimited,
    errors.ModelCrashed,
    errors.Overloaded,
    errors.ModelUnavailable,
    errors.DeadlineExceeded,
)


def described_errors(*known: type[TranscriptionError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of answers with these errors: for each status the codes and what they mean."""
    meanings: dict[int, dict[str, str]] = {}
    for each in known:
        meanings.setdefault(each.status, {})[each.code] = f"`{each.code}`: {each.__doc__}"
    return {
        status: {"model": ErrorResponse, "description": "\n\n".join(of_codes.values())}
        for status, of_codes in meanings.items()
    }


def error_body(error: Exception) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`. An unexpected error is logged; its text is not sent."""
    if not isinstance(error, TranscriptionError):
        logger.error("request failed", exc_info=error)
        error = TranscriptionError("The server failed; the operator's log has the details.")
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": body}


def error_response(error: Exception, path: str = "") -> Response:
    """The response for an error, in the shape of this path's API, with Retry-After where that can help."""
    known = error if isinstance(error, TranscriptionError) else TranscriptionError("")
    headers = _HEADERS.get(known.status, {})
    if known.retry_after_s is not None:
        headers = {**headers, "Retry-After": str(known.retry_after_s)}
    return shaped_response(path, known.status, error_body(error), headers)


def shaped_response(path: str, status: int, body: dict[str, Any], headers: Mapping[str, str]) -> Response:
    """An error in the shape of this path's API. Where that is no text at all, headers say what it is."""
    shape = shaped(path, status, body)
    if shape is not None:
        return JSONResponse(shape, status, headers)
    message = re.sub("[^ -~]", "?", body["error"]["message"])[:MAX_HEADER_CHARS]
    told = {"X-Error-Code": body["error"]["code"], "X-Error-Message": message}
    return Response(status_code=status, headers={**headers, **told})
