"""An audio URL to bytes in a file, from public hosts and those the operator opened, within limits."""

import asyncio
import re
from collections.abc import Mapping
from typing import BinaryIO

import aiohttp
from yarl import URL

from serve_app.deadline import timeout
from serve_app.errors import InvalidRequest, Overloaded, PayloadTooLarge, SourceUnavailable
from serve_app.settings import IntakeSettings
from serve_app.stages.audio import ssrf as outbound

PORTS = frozenset({80, 443})
MAX_REDIRECTS = 5
MAX_URL_CHARACTERS = 8_192
MAX_HEADER_CHARACTERS = 16_384
LOW_SPEED_WINDOW_S = 30.0  # for the answer's headers, and again for each so many bytes of its body
LOW_SPEED_BYTES_PER_S = 1_024
WRITE_BYTES = 256 << 10  # at once, in a thread: a slow disk must not stop the event loop

# Headers that belong to the connection or would contradict ours.
_OWN_HEADERS = re.compile(
    "accept-encoding|connection|content-length|expect|host|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade"
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_A_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\ud800-\udfff]")
_NOT_IN_A_URL = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")

_UNREACHABLE = "cannot be reached or closed the connection"
_FAILURES: tuple[tuple[type[Exception], str, str], ...] = (  # the first that fits
    (aiohttp.ClientSSLError, "tls_failure", "has no valid certificate or does not speak TLS"),
    (aiohttp.ClientConnectorDNSError, "dns_failure", "has a host name that does not resolve"),
    (UnicodeError, "dns_failure", "has a host name that does not resolve"),
    (aiohttp.InvalidURL, "bad_address", "has a host that is neither a name nor a full IP address"),
    (aiohttp.ConnectionTimeoutError, "connect_timeout", "could not be reached in time"),
    (asyncio.TimeoutError, "too_slow", "sends too slowly"),
    (aiohttp.ClientPayloadError, "truncated", "broke off before its end"),
    (OSError, "connection_failed", _UNREACHABLE),
    (aiohttp.ClientConnectionError, "connection_failed", _UNREACHABLE),
    (aiohttp.ClientError, "bad_response", "does not answer in proper HTTP"),
)


async def fetch(url: str, headers: Mapping[str, str], into: BinaryIO, intake: IntakeSettings) -> None:
    """Streams the body of `url` into `into`; `headers` go to the URL's own host only.

    Raises InvalidRequest (the URL or a header is wrong), SourceUnavailable (its `code` says why),
    PayloadTooLarge (more than `intake.max_bytes`), Overloaded (no room for the file). After an error
    `into` holds some of what had come.
    """
    target = _parsed(url)
    _check_headers(headers)
    try:
        async with timeout(intake.fetch_timeout_s):
            await _follow(target, headers, into, intake)
    except asyncio.TimeoutError:
        what = f"did not arrive within {intake.fetch_timeout_s:g} s"
        raise _unavailable(target, "fetch_timeout", what) from None


def _parsed(url: str) -> URL:
    try:
        if len(url) > MAX_URL_CHARACTERS or _NOT_IN_A_URL.search(url):
            raise ValueError
        target = URL(url)
        if not target.host:
            raise ValueError
    except ValueError:  # yarl's own, too
        raise InvalidRequest(
            "audio_file is not a URL; send a complete http(s) address.", "audio_file"
        ) from None
    return target


def _check_headers(headers: Mapping[str, str]) -> None:
    if sum(len(name) + len(value) for name, value in headers.items()) > MAX_HEADER_CHARACTERS:
        raise InvalidRequest(
            f"headers has more than {MAX_HEADER_CHARACTERS} characters; send fewer.", "headers"
        )
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or _NOT_IN_A_VALUE.search(value):
            raise InvalidRequest("headers holds a name or value that HTTP forbids; remove it.", "headers")
        if _OWN_HEADERS.fullmatch(name.lower()):
            raise InvalidRequest(f"The header {name} cannot be set; remove it.", "headers")


def _shown(url: URL) -> str:
    """The URL as messages may show it: query, fragment and user often hold secrets."""
    return str(url.with_query(None).with_fragment(None).with_user(None))[:200]


def _is_allowed(url: URL, intake: IntakeSettings) -> bool:
    """Whether the operator opened this host, or this host and port."""
    host = f"[{url.host}]" if ":" in (url.host or "") else url.host
    return not {url.host, host, f"{host}:{url.port}"}.isdisjoint(
        name.lower() for name in intake.allowed_hosts
    )


