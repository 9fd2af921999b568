"""What clients of OpenAI's API may send besides tests/recorded, and what they read of the answers.

Each docstring names the client, its file and the commit that was read. The `openai` package runs itself.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fakes import data_url, recording
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types.audio import Transcription, TranscriptionDiarized, TranscriptionVerbose
from openai_api import TEXT, TRANSCRIBE, Server

from serve_app.settings.access import AccessSettings, ApiKey

KEY = "wx_of-acme"
BEARER = {"Authorization": f"Bearer {KEY}"}
AZURE = "/openai/deployments/{}/audio/transcriptions?api-version=2025-04-01-preview"
CLIP = data_url(recording(1, 1).tobytes())


def guarded(*spoken: int, **settings: Any) -> Server:
    """A server with one API key."""
    key = ApiKey(name="acme", sha256=hashlib.sha256(KEY.encode()).hexdigest())
    return Server(*spoken, access=AccessSettings(keys=(key,)), **settings)


def send(
    server: Server,
    path: str,
    headers: dict[str, str],
    *parts: tuple[str, str],
    filename: str = "audio.wav",
) -> Any:
    """Sends a form of these parts and the file, and returns the JSON of the answer, which is a 200."""
    file = ("file", (filename, server.file[1], "audio/wav"))
    fields = [(name, (None, value)) for name, value in parts]
    ordered: Sequence[Any] = [file, *fields]
    response = server.request("POST", path, headers=headers, files=ordered)
    assert response.status_code == 200, response.text
    return response.json()


class InProcess(httpx.BaseTransport):
    """Carries the requests of a synchronous client to an application in this process."""

    def __init__(self, server: Server) -> None:
        self.transport = httpx.ASGITransport(server.app)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def answer() -> httpx.Response:
            whole = httpx.Request(
                request.method, request.url, headers=request.headers, content=request.read()
            )
            response = await self.transport.handle_async_request(whole)
            body = await response.aread()
            return httpx.Response(response.status_code, headers=response.headers, content=body)

        return asyncio.run(answer())


def openai_client(server: Server) -> OpenAI:
    http: Any = httpx.Client(transport=InProcess(server))
    return OpenAI(base_url="http://127.0.0.1/v1", api_key=KEY, http_client=http, max_retries=0)


def azure_client(server: Server, azure_deployment: str | None = None) -> AzureOpenAI:
    http: Any = httpx.Client(transport=InProcess(server))
    return AzureOpenAI(
        azure_endpoint="http://127.0.0.1",
        azure_deployment=azure_deployment,
        api_version="2024-10-21",
        api_key=KEY,
        http_client=http,
        max_retries=0,
    )


def test_open_webui() -> None:
    """Open WebUI: backend/open_webui/routers/audio.py, 6adde203; its administrator chooses the model."""
    headers = {**BEARER, "X-OpenWebUI-User-Name": "Ada", "X-OpenWebUI-User-Id": "1", "Accept": "*/*"}
    server = guarded()
    assert send(server, TRANSCRIBE, headers, ("model", "whisper-1"))["text"] == TEXT
    assert send(server, TRANSCRIBE, headers, ("model", "gpt-4o-transcribe"), ("language", "de"))["text"]
    assert [options.language for options in server.asked] == [None, "de"]


def test_obsidian_whisper() -> None:
    """Obsidian's plugin Whisper: src/AudioHandler.ts, 0b8c760f; its user types model and language."""
    server = guarded()
    for language in ("en", "auto", ""):
        parts = (("model", "gpt-4o-mini-transcribe"), ("language", language), ("prompt", "Names: Ada."))
        assert send(server, TRANSCRIBE, BEARER, *parts, filename="note.webm")["text"] == TEXT
    assert [options.language for options in server.asked] == ["en", None, None]
    assert server.asked[0].initial_prompt == "Names: Ada."


