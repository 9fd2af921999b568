"""What Serve's HTTP proxy says by itself, in our words: it runs in the proxy, in front of the Ingress.

Serve says nothing to a request whose Ingress was killed, and its web server makes that a plain 500. But
nothing is wrong with such a request, and its client may send it again.
"""

from typing import Any

from serve_app.answers import error_response
from serve_app.errors import Overloaded

RETRY_AFTER_S = 5


class InOurWords:
    """ASGI middleware: no answer, or a 503 as Serve itself gives it, becomes a 503 of ours.

    Serve's is plain text and says no time to come back; an application's own refusal passes as it is.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        started = replaced = False

        async def send_ours(message: Any) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start" and _is_serves_own(message):
                started = replaced = True
                await _answer(message["headers"])(scope, receive, send)
            elif not replaced:
                started = True
                await send(message)

        await self.app(scope, receive, send_ours)
        if scope["type"] == "http" and not started:
            await _answer(scope["headers"])(scope, receive, send)


def _is_serves_own(message: Any) -> bool:
    headers = {name.lower(): value for name, value in message["headers"]}
    return (
        message["status"] == 503
        and headers.get(b"content-type", b"").startswith(b"text/plain")
        and b"retry-after" not in headers
    )


def _answer(headers: Any) -> Any:
    answer = error_response(
        Overloaded(
            "The process that worked on this request has ended, or none can take it; send it again.",
            None,
            "ingress_lost",
            RETRY_AFTER_S,
        )
    )
    request_id = next((value for name, value in headers if name.lower() == b"x-request-id"), None)
    if request_id is not None:
        answer.headers["X-Request-ID"] = request_id.decode("latin-1")
    return answer
