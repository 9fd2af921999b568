"""Request bodies in pieces, cut short, too large and wrong, with a fake pipeline."""

import asyncio
import base64
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from serve_app.http import uploads as bodies
from serve_app.http.app import create_app
from serve_app.http.references import REFERENCES_BYTES
from serve_app.http.uploads import BESIDE_BYTES
from serve_app.options import Options
from serve_app.transcript import Source, Transcript

MAX_BYTES = 3 << 20
CHUNK_BYTES = 64 << 10  # as an HTTP server hands them on
JSON = "application/json"
FORM = "multipart/form-data; boundary=x"
START = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
END = b"\r\n--x--\r\n"
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/predict",
    "query_string": b"",
    "root_path": "",
    "client": ("127.0.0.1", 50_000),
}
BY_PHP = {b"/": rb"\/"}
BY_NET = {b"+": rb"\u002B", b"=": rb"\u003d", b"/": rb"\u002F"}
ALL_BYTES = bytes(range(256)) * 3  # its base64 has every character, and / many times


class Server:
    """The app around a pipeline that reads the whole file, and a client on ASGI's own level."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.sources: list[Source] = []
        self.options: list[Options] = []
        self.bytes: list[bytes] = []
        self.descriptors = 0  # open while the pipeline runs
        self.chunks_sent = 0
        self.waiting = asyncio.Event()  # the app has used all chunks and wants more
        self.app = create_app(self.transcribe, self.readiness, model="none", max_bytes=MAX_BYTES)

    async def transcribe(self, source: Source, options: Options, report: object = None) -> Transcript:
        self.descriptors = open_descriptors()
        self.sources.append(source)
        self.options.append(options)
        self.bytes.append(source.file.read() if source.file else b"")
        if self.error is not None:
            raise self.error
        return Transcript((), "en", 1.0, "fake")

    async def readiness(self) -> dict[str, bool]:
        return {}

    async def send(
        self, content_type: str, chunks: Iterable[bytes], *, length: str = "", then: str = "ends"
    ) -> tuple[int, dict[str, Any]]:
        """The status and the JSON of the answer. After its last chunk the body ends, or the client
        `leaves` or `waits`."""
        left = iter(chunks)
        started: dict[str, Any] = {}
        answer = bytearray()

        async def receive() -> dict[str, Any]:
            for chunk in left:
                self.chunks_sent += 1
                return {"type": "http.request", "body": chunk, "more_body": True}
            if then == "leaves":
                return {"type": "http.disconnect"}
            if then == "waits":
                self.waiting.set()
                await asyncio.Event().wait()
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            started.update(message)
            answer.extend(message.get("body", b""))

        headers = [(b"host", b"127.0.0.1"), (b"content-type", content_type.encode())]
        if length:
            headers.append((b"content-length", length.encode()))
        await self.app(
            {**SCOPE, "headers": headers},
            receive,
            send,
        )
        return started["status"], json.loads(answer)

    def post(self, content_type: str, *chunks: bytes, **kwargs: Any) -> tuple[int, dict[str, Any]]:
        return asyncio.run(self.send(content_type, chunks, **kwargs))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def json_body(file: bytes, *, escaped: dict[bytes, bytes] | None = None) -> bytes:
    text = base64.b64encode(file)
    for character, escape in (escaped or {}).items():
        text = text.replace(character, escape)
    return b'{"language": "en",\n "audio_b64" : "' + text + b'", "task": "transcribe"}'


def form(file: bytes) -> bytes:
    return START + file + END


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 5, 64, 1 << 20])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (JSON, json_body(ALL_BYTES)),
        (JSON, json_body(ALL_BYTES, escaped=BY_PHP)),
        (JSON, json_body(ALL_BYTES, escaped=BY_NET)),
        (FORM, form(ALL_BYTES)),
    ],
    ids=["json", "json as PHP writes it", "json as .NET writes it", "form"],
)
def test_a_file_arrives_whole_wherever_the_body_is_cut(
    monkeypatch: pytest.MonkeyPatch, content_type: str, body: bytes, piece_bytes: int
) -> None:
    """No cut through a name, an escape, four characters of base64 or a boundary changes a byte."""
    monkeypatch.setattr(bodies, "PIECE_BYTES", piece_bytes)
    server = Server()
    status, _ = server.post(content_type, body[:100], body[100:])
    assert (status, server.bytes) == (200, [ALL_BYTES])


@pytest.mark.parametrize("piece_bytes", [1, 4, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        *["A", "AAA", "AA=A", "====", "AA==AAAA", "AA==AA==", "AAAA AAAA", "AA\u00e4A", "AA-_"],
        *[r"AAAA\nAAAA", r"\u0041AAA", r"\\/AAA", r"AAA\""],
        *[
            r"AAA\\u002B",
            r"\\u002FAAA",
            r"AAA\u002",
            r"AAA\u002\u002BB",
            r"AAA\u002C",
            r"AAA\U002B",
            r"AA\u003D",
        ],
    ],
)
def test_what_is_not_base64_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, piece_bytes: int) -> None:
    """Strictly, as before bodies were streamed: another file than the one sent is worse than none."""
    monkeypatch.setattr(bodies, "PIECE_BYTES", piece_bytes)
    server = Server()
    status, answer = server.post(JSON, f'{{"audio_b64": "{text}"}}'.encode())
    assert (status, answer["error"]["param"]) == (400, "audio_b64")
    assert "not valid base64" in answer["error"]["message"]
    assert server.sources == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"audio_b64": "AAAA", "audio_b64": "AAAA"}', "audio_b64"),
        (b'{"audio_file": "http://a/1", "audio_file": "http://a/2"}', "audio_file"),
        (b'{"headers": {"audio_b64": "AAAA"}, "audio_b64": "AAAA"}', None),
        (b'{"headers": {"audio_b64": "AAAA"}, "audio_file": "http://a/"}', "audio_b64"),
        (rb'{"audio\u005fb64": "AAAA"}', "audio_b64"),
        (b'{"audio_b64": "AAAA"', None),
        (b'{"audio_b64": "AAAA', None),
        (b'{"audio_b64": "AAAA"} {}', None),
        (b'{"a,"audio_b64": "AAAA"}', None),
        (b'["audio_b64", "AAAA"]', None),
        (rb'{"audio_file": "\ud800"}', None),
        (rb'{"\ud800": 1}', None),
        (b'{"audio_file": "http://a/", "num_speakers": NaN}', None),
        (b'{"audio_file": "http://a/", "num_speakers": ' + b"9" * 5000 + b"}", None),
        (b'{"a":' * 20_000, None),
        ('{"audio_file": "http://a/"}'.encode("utf-16"), None),
        (b'{"audio_file": "http://a/\xff"}', None),
        (b"", None),
    ],
)
def test_json_that_could_be_read_in_two_ways_is_refused(body: bytes, param: str | None) -> None:
    """A name given twice, nested or disguised, and what is no JSON in UTF-8, is a 400."""
    server = Server()
    status, answer = server.post(JSON, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert server.sources == []


def test_a_byte_order_mark_is_no_part_of_the_json() -> None:
    """Some editors write one at the start of every file."""
    server = Server()
    assert server.post(JSON, b"\xef\xbb\xbf" + json_body(b"x"))[0] == 200
    assert server.bytes == [b"x"]


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        ("multipart/form-data", form(b"x"), "boundary"),
        ("multipart/form-data; boundary=", form(b"x"), "boundary"),
        ("multipart/form-data; boundary=" + "x" * 300, form(b"x"), "valid"),
        (FORM, b"x" + form(b"x"), "valid"),
        (FORM, START + b"x" * 5000, "valid"),
        (FORM, START[:-10], "valid"),
        (FORM, b"--x\r\n" + b"A: b\r\n" * 100 + START, "valid"),
        (FORM, b"--x\r\nA: " + b"b" * 10_000 + b"\r\n" + START, "valid"),
        (FORM, b"--x\r\nContent-Disposition: form-data\r\n\r\nx" + END, "name"),
        (FORM, b"--x\r\n\r\nx" + END, "name"),
        (FORM, b"--x--\r\n", "file part"),
        (FORM, START.replace(b' filename="a.wav"', b"") + b"x" + END, "file part"),
        (FORM, START.replace(b'"file"', b'"\xff"') + b"x" + END, "UTF-8"),
        (FORM, START + b"x\r\n" + form(b"x"), "once"),
        (
            FORM,
            b'--x\r\nContent-Disposition: form-data; name="language"\r\n\r\n\xff\r\n' + form(b"x"),
            "UTF-8",
        ),
    ],
)
def test_a_wrong_form_is_a_400(content_type: str, body: bytes, says: str) -> None:
    """In the shape of every error, and the pipeline sees nothing of it."""
    server = Server()
    status, answer = server.post(content_type, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert says in answer["error"]["message"]
    assert server.sources == []


@pytest.mark.parametrize("charset", ["undefined", "punycode", "utf-16"])
def test_no_client_chooses_a_codec(charset: str) -> None:
    """Some of Python's raise what no handler expects; a form is UTF-8 whatever its type says."""
    assert Server().post(f"{FORM}; charset={charset}", form(b"x"))[0] == 200