@pytest.mark.parametrize(("language", "code"), [("en", "en"), ("de-CH", "de"), ("nb", "no")])
def test_home_assistant(language: str, code: str) -> None:
    """Home Assistant's OpenAI STT: einToast/openai_stt_ha, openai_stt/http_client.py, b44e07a4.

    It sends an empty prompt, and the languages of Home Assistant; of errors it reads `error.message`.
    """
    server = guarded()
    parts = (
        ("model", "gpt-4o-mini-transcribe"),
        ("language", language),
        ("prompt", ""),
        ("temperature", "0"),
        ("response_format", "json"),
    )
    assert send(server, TRANSCRIBE, BEARER, *parts, filename="whisper_audio.wav")["text"].strip() == TEXT
    assert server.asked[0].language == code
    refused = server.request("POST", TRANSCRIBE, files={"file": b"x"}, data={"model": "whisper-1"})
    assert refused.json()["error"]["message"]


def test_speakr() -> None:
    """Speakr: src/services/transcription/connectors/openai_transcribe.py, 085dcba5, by the `openai` package.

    It offers models with `transcribe` or `whisper` in their names only.
    """
    server = guarded()
    client = openai_client(server)
    shown = [model.id for model in client.models.list().data if "transcribe" in model.id.lower()]
    assert {"gpt-4o-transcribe", "gpt-4o-mini-transcribe-2025-12-15", "gpt-4o-transcribe-diarize"} <= {*shown}
    create: Any = client.audio.transcriptions.create
    asked = {"model": "gpt-4o-transcribe-diarize", "file": server.file, "chunking_strategy": "auto"}
    known = {"known_speaker_names": ["Ada"], "known_speaker_references": [CLIP]}
    answer = create(**asked, response_format="diarized_json", language="en", extra_body=known)
    assert isinstance(answer, TranscriptionDiarized)
    assert [(segment.speaker, segment.text, segment.start) for segment in answer.segments] == [
        ("Ada", "word1", 0.0),
        ("A", "word2", 1.0),
        ("Ada", "word3", 3.0),
    ]
    assert create(**asked).text == TEXT  # its user wants no speakers: json, and none are looked for
    assert server.fakes.calls["diarize"] == 1
    assert create(model="gpt-4o-transcribe", file=server.file, prompt="Ada. Bob").text == TEXT


def test_speakr_at_azure() -> None:
    """Speakr: connectors/azure_openai_transcribe.py, 46f6b325; a form without a model, numbered lists."""
    server = guarded()
    headers = {"api-key": KEY, "User-Agent": "Speakr/1.0"}
    answer = send(
        server,
        AZURE.format("gpt-4o-transcribe"),
        headers,
        ("response_format", "verbose_json"),
        ("prompt", "A"),
    )
    assert (answer["text"], answer["segments"][0]["end"], answer["language"]) == (TEXT, 1.0, "english")
    parts = (
        ("chunking_strategy", "auto"),
        ("response_format", "diarized_json"),
        ("known_speaker_names[0]", "Ada"),
        ("known_speaker_references[0]", CLIP),
    )
    diarized = send(server, AZURE.format("gpt-4o-transcribe-diarize"), headers, *parts)
    assert [segment["speaker"] for segment in diarized["segments"]] == ["Ada", "A", "Ada"]


def test_the_package_as_openais_new_guide_has_it() -> None:
    """gpt-transcribe with `languages` and `keywords`; the answer tells the languages found."""
    server = Server(1, 2, 3)
    server.fakes.languages = {0.0: "fr", 1.0: "de", 2.0: "de"}
    answer = openai_client(server).audio.transcriptions.create(
        file=server.file, model="gpt-transcribe", languages=["de", "en"], keywords=["Ada", "Bob"]
    )
    assert isinstance(answer, Transcription)
    assert answer.languages
    assert [language.code for language in answer.languages] == ["de"]
    assert (server.asked[0].languages, server.asked[0].hotwords) == (("de", "en"), "Ada, Bob")


