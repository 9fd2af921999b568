"""An upload that can stop in the middle, and a wait for a condition."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPResponse

import httpx

PIECE_BYTES = 64 << 10


class Upload:
    """An upload of this file as a form to `url`; the client disconnects at the end of the context."""

    def __init__(self, url: str, file: bytes, **options: str) -> None:
        self.url = httpx.URL(url)
        request = httpx.Request("POST", url, files={"file": file}, data=options)
        self.body = request.read()
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        self.head = f"POST {self.url.path} HTTP/1.1\r\n{head}\r\n".encode()
        self.sent_bytes = 0
        self._socket = socket.create_connection((self.url.host, self.url.port or 80), timeout=60)

    def send(self, most_bytes: int | None = None) -> None:
        """Sends as fast as the kernel takes it; `sent_bytes` of the body have been taken."""
        self._socket.sendall(self.head)
        left = memoryview(self.body)[:most_bytes]
        while left:
            taken = self._socket.send(left[:PIECE_BYTES])
            self.sent_bytes += taken
            left = left[taken:]

    def answer(self) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        with HTTPResponse(self._socket, method="POST") as response:
            response.begin()
            return response.status, response.read()

    def until_stuck(self) -> None:
        """Waits until nothing has been taken for a second, a minute at most."""
        deadline_s = time.monotonic() + 60
        before, since_s = -1, 0.0
        while before != self.sent_bytes or time.monotonic() - since_s < 1.0:
            if before != self.sent_bytes:
                before, since_s = self.sent_bytes, time.monotonic()
            assert since_s < deadline_s
            time.sleep(0.05)

    def leave(self) -> None:
        with suppress(OSError):  # the server has closed it
            self._socket.shutdown(socket.SHUT_RDWR)  # a thread that sends notices this too
        self._socket.close()

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def until(condition: Callable[[], object], every_s: float = 0.05, timeout_s: float = 60.0) -> None:
    """Waits for the condition; fails if it does not hold within `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(every_s)
