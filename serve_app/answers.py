"""The answer to an error: its status, its headers, and the body that every error has."""

from starlette.responses import JSONResponse

from serve_app.errors import TranscriptionError


def error_response(error: TranscriptionError) -> JSONResponse:
    """`{"error": {message, type, param, code}}`, with Retry-After where the error passes by itself."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 408:
        headers["Connection"] = "close"  # else the client could go on sending
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return JSONResponse({"error": body}, error.status, headers)
