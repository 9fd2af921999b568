"""An audio URL to bytes in a file, from public hosts and those the operator allowed, within limits."""

import asyncio
import re
from asyncio import timeout
from collections.abc import Mapping
from typing import BinaryIO

import aiohttp
from yarl import URL

from serve_app.errors import InvalidRequest, PayloadTooLarge, SourceUnavailable
from serve_app.settings import IntakeSettings
from serve_app.spool import disk_full_error
from serve_app.stages.audio import address, ssrf

PORTS = frozenset({80, 443})
MAX_REDIRECTS = 5
MAX_HEADER_CHARACTERS = 16_384
LOW_SPEED_WINDOW_S = 30.0  # in which headers must come, and then LOW_SPEED_BYTES_PER_S of the body
LOW_SPEED_BYTES_PER_S = 1_024
WRITE_BYTES = 256 << 10  # at once, in a thread: a slow disk must not stop the event loop

# Headers that belong to the connection or would contradict ours.
_OWN_HEADERS = re.compile(
    "accept-encoding|connection|content-length|expect|host|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade"
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_A_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")

# First bytes of a body that is not the file itself.
_COMPRESSED = re.compile(rb"\x1f\x8b|\x1f\x9d|\x28\xb5\x2f\xfd")  # gzip, compress, zstd
_UNMARKED = {"br", "deflate"}  # encodings whose bytes begin in any way
_FRAMED = re.compile(rb"[0-9A-Fa-f]{1,16}(;chunk-signature=[0-9A-Fa-f]{64})?\r\n")


async def fetch(url: str, headers: Mapping[str, str], into: BinaryIO, intake: IntakeSettings) -> None:
    """Streams the body of `url` into `into`; `headers` go to the URL's own host only.

    Raises InvalidRequest (the URL or a header is wrong), SourceUnavailable (its `code` says why),
    PayloadTooLarge (more than `intake.max_bytes`), Overloaded (no room for the file). After an error
    `into` holds what had come.
    """
    target = checked(url, headers, intake)
    try:
        async with timeout(intake.fetch_timeout_s):
            await _follow_redirects(target, headers, into, intake)
    except TimeoutError:
        what = f"did not arrive within {intake.fetch_timeout_s:g} s"
        raise _unavailable(target, "fetch_timeout", what) from None


def checked(url: str, headers: Mapping[str, str], intake: IntakeSettings) -> URL:
    """The address in `url`. Raises InvalidRequest for what is refused before any connection."""
    try:
        target = address.parse(url)
    except ValueError:
        message = "audio_file is not a URL; send a complete http(s) address."
        raise InvalidRequest(message, "audio_file") from None
    _check_headers(headers)
    if reason := _reason_to_refuse(target, ssrf.is_allowed(target, intake.allowed_hosts)):
        raise InvalidRequest(f"{address.without_secrets(target)} {reason}", "audio_file")
    return target


def _check_headers(headers: Mapping[str, str]) -> None:
    if sum(len(name) + len(value) for name, value in headers.items()) > MAX_HEADER_CHARACTERS:
        message = f"headers has more than {MAX_HEADER_CHARACTERS} characters; send fewer."
        raise InvalidRequest(message, "headers")
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or _NOT_IN_A_VALUE.search(value):
            raise InvalidRequest("headers holds a name or value that HTTP forbids; remove it.", "headers")
        if _OWN_HEADERS.fullmatch(name.lower()):
            raise InvalidRequest(f"The header {name} cannot be set; remove it.", "headers")


def _reason_to_refuse(url: URL, is_allowed: bool) -> str | None:
    """Why a URL is not fetched, before any connection; the same rules for every redirect."""
    if url.scheme not in ("http", "https"):
        return "is not an http or https address; use one."
    if url.user is not None or url.password is not None:
        return "holds a user name or a password; send an Authorization header instead."
    if url.port not in PORTS and not is_allowed:
        return "uses an unusual port; use 80 or 443, or have the host added to intake.allowed_hosts."
    return None


async def _follow_redirects(
    url: URL, headers: Mapping[str, str], into: BinaryIO, intake: IntakeSettings
) -> None:
    """Checks every hop, and sends the caller's headers to no other host: aiohttp would not."""
    for hop in range(MAX_REDIRECTS + 1):
        reason = _reason_to_refuse(url, ssrf.is_allowed(url, intake.allowed_hosts))
        if hop and reason:  # the first was checked before
            message = f"The redirect to {address.without_secrets(url)} {reason}"
            raise SourceUnavailable(message, "audio_file", "bad_redirect")
        location = await _request(url, headers, into, intake)
        if location is None:
            return
        try:
            target = address.resolve(url, location)
        except ValueError:
            raise _unavailable(url, "bad_redirect", "redirects to something that is no URL") from None
        is_upgrade = url.scheme == "http" and target == url.with_scheme("https")
        if target.origin() != url.origin() and not is_upgrade:
            headers = {}
        url = target
    raise _unavailable(url, "too_many_redirects", f"came after more than {MAX_REDIRECTS} redirects")


async def _request(
    url: URL, headers: Mapping[str, str], into: BinaryIO, intake: IntakeSettings
) -> str | None:
    """One hop: where it redirects to, or None once the whole body is in `into`."""
    try:
        async with ssrf.session(allow_private=ssrf.is_allowed(url, intake.allowed_hosts)) as session:
            async with timeout(LOW_SPEED_WINDOW_S):
                response = await session.get(url, headers=headers, allow_redirects=False)
            async with response:
                location = response.headers.get("Location")
                if response.status in (301, 302, 303, 307, 308) and location:
                    return location
                if response.status != 200:
                    raise _unavailable(url, "http_status", f"answered {response.status}")
                await _copy(response, into, intake.max_bytes)
                return None
    except (aiohttp.ClientError, OSError, UnicodeError) as error:  # OSError: TimeoutError, too
        code, what = ssrf.reason(error)
        if code == "blocked_address":
            what += " (intake.allowed_hosts opens a private host)"
        raise _unavailable(url, code, what) from None  # the cause may quote the whole URL


async def _copy(response: aiohttp.ClientResponse, into: BinaryIO, max_bytes: int) -> None:
    """Copies the body, counted. Raises TimeoutError when it comes too slowly or not at all."""
    received, has_ended, unwritten = 0, False, bytearray()
    while not has_ended:
        due = received + LOW_SPEED_BYTES_PER_S * LOW_SPEED_WINDOW_S
        async with timeout(LOW_SPEED_WINDOW_S):
            while received < due and not has_ended:
                if max(received, response.content_length or 0) > max_bytes:
                    message = f"The file has more than {max_bytes} bytes; send a shorter or smaller one."
                    raise PayloadTooLarge(message, "audio_file")
                chunk = await response.content.readany()
                received += len(chunk)
                unwritten += chunk
                has_ended = not chunk
        if has_ended or len(unwritten) >= WRITE_BYTES:
            if received == len(unwritten) and (what := _encoding(response, unwritten)):
                raise _unavailable(response.url, "encoded_response", what)
            await asyncio.to_thread(_write, unwritten, into)
            unwritten = bytearray()


def _encoding(response: aiohttp.ClientResponse, head: bytearray) -> str | None:
    """Why a body is no plain file, by its bytes: stores repeat whatever an upload once declared."""
    declared = ",".join(response.headers.getall("Content-Encoding", ())).lower().replace(" ", "").split(",")
    if _COMPRESSED.match(head) or not _UNMARKED.isdisjoint(declared):
        return "sends a compressed file, which has to be stored uncompressed"
    framed = _FRAMED.match(head)
    if framed and (framed[1] or "aws-chunked" in declared):
        return "sends a file that holds the frames of its upload (aws-chunked), and has to be stored again"
    return None


def _write(data: bytearray, into: BinaryIO) -> None:
    """Writes and flushes, so that a full disk is noticed here. Raises Overloaded."""
    try:
        into.write(data)
        into.flush()
    except OSError as error:
        raise disk_full_error() from error


def _unavailable(url: URL, code: str, what: str) -> SourceUnavailable:
    message = (
        f"{address.without_secrets(url)} {what}; check the address and its credentials, or upload the file."
    )
    return SourceUnavailable(message, "audio_file", code)
