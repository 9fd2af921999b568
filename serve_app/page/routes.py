"""The web page at `/`: static files without a build step, and the library that draws the waveform.

The page holds no secrets, so it is open without a key; what it asks of the API carries the user's.
"""

import hashlib
import logging
import secrets
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

logger = logging.getLogger("ray.serve")

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}

# wavesurfer.js, as its authors build it, in a wheel with little else. The wheel `wavesurfer` has it, too, but
# brings IPython, audiolab and 18 more packages.
WAVEFORM_WHEEL, WAVEFORM_FILE = "wavesurf", "wavesurfer.min.js"

_INDEX, _NONCE = "index.html", "{nonce}"

# wavesurfer.js puts a <style> into its shadow root; only one with the nonce of this answer counts.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'nonce-{nonce}'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # browsers ask whether their copy is still the right one
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@dataclass(frozen=True, slots=True)
class File:
    """A file of the page."""

    content: bytes
    media_type: str
    etag: str


def page_routes() -> APIRouter:
    """The page and its files."""
    router = APIRouter(include_in_schema=False)
    page = _page_files()
    index = page.pop(_INDEX).content.decode()

    @router.get("/")
    def read_page() -> Response:
        """The page. Its links are relative, so that it also works behind a prefix."""
        nonce = secrets.token_urlsafe(16)
        headers = {**_HEADERS, "Cache-Control": "no-store", "Content-Security-Policy": _policy(nonce)}
        return Response(index.replace(_NONCE, nonce), media_type=_TYPES["html"], headers=headers)

    @router.get("/page/{name}")
    def read_file(request: Request, name: str) -> Response:
        """A file of the page, unless the browser has it already."""
        file = page.get(name)
        if file is None:
            raise HTTPException(404)
        headers = {**_HEADERS, "ETag": file.etag}
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.content, media_type=file.media_type, headers=headers)

    return router


def _policy(nonce: str) -> str:
    return _POLICY.format(nonce=nonce)


def _page_files() -> dict[str, File]:
    """The files by name, read once; they change with the installed version only."""
    found = {path.name: path.read_bytes() for path in files(__package__).joinpath("static").iterdir()}
    package = find_spec(WAVEFORM_WHEEL)  # it is not imported
    if package is None or package.origin is None:
        logger.warning("The page has no waveforms: the package %s is not installed.", WAVEFORM_WHEEL)
    else:
        found[WAVEFORM_FILE] = (Path(package.origin).parent / WAVEFORM_FILE).read_bytes()
    return {name: _file(name, content) for name, content in found.items()}


def _file(name: str, content: bytes) -> File:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return File(content, _TYPES[name.rpartition(".")[2]], etag)
