"""Other vendors' APIs: which paths are theirs, how those count, and the shape of their errors."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from starlette.types import Scope

from serve_app.errors import InvalidRequest
from serve_app.request.admission import Kind

MAX_BODY_BYTES = 256 << 10  # Baseten's limit
JOBS = "/v1/jobs"

# Baseten's paths name a deployment; here is only one, so all of these paths mean it.
BASETEN_PREFIXES = ("", "/production", "/development", "/environments/{name}", "/deployment/{name}")
_PREDICT = "|".join(re.sub(r"\{\w+\}", "[^/]+", prefix) for prefix in BASETEN_PREFIXES)
_BASETEN = re.compile(rf"({_PREDICT})/async_predict|/async_request(/.*)?")
_ASSEMBLYAI = re.compile(r"/v2(/.*)?")
_WITHOUT_ERROR_TEXT = re.compile(r"/{1,2}asr")  # Bazarr keeps any text that it is sent as the subtitles

ASSEMBLYAI_HAS = (
    "Of AssemblyAI's API this server has POST /v2/transcript, GET and DELETE /v2/transcript/ID, and its /srt "
    "and /vtt; files are uploaded to POST /v1/jobs."
)

_BASETEN_CODES = {  # of statuses; client_error for all others
    401: "unauthorized",
    403: "unauthorized",
    413: "payload_too_large",
    429: "rate_limited",
    500: "internal_baseten_error",
    503: "model_unavailable",
    504: "timeout",
}


def path_of(scope: Scope) -> str:
    """The path of a request behind Serve's route_prefix."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def vendor_of(path: str) -> Literal["Baseten", "AssemblyAI"] | None:
    """Whose API this path belongs to; None for our own and OpenAI's."""
    if _BASETEN.fullmatch(path):
        return "Baseten"
    return "AssemblyAI" if _ASSEMBLYAI.fullmatch(path) else None


def counts_as(method: str, path: str) -> Kind | None:
    """How admission counts a request; None: not at all, so that load balancers see a full server healthy."""
    if method != "POST":
        return None
    if path == JOBS:
        return "upload"
    return "call" if path.startswith(f"{JOBS}/") or vendor_of(path) else "request"


def shaped(path: str, status: int, body: dict[str, Any]) -> dict[str, Any] | None:
    """The body of one of our errors as the API of this path has it; None: no body at all."""
    if _WITHOUT_ERROR_TEXT.fullmatch(path):
        return None
    told, vendor = body["error"], vendor_of(path)
    if vendor == "Baseten":
        code = _BASETEN_CODES.get(status, "client_error")
        return {"error": told["message"], "error_code": code, "detail": told["code"]}
    return {"error": told["message"]} if vendor else body


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Raises the InvalidRequest from inside with fields' names as the client sent them: ours -> theirs.

    See also `jobs.service.within` and, for OpenAI's form, `ParsedForm.renamed`.
    """
    try:
        yield
    except InvalidRequest as error:
        ours = error.param or ""
        if (theirs := names.get(ours)) is None:
            raise
        message = error.message.replace(ours, theirs, 1)
        for other in names.keys() - {ours}:  # that it is about, too
            if "_" in other or "=" in other:  # else it may be a plain word
                message = re.sub(rf"\b{other}\b", names[other], message)
        raise InvalidRequest(message, theirs, error.code) from None
