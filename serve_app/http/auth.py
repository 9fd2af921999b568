"""Who may use the API: keys with their quotas, and, where there are no keys, this machine only.

All of it is decided from a request's headers, before any of its body is read. Quotas are counted in this
process: with several Ingress replicas, each of them allows a key its full quota.
"""

import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic

from starlette.types import ASGIApp, Receive, Scope, Send

from serve_app.errors import NoApiKeys, RateLimited, Unauthorized
from serve_app.settings import AccessSettings, ApiKey

logger = logging.getLogger("ray.serve")

Headers = Iterable[tuple[bytes, bytes]]

# Load balancers have no key, and the documentation holds no secrets.
OPEN_PATHS = ("/", "/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")
OPEN_FOLDER = "/static-offline-docs/"

KEY_HEADERS = (b"authorization", b"api-key", b"x-api-key")
SCHEMES = (b"bearer", b"api-key")  # OpenAI's clients send the first, Baseten's the second
KEY_PREFIX = "wx_"  # makes a leaked key recognisable


def new_key() -> tuple[str, str]:
    """A new API key and its SHA-256 in hex."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether this address or name can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class Quota:
    """Counts the running requests and the audio of one key.

    The audio is a bucket that holds one minute's allowance and fills evenly. A request may start while
    anything is left in it; a long file leaves a debt, and the next request waits until that is paid. The
    `limits` package cannot do this: it books a cost only where it still fits, but the length of a file is
    known only after it was let in.
    """

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self._running = 0
        self._left_s = key.max_audio_s_per_minute or 0.0
        self._filled_at_s = monotonic()

    def refuse_over_limit(self) -> None:
        """Raises RateLimited while the key may not start another request."""
        if self.key.max_requests is not None and self._running >= self.key.max_requests:
            message = "Each server replica allows this API key {} requests at once; wait for one to end."
            raise RateLimited(message.format(self.key.max_requests))
        self.spend(0.0)
        if self.key.max_audio_s_per_minute is not None and self._left_s <= 0:
            per_minute_s = self.key.max_audio_s_per_minute
            wait_s = int(-self._left_s / (per_minute_s / 60)) + 1
            message = f"Each server replica allows this API key {per_minute_s:g} s of audio a minute; "
            raise RateLimited(f"{message}wait {wait_s} s.", None, "audio_limit_reached", wait_s)

    @contextmanager
    def count_request(self) -> Iterator[None]:
        """Counts a request while it runs; inside, `charge` books its audio on this key."""
        self._running += 1
        before = _current.set(_Charged(self))
        try:
            yield
        finally:
            _current.reset(before)
            self._running -= 1

    def spend(self, audio_s: float) -> None:
        """Fills the bucket by the time that passed, then takes this much audio out of it."""
        per_minute_s = self.key.max_audio_s_per_minute
        if per_minute_s is not None:
            now_s = monotonic()
            earned_s = (now_s - self._filled_at_s) * per_minute_s / 60
            self._left_s = min(per_minute_s, self._left_s + earned_s) - audio_s
            self._filled_at_s = now_s


@dataclass
class _Charged:
    quota: Quota
    audio_s: float = 0.0


_current: ContextVar[_Charged | None] = ContextVar("request", default=None)


def charge(audio_s: float) -> None:
    """Books the running request's audio, in seconds, on its key, if it has one.

    Called as soon as the length is known, so that a client that leaves early has paid. Calling it again with
    the same length, when a stage is retried, books nothing more.
    """
    charged = _current.get()
    if charged is not None and audio_s > charged.audio_s:
        charged.quota.spend(audio_s - charged.audio_s)
        charged.audio_s = audio_s


class Access:
    """ASGI middleware that raises Unauthorized, NoApiKeys or RateLimited, or passes on without the key."""

    def __init__(self, app: ASGIApp, settings: AccessSettings) -> None:
        self.app = app
        self.settings = settings
        self.quotas = {key.sha256: Quota(key) for key in settings.keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        # Nothing behind this can log the key or send it on.
        scope = {**scope, "headers": [pair for pair in headers if pair[0] not in KEY_HEADERS]}
        quota = None if _is_open(scope) else self._check(scope, headers)
        with quota.count_request() if quota else nullcontext():
            await self.app(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> Quota | None:
        """The quota that the request counts against, if any; or Unauthorized, NoApiKeys, RateLimited."""
        if not self.quotas:
            if not self.settings.public_without_keys:
                _refuse_strangers(scope, headers)
            return None
        quota = self._owner(_presented_key(headers))
        if scope["method"] != "POST":  # only a POST brings work
            return None
        try:
            quota.refuse_over_limit()
        except RateLimited as error:
            logger.info("API key %s: %s", quota.key.name, error.code)
            raise
        return quota

    def _owner(self, key: bytes | None) -> Quota:
        if key is None:
            raise Unauthorized("Send an API key: `Authorization: Bearer KEY`.", None, "missing_api_key")
        digest = hashlib.sha256(key).hexdigest()
        # All are compared, so that the time taken does not tell which ones come close.
        found = [quota for known, quota in self.quotas.items() if hmac.compare_digest(known, digest)]
        if not found:
            raise Unauthorized("The server does not know this API key.")
        return found[0]


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))  # Serve's route_prefix
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _refuse_strangers(scope: Scope, headers: Headers) -> None:
    """Raises NoApiKeys unless the request comes from this machine and is addressed to it."""
    open_it = "Its operator can add keys (python -m serve_app key NAME) or set access.public_without_keys."
    client = scope.get("client")
    # Serve's HAProxy runs on this machine and hides the client's address.
    is_hidden = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
    if is_hidden or not (client and is_loopback(client[0])):
        raise NoApiKeys(f"This server has no API keys and answers its own machine only. {open_it}")
    # DNS rebinding: a web page can make its own site's name point to this machine, and read the answers.
    hosts = [value.decode("latin-1").lower() for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not is_loopback(re.sub(r":\d*$", "", hosts[0]).removeprefix("[").removesuffix("]")):
        raise NoApiKeys(
            "This server has no API keys and answers only where it is asked for as 127.0.0.1, [::1] or "
            f"localhost; use one of these in the URL. {open_it}"
        )


def _presented_key(headers: Headers) -> bytes | None:
    """The key in `Authorization: Bearer KEY`, `Authorization: Api-Key KEY`, `Api-Key` or `X-Api-Key`."""
    given = dict(headers)
    scheme, _, key = given.get(b"authorization", b"").partition(b" ")
    if scheme.lower() in SCHEMES and key:
        return key.strip()
    return given.get(b"api-key") or given.get(b"x-api-key")
