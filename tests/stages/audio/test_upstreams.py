"""Audio URLs whose server is slow, broken or lying: each ends in its documented error, and in time."""

import asyncio
import gzip
import socket
import ssl
import sys
import threading
from collections.abc import Iterable
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from loopback import answering, failure, fetched, raw_serving, serving

from serve_app.errors import PayloadTooLarge, SourceUnavailable, TranscriptionError
from serve_app.stages.audio import fetch as module
from serve_app.stages.audio import ssrf

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"
CERTIFICATE = Path(__file__).with_name("self_signed.pem")  # for 127.0.0.1, and its key; trusted by nobody

Part = bytes | Iterable[bytes]


async def error_of(
    *answer: Part, scheme: str = "http", then_hang: bool = False, pause_s: float = 0.0, **changes: Any
) -> TranscriptionError:
    """The error of fetching from a server that sends exactly these bytes."""
    async with raw_serving(*answer, then_hang=then_hang, pause_s=pause_s) as port:
        return await failure(f"{scheme}://127.0.0.1:{port}/", **changes)


def redirect(location: bytes) -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"


BROKEN: dict[str, tuple[str, tuple[Part, ...]]] = {
    "closed without an answer": ("connection_failed", ()),
    "closed within the headers": ("connection_failed", (OK + b"X: ",)),
    # Lengths
    "Content-Length longer than the body": ("truncated", (OK + b"Content-Length: 10\r\n\r\nabc",)),
    "Content-Length shorter than the body": ("bad_response", (OK + b"Content-Length: 2\r\n\r\nabcdef",)),
    "Content-Length below zero": ("bad_response", (OK + b"Content-Length: -3\r\n\r\nabc",)),
    "Content-Length with a sign": ("bad_response", (OK + b"Content-Length: +3\r\n\r\nabc",)),
    "Content-Length in words": ("bad_response", (OK + b"Content-Length: three\r\n\r\nabc",)),
    "Content-Length beyond any integer": (
        "bad_response",
        (OK + b"Content-Length: 9" + b"9" * 30 + b"\r\n\r\n",),
    ),
    "two lengths": ("bad_response", (OK + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",)),
    "a length and chunks": (
        "bad_response",
        (OK + b"Content-Length: 3\r\n" + CHUNKED[len(OK) :] + b"0\r\n\r\n",),
    ),
    # Chunks
    "chunk that breaks off": ("truncated", (CHUNKED + b"5\r\nab",)),
    "chunks without an end": ("truncated", (CHUNKED + b"2\r\nab\r\n",)),
    "chunk longer than its size": ("bad_response", (CHUNKED + b"2\r\nabcdef\r\n0\r\n\r\n",)),
    "chunk size that is no number": ("bad_response", (CHUNKED + b"zz\r\nabc",)),
    "chunk size below zero": ("bad_response", (CHUNKED + b"-1\r\nabc",)),
    "chunk size beyond 64 bits": ("bad_response", (CHUNKED + b"f" * 17 + b"\r\nabc",)),
    # Floods
    "endless headers": ("bad_response", (OK, repeat(b"X-A: b\r\n" * 1_000))),
    "endless header": ("bad_response", (OK + b"X: ", repeat(b"a" * 10_000))),
    "endless status line": ("bad_response", (b"HTTP/1.1 200 ", repeat(b"a" * 10_000))),
    "endless trailers": ("bad_response", (CHUNKED + b"0\r\n", repeat(b"X-A: b\r\n" * 1_000))),
    # Not HTTP
    "text": ("bad_response", (b"hello, this is HTTP/0.9\r\n\r\n",)),
    "binary": ("bad_response", (bytes(range(256)) * 4,)),
    "another protocol": ("bad_response", (b"SSH-2.0-OpenSSH_9.7\r\n\r\n",)),
    "HTTP/2": ("bad_response", (b"\0\0\x12\x04\0\0\0\0\0\0\x03\0\0\0\x64",)),
    "internet radio": ("bad_response", (b"ICY 200 OK\r\n\r\nabc",)),
    "zero byte in a header": ("bad_response", (OK + b"X: a\0b\r\nContent-Length: 3\r\n\r\nabc",)),
    # Not the file
    "101": (
        "http_status",
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",),
    ),
    **{
        str(status): ("http_status", (b"HTTP/1.1 %d Why\r\nContent-Length: 0\r\n\r\n" % status,))
        for status in (201, 202, 204, 205, 206, 300, 304, 400, 401, 403, 404, 416, 429, 500, 503, 999)
    },
    "part of the file": ("http_status", (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\n\r\nabc",)),
    "br": ("encoded_response", (OK + b"Content-Encoding: BR\r\nContent-Length: 3\r\n\r\nabc",)),
    "deflate": ("encoded_response", (OK + b"Content-Encoding: aws-chunked, deflate\r\n\r\nabc",)),
    # Redirects
    "redirect to nowhere": ("http_status", (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",)),
    "redirect to itself": ("too_many_redirects", (redirect(b"#again"),)),
    "redirect without a host": ("bad_redirect", (redirect(b"https:///x"),)),
    "redirect to a port that is none": ("bad_redirect", (redirect(b"http://host:99999/"),)),
    "redirect to an odd port": ("bad_redirect", (redirect(b"http://host:22/"),)),
    "redirect to another protocol": ("bad_redirect", (redirect(b"ftp://host/x"),)),
    "redirect in no known encoding": ("bad_redirect", (redirect(b"http://\xff\xfe/"),)),
    "redirect beyond every length": ("bad_response", (redirect(b"/" + b"a" * 10_000),)),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_servers(fault: str) -> None:
    """Whatever the other server does wrong is a 424 whose code says what, at once."""
    code, answer = BROKEN[fault]
    error = asyncio.run(error_of(*answer))
    assert isinstance(error, SourceUnavailable)
    assert (error.code, error.param) == (code, "audio_file")


SLOW: dict[str, tuple[Part, ...]] = {
    "accepts, then silence": (),
    "silence within the headers": (OK,),
    "trickling headers": (OK + b"X: ", repeat(b"a")),
    "silence before the body": (OK + b"Content-Length: 10\r\n\r\n",),
    "silence within the body": (OK + b"Content-Length: 10\r\n\r\nabc",),
    "silence where the end should be": (OK + b"\r\nabc",),
    "silence within a chunk": (CHUNKED + b"ffffffff\r\nabc",),
    "100 GB, and then not": (OK + b"Content-Length: 100000000000\r\n\r\nabc",),
    "trickling body": (OK + b"\r\n", repeat(b"a")),
    "trickling chunks": (CHUNKED, repeat(b"1\r\na\r\n")),
    "a quick start, then a trickle": (OK + b"\r\n" + bytes(100_000), repeat(b"a")),
    "endless 1xx": (repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 10),),
    "endless chunk extension": (CHUNKED + b"2;x=", repeat(b"a" * 10_000)),
    "endless chunk size": (CHUNKED, repeat(b"0" * 10_000)),
}


@pytest.mark.parametrize("fault", SLOW)
def test_slow_servers(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence, a trickle, and a flood of anything but content are given up long before the deadline."""
    monkeypatch.setattr(module, "LOW_SPEED_WINDOW_S", 0.2)

    async def run() -> tuple[str, float]:
        now_s = asyncio.get_running_loop().time
        begun_s = now_s()
        error = await error_of(*SLOW[fault], then_hang=True, pause_s=0.005, max_bytes=10**12)
        return error.code, now_s() - begun_s

    code, took_s = asyncio.run(run())
    assert code == "too_slow"
    assert took_s < 5  # the deadline is 20 s


@pytest.mark.parametrize(
    ("answer", "pause_s"),
    [((), 0.0), ((OK + b"\r\n", repeat(b"a" * 1_000)), 0.005)],
    ids=["silent", "steady"],
)
def test_the_deadline(answer: tuple[Part, ...], pause_s: float) -> None:
    """intake.fetch_timeout_s ends every fetch, also one that is fast enough and has no end."""
    error = asyncio.run(error_of(*answer, then_hang=True, pause_s=pause_s, fetch_timeout_s=0.2))
    assert (error.status, error.code) == (424, "fetch_timeout")
    assert "0.2 s" in error.message


def test_a_long_transfer_is_not_a_slow_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The low-speed limit is for each stretch of a body: a file that takes longer than one arrives."""
    monkeypatch.setattr(module, "LOW_SPEED_WINDOW_S", 0.5)

    async def run() -> bytes:
        pieces = [bytes(1_000)] * 70
        async with raw_serving(OK + b"Content-Length: 70000\r\n\r\n", pieces, pause_s=0.01) as port:
            return await fetched(f"http://127.0.0.1:{port}/")

    assert asyncio.run(run()) == bytes(70_000)


@pytest.mark.parametrize(
    "answer",
    [
        (OK + b"Content-Length: 100000000000\r\n\r\n",),
        (OK + b"\r\n", repeat(bytes(1_000))),
        (CHUNKED, repeat(b"3e8\r\n" + bytes(1_000) + b"\r\n")),
        (CHUNKED, repeat(b"1\r\na\r\n" * 100)),
    ],
    ids=["declared", "endless", "endless chunks", "endless small chunks"],
)
def test_too_much(answer: tuple[Part, ...]) -> None:
    """More than intake.max_bytes is a 413: by its header before the body is read, else by counting."""
    error = asyncio.run(error_of(*answer, then_hang=True, max_bytes=100_000))
    assert isinstance(error, PayloadTooLarge)
    assert "100000 bytes" in error.message


WAV = b"RIFF" + bytes(300_000)
UPLOAD = (
    b"493e4;chunk-signature="
    + b"0a" * 32
    + b"\r\n"
    + WAV
    + b"\r\n0;chunk-signature="
    + b"0a" * 32
    + b"\r\n\r\n"
)
UNSIGNED = b"493e4\r\n" + WAV + b"\r\n0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n"


def with_headers(body: bytes, *headers: bytes) -> bytes:
    return (
        OK
        + b"".join(header + b"\r\n" for header in headers)
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )


@pytest.mark.parametrize(
    "headers",
    [
        *[
            (b"Content-Encoding: " + coding,)
            for coding in (
                *(
                    b"aws-chunked",
                    b"AWS-Chunked",
                    b"aws-chunked,",
                    b"aws-chunked,gzip",
                    b"gzip",
                    b"GZIP",
                    b"x-gzip",
                ),
                *(
                    b"zstd",
                    b"compress",
                    b"UTF-8",
                    b"utf8",
                    b"none",
                    b"identity",
                    b"Identity",
                    b"binary",
                    b"base64",
                ),
                *(b"", b" ", b"audio/wav", b"7bit", b"undefined", b"identity, identity", b"\xff"),
            )
        ],
        (b"Content-Encoding: aws-chunked", b"Content-Encoding: gzip"),
        *[
            (b"Content-Type: " + kind,)
            for kind in (
                b"text/html; charset=utf-8",
                b"application/gzip",
                b"image/png",
                b"",
                b"nonsense",
                b"audio",
            )
        ],
        (b"Content-Disposition: attachment; filename=a.txt.gz",),
    ],
    ids=repr,
)
def test_what_headers_claim_of_a_file_does_not_matter(headers: tuple[bytes, ...]) -> None:
    """Stores repeat what an upload once said of itself; plain bytes are plain bytes."""

    async def run() -> bytes:
        async with raw_serving(with_headers(WAV, *headers)) as port:
            return await fetched(f"http://127.0.0.1:{port}/")

    assert asyncio.run(run()) == WAV


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (gzip.compress(WAV), (b"Content-Encoding: gzip",)),
        (gzip.compress(WAV), (b"Content-Encoding: aws-chunked,gzip",)),
        (gzip.compress(WAV), ()),
        (gzip.compress(WAV)[:2], (b"Content-Encoding: gzip",)),
        (b"\x28\xb5\x2f\xfd" + WAV, (b"Content-Encoding: zstd",)),
        (b"\x1f\x9d" + WAV, (b"Content-Encoding: compress",)),
    ],
)
def test_compressed_files_are_named(body: bytes, headers: tuple[bytes, ...]) -> None:
    """What its own first bytes call compressed is refused in words, not given to the decoder."""
    error = asyncio.run(error_of(with_headers(body, *headers)))
    assert (error.status, error.code) == (424, "encoded_response")
    assert "compressed" in error.message


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (UPLOAD, (b"Content-Encoding: aws-chunked",)),
        (UPLOAD, ()),
        (UNSIGNED, (b"Content-Encoding: aws-chunked",)),
    ],
)
def test_a_file_stored_with_the_frames_of_its_upload_is_named(
    body: bytes, headers: tuple[bytes, ...]
) -> None:
    """Some stores keep S3's chunk sizes within the file, which every player would trip over."""
    error = asyncio.run(error_of(with_headers(body, *headers)))
    assert (error.status, error.code) == (424, "encoded_response")
    assert "aws-chunked" in error.message


def test_a_bomb_is_not_unpacked() -> None:
    """What the server sends is what is counted and stored, whatever it claims about compression."""
    answer = OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"

    async def run() -> bytes:
        async with raw_serving(answer) as port:
            return await fetched(f"http://127.0.0.1:{port}/")

    assert asyncio.run(run()) == b"abc"


def test_redirects_end() -> None:
    """Five redirects are followed, a sixth is not."""

    async def countdown(request: web.Request) -> web.StreamResponse:
        left = int(request.path.strip("/"))
        if left == 0:
            return web.Response(body=b"there")
        raise web.HTTPFound(f"/{left - 1}")

    async def run() -> tuple[bytes, TranscriptionError]:
        async with serving(countdown) as port:
            return await fetched(f"http://127.0.0.1:{port}/5"), await failure(f"http://127.0.0.1:{port}/6")

    body, error = asyncio.run(run())
    assert body == b"there"
    assert error.code == "too_many_redirects"


def test_a_server_that_is_not_there() -> None:
    """A closed port is a failed connection."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        error = asyncio.run(failure(f"http://127.0.0.1:{unused.getsockname()[1]}/"))
    assert error.code == "connection_failed"


def test_a_connection_that_does_not_come_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that accepts and then does not answer TLS has its own, shorter limit and code."""
    monkeypatch.setattr(ssrf, "CONNECT_TIMEOUT_S", 0.2)
    assert asyncio.run(error_of(scheme="https", then_hang=True)).code == "connect_timeout"


@pytest.mark.parametrize("host", ["nowhere.example", "a" * 70 + ".example", "a..example"])
def test_unknown_hosts(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that does not resolve, or cannot, is told apart from a server that is down."""
    real = socket.getaddrinfo

    def offline(name: Any, *args: Any, **kwargs: Any) -> Any:
        if name == "nowhere.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    assert asyncio.run(failure(f"http://{host}/")).code == "dns_failure"


def test_name_servers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many look-ups that hang end typed, and meanwhile hold up neither other fetches nor other work."""
    n_hanging = 40  # more than the threads that an event loop has
    monkeypatch.setattr(ssrf, "CONNECT_TIMEOUT_S", 1.0)
    real, answered, began = socket.getaddrinfo, threading.Event(), threading.Semaphore(0)

    def hanging(name: Any, *args: Any, **kwargs: Any) -> Any:
        if name == "hang.example":
            began.release()
            answered.wait(20)
        return real(name, *args, **kwargs)

    async def run() -> tuple[bytes, list[TranscriptionError]]:
        async with serving(answering(b"there")) as port:
            hung = [asyncio.create_task(failure("http://hang.example/")) for _ in range(n_hanging)]
            assert await asyncio.to_thread(lambda: all(began.acquire(timeout=10) for _ in hung))
            body = await fetched(f"http://localhost:{port}/")
            return body, await asyncio.gather(*hung)

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    try:
        body, errors = asyncio.run(run())
    finally:
        answered.set()
    assert body == b"there"
    assert {error.code for error in errors} == {"connect_timeout"}


def test_a_server_without_tls() -> None:
    """An https URL of a server that speaks plain HTTP is named as such."""

    async def run() -> TranscriptionError:
        async with serving(answering(b"there")) as port:
            return await failure(f"https://127.0.0.1:{port}/")

    assert asyncio.run(run()).code == "tls_failure"


def test_certificates_are_checked() -> None:
    """A certificate that nobody vouches for is refused, though the server works for one who trusts it."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    answer = OK + b"Content-Length: 5\r\n\r\nthere"

    async def run() -> tuple[bytes, TranscriptionError]:
        async with raw_serving(answer, tls=context) as port:
            trusting = ssl.create_default_context(cafile=CERTIFICATE)
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            received = await reader.read()
            writer.close()
            await writer.wait_closed()
            return received, await failure(f"https://127.0.0.1:{port}/")

    received, error = asyncio.run(run())
    assert received == answer
    assert (error.status, error.code) == (424, "tls_failure")


def test_a_private_authority_can_be_trusted() -> None:
    """SSL_CERT_FILE names the authorities; with it the certificate is good, for its own host only."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(CERTIFICATE)
    code = """
import asyncio, sys
from serve_app.errors import SourceUnavailable
from serve_app.settings import IntakeSettings
from serve_app.stages.audio.fetch import fetch
for host in ("127.0.0.1", "localhost"):
    try:
        asyncio.run(fetch(sys.argv[1] % host, {}, sys.stdout.buffer, IntakeSettings(allowed_hosts=(host,))))
    except SourceUnavailable as error:
        print("", error.code)
"""

    async def run() -> str:
        async with raw_serving(OK + b"Content-Length: 5\r\n\r\nthere", tls=context) as port:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", code, f"https://%s:{port}/"),
                env={"PYTHONPATH": ":".join(sys.path), "SSL_CERT_FILE": str(CERTIFICATE)},
                stdout=asyncio.subprocess.PIPE,
            )
            return (await process.communicate())[0].decode()

    assert asyncio.run(run()).split() == ["there", "tls_failure"]
