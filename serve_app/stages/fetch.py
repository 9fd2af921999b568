"""An audio URL to bytes in a file, without becoming a way into the private network.

The address is checked where the socket is made, so nothing can change between check and use: not
by a redirect, an unusual notation, an IPv6 disguise or a name that resolves anew.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Mapping
from typing import BinaryIO

import aiohttp
from yarl import URL

from serve_app import __version__
from serve_app.errors import InvalidRequest, Overloaded, PayloadTooLarge, SourceUnavailable
from serve_app.settings import IntakeSettings

PORTS = frozenset({80, 443})
MAX_REDIRECTS = 5
MAX_URL_CHARACTERS = 8_192
CONNECT_TIMEOUT_S = 15.0
LOW_SPEED_WINDOW_S = 30.0  # a source that is slower than this for this long is given up
LOW_SPEED_BYTES_PER_S = 1_024

# Headers that belong to the connection or would contradict ours.
_OWN_HEADERS = re.compile(
    "accept-encoding|connection|content-length|expect|host|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade"
)
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Public by the registry, but answered inside clouds: Azure's and Oracle's metadata services.
_CLOUD_V4 = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.0.0.0/24"))

_UNREACHABLE = "cannot be reached or closed the connection"
_FAILURES: tuple[tuple[type[Exception], str, str], ...] = (  # the first that fits
    (aiohttp.ClientSSLError, "tls_failure", "has no valid certificate or does not speak TLS"),
    (aiohttp.ClientConnectorDNSError, "dns_failure", "has a host name that does not resolve"),
    (UnicodeError, "dns_failure", "has a host name that does not resolve"),
    (aiohttp.InvalidURL, "bad_address", "has a host that is neither a name nor a full IP address"),
    (aiohttp.SocketTimeoutError, "too_slow", "sends too slowly"),
    (aiohttp.ClientPayloadError, "truncated", "broke off before its end"),
    (OSError, "connection_failed", _UNREACHABLE),
    (aiohttp.ClientConnectionError, "connection_failed", _UNREACHABLE),
    (aiohttp.ClientError, "bad_response", "does not answer in proper HTTP"),
)


async def fetch(url: str, headers: Mapping[str, str], into: BinaryIO, intake: IntakeSettings) -> None:
    """Streams the body of `url` into `into`; `headers` go to the URL's own host only.

    Raises InvalidRequest (the URL or a header is wrong), SourceUnavailable (its `code` says why),
    PayloadTooLarge (more than `intake.max_bytes`), Overloaded (no room for the file). What was
    written before an error stays in `into`.
    """
    target = _parsed(url)
    _check_headers(headers)
    try:
        await asyncio.wait_for(_follow(target, headers, into, intake), intake.fetch_timeout_s)
    except asyncio.TimeoutError:
        what = f"did not arrive within {intake.fetch_timeout_s:g} s"
        raise _unavailable(target, "fetch_timeout", what) from None


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, whatever IPv6 form it is wrapped in."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if not embedded:
            return ip in _GLOBAL_V6 and ip.is_global and not ip.is_multicast
        ip = embedded
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _CLOUD_V4)


def _parsed(url: str) -> URL:
    try:
        target = URL(url)
        if len(url) > MAX_URL_CHARACTERS or re.search(r"[\x00-\x20\x7f\\]", url) or not target.host:
            raise ValueError
    except ValueError:  # yarl's own, too
        raise InvalidRequest(
            "audio_file is not a URL; send a complete http(s) address.", "audio_file"
        ) from None
    return target


def _check_headers(headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or _CONTROL.search(value):
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
    allowed, blocked = _is_allowed(url, intake), False

    def checked_socket(info: aiohttp.AddrInfoType) -> socket.socket:
        nonlocal blocked
        family, kind, protocol, _, address = info
        if not allowed and not is_public(str(address[0])):
            blocked = True
            raise OSError("not a public address")
        return socket.socket(family, kind, protocol)

    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(socket_factory=checked_socket, force_close=True),
        timeout=aiohttp.ClientTimeout(sock_connect=CONNECT_TIMEOUT_S, sock_read=LOW_SPEED_WINDOW_S),
        headers={"User-Agent": f"whisperx-serve/{__version__}", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,  # a proxy would make the connection, and our check would see the proxy only
    )
    try:
        async with session, session.get(url, headers=headers, allow_redirects=False) as response:
            location = response.headers.get("Location")
            if response.status in (301, 302, 303, 307, 308) and location:
                return location
            if response.status != 200:
                raise _unavailable(url, "http_status", f"answered {response.status}")
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise _unavailable(url, "encoded_response", "sends a compressed body although asked not to")
            await _copy(response, into, intake.max_bytes)
    except (aiohttp.ClientError, OSError, UnicodeError) as error:
        if blocked:
            what = "is not on the public internet (intake.allowed_hosts opens a private host)"
            raise _unavailable(url, "blocked_address", what) from None
        code, what = next((code, what) for kind, code, what in _FAILURES if isinstance(error, kind))
        raise _unavailable(url, code, what) from None  # the cause may quote the whole URL
    return None


async def _copy(response: aiohttp.ClientResponse, into: BinaryIO, max_bytes: int) -> None:
    """Counts bytes and speed; silence is caught by the client's own read timeout."""
    _check_size(response.content_length or 0, max_bytes)
    now_s = asyncio.get_running_loop().time
    received, window_bytes, window_start_s = 0, 0, now_s()
    while chunk := await response.content.readany():
        received += len(chunk)
        window_bytes += len(chunk)
        _check_size(received, max_bytes)
        if now_s() - window_start_s >= LOW_SPEED_WINDOW_S:
            if window_bytes < LOW_SPEED_BYTES_PER_S * LOW_SPEED_WINDOW_S:
                raise _unavailable(response.url, "too_slow", "sends too slowly")
            window_bytes, window_start_s = 0, now_s()
        _write(chunk, into)
    _write(b"", into)


def _write(chunk: bytes, into: BinaryIO) -> None:
    try:
        into.write(chunk) if chunk else into.flush()
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
