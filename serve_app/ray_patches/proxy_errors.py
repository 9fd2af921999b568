"""What Serve's HTTP proxy says by itself, in our words: it runs in the proxy, in front of the Ingress.

Serve says nothing to a request whose Ingress was killed, and its web server makes that a plain 500. But
nothing is wrong with such a request, and its client may send it again.
"""

import logging
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import Overloaded
from serve_app.http.responses import RequestId, error_response

logger = logging.getLogger("ray.serve")

RETRY_AFTER_S = 5
OUR_ROUTE = "/v1/models/whisperx:predict"  # no other application has it


class InOurWords:
    """ASGI middleware: no answer, or a 503 as Serve itself gives it, becomes a 503 of ours.

    Serve's is plain text and says no time to come back; an application's own refusal passes as it is. So does
    whatever belongs to another application: which one a request is for is looked up in Serve's routes, and
    ours is the one that has OUR_ROUTE. Serve knows that as soon as one Ingress has started.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._ours = RequestId(self._in_our_words)
        self._router = _serves_router(app)
        if self._router is None:
            logger.warning("Serve's routes are not where they are expected: its own errors pass as they are.")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self._ours if self._is_ours(scope) else self.app)(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        if self._router is None or scope["type"] != "http":
            return False
        matched = self._router.match_route(scope["path"].removeprefix(scope.get("root_path", "")))
        patterns = self._router.route_patterns.get(matched[0], ()) if matched else ()
        return any(pattern.path == OUR_ROUTE for pattern in patterns)

    async def _in_our_words(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = replaced = False

        async def send_ours(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start" and _is_serves_own(message):
                started = replaced = True
                await _answer(scope, receive, send)
            elif not replaced:
                started = True
                await send(message)

        await self.app(scope, receive, send_ours)
        if not started:
            await _answer(scope, receive, send)


def _serves_router(app: Any) -> Any:
    """The routes of Serve's proxy, which stands behind its middlewares; None where there is no such thing."""
    while app is not None:
        if router := getattr(app, "proxy_router", None):
            known = hasattr(router, "match_route") and hasattr(router, "route_patterns")
            return router if known else None
        app = getattr(app, "_app", None) or getattr(app, "app", None)
    return None


def _is_serves_own(message: Message) -> bool:
    headers = {name.lower(): value for name, value in message["headers"]}
    return (
        message["status"] == 503
        and headers.get(b"content-type", b"").startswith(b"text/plain")
        and b"retry-after" not in headers
    )


_answer = error_response(
    Overloaded(
        "The process that worked on this request has ended, or none can take it; send it again.",
        None,
        "ingress_lost",
        RETRY_AFTER_S,
    )
)
