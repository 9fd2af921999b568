"""Request bodies: cut into pieces, incomplete, too large, malformed; with a fake pipeline."""

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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app import spool
from serve_app.audio import Source
from serve_app.errors import InvalidRequest
from serve_app.http import uploads
from serve_app.http.app import create_app
from serve_app.http.forms import MAX_TEXT_BYTES, form_options
from serve_app.options import Options
from serve_app.transcript import Transcript

MAX_BYTES = 3 << 20
MAX_JSON_BYTES = 10 << 20
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
ALL_BYTES = bytes(range(256)) * 3  # its base64 has every character, and / many times


class Server:
    """The application with a pipeline that reads the whole file, and a client that speaks ASGI."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.sources: list[Source] = []
        self.options: list[Options] = []
        self.bytes: list[bytes] = []
        self.descriptors = 0  # open while the pipeline runs
        self.chunks_sent = 0
        self.headers: dict[str, str] = {}  # of the last answer
        self.waiting = asyncio.Event()  # the app has used all chunks and wants more
        self.app = create_app(
            self.transcribe,
            self.readiness,
            model="none",
            max_bytes=MAX_BYTES,
            max_json_bytes=MAX_JSON_BYTES,
        )

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
        self,
        content_type: str,
        chunks: Iterable[bytes],
        *,
        length: str = "",
        coding: str = "",
        then: str = "ends",
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
        if coding:
            headers.append((b"content-encoding", coding.encode()))
        await self.app({**SCOPE, "headers": headers}, receive, send)
        self.headers = {name.decode(): value.decode() for name, value in started["headers"]}
        return started["status"], json.loads(answer)

    def post(self, content_type: str, *chunks: bytes, **kwargs: Any) -> tuple[int, dict[str, Any]]:
        return asyncio.run(self.send(content_type, chunks, **kwargs))


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def json_body(file: bytes) -> bytes:
    return b'{"language": "en",\n "audio_b64" : "' + base64.b64encode(file) + b'", "task": "transcribe"}'


def form(file: bytes) -> bytes:
    return START + file + END


def pieces(body: bytes, piece_bytes: int) -> list[bytes]:
    return [body[start : start + piece_bytes] for start in range(0, len(body), piece_bytes)]


def part(head: str, content: bytes) -> bytes:
    return f"--x\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"


@pytest.mark.parametrize("piece_bytes", [1, 2, 3, 4, 5, 64, 1 << 20])
@pytest.mark.parametrize(
    ("content_type", "body"), [(JSON, json_body(ALL_BYTES)), (FORM, form(ALL_BYTES))], ids=["json", "form"]
)
def test_a_file_arrives_whole_wherever_the_body_is_cut(
    monkeypatch: pytest.MonkeyPatch, content_type: str, body: bytes, piece_bytes: int
) -> None:
    """A cut through a name, a group of base64 or a boundary changes no byte."""
    monkeypatch.setattr(uploads, "PIECE_BYTES", piece_bytes)
    server = Server()
    status, _ = server.post(content_type, *pieces(body, piece_bytes))
    assert (status, server.bytes) == (200, [ALL_BYTES])


TEXT = base64.b64encode(ALL_BYTES).decode()
UNPADDED = base64.b64encode(ALL_BYTES[:-1]).decode().rstrip("=")


@pytest.mark.parametrize("piece_chars", [1, 3, 4, 1 << 20])
@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("data:audio/wav;base64," + TEXT, ALL_BYTES),
        ("DATA:audio/webm;codecs=opus;base64," + TEXT, ALL_BYTES),
        ("data:audio/ogg; codecs=opus; base64, " + TEXT, ALL_BYTES),
        ("data:;base64," + UNPADDED, ALL_BYTES[:-1]),
        (base64.encodebytes(ALL_BYTES).decode(), ALL_BYTES),
        (TEXT.replace("A", "A\r\n \t"), ALL_BYTES),
        (" " + TEXT.replace("A", "A \n  "), ALL_BYTES),
        (base64.urlsafe_b64encode(ALL_BYTES).decode(), ALL_BYTES),
        (UNPADDED, ALL_BYTES[:-1]),
        (UNPADDED + "=\n", ALL_BYTES[:-1]),
        (TEXT.replace("/", "_"), ALL_BYTES),
    ],
)
def test_base64_is_read_as_people_send_it(
    monkeypatch: pytest.MonkeyPatch, text: str, file: bytes, piece_chars: int
) -> None:
    """It may be a data: URL, have lines, the URL-safe alphabet or no padding, or several of these."""
    monkeypatch.setattr(spool, "PIECE_CHARS", piece_chars)
    server = Server()
    assert server.post(JSON, json.dumps({"audio_b64": text}).encode())[0] == 200
    assert server.bytes == [file]


@pytest.mark.parametrize(
    ("character", "escape"),
    [("/", r"\/"), ("+", r"\u002B"), ("=", r"\u003d"), ("A", r"\u0041"), ("A", "A\n")],
)
def test_base64_is_read_as_json_libraries_and_shells_write_it(character: str, escape: str) -> None:
    """PHP escapes slashes, .NET plus signs; the output of the base64 command has line breaks."""
    server = Server()
    body = '{"audio_b64": "' + TEXT.replace(character, escape) + '"}'
    assert server.post(JSON, body.encode())[0] == 200
    assert server.bytes == [ALL_BYTES]


@pytest.mark.parametrize("piece_chars", [1, 4, 1 << 20])
@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AAAAA",
        "A===",
        "AA=A",
        "AA==AAAA",
        "AA==AA==",
        "AA\u00e4A",
        "AA*A",
        "AA\\A",
        "data:audio/wav,AAAA",
        "data:audio/wav;base64,AA%2F",
        TEXT.replace("+", " "),
        "data:audio/wav;base64," + TEXT.replace("+", " "),
    ],
)
def test_what_is_not_base64_is_refused(monkeypatch: pytest.MonkeyPatch, text: str, piece_chars: int) -> None:
    """A damaged file would be worse than an error."""
    monkeypatch.setattr(spool, "PIECE_CHARS", piece_chars)
    server = Server()
    status, answer = server.post(JSON, json.dumps({"audio_b64": text}).encode())
    assert (status, answer["error"]["param"]) == (400, "audio_b64")
    assert "not valid base64" in answer["error"]["message"]
    assert server.sources == []


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"audio_b64": "AAAA", "audio_b64": "AAAA"}', "audio_b64"),
        (b'{"audio_file": "http://a/1", "audio_file": "http://a/2"}', "audio_file"),
        (b'{"headers": {"a": "1", "a": "2"}, "audio_file": "http://a/"}', "a"),
        (b'{"audio_b64": "AAAA"', None),
        (b'{"audio_b64": "AAAA', None),
        (b'{"audio_b64": "AAAA"} {}', None),
        (b'{"a,"audio_b64": "AAAA"}', None),
        (b'["audio_b64", "AAAA"]', None),
        (rb'{"audio_file": "\ud800"}', None),
        (rb'{"\ud800": 1}', None),
        (rb'{"audio_file": "http://a/", "known_speaker_names": ["\ud800"]}', None),
        (b'{"audio_file": "http://a/", "num_speakers": NaN}', "num_speakers"),
        (b'{"audio_file": "http://a/", "num_speakers": ' + b"9" * 5000 + b"}", None),
        (b'{"a":' * 20_000, None),
        ('{"audio_file": "http://a/"}'.encode("utf-16"), None),
        (b'{"audio_file": "http://a/\xff"}', None),
        ('{"audio_file": "http://a/" \u00e4}'.encode(), None),
        (b"", None),
    ],
)
def test_json_that_could_be_read_in_two_ways_is_refused(body: bytes, param: str | None) -> None:
    """A name given twice is a 400, and so is what is not JSON in UTF-8."""
    server = Server()
    status, answer = server.post(JSON, body)
    assert (status, answer["error"]["param"]) == (400, param)
    assert server.sources == []


def test_json_is_utf_8() -> None:
    """A byte order mark and escapes make no difference."""
    server = Server()
    prompt = "Käthe, 中文, \N{GRINNING FACE}"
    body = {"audio_b64": "AAAA", "initial_prompt": prompt}
    for mark, ensure_ascii in ((b"", True), (b"\xef\xbb\xbf", False), (b"", False)):
        assert server.post(JSON, mark + json.dumps(body, ensure_ascii=ensure_ascii).encode())[0] == 200
    assert [options.initial_prompt for options in server.options] == [prompt] * 3


@pytest.mark.parametrize(
    "head",
    [
        'name="file"',
        "name=file",
        'name="file"; filename=""',
        "name=\"file\"; filename*=UTF-8''%c3%a4.wav",
        "filename*=UTF-8''a.wav; name=\"file\"",
        'name="file"; filename="a;\\".wav"',
        'name="file"\r\nContent-Transfer-Encoding: Binary\r\nContent-Type: audio/wav; charset=binary',
    ],
)
def test_the_part_named_file_is_the_file(head: str) -> None:
    """It needs no file name, and the file name may be written in any way."""
    server = Server()
    assert server.post(FORM, part(head, ALL_BYTES) + b"--x--\r\n")[0] == 200
    assert server.bytes == [ALL_BYTES]


@pytest.mark.parametrize("piece_bytes", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    "preamble", [b"\r\n", b"This is a form.\r\n", b"--x- \r\n--xy\r\n\r\n", b"\xc4 in Latin-1\r\n"]
)
def test_a_preamble_is_skipped(monkeypatch: pytest.MonkeyPatch, preamble: bytes, piece_bytes: int) -> None:
    """Some libraries write a sentence before the first boundary, as in mail."""
    monkeypatch.setattr(uploads, "PIECE_BYTES", piece_bytes)
    server = Server()
    body = preamble + part('name="language"', b"de") + form(ALL_BYTES)
    assert server.post(FORM, *pieces(body, piece_bytes))[0] == 200
    assert (server.bytes, server.options[0].language) == ([ALL_BYTES], "de")


@pytest.mark.parametrize("epilogue", [b"", b"\r\n", b"\r\nThe end: \xc4.\r\n", b"\r\n" + form(b"another")])
def test_an_epilogue_is_skipped(epilogue: bytes) -> None:
    """As in mail, what comes after the last boundary is not part of the form."""
    server = Server()
    assert server.post(FORM, form(ALL_BYTES) + epilogue)[0] == 200
    assert server.bytes == [ALL_BYTES]


@pytest.mark.parametrize("boundary", ["x", '"x"', '"x"; charset=utf-8', "x;charset=utf-8"])
def test_a_boundary_may_be_quoted(boundary: str) -> None:
    """Other parameters may come after it, and names have no case."""
    server = Server()
    assert server.post(f"Multipart/Form-Data; Boundary={boundary}", form(ALL_BYTES))[0] == 200
    assert server.bytes == [ALL_BYTES]


@pytest.mark.parametrize(
    ("head", "text"),
    [
        ('name="initial_prompt"; filename="initial_prompt"', "Käthe".encode()),
        (
            'name="initial_prompt"; filename="blob"\r\nContent-Type: application/octet-stream',
            "Käthe".encode(),
        ),
        ('name="initial_prompt"\r\nContent-Type: text/plain; charset=UTF-8', "Käthe".encode()),
        ('name="initial_prompt"\r\nContent-Type: text/plain; charset=ISO-8859-1', "Käthe".encode("latin-1")),
        ('name="initial_prompt"\r\nContent-Type: text/plain; charset="utf-8"', "Käthe".encode()),
    ],
)
def test_an_option_is_text_however_its_part_is_described(head: str, text: bytes) -> None:
    """Python's requests and JavaScript's Blob send it with a file name, Java's HttpClient in Latin-1."""
    server = Server()
    assert server.post(FORM, part(head, text) + form(b"x"))[0] == 200
    assert server.options[0].initial_prompt == "Käthe"