def test_the_limit_is_exact_for_the_file_in_every_kind_of_body() -> None:
    """The largest file passes as a form, as base64 and with every character escaped; a byte more is a 413."""
    server = Server()
    largest = b"\xff" * MAX_BYTES  # base64 of it is slashes only
    bodies_of: list[tuple[str, Callable[[bytes], bytes]]] = [
        (FORM, form),
        (JSON, json_body),
        *((JSON, partial(json_body, escaped=escaped)) for escaped in (BY_PHP, BY_NET)),
    ]
    for content_type, body in bodies_of:
        fits, too_large = body(largest), body(largest + b"\xff")
        assert server.post(content_type, fits, length=str(len(fits)))[0] == 200
        status, answer = server.post(content_type, too_large, length=str(len(too_large)))
        assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert server.bytes == [largest] * 4


@pytest.mark.parametrize(
    ("content_type", "start", "flood"),
    [
        (JSON, b"", b" "),
        (JSON, b'{"audio_b64": "AAAA", "language": "', b"e"),
        (FORM, b"", b"\n"),
        (FORM, b'--x\r\nContent-Disposition: form-data; name="language"\r\n\r\n', b"e"),
        (FORM, form(b"x"), b"."),
    ],
)
def test_what_is_not_the_file_has_a_limit_of_its_own(content_type: str, start: bytes, flood: bytes) -> None:
    """Spaces, a text field, or what stands before and behind a form: a 413 long before the file's limit."""
    server = Server()
    chunks = (flood * CHUNK_BYTES for _ in range(1000))
    status, answer = asyncio.run(server.send(content_type, [start, *chunks]))
    assert (status, answer["error"]["type"]) == (413, "invalid_request_error")
    assert server.chunks_sent * CHUNK_BYTES < MAX_BYTES