def test_the_package_reads_log_probabilities() -> None:
    """With `include`, streamed or not: the tokens together are the text, and their bytes are its."""
    server = Server(1, 2)
    create: Any = openai_client(server).audio.transcriptions.create
    asked = {"file": server.file, "model": "gpt-4o-transcribe", "include": ["logprobs"]}
    whole = create(**asked).logprobs
    events = list(create(**asked, stream=True))
    for logprobs in (whole, events[-1].logprobs):
        assert "".join(each.token for each in logprobs) == " word1 word2"
        assert bytes(int(byte) for each in logprobs for byte in each.bytes) == b" word1 word2"
        assert [round(each.logprob, 2) for each in logprobs[:3]] == [0.0, -0.69, -1.1]
    assert create(file=server.file, model="gpt-4o-transcribe").logprobs is None


def test_the_package_asynchronously() -> None:
    """AsyncOpenAI, several requests at once."""
    server = guarded()

    async def run() -> list[TranscriptionVerbose]:
        http: Any = httpx.AsyncClient(transport=httpx.ASGITransport(server.app))
        async with AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key=KEY, http_client=http) as client:
            create: Any = client.audio.transcriptions.create
            words = {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
            asked = [create(file=server.file, model="whisper-1", **words) for _ in range(3)]
            return list(await asyncio.gather(*asked))

    for answer in asyncio.run(run()):
        assert answer.words
        assert [word.word for word in answer.words] == TEXT.split()


def test_the_package_at_azure() -> None:
    """AzureOpenAI sends `api-key`, `api-version` and a form with the model, which its path repeats."""
    server = guarded()
    azure = azure_client(server)
    assert azure.audio.transcriptions.create(file=server.file, model="gpt-4o-transcribe").text == TEXT
    fixed = azure_client(server, azure_deployment="whisper")
    assert fixed.audio.transcriptions.create(file=server.file, model="whisper-1").text == TEXT
    spoken = fixed.audio.transcriptions.create(file=server.file, model="whisper", response_format="srt")
    assert "word1" in str(spoken)
    with pytest.raises(NotFoundError, match="my-deployment"):
        azure.audio.transcriptions.create(file=server.file, model="my-deployment")
    with pytest.raises(BadRequestError, match="path asks for whisper"):
        fixed.audio.transcriptions.create(file=server.file, model="gpt-4o-transcribe-diarize")


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # so the package calls translations
def test_the_package_at_azure_asynchronously() -> None:
    """AsyncAzureOpenAI, also for translations and as a stream."""
    server = guarded()

    async def run() -> None:
        http: Any = httpx.AsyncClient(transport=httpx.ASGITransport(server.app))
        version = "2025-04-01-preview"
        async with AsyncAzureOpenAI(
            azure_endpoint="http://127.0.0.1", api_version=version, api_key=KEY, http_client=http
        ) as client:
            whole = await client.audio.translations.create(file=server.file, model="whisper")
            assert whole.text == TEXT
            stream = await client.audio.transcriptions.create(file=server.file, model="whisper", stream=True)
            kinds = [event.type async for event in stream]
            assert kinds == ["transcript.text.delta"] * 3 + ["transcript.text.done"]

    asyncio.run(run())


def test_whisper_cpp() -> None:
    """whisper.cpp's own example (examples/server/README.md, 41e789ee), as Meetily and others send it."""
    parts = (("temperature", "0.0"), ("temperature_inc", "0.2"), ("response_format", "json"))
    server = Server()
    assert send(server, "/inference", {}, *parts)["text"] == TEXT
    assert (server.asked[0].temperature, server.asked[0].temperature_inc) == (0.0, 0.2)
    verbose = send(server, "/inference", {}, ("response_format", "verbose_json"), ("language", "auto"))
    assert (verbose["segments"][0]["start"], verbose["segments"][0]["text"]) == (0.0, "word1")
    others = (("translate", "true"), ("no_timestamps", "true"), ("prompt", "Ada"), ("language", "de"))
    assert send(server, "/inference", {}, *others)["text"] == TEXT
    asked = server.asked[-1]
    assert (asked.task, asked.initial_prompt, asked.language) == ("translate", "Ada", "de")