VOICES = ("data:audio/wav;base64,AAAA", "data:audio/wav;base64,BBBB")


@pytest.mark.parametrize(
    "suffixes", [("[]", "[]"), ("", ""), ("[0]", "[1]")], ids=["brackets", "repeated", "numbered"]
)
def test_an_array_is_sent_in_any_of_the_usual_ways(suffixes: tuple[str, str]) -> None:
    """HTTP libraries send `name[]`, `name` repeated or `name[0]`."""
    names = [
        part(f'name="known_speaker_names{suffix}"', b"ab"[i : i + 1]) for i, suffix in enumerate(suffixes)
    ]
    voices = [
        part(f'name="known_speaker_references{suffix}"', VOICES[i].encode())
        for i, suffix in enumerate(suffixes)
    ]
    server = Server()
    assert server.post(FORM, *names, *voices, form(b"x"))[0] == 200
    (options,) = server.options
    assert (options.known_speaker_names, options.known_speaker_references) == (("a", "b"), VOICES)


@pytest.mark.parametrize("name", ["known_speaker_names[0", "known_speaker_names]"])
def test_a_name_that_is_no_array_is_an_unknown_option(name: str) -> None:
    """Half a bracket is a mistake, not a way to write an array."""
    with pytest.raises(InvalidRequest, match="unknown option"):
        form_options([(name, "Ada")])


