"""The graph on a real local Ray with fake models: HTTP, handles, batches, errors, draining."""

import base64
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from fakes import data_url, recording
from loopback import Files
from ray import serve
from ray.exceptions import RayTaskError
from sounds import ffmpeg, silence, wav

from benchmarks import hostile_files
from serve_app.errors import InvalidRequest

TWO_VOICES = wav(recording(1, 2, 0, 3))
EXPECTED = [
    {"start": 0.0, "end": 1.0, "text": "word1", "speaker": "SPEAKER_01"},
    {"start": 1.0, "end": 2.0, "text": "word2", "speaker": "SPEAKER_00"},
    {"start": 3.0, "end": 4.0, "text": "word3", "speaker": "SPEAKER_01"},
]

URL = "http://127.0.0.1:18000"

pytestmark = pytest.mark.usefixtures("app")


def post(**kwargs: Any) -> httpx.Response:
    return httpx.post(f"{URL}/predict", timeout=60, **kwargs)


def segments(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["model_output"]


def test_a_url_an_upload_and_base64_give_the_same_answer(files: Files) -> None:
    """The three ways in, over HTTP."""
    url = files.url("/two.wav", TWO_VOICES)
    by_url = post(json={"audio_file": url, "headers": {"X-Token": "t"}})
    assert segments(by_url) == EXPECTED
    assert files.seen_headers["/two.wav"]["X-Token"] == "t"
    assert segments(post(files={"file": TWO_VOICES})) == EXPECTED
    assert segments(post(json={"audio_b64": base64.b64encode(TWO_VOICES).decode()})) == EXPECTED
    body = by_url.json()
    assert (body["language"], body["duration"], body["model"]) == ("en", 4.0, "fake")
    assert [warning["code"] for warning in body["warnings"]] == ["quiet_audio"]  # as the fakes' words are
    stages = {"fetch", "decode", "speech", "asr", "alignment", "diarization", "total"}
    assert set(body["timings"]) == stages


def test_a_python_handle_gives_the_same_answer(files: Files) -> None:
    """serve.get_app_handle("whisperx").transcribe takes a URL or bytes, and the same options."""
    handle = serve.get_app_handle("whisperx")
    by_url = handle.transcribe.remote(files.url("/handle.wav", TWO_VOICES), word_timestamps=True)
    by_bytes = handle.transcribe.remote(TWO_VOICES)
    assert by_bytes.result(timeout_s=60)["model_output"] == EXPECTED
    segment = by_url.result(timeout_s=60)["model_output"][0]
    assert segment["words"] == [
        {"word": "word1", "start": 0.0, "end": 1.0, "score": 0.9, "speaker": "SPEAKER_01"}
    ]


def test_a_handle_call_with_a_wrong_option_raises_our_error() -> None:
    """The caller of a handle gets InvalidRequest with its message and parameter."""
    with pytest.raises(RayTaskError) as raised:
        serve.get_app_handle("whisperx").transcribe.remote(TWO_VOICES, beam=3).result(timeout_s=60)
    assert isinstance(raised.value, InvalidRequest)
    assert raised.value.param == "beam"


def test_known_speakers_by_handle_and_over_http() -> None:
    """References go through the loader like any file; in JSON they are lists."""
    ada = {"known_speaker_names": ["Ada"], "known_speaker_references": [data_url(wav(recording(1, 1)))]}
    by_handle = serve.get_app_handle("whisperx").transcribe.remote(TWO_VOICES, **ada).result(timeout_s=60)
    assert [s["speaker"] for s in by_handle["model_output"]] == ["Ada", "SPEAKER_00", "Ada"]
    by_http = post(json={"audio_b64": base64.b64encode(TWO_VOICES).decode(), **ada})
    assert segments(by_http) == by_handle["model_output"]


@pytest.mark.parametrize(
    ("clip", "status", "code"),
    [
        (wav(recording(1)), 400, "reference_length"),
        (wav(silence(30.0)), 400, "reference_length"),
        (b"not audio", 422, "undecodable_audio"),
        (b"", 422, "empty_audio"),
    ],
    ids=["a second", "half a minute", "text", "nothing"],
)
def test_a_reference_of_no_use_is_an_error_that_names_it(clip: bytes, status: int, code: str) -> None:
    """It is not a transcript whose speakers have no names."""
    good = data_url(wav(recording(1, 1)))
    known = {"known_speaker_names": ["Ada", "Bob"], "known_speaker_references": [good, data_url(clip)]}
    response = post(json={"audio_b64": base64.b64encode(TWO_VOICES).decode(), **known})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, "known_speaker_references")
    assert error["code"] == code
    assert error["message"].startswith("known_speaker_references[1]: ")