def voices(content_type: str, *references: str) -> bytes:
    """A body with these voices of known speakers beside the file."""
    names = [f"speaker {number}" for number, _ in enumerate(references)]
    if content_type == JSON:
        fields = {"known_speaker_names": names, "known_speaker_references": list(references)}
        return json.dumps({**fields, "audio_b64": "AAAA"}).replace("/", r"\/").encode()  # as PHP writes it
    fields = {"known_speaker_names[]": names, "known_speaker_references[]": list(references)}
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, values in fields.items()
        for value in values
    ]
    return "".join(parts).encode() + form(b"x")


@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_voices_of_known_speakers_have_a_larger_limit(content_type: str) -> None:
    """Four of 2 MiB pass whole, whatever the cuts; with a byte more they are a 413 that names them."""
    server = Server()
    head = "data:audio/wav;base64,"
    voice = (head + "A" * (2 << 20))[: REFERENCES_BYTES // 4]
    escapes = 3 if content_type == JSON else 0  # the slash is written with a backslash
    for longer, expected in ((0, 200), (1, 413)):
        last = voice[: len(voice) - (4 if escapes else 0)] + "A" * longer
        body = voices(content_type, voice, voice, voice, last)
        for size in (len(body), 100_003):
            pieces = [body[start : start + size] for start in range(0, len(body), size)]
            status, answer = server.post(content_type, *pieces, length=str(len(body)))
            assert status == expected, answer
            if status == 413:
                assert answer["error"]["param"] == "known_speaker_references"
    assert [len(voice) for voice in server.options[0].known_speaker_references] == [len(voice)] * 3 + [
        len(voice) - (4 if escapes else 0)
    ]


@pytest.mark.parametrize("piece_bytes", [10_007, 65_536, 1 << 20])
@pytest.mark.parametrize("escapes", [BY_PHP, BY_NET])
def test_voices_keep_their_limit_however_they_are_escaped(
    monkeypatch: pytest.MonkeyPatch, escapes: dict[bytes, bytes], piece_bytes: int
) -> None:
    """Wherever the body is cut, also in the middle of an escape."""
    monkeypatch.setattr(bodies, "PIECE_BYTES", piece_bytes)
    voice = "data:audio/wav;base64," + base64.b64encode(ALL_BYTES * 500).decode()
    fields = {"known_speaker_names": ["a"], "known_speaker_references": [voice], "audio_b64": "AAAA"}
    body = json.dumps(fields).encode()
    for character, escape in escapes.items():
        body = body.replace(character, escape)
    server = Server()
    status, answer = server.post(JSON, body)
    assert status == 200, answer
    assert server.options[0].known_speaker_references == (voice,)


@pytest.mark.parametrize(
    "array",
    [
        b'["data:", ' + b"{}," * 200_000,
        b'["\\"", ' + b'{"a":"' * 100_000,
        b"[" + b'"",' * 200_000,
        b"[" + b"1," * 300_000,
    ],
)
def test_only_strings_may_be_large(array: bytes) -> None:
    """What takes more memory parsed than as text has the limit of everything else."""
    server = Server()
    status, answer = server.post(JSON, b'{"audio_b64": "AAAA", "known_speaker_references": ' + array)
    assert (status, answer["error"]["param"]) == (413, None)
    assert "262144" in answer["error"]["message"]


@pytest.mark.parametrize("length", [str(MAX_BYTES * 9 + BESIDE_BYTES), "9" * 5000])
@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_a_body_that_declares_too_much_is_not_read(content_type: str, length: str) -> None:
    """413 without asking for a byte of it."""
    server = Server()
    assert server.post(content_type, b"x", length=length)[0] == 413
    assert server.chunks_sent == 0


@pytest.mark.parametrize(("content_type", "body"), [(JSON, json_body), (FORM, form)])
def test_a_length_that_lies_is_not_believed(content_type: str, body: Any) -> None:
    """Declared small and sent too large is a 413 all the same."""
    server = Server()
    too_large = body(b"x" * (MAX_BYTES + 1))
    chunks = [too_large[start : start + CHUNK_BYTES] for start in range(0, len(too_large), CHUNK_BYTES)]
    assert server.post(content_type, *chunks, length="10")[0] == 413
    assert server.sources == []


@pytest.mark.parametrize(("content_type", "body"), [(JSON, json_body), (FORM, form)])
def test_a_client_that_leaves_leaves_nothing_open(
    content_type: str, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """In the middle of its upload; the operator's log does not call it a failure of the server."""
    server = Server()
    server.post(content_type, body(b"x"))  # what opens once stays open: the event loop, its threads

    async def leave() -> int:
        before = open_descriptors()
        half = body(b"x" * (2 << 20))[: 3 << 19]
        await server.send(content_type, [half], length=str(2 << 20), then="leaves")
        return open_descriptors() - before

    assert asyncio.run(leave()) == 0
    assert len(server.sources) == 1
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize(("content_type", "body"), [(JSON, json_body), (FORM, form)])
def test_a_cancelled_upload_leaves_nothing_open(content_type: str, body: Any) -> None:
    """Ray Serve cancels the request of a client that has left."""
    server = Server()

    async def cancel() -> int:
        await server.send(content_type, [body(b"x")])
        before = open_descriptors()
        half = body(b"x" * (2 << 20))[: 3 << 19]
        running = asyncio.create_task(server.send(content_type, [half], then="waits"))
        await server.waiting.wait()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert running.cancelled()
        return open_descriptors() - before

    assert asyncio.run(cancel()) == 0


@pytest.mark.parametrize("error", [None, RuntimeError("a bug")])
@pytest.mark.parametrize(("content_type", "body"), [(JSON, json_body), (FORM, form)])
def test_the_file_is_closed_after_the_answer(content_type: str, body: Any, error: Exception | None) -> None:
    """And after a failure of the pipeline."""
    server = Server(error)

    async def ask() -> None:
        try:
            await server.send(content_type, [body(b"x")])
        except RuntimeError:
            assert error is not None

    asyncio.run(ask())
    assert [source.file.closed for source in server.sources if source.file] == [True]


def test_a_url_holds_no_file_open() -> None:
    """A request for a URL may run for an hour; it keeps no descriptor from others."""
    server = Server()

    async def ask() -> int:
        url = b'{"audio_file": "https://example.com/"}'
        await server.send(JSON, [url])
        before = open_descriptors()
        await server.send(JSON, [url])
        return server.descriptors - before

    assert asyncio.run(ask()) == 0


@pytest.mark.parametrize(("content_type", "body"), [(JSON, json_body), (FORM, form)])
@pytest.mark.parametrize("size", [10, 2 << 20])
def test_a_full_disk_is_a_503(
    monkeypatch: pytest.MonkeyPatch, content_type: str, body: Any, size: int
) -> None:
    """The client may come again; it is told so and nothing is transcribed."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b"))  # noqa: SIM115
    server = Server()
    status, answer = server.post(content_type, body(b"x" * size))
    assert (status, answer["error"]["code"]) == (503, "overloaded")
    assert server.sources == []


class Disk(io.BytesIO):
    """A file that counts what has been written to it."""

    written = 0

    def write(self, data: Any) -> int:
        self.written += len(data)
        return super().write(data)


def test_the_client_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a piece is taken from the client before it is written."""
    disk = Disk()
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: disk)
    ahead: list[int] = []

    def chunks() -> Iterator[bytes]:
        yield START
        for sent in range(0, MAX_BYTES, CHUNK_BYTES):
            ahead.append(sent - disk.written)
            yield bytes(CHUNK_BYTES)
        yield END

    assert asyncio.run(Server().send(FORM, chunks()))[0] == 200
    assert max(ahead) <= bodies.PIECE_BYTES + CHUNK_BYTES


@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_a_large_file_is_never_in_memory(content_type: str) -> None:
    """48 MB go through in less than 8 MB of memory, as base64 and as a form."""
    chunk = b"\xff" * (3 << 14)
    head, tail = (START, END) if content_type == FORM else (b'{"audio_b64": "', b'"}')
    text = chunk if content_type == FORM else base64.b64encode(chunk)
    sizes = []

    async def size(source: Source, options: Options, report: object = None) -> Transcript:
        assert source.file is not None
        sizes.append(source.file.seek(0, 2))
        return Transcript((), "en", 1.0, "fake")

    server = Server()
    server.app = create_app(size, server.readiness, model="none", max_bytes=len(chunk) * 1000)
    server.post(content_type, head, text, tail)
    tracemalloc.start()
    try:
        status, _ = asyncio.run(
            server.send(content_type, (part for parts in ([head], [text] * 1000, [tail]) for part in parts))
        )
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (status, sizes[1:]) == (200, [len(chunk) * 1000])
    assert peak_bytes < 8 << 20


UPLOAD = """
import asyncio, sys
sys.path[:0] = ["tests", "tests/http"]
from test_uploads import *

async def main():
    server, half = Server(), {body}(bytes(2 << 20))[:3 << 19]
    upload = asyncio.create_task(server.send({content_type!r}, [half], then="waits"))
    await server.waiting.wait()
    print("waiting", flush=True)
    await upload

asyncio.run(main())
"""


@pytest.mark.parametrize(("content_type", "body"), [(JSON, "json_body"), (FORM, "form")])
def test_a_killed_server_leaves_no_file(tmp_path: Path, content_type: str, body: str) -> None:
    """Neither while an upload is written nor after SIGKILL is there a name in the temporary directory."""
    code = UPLOAD.format(content_type=content_type, body=body)
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdin=pipe, stdout=pipe
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "waiting\n"
        opened = [os.readlink(link) for link in Path(f"/proc/{child.pid}/fd").iterdir()]
        assert [name for name in opened if name.startswith(str(tmp_path))] != []  # it is there
        assert list(tmp_path.iterdir()) == []
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert list(tmp_path.iterdir()) == []
