"""Who may use the API: keys, trusted networks, and, without keys, this machine only.

All of it is decided from a request's headers, before any of its body is read.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

from starlette.requests import Request
from starlette.types import Scope

from serve_app.errors import NoApiKeys, Unauthorized
from serve_app.request.quotas import Quota
from serve_app.settings.access import AccessSettings

# Load balancers have no key; the page and the documentation hold no secrets. "" is "/" without its slash,
# where there is a prefix.
OPEN_PATHS = frozenset(
    ("", "/", "/healthz", "/health", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")
)
OPEN_FOLDERS = ("/page/", "/static-offline-docs/")

KEY_HEADERS = (b"authorization", b"api-key", b"x-api-key")
# What proxies and content networks add. From 127.0.0.1 uvicorn believes X-Forwarded-For, which a client may
# have written.
_FORWARDED = re.compile(
    rb"forwarded|via|x-forwarded(-.*)?|x-original-(forwarded-for|host|to)|x-(real|client|cluster-client)-ip"
    rb"|(true|fastly)-client-ip|cf-(connecting-ip(v6)?|ray|visitor)|cdn-loop|x-envoy-.*|x-azure-(client|socket)ip"
)
# The names of a local network, which are not in public DNS.
_LOCAL_NAME = re.compile(r"[^.]+|.*\.(local|lan|home|home\.arpa|internal|intranet|localhost|svc)")


def new_key() -> tuple[str, str]:
    """A new API key and its SHA-256 in hex."""
    key = "wx_" + secrets.token_urlsafe(32)  # the prefix makes a leaked key recognisable
    return key, hashlib.sha256(key.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether this address or name can only be reached from this machine."""
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address; one of IPv4 also where it is written as IPv6. None for a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def key_name(request: Request) -> str:
    """The name of the caller's API key, by which its jobs are known; empty where the server has no keys."""
    return str(request.scope["api_key_name"])


class Access:
    """The check of who may use the API."""

    def __init__(self, settings: AccessSettings) -> None:
        self._is_public = settings.public_without_keys
        self._quotas = {key.sha256: Quota(key) for key in settings.keys}
        self._trusted = [ipaddress.ip_network(network) for network in settings.trusted_networks]

    @contextmanager
    def admit(self, scope: Scope, path: str, *, is_counted: bool) -> Iterator[Scope]:
        """Gives the request without its key, and counts it; or Unauthorized, NoApiKeys, RateLimited.

        The key's name is then in the scope as `api_key_name`, empty where there are no keys, and for a client
        of a trusted network that sends none.
        """
        headers = scope["headers"]
        quota = None
        if path not in OPEN_PATHS and not path.startswith(OPEN_FOLDERS):
            is_trusted = self._trusts(scope)
            if self._quotas:
                quota = self._owner(headers, is_needed=not is_trusted)
            elif not (self._is_public or is_trusted):
                _refuse_strangers(scope)
        with quota.count_request() if quota and is_counted else nullcontext():
            # Nothing behind this can log the key or send it on.
            without_key = [pair for pair in headers if pair[0] not in KEY_HEADERS]
            yield {**scope, "headers": without_key, "api_key_name": quota.key_name if quota else ""}

    def _trusts(self, scope: Scope) -> bool:
        """Whether the request comes straight from a trusted network, and is addressed to this server.

        A proxy's own address says nothing about its clients, so what says that it came through one is not
        trusted. One that adds no header cannot be told from a client.
        """
        client = scope.get("client")
        if not (self._trusted and client) or _hides_clients(scope["headers"]):
            return False
        address, hosts = _address(client[0]), _host_names(scope)
        is_local_name = all(_address(host) or _LOCAL_NAME.fullmatch(host) for host in hosts)
        is_inside = address is not None and any(address in network for network in self._trusted)
        return is_inside and len(hosts) == 1 and is_local_name

    def _owner(self, headers: Iterable[tuple[bytes, bytes]], *, is_needed: bool) -> Quota | None:
        """Whose key it is; None where none is sent and none `is_needed`."""
        given = dict(headers)
        scheme, space, key = given.get(b"authorization", b"").partition(b" ")
        other = b""
        if scheme.lower() not in (b"bearer", b"api-key"):  # of OpenAI's clients, and of Baseten's
            # AssemblyAI's send the key alone. Basic may be for a proxy in front, so other headers come first.
            other, key = (_password(key) if scheme.lower() == b"basic" else b"" if space else scheme), b""
        key = key.strip() or given.get(b"api-key") or given.get(b"x-api-key", b"") or other
        if not (key or is_needed):
            return None
        if not key:
            raise Unauthorized("Send an API key: `Authorization: Bearer KEY`.", None, "missing_api_key")
        digest = hashlib.sha256(key).hexdigest()
        # All are compared, so that the time taken does not tell which ones come close.
        found = [quota for known, quota in self._quotas.items() if hmac.compare_digest(known, digest)]
        if not found:
            raise Unauthorized("The server does not know this API key.")
        return found[0]


def _password(credentials: bytes) -> bytes:
    """The password of Basic authentication, which Nextcloud and others send; empty if this is none."""
    try:
        return base64.b64decode(credentials.strip(), validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _refuse_strangers(scope: Scope) -> None:
    """Raises NoApiKeys unless the request comes from this machine and is addressed to it."""
    client, names = scope.get("client"), _host_names(scope)
    if _hides_clients() or not client or len(names) != 1 or not all(map(is_loopback, (client[0], *names))):
        raise NoApiKeys(
            "This server has no API keys. Without one it answers this machine (as 127.0.0.1, [::1] or "
            "localhost), and clients of access.trusted_networks that ask directly, by an address or a local "
            f"name. This request came from {client[0] if client else 'nowhere'}, to {', '.join(names) or '?'}"
            f"{', through a proxy' * _hides_clients(scope['headers'])}. The operator can name networks, or "
            "make keys (whisperx-serve key NAME), or set access.public_without_keys."
        )


def _hides_clients(headers: Iterable[tuple[bytes, bytes]] = ()) -> bool:
    """Whether the connection comes from a proxy, by these headers, or from Serve's HAProxy."""
    is_haproxy = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"  # it runs on this machine
    return is_haproxy or any(_FORWARDED.fullmatch(name) for name, _ in headers)


def _host_names(scope: Scope) -> list[str]:
    """By what name or address the server is asked for, in lower case, without a port.

    It tells DNS rebinding: a web page can make its own site's name lead here, and read the answers.
    """
    hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
    return [re.sub(r":\d*$", "", host).removeprefix("[").removesuffix("]") for host in hosts]
