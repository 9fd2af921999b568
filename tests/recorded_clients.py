"""Requests as real clients send them, and how those clients read the answers.

Each file of tests/recorded is a request as it went over a socket: what the client's source calls was called
with the HTTP library that it uses (requests 2.34, httpx 0.28, axios 1.21 with form-data 4.0). Two are written
down by hand: Nextcloud's from the source of Guzzle (guzzle/psr7, MultipartStream.php of version 2, and
guzzle/guzzle, PrepareBodyMiddleware.php at 00d19da5), Obsidian's with the headers of Chromium. What stands in
braces is put in by a test.
"""

import asyncio
import base64
import hashlib
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
from fakes import data_url, recording
from sounds import encode, noise, wav

from benchmarks.decoding import decode_whole
from serve_app.audio import RawAudio
from serve_app.options import Options
from serve_app.settings.access import AccessSettings, ApiKey
from serve_app.transcript import SAMPLE_RATE_HZ

FOLDER = Path(__file__).parent / "recorded"
KEY = "wx_of-the-clients"
# Bazarr and others have no field for a key.
ACCESS = AccessSettings(
    keys=(ApiKey(name="clients", sha256=hashlib.sha256(KEY.encode()).hexdigest()),),
    trusted_networks=("127.0.0.1",),
    cors_origins=("app://obsidian.md",),
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TALK = recording(1, 2, 0, 3)
NOISE = noise(3.5, amplitude=0.3)  # what the codecs make of it differs, and is no silence

_FILES: dict[str, Callable[[], bytes]] = {
    "mp3": lambda: encode(NOISE, 16_000, ".mp3"),
    "webm": lambda: encode(NOISE, 16_000, ".webm", "-c:a", "libopus", "-f", "webm", "-live", "1"),
    "ogg": lambda: encode(NOISE, 16_000, ".ogg", "-c:a", "libopus"),
    "wav": lambda: wav(TALK),
    "s16le": lambda: TALK.astype("<i2").tobytes(),
    "over 1 MB": lambda: wav(recording(*range(1, 41))),
}


@cache
def file_of(kind: str) -> bytes:
    """A file as a client of this kind of `audio` sends it; ffmpeg makes the compressed ones."""
    return _FILES[kind]()


@cache
def words_of(kind: str) -> str:
    """What the fake models hear in that file: a word in each second that is no silence."""
    raw = RawAudio() if kind == "s16le" else None
    with tempfile.TemporaryFile() as on_disk:
        on_disk.write(file_of(kind))
        _, samples = asyncio.run(decode_whole(on_disk, max_audio_s=60, timeout_s=30, raw=raw))
    return " ".join(f"word{number}" for number in samples[::SAMPLE_RATE_HZ] if number)


@dataclass(frozen=True)
class Recorded:
    """One request of a client, in the file `name`.http."""

    name: str
    client: str
    source: str  # what was read: repository, file and commit
    audio: str
    asked: Options
    read: Callable[[httpx.Response], str]  # what the client shows of an answer; fails where it would fail
    shows: str | None = None  # that; None: the words of the file


@dataclass(frozen=True)
class Wire:
    """A request in bytes; `body` in the pieces that its client writes."""

    head: str
    body: tuple[bytes, ...]

    @property
    def is_chunked(self) -> bool:
        return "transfer-encoding: chunked" in self.head.lower()

    @property
    def is_expecting(self) -> bool:
        return "expect: 100-continue" in self.head.lower()

    def to_send(self) -> Iterator[bytes]:
        """The body as it goes over the connection."""
        for piece in self.body:
            yield b"%x\r\n%s\r\n" % (len(piece), piece) if self.is_chunked else piece
        if self.is_chunked:
            yield b"0\r\n\r\n"

    def request(self) -> httpx.Request:
        """The same for an application in this process."""
        line, *headers = self.head.splitlines()
        method, target, _ = line.split(" ")
        pairs = [(name, value) for name, _, value in (header.partition(": ") for header in headers)]

        async def pieces() -> Any:
            for piece in self.body:
                yield piece

        content: Any = pieces() if self.is_chunked else b"".join(self.body)
        return httpx.Request(method, f"http://127.0.0.1{target}", headers=pairs, content=content)


def wire(name: str, file: bytes = b"", *, host: str, prefix: str = "", key: str = KEY) -> Wire:
    """The recorded request with this file, to a service at `host` whose address ends with `prefix`."""
    head, _, body = (FOLDER / f"{name}.http").read_text().partition("\n\n")
    here = {
        "host": host,
        "key": key,
        "basic": base64.b64encode(f"nextcloud:{key}".encode()).decode(),
        "clip": data_url(wav(recording(1, 1))),
        "file_length": str(len(file)),
    }
    for placeholder, value in here.items():
        head, body = (text.replace(f"{{{placeholder}}}", value) for text in (head, body))
    before, _, after = body.replace("\n", "\r\n").encode().partition(b"{file}")
    pieces = tuple(piece for piece in (before, file, after) if piece)
    head = head.replace("{length}", str(sum(map(len, pieces)))).replace(" ", f" {prefix}", 1)
    return Wire(head.replace("\n", "\r\n"), pieces)


def sent(request: Wire, port: int) -> httpx.Response:
    """The answer of the service on this port of this machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(f"{request.head}\r\n\r\n".encode())
        is_wanted = True
        if request.is_expecting:
            first = connection.recv(len(CONTINUE), socket.MSG_PEEK | socket.MSG_WAITALL)
            is_wanted = first == CONTINUE and connection.recv(len(CONTINUE)) == first
        for piece in request.to_send() if is_wanted else ():
            connection.sendall(piece)
        with HTTPResponse(connection, method=request.head.partition(" ")[0]) as response:
            response.begin()
            body = response.read()
            # The body has been put together, so these say nothing about it any more.
            headers = [pair for pair in response.getheaders() if pair[0].lower() != "transfer-encoding"]
            return httpx.Response(response.status, headers=headers, content=body)


def _json(answer: httpx.Response) -> Any:
    """What any client of OpenAI's API does first."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    return answer.json()


def _text(answer: httpx.Response) -> str:
    return str(_json(answer)["text"])


def _librechat(answer: httpx.Response) -> str:
    """It fails where there is no text."""
    text = _text(answer).strip()
    assert text
    return text


def _nextcloud(answer: httpx.Response) -> str:
    """It books the end of the last segment on its user's quota."""
    assert round(float(_json(answer)["segments"][-1]["end"])) > 0
    return _text(answer)


def _n8n_http(answer: httpx.Response) -> str:
    """Its node takes JSON by the answer's type; a flow goes through the segments."""
    return " ".join(segment["text"] for segment in _json(answer)["model_output"])


def _speakr_azure(answer: httpx.Response) -> str:
    """Known speakers have their names, others letters; times are numbers."""
    segments = _json(answer)["segments"]
    assert {segment["speaker"] for segment in segments} <= {"Ada", "A"}
    assert all(0 <= segment["start"] < segment["end"] for segment in segments)
    return " ".join(segment["text"] for segment in segments)


def _speakr_asr(answer: httpx.Response) -> str:
    """It parses the answer as JSON whatever its type, and takes the text, the language and the speakers."""
    assert answer.status_code == 200
    told = answer.json()
    assert told["language"] == "en"
    assert all(segment["speaker"].startswith("SPEAKER_0") for segment in told["segments"])
    assert all(segment["start"] < segment["end"] for segment in told["segments"])
    return str(told["text"])


def _srt(answer: httpx.Response) -> str:
    """Bazarr keeps the bytes as the subtitles: numbered cues with times."""
    cues = [cue.split("\n") for cue in answer.content.decode().split("\n\n") if cue]
    assert [cue[0] for cue in cues] == [str(number) for number in range(1, len(cues) + 1)]
    assert all(re.fullmatch(r"\d\d:\d\d:\d\d,\d{3} --> \d\d:\d\d:\d\d,\d{3}", cue[1]) for cue in cues)
    return " ".join(cue[2] for cue in cues)


def _bazarr_language(answer: httpx.Response) -> str:
    """Code and name have to fit: it looks the language up by the first, else by the second."""
    told = answer.json()
    assert told["detected_language"] == "english"
    return str(told["language_code"])


def _lines(answer: httpx.Response) -> str:
    """Obsidian Transcription puts the text into the note."""
    assert answer.status_code == 200
    return answer.text.strip().replace("\n", " ")


_OPEN_WEBUI = "open-webui/open-webui, backend/open_webui/routers/audio.py at 6adde203"
_LIBRECHAT = "danny-avila/LibreChat, api/server/services/Files/Audio/STTService.js at 00b3bc32"
_N8N = "n8n-io/n8n, packages/@n8n/nodes-langchain/nodes/vendors/OpenAi/actions/audio/transcribe.operation.ts"
_N8N_HTTP = "n8n-io/n8n, packages/nodes-base/nodes/HttpRequest/V3/HttpRequestV3.node.ts at 00005e7e"
_WHISPER = "nikdanilov/whisper-obsidian-plugin, src/AudioHandler.ts at 0b8c760f, AudioRecorder.ts at 007de187"
_NEXTCLOUD = "nextcloud/integration_openai, lib/Service/OpenAiAPIService.php at 005c48b6"
_HOME_ASSISTANT = "einToast/openai_stt_ha, custom_components/openai_stt/http_client.py at b44e07a4"
_SPEAKR = "murtaza-nasir/speakr, src/services/transcription/connectors/"
_BAZARR = "morpheus65535/bazarr, custom_libs/subliminal_patch/providers/whisperai.py at 1029a812"
_BAZARR_NEWER = "LavX/bazarr, custom_libs/subliminal_patch/providers/whisperai.py at 9108ee0c"
_TRANSCRIPTION = "djmango/obsidian-transcription, src/transcribe.ts at 029afd37, src/utils.ts at 05d1afde"

_PLAIN = Options(diarize=False)
_ENGLISH = Options(language="en", diarize=False)
_SUBTITLES = Options(language="en", response_format="srt", diarize=False)
_MEETING = Options(
    language="en",
    diarize=True,
    min_speakers=1,
    max_speakers=4,
    initial_prompt="A meeting.",
    hotwords="Speakr, Ada",
)
_ADA = Options(
    language="en",
    diarize=True,
    known_speaker_names=("Ada",),
    known_speaker_references=(data_url(wav(recording(1, 1))),),
)

RECORDED = (
    Recorded("open_webui", "Open WebUI", _OPEN_WEBUI, "mp3", _ENGLISH, _text),
    # It streams the file, so that its library knows no length and sends the body in chunks.
    Recorded("librechat", "LibreChat", _LIBRECHAT, "webm", _ENGLISH, _librechat),
    Recorded("librechat_azure", "LibreChat, azureOpenAI", _LIBRECHAT, "webm", _ENGLISH, _librechat),
    Recorded(
        "n8n_openai",
        "n8n, node OpenAI",
        f"{_N8N} at 8890fe8d, transport/index.ts at a7dc6ec7",
        "mp3",
        Options(language="de", temperature=0.4, diarize=False),
        _text,
    ),
    Recorded(
        "n8n_http_request", "n8n, node HTTP Request", _N8N_HTTP, "mp3", Options(diarize=True), _n8n_http
    ),
    Recorded(
        "obsidian_whisper",
        "Obsidian, plugin Whisper",
        _WHISPER,
        "webm",
        Options(language="en", initial_prompt="Names: Ada.", diarize=False),
        _text,
    ),
    # Any file is sent under the name file.mp3. From 1 MB on, Guzzle asks first whether to send it.
    Recorded("nextcloud", "Nextcloud", _NEXTCLOUD, "webm", _PLAIN, _nextcloud),
    Recorded(
        "nextcloud_basic",
        "Nextcloud, Basic authentication",
        _NEXTCLOUD,
        "over 1 MB",
        Options(task="translate", diarize=False),
        _nextcloud,
    ),
    Recorded(
        "home_assistant_openai_stt",
        "Home Assistant, openai_stt",
        _HOME_ASSISTANT,
        "wav",
        Options(language="de", temperature=0, diarize=False),
        _text,
    ),
    Recorded(
        "speakr_azure",
        "Speakr, azure_openai_transcribe",
        f"{_SPEAKR}azure_openai_transcribe.py at 46f6b325",
        "mp3",
        _ADA,
        _speakr_azure,
    ),
    Recorded(
        "speakr_asr",
        "Speakr, asr_endpoint",
        f"{_SPEAKR}asr_endpoint.py at 085dcba5",
        "webm",
        _MEETING,
        _speakr_asr,
    ),
    Recorded("bazarr", "Bazarr", _BAZARR, "s16le", _SUBTITLES, _srt),
    # Versions that do not cut the slash off the address; SubGen has a route for them, too.
    Recorded("bazarr_slash", "Bazarr, older", _BAZARR, "s16le", _SUBTITLES, _srt),
    Recorded(
        "bazarr_video_name",
        "Bazarr, with the video's name",
        _BAZARR_NEWER,
        "s16le",
        Options(task="translate", language="de", response_format="srt", diarize=False),
        _srt,
    ),
    Recorded(
        "bazarr_detect_language", "Bazarr, language", _BAZARR, "s16le", _PLAIN, _bazarr_language, shows="en"
    ),
    Recorded(
        "obsidian_transcription",
        "Obsidian Transcription",
        _TRANSCRIPTION,
        "mp3",
        Options(language="en", response_format="text", diarize=False),
        _lines,
    ),
)
