"""Real clients against the graph behind Serve's proxy, with real decoding and fake models.

Requests that were recorded from their source (tests/recorded_clients.py), OpenAI's packages for Python and
for Node, and curl. Home Assistant's integrations and one of Speakr's connectors call the package; so does
their part here.
"""

import asyncio
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from clients import until
from conftest import HTTP_PORT, closed
from fakes import FakeAligner, FakeDiarizer, FakeRecognizer, FakeSpeechModel, data_url, recording
from openai import AsyncAzureOpenAI, AsyncOpenAI, AzureOpenAI, OpenAI
from openai_contract import check, check_event
from ray import serve
from ray.serve.handle import DeploymentHandle
from recorded_clients import ACCESS, KEY, RECORDED, Recorded, file_of, sent, wire, words_of
from sounds import wav

from serve_app.app import graph
from serve_app.models.loaders import Loaders
from serve_app.settings import Settings
from serve_app.settings.jobs import JobsSettings
from serve_app.settings.openai import SHIPPED

HOST = f"127.0.0.1:{HTTP_PORT}"
PREFIX = "/clients"  # of the service that has a key
URL = f"http://{HOST}{PREFIX}"
AT_ONCE = 4  # requests that it takes
TALK = ("talk.wav", file_of("wav"))
TEXT = words_of("wav")
NODE_SDK = Path(__file__).parents[1] / "node_sdk"
NO_NETWORK = re.compile(
    r"\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|EHOSTUNREACH|ETIMEDOUT|ERR_SOCKET_TIMEOUT)\b"
)
VERSION: dict[str, Any] = {"api_version": "2024-10-21"}


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, that service's recogniser ends no batch."""
    return tmp_path_factory.mktemp("clients") / "gate"


@pytest.fixture(scope="module")
def guarded(cluster: None, device: Path) -> Iterator[None]:
    """A service with a key, a trusted network, a web page that may ask, and room for few requests."""
    settings = Settings(
        model="fake",
        device="cpu",
        requests_in_flight=AT_ONCE,
        request_timeout_s=120,
        jobs=JobsSettings(store="off"),
        access=ACCESS,
    )
    loaders = Loaders(FakeSpeechModel, partial(FakeRecognizer, device), FakeAligner, FakeDiarizer)
    serve.run(graph(settings, loaders, "cpu"), name="clients", route_prefix=PREFIX)
    until(lambda: httpx.get(f"{URL}/readyz", timeout=60).status_code == 200)  # the proxy hears of it later
    yield
    serve.delete("clients")


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_a_recorded_request_is_answered(app: DeploymentHandle[object], recorded: Recorded) -> None:
    """By a service without keys, at the very path that the client asks for."""
    answer = sent(wire(recorded.name, file_of(recorded.audio), host=HOST), HTTP_PORT)
    assert recorded.read(answer) == (recorded.shows or words_of(recorded.audio))


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_a_recorded_request_is_answered_for_its_key(recorded: Recorded) -> None:
    """Behind a prefix; clients without a field for a key come from a trusted network."""
    request = wire(recorded.name, file_of(recorded.audio), host=HOST, prefix=PREFIX)
    assert recorded.read(sent(request, HTTP_PORT)) == (recorded.shows or words_of(recorded.audio))


