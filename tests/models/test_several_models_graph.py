"""Two real models in one server: requests of both at once get the texts of each model alone."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from clients import until
from conftest import HTTP_PORT
from ray import serve
from sounds import wav

from serve_app.app import build
from serve_app.settings import Settings
from serve_app.transcript import SAMPLE_RATE_HZ, Samples

pytestmark = pytest.mark.slow  # it starts three graphs, one after the other

ROOT = f"http://127.0.0.1:{HTTP_PORT}"
NAMES = ("tiny.en", "base")
REPLICA = "ray::ServeReplica:"

Answer = tuple[str, str, list[str]]  # model, text, codes of warnings


@contextmanager
def running(name: str, jobs: Path | None = None, **args: Any) -> Iterator[str]:
    """The URL of a service on real models with attention's word times and without speakers."""
    settings = Settings.model_validate(
        {
            "device": "cpu",
            "alignment": {"method": "attention"},
            "diarization": {"model": "off"},
            "jobs": {"state_dir": str(jobs)} if jobs else {"store": "off"},
            **args,
        }
    )
    serve.run(build(settings), name=name, route_prefix=f"/{name}")
    url = f"{ROOT}/{name}"
    until(lambda: httpx.get(f"{url}/healthz", timeout=60).status_code == 200)  # the proxy knows the route
    try:
        yield url
    finally:
        serve.delete(name)


@pytest.fixture(scope="module")
def clips(sample: Samples) -> list[bytes]:
    """Four pieces of the telephone call."""
    return [wav(sample[start * SAMPLE_RATE_HZ : (start + 6) * SAMPLE_RATE_HZ]) for start in (6, 12, 18, 24)]


@pytest.fixture(scope="module")
def alone(cluster: None, tiny_en: Path, base: Path, clips: list[bytes]) -> dict[str, list[Answer]]:
    """What a service with each model alone answers, one request after the other."""
    answers: dict[str, list[Answer]] = {}
    for name in NAMES:
        with running("alone", model=name) as url:
            answers[name] = [post(url, clip) for clip in clips]
    return answers


@pytest.fixture(scope="module")
def both(alone: dict[str, list[Answer]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """tiny.en, with base beside it."""
    with running("both", tmp_path_factory.mktemp("jobs"), model="tiny.en", models={"base": None}) as url:
        yield url


def post(url: str, clip: bytes, **data: str) -> Answer:
    response = httpx.post(f"{url}/predict", files={"file": clip}, data=data, timeout=600)
    assert response.status_code == 200, response.text
    body = response.json()
    text = " ".join(segment["text"] for segment in body["model_output"])
    return body["model"], text, [warning["code"] for warning in body["warnings"]]


def memory_mib(application: str) -> dict[str, int]:
    """The resident memory of each Transcriber's process; Ray titles them."""
    found: dict[str, int] = {}
    for process in psutil.process_iter(["cmdline"]):
        title = " ".join(process.info["cmdline"] or ())
        if title.startswith(f"{REPLICA}{application}:Transcriber"):
            deployment = title.removeprefix(f"{REPLICA}{application}:").partition(".")[0]
            found[deployment.split()[0]] = process.memory_info().rss >> 20
    return found


def test_requests_of_both_models_at_once_have_the_texts_of_each_alone(
    both: str, alone: dict[str, list[Answer]], clips: list[bytes], figure: Callable[[str], None]
) -> None:
    """Eight requests, by turns for one model and the other; each model's process is one of its own."""
    asked = [(name, clip) for clip in clips for name in NAMES]
    with ThreadPoolExecutor(len(asked)) as clients:
        got = list(clients.map(lambda each: post(both, each[1], model=each[0]), asked))
    wanted = [alone[name][number] for number in range(len(clips)) for name in NAMES]
    assert got == wanted
    assert alone["tiny.en"] != [(NAMES[0], *rest) for _, *rest in alone["base"]], "the models differ"
    assert post(both, clips[0]) == alone["tiny.en"][0]
    memory = memory_mib("both")
    assert set(memory) == {"Transcriber", "Transcriber-base"}
    shown = ", ".join(f"{name} {mib} MiB" for name, mib in sorted(memory.items()))
    figure(f"two models in one server, resident memory after 8 requests at once: {shown}")


def test_languages_are_those_of_the_model_that_is_chosen(both: str, clips: list[bytes]) -> None:
    """tiny.en refuses German and translating, base beside it does both."""
    for options in ({"language": "de"}, {"task": "translate"}):
        answers = [
            httpx.post(
                f"{both}/predict",
                files={"file": clips[0]},
                data={"model": name, **options},
                timeout=600,
            )
            for name in NAMES
        ]
        assert [each.status_code for each in answers] == [400, 200]
        error = answers[0].json()["error"]
        assert error["param"] == next(iter(options))
        assert "tiny.en" in error["message"]


def test_jobs_handles_and_openais_routes_choose_too(
    both: str, alone: dict[str, list[Answer]], clips: list[bytes]
) -> None:
    """Every way in has the same text of the model that it names, and readiness knows both models."""
    _, text, _ = alone["base"][0]
    files = {"file": clips[0]}
    handle = serve.get_app_handle("both").transcribe.remote(clips[0], model="base").result(timeout_s=600)
    assert (handle["model"], " ".join(each["text"] for each in handle["model_output"])) == ("base", text)
    openai = httpx.post(f"{both}/v1/audio/transcriptions", files=files, data={"model": "base"}, timeout=600)
    assert openai.json()["text"] == text
    job = httpx.post(f"{both}/v1/jobs", files=files, data={"model": "base"}, timeout=60).json()
    until(lambda: httpx.get(f"{both}/v1/jobs/{job['id']}", timeout=60).json()["status"] == "succeeded")
    result = httpx.get(f"{both}/v1/jobs/{job['id']}/result", timeout=60).json()
    assert (result["model"], " ".join(each["text"] for each in result["model_output"])) == ("base", text)
    stages = httpx.get(f"{both}/readyz", timeout=60).json()["stages"]
    assert stages["asr"]
    assert stages["asr-base"]
