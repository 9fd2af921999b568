"""HTTP clients that stop halfway, and tell how far they came."""

import socket
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPResponse

import httpx

PIECE_BYTES = 64 << 10


class Upload:
    """A form with this file on its way to `url`; at the end of the context its client leaves."""

    def __init__(self, url: str, file: bytes, **options: str) -> None:
        self.url = httpx.URL(url)
        request = httpx.Request("POST", url, files={"file": file}, data=options)
        self.body = request.read()
        head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
        self.head = f"POST {self.url.path} HTTP/1.1\r\n{head}\r\n".encode()
        self.sent_bytes = 0
        self._socket = socket.create_connection((self.url.host, self.url.port or 80), timeout=60)

    def send(self, most_bytes: int | None = None) -> None:
        """As fast as it is taken; `sent_bytes` of the body are the kernel's so far."""
        self._socket.sendall(self.head)
        left = memoryview(self.body)[:most_bytes]
        while left:
            taken = self._socket.send(left[:PIECE_BYTES])
            self.sent_bytes += taken
            left = left[taken:]

    def answer(self) -> tuple[int, bytes]:
        """Status and body."""
        with HTTPResponse(self._socket, method="POST") as response:
            response.begin()
            return response.status, response.read()

    def until_stuck(self) -> None:
        """Until nothing has been taken for a second; a minute at most."""
        deadline_s = time.monotonic() + 60
        before, since_s = -1, 0.0
        while before != self.sent_bytes or time.monotonic() - since_s < 1.0:
            if before != self.sent_bytes:
                before, since_s = self.sent_bytes, time.monotonic()
            assert since_s < deadline_s
            time.sleep(0.05)

    def leave(self) -> None:
        with suppress(OSError):  # nobody is there any more
            self._socket.shutdown(socket.SHUT_RDWR)  # which a thread that sends notices, too
        self._socket.close()

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


def until(condition: Callable[[], bool], every_s: float = 0.05) -> None:
    """It must be so within a minute."""
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(every_s)