@pytest.mark.parametrize("suffixes", [("[0]", "[2]"), ("[0]", "[0]"), ("[a]", "[b]")])
def test_an_array_with_gaps_is_refused(suffixes: tuple[str, str]) -> None:
    """Otherwise a speaker could get the name of another."""
    server = Server()
    names = [part(f'name="known_speaker_names{suffix}"', suffix.encode()) for suffix in suffixes]
    status, answer = server.post(FORM, *names, form(b"x"))
    assert (status, answer["error"]["param"]) == (400, "known_speaker_names")


@pytest.mark.parametrize(
    ("content_type", "body", "says"),
    [
        ("multipart/form-data", form(b"x"), "boundary"),
        ("multipart/form-data; boundary=", form(b"x"), "boundary"),
        ("multipart/form-data; boundary=" + "x" * 300, form(b"x"), "valid"),
        (FORM, b"x" + form(b"x"), "file part"),
        (FORM, b"no form at all", "valid"),
        (FORM, START + b"x" * 5000, "valid"),
        (FORM, START[:-10], "valid"),
        (FORM, b"--x\r\n" + b"A: b\r\n" * 100 + START, "valid"),
        (FORM, b"--x\r\nA: " + b"b" * 10_000 + b"\r\n" + START, "valid"),
        (FORM, b"--x\r\nContent-Disposition: form-data\r\n\r\nx" + END, "name"),
        (FORM, b"--x\r\n\r\nx" + END, "name"),
        (FORM, b"--x--\r\n", "file part"),
        (FORM, part('name="audio"; filename="a.wav"', b"x") + b"--x--\r\n", "file part"),
        (FORM, START.replace(b'"file"', b'"\xff"') + b"x" + END, "file part"),
        (FORM, part('name="audio"; filename="a.wav"', ALL_BYTES) + b"--x--\r\n", "audio: not text"),
        (FORM, part("name=\"audio\"; filename*=UTF-8''a.wav", ALL_BYTES) + b"--x--\r\n", "audio: not text"),
        (
            FORM,
            part('name="audio_file"', b"http://a/") + b"--x--\r\n",
            "this path also takes a URL in JSON, as audio_file",
        ),
        (FORM, part('name="options"; filename="blob"', b"{}") + form(b"x"), "options: unknown option"),
        (FORM, form(b"x").replace(b"\r\n", b"\n"), "CR LF"),
        (FORM, START.replace(b"; name", b";\r\n name") + b"x" + END, "valid"),
        (
            FORM,
            part('name="hotwords"\r\nContent-Type: text/plain; charset=utf-16', b"ab") + form(b"x"),
            "UTF-8",
        ),
        (FORM, part('name="file"\r\nContent-Transfer-Encoding: Base64', b"AAAA") + END, "Base64"),
        (
            FORM,
            part('name="hotwords"\r\nContent-Transfer-Encoding: base64', b"AAAA") + form(b"x"),
            "hotwords",
        ),
        (FORM, part('name="file"\r\nContent-Encoding: gzip', b"AAAA") + END, "gzip"),
        (FORM, START + b"x\r\n" + form(b"x"), "once"),
        (FORM, part('name="language"', b"\xff") + form(b"x"), "UTF-8"),
        (FORM, part('name="a"', b"") * 1001 + form(b"x"), "1000 fields"),
    ],
)
def test_a_wrong_form_is_a_400(content_type: str, body: bytes, says: str) -> None:
    """The error has the usual shape, and the pipeline is not called."""
    server = Server()
    status, answer = server.post(content_type, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert says in answer["error"]["message"]
    assert server.sources == []


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json; charset=UTF-8",
        'application/json;charset="utf-8"',
        "Application/JSON",
        "text/json",
        "application/vnd.api+json",
    ],
)
def test_json_has_many_names(content_type: str) -> None:
    """A page of another site cannot send any of these without asking the server first."""
    server = Server()
    assert server.post(content_type, json_body(ALL_BYTES))[0] == 200
    assert server.bytes == [ALL_BYTES]


