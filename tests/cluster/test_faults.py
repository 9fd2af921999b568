"""Replicas that are killed, hang or lose things in the middle of a request: it is answered all the same."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from fakes import recording
from faulty_graph import PROBE_S, Gates, Orphan
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ServeDeploySchema
from sounds import ffmpeg, wav

from serve_app.deployments.calls.audio_ref import LoadedAudio
from serve_app.deployments.calls.stage_calls import Stage
from serve_app.deployments.metrics import Retries
from serve_app.request.calls import TranscribeCall
from serve_app.stage_requests import Decoding
from serve_app.transcript import SAMPLE_RATE_HZ, Window, WindowText

NAME = "faulty"
URL = f"http://127.0.0.1:18000/{NAME}"
NUMBERS = (1, 2, 0, 3, 4, 5)
FILE = wav(recording(*NUMBERS))
WORDS = [f"word{n}" for n in NUMBERS if n]
SPEAKERS = [f"SPEAKER_0{n % 2}" for n in NUMBERS if n]
DEPLOYMENTS = {
    "loader": "AudioLoader",
    "speech": "SpeechDetector",
    "asr": "Transcriber",
    "alignment": "Aligner",
    "diarization": "Diarizer",
}


def deploy(gates: Gates, version: str) -> None:
    """As `serve deploy` does, with two recognisers, whose hanging shows soon."""
    probes = {"health_check_period_s": PROBE_S, "health_check_timeout_s": PROBE_S}
    schema = ServeDeploySchema.model_validate(
        {
            "applications": [
                {
                    "name": NAME,
                    "route_prefix": f"/{NAME}",
                    "import_path": "faulty_graph:build",
                    "args": {"gates": str(gates.folder), "version": version},
                    "deployments": [{"name": "Transcriber", "num_replicas": 2, **probes}],
                }
            ]
        }
    )
    client: Any = _get_global_client()
    client.deploy_apps(schema)


def until(condition: Callable[[], Any], within_s: float = 60) -> Any:
    """What the condition gives, once it is true."""
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s
        time.sleep(0.02)
    return found


def pids(stage: str) -> list[int]:
    client: Any = _get_global_client()
    deployments = client.get_serve_details()["applications"][NAME]["deployments"]
    replicas = deployments.get(DEPLOYMENTS[stage], {"replicas": []})["replicas"]  # it may be being built
    return [replica["pid"] for replica in replicas if replica["state"] == "RUNNING"]


def is_up() -> bool:
    return serve.status().applications[NAME].status == "RUNNING" and (
        httpx.get(f"{URL}/readyz", timeout=60).status_code == 200
    )


def retries() -> dict[str, int]:
    handle: Any = serve.get_deployment_handle("Ingress", NAME)
    found: dict[str, int] = handle.retries.remote().result(timeout_s=60)
    return found


def new(before: dict[str, int]) -> dict[str, int]:
    return {what: times for what, n in retries().items() if (times := n - before.get(what, 0))}


@pytest.fixture(scope="module")
def gates(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gates]:
    gates = Gates(tmp_path_factory.mktemp("gates"))
    deploy(gates, "one")
    until(is_up, 300)
    yield gates
    serve.delete(NAME)


@pytest.fixture(autouse=True)
def pool(gates: Gates) -> Iterator[ThreadPoolExecutor]:
    """For requests. At the end all gates are open and the graph is up again."""
    with ThreadPoolExecutor(8) as pool:
        yield pool
        for left in gates.folder.iterdir():
            left.unlink(missing_ok=True)
    until(is_up, 300)


def post(file: bytes = FILE, **options: Any) -> httpx.Response:
    return httpx.post(f"{URL}/predict", files={"file": file}, data=options, timeout=120)


def words(answer: "Future[httpx.Response]") -> list[str]:
    response = answer.result()
    assert response.status_code == 200, response.text
    assert {warning["code"] for warning in response.json()["warnings"]} <= {"quiet_audio"}
    assert [segment["speaker"] for segment in response.json()["model_output"]] == SPEAKERS
    return [segment["text"] for segment in response.json()["model_output"]]


@pytest.mark.parametrize("stages", [("speech", "diarization"), ("asr",), ("alignment",)])
def test_a_stage_that_is_killed_in_a_request_is_called_again(
    gates: Gates, pool: ThreadPoolExecutor, stages: tuple[str, ...]
) -> None:
    """Every replica of it, at work: the transcript is the same, and the retries are counted."""
    before = retries()
    for stage in stages:
        gates.close(stage)
    answer = pool.submit(post)
    until(lambda: all(gates.waiting(stage) for stage in stages))
    for pid in [pid for stage in stages for pid in pids(stage)]:
        os.kill(pid, signal.SIGKILL)
    for stage in stages:
        gates.open(stage)
    assert words(answer) == WORDS
    again = new(before)
    assert {what.partition("/")[0] for what in again} == set(stages)
    assert {what.partition("/")[2] for what in again} <= {"replica_died", "replica_unavailable"}


def test_health_tells_of_a_stage_without_a_replica_and_not_of_a_long_queue(
    gates: Gates, pool: ThreadPoolExecutor
) -> None:
    """Ready means that each stage has its model, however much waits for it; alive means less than that."""
    gates.close("asr")
    waiting = pool.submit(post, wav(recording(*[1] * 60)), language="en")
    until(lambda: len(gates.waiting("asr")) == 2)
    assert httpx.get(f"{URL}/readyz", timeout=60).status_code == 200
    (gates.folder / "slow load").touch()
    (pid,) = pids("diarization")
    os.kill(pid, signal.SIGKILL)
    unready = until(lambda: r if (r := httpx.get(f"{URL}/readyz", timeout=60)).status_code == 503 else None)
    assert [stage for stage, ready in unready.json()["stages"].items() if not ready] == ["diarization"]
    assert httpx.get(f"{URL}/healthz", timeout=60).status_code == 200
    until(lambda: httpx.get(f"{URL}/readyz", timeout=60).status_code == 200)
    gates.open("asr")
    assert len(waiting.result().json()["model_output"]) == 60


def test_a_loader_that_is_killed_loads_again(pool: ThreadPoolExecutor) -> None:
    """Here while it fetches: the URL is fetched anew."""
    before = retries()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x.wav"
        answer = pool.submit(httpx.post, f"{URL}/predict", json={"audio_file": url}, timeout=120)
        with server.accept()[0]:
            (pid,) = pids("loader")
            os.kill(pid, signal.SIGKILL)
            with server.accept()[0] as again:
                again.recv(65_536)
                again.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(FILE) + FILE)
                assert words(answer) == WORDS
    assert new(before)["loader/audio_lost"] == 1


@pytest.mark.parametrize("stage", ["loader", pytest.param("speech", marks=pytest.mark.slow)])
def test_a_long_file_outlives_what_dies_while_it_is_decoded(
    stage: str, gates: Gates, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    """Its first words are being recognised already; silence of hours behind them takes seconds to decode."""
    before = retries()
    sound = np.concatenate([recording(*NUMBERS), np.zeros(3 * 3600 * SAMPLE_RATE_HZ, np.int16)])
    (tmp_path / "long.wav").write_bytes(wav(sound))
    ffmpeg("-i", str(tmp_path / "long.wav"), str(tmp_path / "long.flac"))
    gates.close("asr")
    gates.close("speech")  # or silence may have been searched to its end before the kill
    answer = pool.submit(post, (tmp_path / "long.flac").read_bytes())
    until(lambda: (gates.waiting("asr") and gates.waiting("speech")) or answer.done())
    assert not answer.done(), answer.result().text
    (pid,) = pids(stage)
    os.kill(pid, signal.SIGKILL)
    gates.open("speech")
    gates.open("asr")
    assert words(answer) == WORDS
    assert answer.result().json()["duration"] == len(sound) / SAMPLE_RATE_HZ
    again = new(before)
    assert again["loader/audio_lost" if stage == "loader" else "speech/replica_died"] == 1, again


def test_audio_that_is_lost_is_loaded_again() -> None:
    """Two windows of a request find it gone, and share what is loaded anew."""
    loader: Any = serve.get_deployment_handle(DEPLOYMENTS["loader"], NAME)
    transcriber: Any = serve.get_deployment_handle(DEPLOYMENTS["asr"], NAME)
    again = Retries()

    async def load(checksum: int | None) -> Any:
        if checksum is None:
            return Orphan()
        return loader.options(stream=True).load.remote(None, {}, [ray.put(FILE)])

    async def lose() -> list[WindowText]:
        audio = LoadedAudio(load, again)
        await audio.load()
        stage: Stage[Any] = Stage("asr", transcriber.transcribe, again)
        calls = (
            stage.call(
                TranscribeCall(
                    audio=audio,
                    request_id="lost",
                    window=Window(start_s, start_s + 1.0),
                    decoding=Decoding(),
                    language="en",
                ),
                start_s,
                start_s + 1.0,
            )
            for start_s in (0.0, 1.0)
        )
        return list(await asyncio.gather(*calls))

    assert [text.text for text in asyncio.run(asyncio.wait_for(lose(), 60))] == [" word1", " word2"]
    assert again.counts == {("loader", "audio_lost"): 1, ("asr", "audio_lost"): 2}


def test_a_recogniser_that_hangs_is_replaced_and_its_windows_go_elsewhere(
    gates: Gates, pool: ThreadPoolExecutor, figure: Callable[[str], None]
) -> None:
    """Serve's health check ends it; also where the next one loads its model for longer than that waits."""
    before = retries()
    gates.close("asr")
    (gates.folder / "slow load").touch()
    answer = pool.submit(post, language="en")
    hung = until(lambda: gates.waiting("asr")).pop()
    (well,) = set(pids("asr")) - {hung}
    os.kill(hung, signal.SIGSTOP)
    try:
        gates.open("asr")
        assert words(answer) == WORDS
        again = new(before)
        figure(f"recogniser that hangs: retries {again}")
        assert again
    finally:
        with suppress(ProcessLookupError):
            os.kill(hung, signal.SIGCONT)
    until(lambda: len(pids("asr")) == 2)
    assert well in pids("asr")
    assert hung not in pids("asr")
    assert len(list(gates.folder.glob("asr.loads.*"))) == 1
