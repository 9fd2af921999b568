"""The ASGI middlewares, in one stack."""

import asyncio
import re
from collections.abc import Sequence
from time import monotonic
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import UploadTooSlow
from serve_app.http.auth import Access
from serve_app.http.responses import error_response
from serve_app.request.admission import Admission
from serve_app.settings import AccessSettings

LOW_SPEED_WINDOW_S = 30.0  # a body must bring at least LOW_SPEED_BYTES in this much waiting, as when fetching
LOW_SPEED_BYTES = 30 << 10

_SAFE_REQUEST_ID = re.compile("[ -~]{1,128}")  # printable ASCII, because it is logged and sent back


def middleware_stack(
    access: AccessSettings,
    receive_timeout_s: float,
    admission: Admission | None,
    *,
    behind_serve: bool,
    outermost: Sequence[Middleware],
) -> list[Middleware]:
    """All middlewares. The first one sees a request first and its answer last.

    Errors are answered inside of CORS, so that web pages can read them, and keys are checked before anything
    that a stranger could learn from.
    """
    return [
        *outermost,
        *(
            Middleware(
                CORSMiddleware,
                allow_origins=access.cors_origins,
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=["Retry-After", "X-Request-ID", "X-Warnings"],
            )
            for _ in access.cors_origins[:1]
        ),
        *([] if behind_serve else [Middleware(RequestId)]),  # Serve adds the header itself
        Middleware(ErrorAnswers),
        Middleware(Access, settings=access),
        Middleware(ReceiveDeadline, timeout_s=receive_timeout_s),
        *([Middleware(CountRequests, admission=admission)] if admission else []),
    ]


class RequestId:
    """Gives every answer an X-Request-ID: the client's if that is safe to log, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope}  # the server's own scope keeps its headers
        headers = MutableHeaders(scope=scope)
        given = headers.get("X-Request-ID", "")
        request_id = given if _SAFE_REQUEST_ID.fullmatch(given) else uuid4().hex
        headers["X-Request-ID"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        await self.app(scope, receive, send_with_id)


class ErrorAnswers:
    """Answers every exception raised behind it.

    Starlette answers unexpected ones outside of all middlewares, without the CORS headers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            if has_started or scope["type"] != "http":
                raise  # the web server logs it and closes the connection
            await error_response(error)(scope, receive, send)


class ReceiveDeadline:
    """Raises UploadTooSlow for a body that takes too long or trickles, so that it does not keep its place."""

    def __init__(self, app: ASGIApp, timeout_s: float) -> None:
        self.app = app
        self.timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        deadline_s = monotonic() + self.timeout_s
        wait_left_s, bytes_due = LOW_SPEED_WINDOW_S, LOW_SPEED_BYTES
        is_complete = False

        async def receive_in_time() -> Message:
            nonlocal is_complete, wait_left_s, bytes_due
            if is_complete:  # the next message says that the client left; that may take as long as the answer
                return await receive()
            begun_s = monotonic()
            wait_s = min(deadline_s - begun_s, wait_left_s)
            try:
                if wait_s <= 0:  # asyncio.timeout(0) would still take a piece that is there already
                    raise TimeoutError
                async with asyncio.timeout(wait_s):
                    message = await receive()
            except TimeoutError:
                raise UploadTooSlow(
                    f"The body came too slowly, or not within {self.timeout_s:g} s; send a smaller file, or "
                    "its URL."
                ) from None
            wait_left_s -= monotonic() - begun_s  # the time that we take to store a piece does not count
            bytes_due -= len(message.get("body", b""))
            if bytes_due <= 0:
                wait_left_s, bytes_due = LOW_SPEED_WINDOW_S, LOW_SPEED_BYTES
            is_complete = not message.get("more_body", False)
            return message

        await self.app(scope, receive_in_time, send)


class CountRequests:
    """Counts a request from before its body is read until its answer is sent.

    Raises Overloaded when the server is full. Only POST counts: a full server still tells its load balancer
    that it is healthy.
    """

    def __init__(self, app: ASGIApp, admission: Admission) -> None:
        self.app = app
        self.admission = admission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        with self.admission.admit():
            await self.app(scope, receive, send)