@pytest.mark.parametrize(
    ("content_type", "says"),
    [
        ("", "say so in the header Content-Type"),
        ("application/x-www-form-urlencoded", "not as application/x-www-form-urlencoded"),
        ("text/plain", "not as text/plain"),
        ("audio/wav", "not as audio/wav"),
        ("multipart/mixed; boundary=x", "not as multipart/mixed"),
        ("application/json; charset=utf-16", "JSON is UTF-8"),
        ("application/json; charset=iso-8859-1", "JSON is UTF-8"),
    ],
)
def test_another_type_is_named(content_type: str, says: str) -> None:
    """`curl -d` sends the second one; a page of any site can send the second and the third."""
    server = Server()
    status, answer = server.post(content_type, b'{"audio_file": "http://a/"}')
    assert (status, server.sources) == (400, [])
    assert says in answer["error"]["message"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "GZIP", "identity, gzip", "base64"])
@pytest.mark.parametrize(("content_type", "body"), [(JSON, json_body(b"x")), (FORM, form(b"x"))])
def test_a_compressed_body_is_refused(content_type: str, body: bytes, coding: str) -> None:
    """The answer is a 415 that names the coding and, as RFC 7694 asks, says what is accepted."""
    server = Server()
    status, answer = server.post(content_type, body, coding=coding)
    assert (status, answer["error"]["code"]) == (415, "unsupported_content_encoding")
    assert coding in answer["error"]["message"]
    assert server.headers["accept-encoding"] == "identity"
    assert server.chunks_sent == 0


