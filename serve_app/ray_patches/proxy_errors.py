"""Rewrites errors of Serve's own HTTP proxy in the shape of ours.

When an Ingress is killed, Serve's proxy answers its open requests with a plain 500. Nothing is wrong with
such a request and its client may send it again, so it becomes a 503 with `Retry-After`. Web pages that can
read the application's answers can read the proxy's, too.
Tried on Ray 2.60.0.
"""

from functools import partial
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import Overloaded
from serve_app.http.errors import error_response
from serve_app.http.middleware import RequestId
from serve_app.http.other_apis import path_of

OUR_ROUTE = "/v1/models/whisperx:predict"  # no other application has it
ALLOWED_ORIGIN = "Access-Control-Allow-Origin"


class RewriteServe503:
    """ASGI middleware in the proxy: a missing answer and a 503 of Serve's own become a 503 of ours.

    Serve's own 503 is plain text without `Retry-After`; a 503 of an application passes unchanged. Requests to
    other applications pass unchanged too: Serve's routes say where a request goes, and our application is the
    one with OUR_ROUTE. Serve knows that as soon as one Ingress has started.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._router = _find_router(app)
        # The proxy does not know the settings. It learns them: a page asks before it sends a key or JSON.
        self._allowed_origins: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = self._our_path(scope)
        app = self.app if path is None else RequestId(partial(self._rewrite, path))
        await app(scope, receive, send)

    def _our_path(self, scope: Scope) -> str | None:
        """The request's path in our application, without the route_prefix; None if it goes elsewhere."""
        if self._router is None or scope["type"] != "http":
            return None
        path = path_of(scope)
        if (matched := self._router.match_route(path)) is None:
            return None
        prefix = matched[0]
        is_ours = any(each.path == OUR_ROUTE for each in self._router.route_patterns.get(prefix, ()))
        return path.removeprefix(prefix.rstrip("/")) if is_ours else None

    async def _rewrite(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        started = rewritten = False
        origin = Headers(scope=scope).get("Origin", "")

        async def send_readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if allowed := headers.get(ALLOWED_ORIGIN):
                    self._allowed_origins.add(allowed)
                elif found := {origin, "*"} & self._allowed_origins:
                    headers[ALLOWED_ORIGIN] = found.pop()
                    headers["Access-Control-Expose-Headers"] = "Retry-After, X-Request-ID"
                    headers.add_vary_header("Origin")
            await send(message)

        async def send_or_rewrite(message: Message) -> None:
            nonlocal started, rewritten
            if message["type"] == "http.response.start" and _is_serves_own(message):
                started = rewritten = True
                await _answer(path)(scope, receive, send_readable)
            elif not rewritten:
                started = True
                await send_readable(message)

        await self.app(scope, receive, send_or_rewrite)
        if not started:
            await _answer(path)(scope, receive, send_readable)


def _find_router(app: Any) -> Any:
    """The router of Serve's proxy, which is behind its middlewares; None in a replica behind HAProxy."""
    while app is not None and not hasattr(app, "proxy_router"):
        app = getattr(app, "_app", None) or getattr(app, "app", None)
    return app and app.proxy_router


def _is_serves_own(message: Message) -> bool:
    headers = {name.lower(): value for name, value in message["headers"]}
    is_plain_text = headers.get(b"content-type", b"").startswith(b"text/plain")
    return message["status"] == 503 and is_plain_text and b"retry-after" not in headers


def _answer(path: str) -> ASGIApp:
    """The 503, in the shape of the path's API."""
    message = "The process that worked on this request ended, or none can take the request; send it again."
    return error_response(Overloaded(message, None, "ingress_lost"), path)