def counters() -> dict[str, float]:
    """The Transcriber's, now."""
    transcriber: Any = serve.get_deployment_handle("Transcriber", "whisperx")
    return dict(transcriber.counters.remote().result(timeout_s=60))


def until(condition: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    """The Transcriber's counters once they are so; they must be within a minute."""
    deadline_s = time.monotonic() + 60
    while not condition(found := counters()):
        assert time.monotonic() < deadline_s, found
    return found


def test_windows_of_different_requests_share_batches(closed_gate: Path) -> None:
    """Eight requests of one window that wait for a busy device run in two batches of four, which is full."""
    before = counters()
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(post, files={"file": wav(recording(9))})
        until(lambda now: now["running"] == 1)
        others = [pool.submit(post, files={"file": wav(recording(n))}) for n in range(1, 9)]
        until(lambda now: now["queued"] == 8)
        closed_gate.unlink()
        texts = [segments(answer.result())[0]["text"] for answer in (*others, first)]
    after = until(lambda now: now["running"] == 0)
    assert texts == [f"word{n}" for n in range(1, 10)]
    assert after["batches"] - before["batches"] == 1 + 8 / 4


def test_errors_of_every_stage_reach_the_caller_plainly(files: Files) -> None:
    """Fetch, decode and option errors keep status, code and a message without a traceback."""
    missing = post(json={"audio_file": f"http://{files.host}/none.mp3"})
    blocked = post(json={"audio_file": "http://127.0.0.1/x.mp3"})
    html = post(files={"file": b"<html><body>404</body></html>"})
    empty = post(files={"file": b""})
    wrong = post(files={"file": TWO_VOICES}, data={"num_speakers": "many"})
    found = [(r.status_code, r.json()["error"]["code"]) for r in (missing, blocked, html, empty, wrong)]
    assert found == [
        (424, "http_status"),
        (424, "blocked_address"),
        (422, "undecodable_audio"),
        (422, "empty_audio"),
        (400, "invalid_request"),
    ]
    assert not any("Traceback" in r.text or "ray::" in r.text for r in (missing, blocked, html, empty, wrong))


def test_hostile_files_are_never_the_servers_fault(tmp_path: Path) -> None:
    """One of each kind through the whole graph: transcribed, or a 4xx that says what is wrong with it."""
    ends = {}
    with closing(hostile_files.Trap(tmp_path)) as trap:
        files = {name.split(":")[0]: content for name, content in hostile_files.generated(trap).items()}
        files["playlist"] = hostile_files.playlists(trap)["playlist: HLS of a URL"]
        trap.sprung()
        for kind, content in files.items():
            response = post(files={"file": content})
            assert response.status_code in (200, 422), (kind, response.text)
            ends[kind] = "audio" if response.status_code == 200 else response.json()["error"]["code"]
        assert trap.sprung() == []
    right = hostile_files.EXPECTED
    assert ends.keys() == right.keys()
    assert {kind: end for kind, end in ends.items() if end not in right[kind]} == {}
    assert segments(post(files={"file": TWO_VOICES})) == EXPECTED


def test_silence_is_an_empty_list() -> None:
    """No speech, no segments, no language."""
    response = post(files={"file": wav(recording(0, 0))})
    assert segments(response) == []
    assert response.json()["language"] is None


def test_readiness_names_every_stage() -> None:
    """/readyz is 200 with each stage of the graph in it; /healthz and /docs answer."""
    response = httpx.get(f"{URL}/readyz", timeout=60)
    stages = ("loader", "speech", "asr", "alignment", "diarization", "accepting")
    assert (response.status_code, response.json()["stages"]) == (200, dict.fromkeys(stages, True))
    assert httpx.get(f"{URL}/healthz", timeout=60).json() == {"status": "ok"}
    assert httpx.get(f"{URL}/docs", timeout=60).status_code == 200


def test_many_windows_of_one_file_come_back_in_order() -> None:
    """Forty windows, transcribed in whatever batches, are forty segments in order of time."""
    numbers = list(range(1, 41))
    assert [s["text"] for s in segments(post(files={"file": wav(recording(*numbers))}))] == [
        f"word{n}" for n in numbers
    ]


def test_a_long_file_that_is_worked_on_while_it_is_decoded_loses_nothing() -> None:
    """Words at the file's ends and where its early beginning breaks off; everybody's speaker."""
    spoken = {0: 1, 119: 2, 120: 3, 239: 4, 240: 5, 479: 6, 480: 7, 599: 8}
    body = post(files={"file": wav(recording(*(spoken.get(second, 0) for second in range(600))))}).json()
    assert [(s["start"], s["text"], s["speaker"]) for s in body["model_output"]] == [
        (second, f"word{number}", f"SPEAKER_0{number % 2}") for second, number in spoken.items()
    ]
    assert body["duration"] == 600.0
    assert [warning["code"] for warning in body["warnings"]] == ["quiet_audio"]


def test_a_streaming_handle_reports_segments_before_the_answer() -> None:
    """handle.stream gives every segment once, in order and without speaker, then the whole answer."""
    handle: Any = serve.get_app_handle("whisperx").options(stream=True)
    *reports, answer = list(handle.stream.remote(wav(recording(*range(1, 21))), language="en"))
    assert [s["text"] for r in reports for s in r["segments"]] == [f"word{n}" for n in range(1, 21)]
    assert all(s["speaker"] is None for r in reports for s in r["segments"])
    assert reports[-1]["windows_done"] == 20
    assert [s["text"] for s in answer["model_output"]] == [f"word{n}" for n in range(1, 21)]
    assert answer["model_output"][0]["speaker"] == "SPEAKER_01"


def test_a_stream_that_is_left_frees_its_windows(closed_gate: Path) -> None:
    """Whoever stops listening has the windows that wait dropped: they never reach the device."""
    before = counters()
    handle: Any = serve.get_app_handle("whisperx").options(stream=True)
    responses = handle.stream.remote(wav(recording(*range(1, 41))), language="en")
    until(lambda now: now["queued"] + now["running"] == 40)
    responses.cancel()
    running = until(lambda now: now["queued"] == 0)["running"]
    closed_gate.unlink()
    after = until(lambda now: now["running"] == 0 and now["dropped"] > before["dropped"])
    assert after["dropped"] - before["dropped"] == 40 - running


@contextmanager
def request_of(file: bytes) -> Iterator[None]:
    """The file sent; at the end the connection is closed without waiting for an answer."""
    url = httpx.URL(f"{URL}/predict")
    request = httpx.Request("POST", url, files={"file": file}, data={"language": "en"})
    head = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    with socket.create_connection((url.host, url.port)) as client:
        client.sendall(f"POST {url.path} HTTP/1.1\r\n{head}\r\n".encode() + request.read())
        yield


def test_a_client_that_hangs_up_frees_its_windows(closed_gate: Path) -> None:
    """The windows of an HTTP client that has gone are dropped; only those on the device run to their end."""
    before = until(lambda now: now["queued"] == now["running"] == 0)
    with request_of(wav(recording(*range(1, 41)))):
        until(lambda now: now["queued"] + now["running"] == 40)
    running = until(lambda now: now["queued"] == 0)["running"]
    closed_gate.unlink()
    after = until(lambda now: now["running"] == 0 and now["dropped"] > before["dropped"])
    assert after["dropped"] - before["dropped"] == 40 - running
    ran = after["items"] - before["items"]
    assert (ran, after["batches"] - before["batches"]) == (running, 1)


def test_a_client_that_hangs_up_has_its_decoder_killed(tmp_path: Path) -> None:
    """No decoder works for nobody: here one that was stopped, and would never end by itself."""
    ffmpeg("-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono", "-t", "7200", str(tmp_path / "long.flac"))
    with request_of((tmp_path / "long.flac").read_bytes()):
        decoder = one_decoder()
        decoder.suspend()
    decoder.wait(timeout=60)


def one_decoder() -> psutil.Process:
    """The decoder that runs now, or within a minute."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                if process.name().startswith("ffmpeg"):
                    return process
    raise AssertionError("no decoder has run")
