"""Connections to hosts that callers name, without a way into the private network (SSRF).

The address is checked where the socket is made, so nothing can change between check and use: not by a
redirect, a retry, an unusual notation, an IPv6 disguise or a name that resolves differently the second time.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from serve_app import __version__

CONNECT_TIMEOUT_S = 15.0  # look-up, TCP and TLS together, over all addresses of a name

# Name servers that never answer would fill the event loop's own few threads, and stop decoding with them.
_LOOK_UP_THREADS = ThreadPoolExecutor(128, "look-up")

_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# Public by the registry, but answered inside clouds: Azure's and Oracle's metadata services.
_CLOUD_V4 = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("192.0.0.0/24"))


_Kinds = type[Exception] | tuple[type[Exception], ...]
_FAILURES: tuple[tuple[_Kinds, str, str], ...] = (  # the first that fits
    (aiohttp.ClientSSLError, "tls_failure", "has no valid certificate or does not speak TLS"),
    ((aiohttp.ClientConnectorDNSError, UnicodeError), "dns_failure", "has a host name that does not resolve"),
    (aiohttp.InvalidURL, "bad_address", "has a host that is neither a name nor a full IP address"),
    (aiohttp.ConnectionTimeoutError, "connect_timeout", "could not be reached in time"),
    (TimeoutError, "too_slow", "sends too slowly"),
    (aiohttp.ClientPayloadError, "truncated", "broke off before its end"),
    ((OSError, aiohttp.ClientConnectionError), "connection_failed", "cannot be reached or hung up"),
    (aiohttp.ClientError, "bad_response", "does not answer in proper HTTP"),
)


class NotPublic(OSError):
    """A connection would have left the public internet."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the public internet, whatever IPv6 form it is wrapped in."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # a scope such as %a%b gets this far
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if ip in _NAT64:
            embedded = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if not embedded:
            is_isatap = (int(ip) >> 32) & 0xFDFFFFFF == 0x5EFE
            return ip in _GLOBAL_V6 and ip.is_global and not ip.is_multicast and not is_isatap
        ip = embedded
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _CLOUD_V4)


def is_allowed(url: URL, allowed_hosts: Collection[str]) -> bool:
    """Whether the operator allowed this host, or this host and port."""
    host = f"[{url.host}]" if ":" in (url.host or "") else url.host
    allowed = {name.lower() for name in allowed_hosts}
    return not allowed.isdisjoint({url.host, host, f"{host}:{url.port}"})


def reason(error: aiohttp.ClientError | OSError | UnicodeError) -> tuple[str, str]:
    """Why a request of a session failed: a code, and the end of a sentence about the host."""
    if isinstance(getattr(error, "os_error", None), NotPublic):
        return "blocked_address", "is not on the public internet"
    return next((code, what) for kind, code, what in _FAILURES if isinstance(error, kind))


def session(*, allow_private: bool = False) -> aiohttp.ClientSession:
    """A session for one request to a host that a caller named; unless `allow_private`, to public addresses.

    A connection to others raises aiohttp.ClientConnectorError with a NotPublic as `os_error`; one that takes
    longer than CONNECT_TIMEOUT_S raises aiohttp.ConnectionTimeoutError. There is no other time limit. The
    session decompresses no bodies, keeps no cookies, and uses no proxies or passwords of the environment.
    """

    def checked_socket(info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, address = info
        if not allow_private and not is_public(str(address[0])):
            raise NotPublic("not a public address")
        return socket.socket(family, kind, protocol)

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            socket_factory=checked_socket, resolver=_Resolver(), use_dns_cache=False, force_close=True
        ),
        timeout=aiohttp.ClientTimeout(connect=CONNECT_TIMEOUT_S),
        headers={"User-Agent": f"whisperx-serve/{__version__}", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,  # a proxy would make the connection, and our check would see the proxy only
    )


class _Resolver(AbstractResolver):
    """The system's look-up, in threads of its own."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        look_up = partial(
            socket.getaddrinfo, host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
        )
        found = await asyncio.get_running_loop().run_in_executor(_LOOK_UP_THREADS, look_up)
        numeric = socket.AI_NUMERICHOST
        return [
            ResolveResult(
                hostname=host, host=str(address[0]), port=port, family=family, proto=proto, flags=numeric
            )
            for family, _, proto, _, address in found
        ]

    async def close(self) -> None: ...