@pytest.mark.parametrize("coding", ["", "identity", "Identity", "UTF-8", "none"])
def test_a_body_that_is_not_compressed_may_say_so(coding: str) -> None:
    """The last two are no codings at all, and the bytes are plain."""
    server = Server()
    assert server.post(FORM, form(ALL_BYTES), coding=coding)[0] == 200
    assert server.bytes == [ALL_BYTES]


@pytest.mark.parametrize("charset", ["undefined", "punycode", "utf-16"])
def test_no_client_chooses_a_codec(charset: str) -> None:
    """A form is UTF-8 whatever its type says, because some of Python's codecs raise unexpected errors."""
    assert Server().post(f"{FORM}; charset={charset}", form(b"x"))[0] == 200


def test_the_limit_is_exact_for_the_file_in_every_kind_of_body() -> None:
    """The largest file passes as a form and as base64; a byte more is a 413."""
    server = Server()
    largest = b"\xff" * MAX_BYTES
    for content_type, body in ((FORM, form), (JSON, json_body)):
        fits, too_large = body(largest), body(largest + b"\xff")
        assert server.post(content_type, fits, length=str(len(fits)))[0] == 200
        status, answer = server.post(content_type, too_large, length=str(len(too_large)))
        assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert server.bytes == [largest] * 2


