"""Who may use the API: keys with their quotas, trusted networks, and, without keys, this machine only.

All of it is decided from a request's headers, before any of its body is read. Quotas are counted in this
process: with several Ingress replicas, each of them allows a key its full quota.
"""

import base64
import binascii
import hashlib
import hmac
import ipaddress
import logging
import math
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from time import monotonic

from starlette.requests import Request
from starlette.types import Scope

from serve_app.errors import NoApiKeys, RateLimited, Unauthorized
from serve_app.settings.access import AccessSettings, ApiKey

logger = logging.getLogger("ray.serve")

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


class Quota:
    """Limits the running requests and the audio of one key.

    The audio is a bucket that holds one minute's allowance and fills evenly. A request may start while
    anything is left in it; a long file leaves a debt, and the next request waits until that is paid. The
    `limits` package cannot do this: it books a cost only where it still fits, but the length of a file is
    known only after it was let in.
    """

    def __init__(self, key: ApiKey) -> None:
        self.key_name = key.name
        self._running = 0
        self._max_requests = key.max_requests or math.inf
        self._per_minute_s = key.max_audio_s_per_minute or math.inf
        self._full_at_s = monotonic()  # when the bucket is full again; a minute before, it is empty

    @contextmanager
    def count_request(self) -> Iterator[None]:
        """Counts a request and its audio while it runs. Raises RateLimited."""
        if self._running >= self._max_requests:
            raise self._over_limit(f"{self._max_requests} requests at once; wait for one to end")
        with self.count_audio():
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1

    @contextmanager
    def count_audio(self) -> Iterator[None]:
        """While entered, `charge` books audio here. Raises RateLimited where none is left."""
        empty_for_s = self._full_at_s - 60 - monotonic()
        if empty_for_s >= 0:
            wait_s = int(empty_for_s) + 1
            allowed = f"{self._per_minute_s:g} s of audio a minute; wait {wait_s} s"
            raise self._over_limit(allowed, "audio_limit_reached", wait_s)
        booked_s = 0.0

        def book(audio_s: float) -> None:
            nonlocal booked_s
            fills_in_s = max(0.0, audio_s - booked_s) * 60 / self._per_minute_s
            self._full_at_s = max(self._full_at_s, monotonic()) + fills_in_s
            booked_s = max(booked_s, audio_s)

        before = _book.set(book)
        try:
            yield
        finally:
            _book.reset(before)

    def _over_limit(self, allowed: str, code: str | None = None, wait_s: int = 0) -> RateLimited:
        error = RateLimited(f"Each server replica allows this API key {allowed}.", None, code, wait_s)
        logger.info("API key %s: %s", self.key_name, error.code)
        return error


_book: ContextVar[Callable[[float], None]] = ContextVar("book", default=lambda audio_s: None)


def charge(audio_s: float) -> None:
    """Books the running request's audio, in seconds, on its key, if it has one.

    Called as soon as the length is known, so that a client that leaves early has paid. Calling it again with
    the same length, when a stage is retried, books nothing more.
    """
    _book.get()(audio_s)


class AudioQuotas:
    """How much audio the jobs of each key may have, in this process."""

    def __init__(self, settings: AccessSettings) -> None:
        self._quotas = {key.name: Quota(key) for key in settings.keys}

    def of(self, key_name: str) -> AbstractContextManager[None]:
        """While entered, `charge` books audio on this key. Entering it raises RateLimited."""
        quota = self._quotas.get(key_name)
        return quota.count_audio() if quota else nullcontext()


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
            f"name. This request came from {client[0] if client else 'nowhere'} for {', '.join(names) or '?'}"
            f"{', by a proxy' * _hides_clients(scope['headers'])}. The operator can name networks, or make "
            "keys (python -m serve_app key NAME), or set access.public_without_keys."
        )


def _hides_clients(headers: Iterable[tuple[bytes, bytes]] = ()) -> bool:
    """Whether these are of a proxy, or Serve's HAProxy is used: all clients look like this machine then."""
    is_haproxy = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"  # it runs on this machine
    return is_haproxy or any(_FORWARDED.fullmatch(name) for name, _ in headers)


def _host_names(scope: Scope) -> list[str]:
    """By what name or address the server is asked for, in lower case, without a port.

    It tells DNS rebinding: a web page can make its own site's name lead here, and read the answers.
    """
    hosts = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
    return [re.sub(r":\d*$", "", host).removeprefix("[").removesuffix("]") for host in hosts]
