"""The ASGI middlewares."""

import asyncio
import logging
import re
from collections.abc import Callable
from contextlib import nullcontext
from time import monotonic
from uuid import uuid4

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.errors import TranscriptionError, UploadTooSlow
from serve_app.http.auth import Access
from serve_app.http.errors import error_response
from serve_app.http.other_apis import counts_as, path_of
from serve_app.request.admission import Admission
from serve_app.settings.access import AccessSettings

logger = logging.getLogger("ray.serve")

LOW_SPEED_WINDOW_S = 30.0  # a body must bring at least LOW_SPEED_BYTES in this much waiting, as when fetching
LOW_SPEED_BYTES = 30 << 10

_SAFE_REQUEST_ID = re.compile("[ -~]{1,128}")  # printable ASCII, because it is logged and sent back


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


class Gate:
    """Checks a request's key before anything else, limits the time for its body, and counts it.

    HEAD is answered as GET is, without the body; `is_head` in the scope tells routes that stream.

    It answers every exception raised inside of it. Starlette answers unexpected ones outside of all
    middlewares, without the CORS headers that let web pages read the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        access: AccessSettings,
        receive_timeout_s: float,
        admission: Admission | None,
        on_error: Callable[[str, int], None] | None = None,
    ) -> None:
        self.app = app
        self.access = Access(access)
        self.receive_timeout_s = receive_timeout_s
        self.admission = admission
        self.on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # FastAPI has no such routes
            scope, send = {**scope, "method": "GET", "is_head": True}, _without_body(send)
        path = path_of(scope)
        kind = counts_as(scope["method"], path)
        counted = self.admission.admit(kind) if self.admission and kind else nullcontext()
        has_started = False

        async def send_and_note(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._count(f"http_{message['status']}", message["status"])  # such as an unknown path
            has_started = True
            await send(message)

        try:
            # A key's limits are not for jobs: those wait in turn, and their audio counts when they run.
            with self.access.admit(scope, path, is_counted=kind == "request") as without_key, counted:
                await self.app(without_key, in_time(receive, self.receive_timeout_s), send_and_note)
        except Exception as error:
            if has_started:
                raise  # the web server logs it and closes the connection
            known = error if isinstance(error, TranscriptionError) else TranscriptionError
            self._count(known.code, known.status)
            await error_response(error, path)(scope, receive, send)

    def _count(self, code: str, status: int) -> None:
        try:
            if self.on_error:
                self.on_error(code, status)
        except Exception:  # a metric that fails changes no answer
            logger.exception("An error was not counted.")


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_head


def in_time(receive: Receive, timeout_s: float) -> Receive:
    """As `receive`, but raises UploadTooSlow for a body that takes too long or trickles."""
    deadline_s = monotonic() + timeout_s
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
            slow = f"The body came too slowly, or not within {timeout_s:g} s"
            raise UploadTooSlow(f"{slow}; send a smaller file, or its URL.") from None
        wait_left_s -= monotonic() - begun_s  # the time that we take to store a piece does not count
        bytes_due -= len(message.get("body", b""))
        if bytes_due <= 0:
            wait_left_s, bytes_due = LOW_SPEED_WINDOW_S, LOW_SPEED_BYTES
        is_complete = not message.get("more_body", False)
        return message

    return receive_in_time