def test_a_json_body_has_a_limit_of_its_own() -> None:
    """The largest one passes; a byte more is a 413 that says how to send larger files."""
    server = Server()
    spaces = b" " * (MAX_JSON_BYTES - len(json_body(b"x")))
    assert server.post(JSON, json_body(b"x"), spaces)[0] == 200
    status, answer = server.post(JSON, json_body(b"x"), spaces + b" ")
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert "as a form" in answer["error"]["message"]
    assert "URL" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("start", "flood"),
    [
        (b"", b"\n"),
        (b'--x\r\nContent-Disposition: form-data; name="language"\r\n\r\n', b"e"),
        (form(b"x"), b"."),
    ],
    ids=["preamble", "text field", "epilogue"],
)
def test_what_is_not_the_file_has_a_limit_of_its_own(start: bytes, flood: bytes) -> None:
    """Text fields, and text before and after the form, are a 413 before the whole body has arrived."""
    server = Server()
    chunks = (flood * CHUNK_BYTES for _ in range(1000))
    status, answer = asyncio.run(server.send(FORM, [start, *chunks]))
    assert (status, answer["error"]["type"]) == (413, "invalid_request_error")
    assert server.chunks_sent * CHUNK_BYTES < MAX_TEXT_BYTES + (1 << 20)


@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_voices_of_known_speakers_may_be_large(content_type: str) -> None:
    """Four recordings of nearly 2 MiB arrive whole."""
    voice = "data:audio/wav;base64," + "A" * ((2 << 20) - 8192)
    fields = {"known_speaker_names": [*"abcd"], "known_speaker_references": [voice] * 4}
    parts = [part(f'name="{name}[]"', value.encode()) for name in fields for value in fields[name]]
    body = b"".join(parts) + form(b"x")
    if content_type == JSON:
        body = json.dumps({**fields, "audio_b64": "AAAA"}).encode()
    server = Server()
    status, answer = server.post(content_type, body)
    assert status == 200, answer
    assert server.options[0].known_speaker_references == (voice,) * 4


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[],[]," * 400_000,
        b'{"audio_b64": ' + b'{"a":' * 400_000,
        b"[" + b"1," * 400_000,
        b'{"audio_b64": "AAAA", "known_speaker_references": [' + b'"",' * 400_000,
        b'{"initial_prompt": "' + "\u00e9".encode() * 400_000,
    ],
)
def test_json_that_takes_more_memory_than_its_text_is_refused(body: bytes) -> None:
    """It is refused before it is parsed, because it could take thirty times the memory of its text."""
    server = Server()
    tracemalloc.start()
    try:
        status, answer = server.post(JSON, body)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert peak_bytes < 4 * len(body) + (1 << 20)


@pytest.mark.parametrize("name", ["initial_prompt", "a" * (7 << 20)])
def test_only_base64_may_be_long_in_json(name: str) -> None:
    """A long text or name is refused, and not repeated in the answer."""
    server = Server()
    fields = {"audio_file": "http://a/", name: "a" * (MAX_TEXT_BYTES - len(name))}
    status, answer = server.post(JSON, json.dumps(fields).encode())
    assert (status, answer["error"]["code"]) == (413, "payload_too_large")
    assert len(json.dumps(answer)) < 1000


