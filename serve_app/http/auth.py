"""Who may ask: API keys, other machines; and how long a body may take.

All but the last is decided from a request's headers, before any of its body is read.
"""

import asyncio
import hashlib
import hmac
import ipaddress
import logging
import os
import re
import secrets
from collections.abc import Iterable
from contextlib import nullcontext
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.deadline import timeout
from serve_app.errors import NoApiKeys, RateLimited, Unauthorized, UploadTooSlow
from serve_app.http.quotas import Usage
from serve_app.settings import AccessSettings

logger = logging.getLogger("ray.serve")

# For load balancers, which have no key, and for readers: the documentation knows nothing secret.
OPEN_PATHS = ("/", "/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")
OPEN_FOLDER = "/static-offline-docs/"

KEY_HEADERS = (b"authorization", b"api-key", b"x-api-key")
SCHEMES = (b"bearer", b"api-key")  # OpenAI's clients send the first, Baseten's the second

LOW_SPEED_WINDOW_S = 30.0  # as for fetching: at least so many bytes in so much waiting
LOW_SPEED_BYTES = 30 << 10

KEY_PREFIX = "wx_"  # by which a leaked key is recognised


def new_key() -> tuple[str, str]:
    """A fresh API key and its SHA-256 in hex."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, hashlib.sha256(key.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether this address or name is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class Access:
    """ASGI middleware: raises Unauthorized, NoApiKeys or RateLimited; hands the rest on without the key."""

    def __init__(self, app: ASGIApp, settings: AccessSettings) -> None:
        self.app = app
        self.settings = settings
        self.usages = {key.sha256: Usage(key) for key in settings.keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = scope["headers"]
        # Nothing behind this can log the key, or send it on.
        scope = {**scope, "headers": [pair for pair in headers if pair[0] not in KEY_HEADERS]}
        usage = None if _is_open(scope) else self._allowed(scope, headers)
        with usage.request() if usage else nullcontext():
            await self.app(scope, receive, send)

    def _allowed(self, scope: Scope, headers: Iterable[tuple[bytes, bytes]]) -> Usage | None:
        """Whose request it is, None without keys; raises Unauthorized, NoApiKeys or RateLimited."""
        if not self.usages:
            if not self.settings.public_without_keys:
                _refuse_strangers(scope, headers)
            return None
        usage = self._owner(_presented(headers))
        if scope["method"] != "POST":  # what only asks for something that is there costs nothing
            return None
        try:
            usage.refuse_over_limit()
        except RateLimited as error:
            logger.info("API key %s: %s", usage.key.name, error.code)
            raise
        return usage

    def _owner(self, key: bytes | None) -> Usage:
        if key is None:
            raise Unauthorized("Send an API key: `Authorization: Bearer KEY`.", None, "missing_api_key")
        digest = hashlib.sha256(key).hexdigest()
        owner = None
        for known, usage in self.usages.items():  # all of them: the time taken tells nothing
            if hmac.compare_digest(known, digest):
                owner = usage
        if owner is None:
            raise Unauthorized("The server does not know this API key.")
        return owner


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))  # Serve's route_prefix
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDER)


def _refuse_strangers(scope: Scope, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises NoApiKeys unless this machine asks, and asks for itself."""
    open_it = "Its operator can add keys (python -m serve_app key NAME) or set access.public_without_keys."
    client = scope.get("client")
    # Serve's HAProxy runs on this machine and does not say for whom it asks.
    hidden = os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
    if hidden or not (client and is_loopback(client[0])):
        raise NoApiKeys(f"This server has no API keys and answers its own machine only. {open_it}")
    # A page in a browser here can have its own site's name lead to this machine, and then read the answers.
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) != 1 or not is_loopback(_without_port(hosts[0])):
        raise NoApiKeys(
            "This server has no API keys and answers only where it is asked for as 127.0.0.1, [::1] or "
            f"localhost; use one of these in the URL. {open_it}"
        )


def _without_port(host: bytes) -> str:
    return re.sub(r":\d*$", "", host.decode("latin-1").lower()).removeprefix("[").removesuffix("]")


def _presented(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The key in the request's headers: `Authorization: Bearer` or `Api-Key`, or a header `(X-)Api-Key`."""
    given = dict(headers)
    scheme, _, key = given.get(b"authorization", b"").partition(b" ")
    if scheme.lower() in SCHEMES and key:
        return key.strip()
    return given.get(b"api-key") or given.get(b"x-api-key")


class ReceiveDeadline:
    """ASGI middleware: a body that takes longer, or trickles, is a 408: no client holds a place for ever."""

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self.app = app
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        deadline_s = monotonic() + self.timeout_s
        patience_s, due_bytes = LOW_SPEED_WINDOW_S, LOW_SPEED_BYTES
        complete = False

        async def receive_in_time() -> Message:
            nonlocal complete, patience_s, due_bytes
            if complete:  # what is awaited now is that the client leaves, for as long as the answer takes
                return await receive()
            begun_s = monotonic()
            wait_s = min(deadline_s - begun_s, patience_s)
            try:
                if wait_s <= 0:  # else a piece that is there already would be taken
                    raise asyncio.TimeoutError
                async with timeout(wait_s):
                    message = await receive()
            except asyncio.TimeoutError:
                raise UploadTooSlow(
                    f"The body came too slowly, or not within {self.timeout_s:g} s; send a smaller file, or "
                    "its URL."
                ) from None
            patience_s -= monotonic() - begun_s  # not the time that we take to store it
            due_bytes -= len(message.get("body", b""))
            if due_bytes <= 0:
                patience_s, due_bytes = LOW_SPEED_WINDOW_S, LOW_SPEED_BYTES
            complete = not message.get("more_body", False)
            return message

        await self.app(scope, receive_in_time, send)