def _problem(url: URL, allowed: bool) -> str | None:
    """Why a URL is not fetched, before any connection; the same rules for every redirect."""
    if url.scheme not in ("http", "https"):
        return "is not an http or https address; use one."
    if url.user is not None or url.password is not None:
        return "holds a user name or a password; send an Authorization header instead."
    if url.port not in PORTS and not allowed:
        return "uses an unusual port; use 80 or 443, or have the host added to intake.allowed_hosts."
    return None


async def _follow(url: URL, headers: Mapping[str, str], into: BinaryIO, intake: IntakeSettings) -> None:
    """By hand, so that every hop is checked and the caller's headers stop at the first other host."""
    for hop in range(MAX_REDIRECTS + 1):
        if problem := _problem(url, _is_allowed(url, intake)):
            if hop == 0:
                raise InvalidRequest(f"{_shown(url)} {problem}", "audio_file")
            raise SourceUnavailable(f"The redirect to {_shown(url)} {problem}", "audio_file", "bad_redirect")
        location = await _request(url, headers, into, intake)
        if location is None:
            return
        try:
            target = _parsed(str(url.join(URL(location))))
        except (ValueError, InvalidRequest):
            raise _unavailable(url, "bad_redirect", "redirects to something that is no URL") from None
        upgraded = url.scheme == "http" and target == url.with_scheme("https")
        if target.origin() != url.origin() and not upgraded:
            headers = {}
        url = target
    raise _unavailable(url, "too_many_redirects", f"came after more than {MAX_REDIRECTS} redirects")


async def _request(
    url: URL, headers: Mapping[str, str], into: BinaryIO, intake: IntakeSettings
) -> str | None:
    """One hop: where it redirects to, or None once the whole body is in `into`."""
    session = outbound.session(anywhere=_is_allowed(url, intake))
    try:
        async with session:
            async with timeout(LOW_SPEED_WINDOW_S):
                response = await session.get(url, headers=headers, allow_redirects=False)
            async with response:
                return await _read(response, into, intake.max_bytes)
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError, UnicodeError) as error:
        if isinstance(getattr(error, "os_error", None), outbound.NotPublic):
            what = "is not on the public internet (intake.allowed_hosts opens a private host)"
            raise _unavailable(url, "blocked_address", what) from None
        code, what = next((code, what) for kind, code, what in _FAILURES if isinstance(error, kind))
        raise _unavailable(url, code, what) from None  # the cause may quote the whole URL


async def _read(response: aiohttp.ClientResponse, into: BinaryIO, max_bytes: int) -> str | None:
    """Where the answer redirects to, or None once its whole body is in `into`."""
    location = response.headers.get("Location")
    if response.status in (301, 302, 303, 307, 308) and location:
        return location
    if response.status != 200:
        raise _unavailable(response.url, "http_status", f"answered {response.status}")
    if (response.headers.get("Content-Encoding") or "identity").lower() != "identity":
        raise _unavailable(response.url, "encoded_response", "sends a compressed body although asked not to")
    await _copy(response, into, max_bytes)
    return None


async def _copy(response: aiohttp.ClientResponse, into: BinaryIO, max_bytes: int) -> None:
    """The body, counted. Raises asyncio.TimeoutError when it comes too slowly or not at all."""
    _check_size(response.content_length or 0, max_bytes)
    received, ended = 0, False
    unwritten = bytearray()
    while not ended:
        due = received + LOW_SPEED_BYTES_PER_S * LOW_SPEED_WINDOW_S
        async with timeout(LOW_SPEED_WINDOW_S):
            while received < due and not ended:
                chunk = await response.content.readany()
                received += len(chunk)
                _check_size(received, max_bytes)
                unwritten += chunk
                ended = not chunk
        if ended or len(unwritten) >= WRITE_BYTES:
            await asyncio.to_thread(_write, unwritten, into)
            unwritten = bytearray()


def _write(data: bytearray, into: BinaryIO) -> None:
    """Writes all of it, so that what a full disk refuses is known here. Raises Overloaded."""
    try:
        into.write(data)
        into.flush()
    except OSError as error:
        raise Overloaded("The server has no room to store the file; try again later.") from error


def _check_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes > max_bytes:
        raise PayloadTooLarge(
            f"The file has more than {max_bytes} bytes, the most this server takes; send a smaller file.",
            "audio_file",
        )


def _unavailable(url: URL, code: str, what: str) -> SourceUnavailable:
    return SourceUnavailable(
        f"{_shown(url)} {what}; check the address and its credentials, or upload the file.",
        "audio_file",
        code,
    )