@pytest.mark.usefixtures("guarded")
def test_a_wrong_key_is_told_to_a_client_that_asks_first() -> None:
    """Guzzle and curl ask before they send a large file; what the server says then is its answer."""
    request = wire("nextcloud_basic", file_of("over 1 MB"), host=HOST, prefix=PREFIX, key="wx_wrong")
    refused = sent(request, HTTP_PORT)
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.usefixtures("guarded")
def test_obsidian_may_ask() -> None:
    """Through Serve's proxy too: its window asks first whether it may send a key."""
    allowed = sent(wire("obsidian_whisper_preflight", host=HOST, prefix=PREFIX), HTTP_PORT)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "app://obsidian.md")


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("way", [(), ("-H", "Transfer-Encoding: chunked"), ("-u", f"anybody:{KEY}")])
def test_curl(way: tuple[str, ...], tmp_path: Path) -> None:
    """A file of over 1 MB, for which it asks first, also in chunks and with the key as a password."""
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    file = tmp_path / "long.wav"
    file.write_bytes(file_of("over 1 MB"))
    key = () if "-u" in way else ("-H", f"Authorization: Bearer {KEY}")
    form = ("-F", f"file=@{file}", "-F", "model=whisper-1", "-F", "response_format=text")
    command = ["curl", "-sS", "--http1.1", "--fail", *way, *key, *form, f"{URL}/v1/audio/transcriptions"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert told.split() == words_of("over 1 MB").split()


@pytest.mark.usefixtures("guarded")
def test_the_package_asynchronously() -> None:
    """AsyncOpenAI: several requests at once, words with times, a stream, and the calls of Home Assistant."""

    said = {kind: words_of(kind) for kind in ("wav", "ogg")}

    async def run() -> None:
        async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as client:
            create: Any = client.audio.transcriptions.create
            words = {"response_format": "verbose_json", "timestamp_granularities": ["word"]}
            many = [create(file=TALK, model="whisper-1", **words) for _ in range(AT_ONCE - 1)]
            for answer in await asyncio.gather(*many):
                assert [word.word for word in answer.words] == TEXT.split()
            events = [event async for event in await create(file=TALK, model="whisper-1", stream=True)]
            kinds = [check_event(event.to_dict()) for event in events]
            assert kinds == ["transcript.text.delta"] * 3 + ["transcript.text.done"]
            # home-assistant/core, components/openai_conversation/stt.py at 0c3b5f1f
            core = {"model": "gpt-4o-mini-transcribe", "response_format": "json", "prompt": "Ada"}
            for kind, words_said in said.items():
                spoken = await create(file=(f"a.{kind}", file_of(kind)), language="fil", **core)
                assert spoken.text == words_said
            # NickM-27/hass_local_openai_stt, custom_components/local_openai_stt/stt.py at 0a29560d
            file = ("audio.wav", file_of("wav"), "audio/wav")
            asked = {"model": "whisper-1", "response_format": "json", "temperature": 0.0, "language": "en"}
            assert (await create(file=file, **asked)).text == TEXT

    asyncio.run(run())


@pytest.mark.usefixtures("guarded")
def test_speakr_by_the_package() -> None:
    """murtaza-nasir/speakr, connectors/openai_transcribe.py at 085dcba5; its headers come with its client."""
    headers = {"HTTP-Referer": "https://github.com/murtaza-nasir/speakr", "X-Title": "Speakr"}
    with httpx.Client(headers=headers) as http:
        client = OpenAI(base_url=f"{URL}/v1", api_key=KEY, http_client=http, max_retries=0)  # type: ignore[arg-type]
        shown = [model.id for model in client.models.list() if "transcribe" in model.id]
        assert "gpt-4o-transcribe-diarize" in shown
        known = {
            "known_speaker_names": ["Ada"],
            "known_speaker_references": [data_url(wav(recording(1, 1)))],
        }
        create: Any = client.audio.transcriptions.create
        answer = create(
            model="gpt-4o-transcribe-diarize",
            file=TALK,
            chunking_strategy="auto",
            response_format="diarized_json",
            extra_body=known,
        )
        assert [segment.speaker for segment in answer.segments] == ["Ada", "A", "Ada"]


@pytest.mark.usefixtures("guarded")
@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # so the package calls translations
def test_the_package_at_azure() -> None:
    """AzureOpenAI and AsyncAzureOpenAI: header api-key, the deployment in the path, streams, translations."""
    with AzureOpenAI(azure_endpoint=URL, api_key=KEY, max_retries=0, **VERSION) as client:
        assert client.audio.transcriptions.create(file=TALK, model="gpt-4o-transcribe").text == TEXT
        assert client.audio.translations.create(file=TALK, model="whisper").text == TEXT
    fixed = AzureOpenAI(azure_endpoint=URL, azure_deployment="whisper", api_key=KEY, max_retries=0, **VERSION)
    with fixed as client:
        subtitles = client.audio.transcriptions.create(file=TALK, model="whisper", response_format="srt")
        assert "word1" in str(subtitles)
    with (
        AzureOpenAI(azure_endpoint=URL, api_key="wx_wrong", max_retries=0, **VERSION) as client,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        client.audio.transcriptions.create(file=TALK, model="whisper")
    assert refused.value.code == "invalid_api_key"

    async def run() -> None:
        there = AsyncAzureOpenAI(azure_endpoint=URL, api_key=KEY, max_retries=0, **VERSION)
        async with there as client:
            whole = await client.audio.transcriptions.create(file=TALK, model="whisper")
            assert whole.text == TEXT
            stream = await client.audio.transcriptions.create(file=TALK, model="whisper", stream=True)
            events = [event async for event in stream]
            assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == TEXT

    asyncio.run(run())


class NodeSdk:
    """OpenAI's package for Node, installed from the lock file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (shutil.which("npm") and shutil.which("node")):
            pytest.skip("npm is not installed, so OpenAI's package for Node cannot run")
        for name in ("package.json", "package-lock.json", "calls.mjs"):
            shutil.copy(NODE_SDK / name, folder)
        command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
        said = done.stderr.strip()[-300:]
        if done.returncode and NO_NETWORK.search(done.stderr):
            pytest.skip(f"there is no network to install OpenAI's package from: {said}")
        assert done.returncode == 0, f"npm could not install OpenAI's package: {said}"
        (folder / "talk.wav").write_bytes(file_of("wav"))

    def start(self, *calls: str) -> "subprocess.Popen[str]":
        command = ["node", "calls.mjs", URL, KEY, "talk.wav", *calls]
        return subprocess.Popen(command, cwd=self.folder, stdout=subprocess.PIPE, text=True)

    def call(self, name: str) -> Any:
        """What the package gives for the call of this name in calls.mjs."""
        with self.start(name) as process:
            told, _ = process.communicate(timeout=120)
        return json.loads(told)["answer"]


@pytest.fixture(scope="module")
def node(guarded: None, tmp_path_factory: pytest.TempPathFactory) -> NodeSdk:
    return NodeSdk(tmp_path_factory.mktemp("node"))


@pytest.mark.parametrize(
    ("call", "response_format"),
    [
        ("json", "json"),
        ("verbose_json", "verbose_json"),
        ("diarized_json", "diarized_json"),
        ("translation", "json"),
        ("azure", "json"),
        ("azure_deployment", "verbose_json"),
        ("azure_translation", "json"),
    ],
)
def test_the_package_for_node(node: NodeSdk, call: str, response_format: str) -> None:
    """It gives objects of OpenAI's shape, from OpenAI's paths and Azure's."""
    answer = node.call(call)
    check(response_format, answer)
    assert answer["text"] == TEXT
    if call == "verbose_json":
        assert [word["word"] for word in answer["words"]] == TEXT.split()


def test_the_package_for_node_gets_subtitles(node: NodeSdk) -> None:
    """As a string, which is not parsed."""
    assert node.call("srt").startswith("1\n00:00:00,000 --> 00:00:01,000\nword1\n\n2\n")


@pytest.mark.parametrize("call", ["stream", "azure_stream"])
def test_the_package_for_node_streams(node: NodeSdk, call: str) -> None:
    """Its iterator gives an event for each sentence, and the end."""
    events = node.call(call)
    assert [check_event(event) for event in events] == ["transcript.text.delta"] * 3 + [
        "transcript.text.done"
    ]
    assert "".join(event["delta"] for event in events[:-1]) == events[-1]["text"] == TEXT


def test_the_package_for_node_lists_models(node: NodeSdk) -> None:
    """All of them over its pages, and one by its name."""
    assert node.call("models") == ["fake", *SHIPPED]
    check("model", node.call("model"))


@pytest.mark.parametrize(
    ("call", "error", "status", "code", "param"),
    [
        ("wrong_key", "AuthenticationError", 401, "invalid_api_key", None),
        ("wrong_model", "NotFoundError", 404, "model_not_found", "model"),
        ("wrong_option", "BadRequestError", 400, "invalid_request", "language"),
    ],
)
def test_errors_are_classes_of_the_package_for_node(
    node: NodeSdk, call: str, error: str, status: int, code: str, param: str | None
) -> None:
    """By the status, with the fields of the body and the id of the request."""
    told = node.call(call)
    assert (told["class"], told["status"], told["code"], told["param"]) == (error, status, code, param)
    assert told["requestID"]


def test_the_package_for_node_waits_for_a_full_server(node: NodeSdk, device: Path) -> None:
    """It is told 503 with Retry-After, waits as long as that says, and asks again.

    What it read from a stream it cannot send again, so then it gives up at once.
    """

    def fill() -> int:
        form = {"file": file_of("wav")}
        headers = {"Authorization": f"Bearer {KEY}"}
        return httpx.post(f"{URL}/predict", files=form, headers=headers, timeout=120).status_code

    def is_full() -> bool:  # otherwise that is no form, which takes no place for long
        return httpx.post(f"{URL}/predict", headers={"X-Api-Key": KEY}, timeout=60).status_code == 503

    with closed(device), ThreadPoolExecutor(AT_ONCE) as pool:
        others = [pool.submit(fill) for _ in range(AT_ONCE)]
        until(is_full)
        with node.start("patient_with_a_stream", "patient") as process:
            assert process.stdout
            _, given_up, told = (json.loads(process.stdout.readline()) for _ in range(3))
            since_s = time.monotonic()
            device.unlink()
            answered = json.loads(process.stdout.readline())
        waited_s = time.monotonic() - since_s
        assert [other.result() for other in others] == [200] * AT_ONCE
    assert (given_up["answer"]["class"], given_up["answer"]["code"]) == ("InternalServerError", "overloaded")
    assert [status for status, *_ in given_up["tries"]] == [503]
    assert told == {"call": "told to wait"}
    assert answered["answer"]["text"] == TEXT
    (first, retry_after, _), second = answered["tries"]
    assert (first, second) == (503, [200, None, "1"])
    assert waited_s > 0.9 * float(retry_after)
