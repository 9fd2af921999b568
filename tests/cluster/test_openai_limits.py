"""Keys, limits and deadlines as the unmodified `openai` package meets them, and what its retries do."""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from conftest import closed
from fakes import FakeAligner, FakeDiarizer, FakeRecognizer, FakeSpeechModel, recording
from openai import OpenAI
from openai_contract import check
from ray import serve
from sounds import wav

from serve_app.app import graph
from serve_app.settings import AccessSettings, ApiKey, Settings
from serve_app.stages.load import Loaders

URL = "http://127.0.0.1:18000/limited"
ONE_WINDOW = ("one.wav", wav(recording(7)))
MANY_WINDOWS = ("many.wav", wav(recording(*range(1, 21))))
REQUEST_S = 8.0  # less than a stream may be silent


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the recogniser ends no batch, or not the one with the number in it."""
    return tmp_path_factory.mktemp("limited") / "gate"


@pytest.fixture
def closed_device(device: Path) -> Iterator[Path]:
    """The gate, closed until the test opens it or ends."""
    with closed(device):
        yield device


@pytest.fixture(scope="module", autouse=True)
def limited(cluster: None, device: Path) -> Iterator[None]:
    """A graph that takes two requests at once, and one of the key `single`."""
    keys = tuple(
        ApiKey(name=name, sha256=hashlib.sha256(f"wx_{name}".encode()).hexdigest(), max_requests=most)
        for name, most in (("single", 1), ("other", None))
    )
    settings = Settings(
        model="fake",
        device="cpu",
        request_timeout_s=REQUEST_S,
        requests_in_flight=2,
        access=AccessSettings(keys=keys),
    )
    loaders = Loaders(FakeSpeechModel, partial(FakeRecognizer, device), FakeAligner, FakeDiarizer)
    serve.run(graph(settings, loaders, "cpu"), name="limited", route_prefix="/limited")
    wait_until(lambda: httpx.get(f"{URL}/readyz", timeout=60).status_code == 200)
    yield
    serve.delete("limited")


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s


def windows() -> int:
    """How many are at the recogniser."""
    transcriber: Any = serve.get_deployment_handle("Transcriber", "limited")
    counters = transcriber.counters.remote().result(timeout_s=60)
    return int(counters["queued"] + counters["running"])


def client(key: str, retries: int = 0, seen: Callable[[Any], None] = lambda _: None) -> OpenAI:
    """`seen` is told of every response, before the package acts on it."""
    http = openai.DefaultHttpx2Client(event_hooks={"response": [seen]})
    return OpenAI(base_url=f"{URL}/v1", api_key=f"wx_{key}", max_retries=retries, http_client=http)


def transcribe(key: str, **arguments: Any) -> Any:
    with client(key) as openai_client:
        untyped: Any = openai_client.audio.transcriptions
        return untyped.create(**{"file": ONE_WINDOW, "model": "whisper-1", "language": "en", **arguments})


def test_keys() -> None:
    """A wrong one is AuthenticationError, for models, too; a right one is Bearer, as the package sends it."""
    with client("nobody") as stranger:
        untyped: Any = stranger.audio.transcriptions
        for call in (stranger.models.list, partial(untyped.create, file=ONE_WINDOW, model="whisper-1")):
            with pytest.raises(openai.AuthenticationError) as raised:
                call()
            check("error", {"error": raised.value.body})
            assert raised.value.code == "invalid_api_key"
            assert raised.value.request_id
    assert transcribe("single").text == "word7"


@pytest.mark.parametrize(
    ("held", "asking", "error", "status"),
    [
        (["single"], "single", openai.RateLimitError, 429),
        (["other", "other"], "single", openai.InternalServerError, 503),
    ],
)
def test_a_refused_request_succeeds_when_it_is_tried_again(
    closed_device: Path, held: list[str], asking: str, error: type[openai.APIStatusError], status: int
) -> None:
    """The package's own retries, at the time that the server says; what was in the way ends meanwhile."""
    statuses: list[int] = []

    def seen(response: Any) -> None:
        statuses.append(response.status_code)
        assert ("retry-after" in response.headers) == (response.status_code != 200)
        closed_device.unlink(missing_ok=True)

    with ThreadPoolExecutor() as pool:
        running = [pool.submit(transcribe, key) for key in held]
        wait_until(lambda: windows() == len(held))
        with pytest.raises(error) as raised:
            transcribe(asking)
        check("error", {"error": raised.value.body})
        assert raised.value.status_code == status
        with client(asking, retries=2, seen=seen) as trying:
            answer = trying.audio.transcriptions.create(file=ONE_WINDOW, model="whisper-1", language="en")
        assert statuses == [status, 200]
        assert [answer.text, *(done.result().text for done in running)] == ["word7"] * (1 + len(held))


def test_a_stream_counts_for_its_key_as_long_as_it_runs(closed_device: Path) -> None:
    """The next request is refused while the stream is open, and no more when it has been left."""
    closed_device.write_text("20")
    with client("single") as streaming:
        stream = streaming.audio.transcriptions.create(
            file=MANY_WINDOWS, model="whisper-1", language="en", stream=True
        )
        with stream:
            assert next(stream).type == "transcript.text.delta"
            with pytest.raises(openai.RateLimitError):
                transcribe("single", stream=True)
    closed_device.unlink()
    with client("single", retries=2) as trying:
        assert trying.audio.transcriptions.create(file=ONE_WINDOW, model="whisper-1").text == "word7"


def test_the_deadline_ends_a_stream(closed_device: Path) -> None:
    """As a status before the first event; after it as an error in the stream, which the package raises."""
    with pytest.raises(openai.InternalServerError) as refused:
        list(transcribe("other", stream=True))
    assert (refused.value.status_code, refused.value.code) == (504, "deadline_exceeded")
    closed_device.write_text("20")
    with client("other") as streaming:
        stream = streaming.audio.transcriptions.create(
            file=MANY_WINDOWS, model="whisper-1", language="en", stream=True
        )
        assert next(stream).type == "transcript.text.delta"
        with pytest.raises(openai.APIError) as raised:
            list(stream)
    check("error", {"error": raised.value.body})
    assert raised.value.code == "deadline_exceeded"
    wait_until(lambda: windows() <= 4)  # only what is on the device