@pytest.mark.parametrize("length", [str(MAX_JSON_BYTES + MAX_TEXT_BYTES + 1), "9" * 5000])
@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_a_body_that_declares_too_much_is_not_read(content_type: str, length: str) -> None:
    """The answer is a 413 without reading any of it."""
    server = Server()
    assert server.post(content_type, b"x", length=length)[0] == 413
    assert server.chunks_sent == 0


@pytest.mark.parametrize(("content_type", "body"), [(JSON, json_body), (FORM, form)])
def test_a_length_that_lies_is_not_believed(content_type: str, body: Any) -> None:
    """A body that is larger than declared is a 413 too."""
    server = Server()
    too_large = body(b"x" * (MAX_BYTES + 1))
    chunks = [too_large[start : start + CHUNK_BYTES] for start in range(0, len(too_large), CHUNK_BYTES)]
    assert server.post(content_type, *chunks, length="10")[0] == 413
    assert server.sources == []


@pytest.mark.parametrize(("content_type", "body"), [(JSON, json_body), (FORM, form)])
def test_a_client_that_leaves_leaves_nothing_open(
    content_type: str, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It leaves in the middle of its upload; the log does not call that a failure of the server."""
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
    """It is closed after a failure of the pipeline too."""
    server = Server(error)

    async def ask() -> None:
        try:
            await server.send(content_type, [body(b"x")])
        except RuntimeError:
            assert error is not None

    asyncio.run(ask())
    assert [source.file.closed for source in server.sources if source.file] == [True]


def test_a_url_holds_no_file_open() -> None:
    """Such a request may run for an hour and must not use up descriptors."""
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
    """The client is told to try again later, and nothing is transcribed."""
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b"))  # noqa: SIM115
    server = Server()
    status, answer = server.post(content_type, body(b"x" * size))
    assert (status, answer["error"]["code"]) == (503, "overloaded")
    assert server.sources == []


class Disk(io.BytesIO):
    """A file that counts the bytes written to it."""

    written = 0

    def write(self, data: Any) -> int:
        self.written += len(data)
        return super().write(data)


def test_the_client_waits_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most one piece is taken from the client before it is written."""
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
    assert max(ahead) <= uploads.PIECE_BYTES + CHUNK_BYTES


@pytest.mark.parametrize(("content_type", "most_bytes"), [(FORM, 8 << 20), (JSON, 3 * (64 << 20))])
def test_a_large_file_takes_little_memory(content_type: str, most_bytes: int) -> None:
    """48 MB take less than 8 MB as a form, and as base64 less than three times their text."""
    chunk = b"\xff" * (3 << 14)
    head, tail = (
        (START, END)
        if content_type == FORM
        else ('{"hotwords": "\N{GRINNING FACE}", "audio_b64": "'.encode(), b'"}')
    )
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
    assert peak_bytes < most_bytes


@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_a_slow_upload_takes_no_memory(content_type: str) -> None:
    """In both kinds of body, what has arrived so far is on disk."""
    server = Server()
    body = json_body if content_type == JSON else form

    async def held_bytes() -> int:
        await server.send(content_type, [body(b"x")])
        half = body(b"x" * (2 << 20))[: 3 << 19]
        before, _ = tracemalloc.get_traced_memory()
        pieces = (half[start : start + CHUNK_BYTES] for start in range(0, len(half), CHUNK_BYTES))
        running = asyncio.create_task(server.send(content_type, pieces, then="waits"))
        await server.waiting.wait()
        held, _ = tracemalloc.get_traced_memory()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        return held - before

    tracemalloc.start()
    try:
        assert asyncio.run(held_bytes()) < 1 << 20
    finally:
        tracemalloc.stop()


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
    """The temporary directory has no name in it, neither during an upload nor after SIGKILL."""
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
