"""The command line as a user runs it: real processes, real models, signals."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from clients import until
from inside import processes_with
from loopback import Files
from sounds import ffmpeg, wav
from telephone import said_on_the_telephone, word_error_rate
from whisperx.utils import get_writer

from serve_app.cli.demo import sample as demo_sample
from serve_app.transcript import SAMPLE_RATE_HZ, Samples

PROJECT = Path(__file__).parents[2]
PORT = 18_100
URL = f"http://127.0.0.1:{PORT}"
START_S = 300  # three processes import torch
TOKEN = "hf_nobodys"

pytestmark = pytest.mark.usefixtures("base", "campplus")  # else they would be fetched


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "serve_app", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=START_S,
        cwd=PROJECT,
        env={**os.environ, **environment},
    )


def assert_is_the_call(answer: dict[str, Any]) -> None:
    """Right words, and two speakers."""
    segments = answer["model_output"]
    text = " ".join(segment["text"] for segment in segments)
    assert word_error_rate(said_on_the_telephone(), text) <= 0.2
    assert {segment["speaker"] for segment in segments} == {"SPEAKER_00", "SPEAKER_01"}
    assert (answer["model"], answer["language"], answer["warnings"]) == ("base", "en", [])


def demo_config(folder: Path, **args: object) -> Path:
    """The demo's config file on a port of its own."""
    raw = yaml.safe_load((PROJECT / "serve_config.demo.yaml").read_text())
    raw["http_options"]["port"] = PORT
    jobs = {"state_dir": str(folder / "state")}  # not the developer's
    raw["applications"][0]["args"].update(jobs=jobs, **args)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def argument(mark: str, name: str) -> str:
    """What Ray's processes were told by this argument."""
    for pid in processes_with(mark):
        for told in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            if told.startswith(f"--{name}="):
                return told.partition("=")[2]
    raise AssertionError("no Ray runs")


def second_process(document: str, mark: str, files: Files, folder: Path) -> str:
    """What a document's Python with handles prints in a process of its own, with a short file for all."""
    blocks = re.findall("^```python\n(.*?)^```", (PROJECT / document).read_text(), re.DOTALL | re.MULTILINE)
    code = "".join(block for block in blocks if "handle." in block)
    talk = folder / "talk.wav"
    ffmpeg("-i", str(demo_sample()), "-ss", "6", "-t", "12", str(talk))
    shutil.copy(talk, folder / "talk.mp3")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code.replace("https://example.com/talk.mp3", files.url("/talk.wav", talk.read_bytes())),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
        # As another test's Ray may run on this machine, and then "auto" could be that one.
        env={
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "RAY_ADDRESS": argument(mark, "gcs-address"),
            "RAY_AUTH_MODE": "token",
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_check_names_the_wrong_key(tmp_path: Path) -> None:
    """`check` ends with 1 and one line for a misspelt key, and with 0 for the shipped file."""
    wrong = run("check", str(demo_config(tmp_path, modle="small")))
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "unknown key modle" in wrong.stderr
    assert run("check", "serve_config.yaml").returncode == 0


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"model": "larg-v2"}, "larg-v2 is no model name"),
        ({"diarization": {"model": "pyannote/speaker-diarization-community-1"}}, "HF_TOKEN is not set"),
    ],
)
def test_a_model_that_cannot_be_had_is_one_sentence(
    tmp_path: Path, args: dict[str, object], says: str
) -> None:
    """The server does not start, and says why in one line instead of a traceback."""
    done = run("serve", str(demo_config(tmp_path, **args)))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert says in done.stderr


def test_a_model_that_cannot_be_fetched_is_one_sentence(tmp_path: Path) -> None:
    """An empty store on a machine without a network: what is missing, why, and what to do."""
    models = tmp_path / "models"
    places = {"MODELS_DIR": str(models), "HF_HOME": str(tmp_path / "hub")}
    done = run("serve", str(demo_config(tmp_path)), HF_HUB_OFFLINE="1", PIP_NO_INDEX="1", **places)
    assert (done.returncode, done.stderr.count("\n")) == (1, 2)
    assert "Fetching the model base (148 MB)" in done.stderr
    assert "base cannot be fetched" in done.stderr
    assert "check the network" in done.stderr
    assert not (models / "base").exists()


def test_the_demo_shows_a_conversation() -> None:
    """A table and JSON: the words that two people say to each other."""
    done = run("demo")
    assert done.returncode == 0, done.stderr
    table, brace, rest = done.stdout.partition("\n{")
    assert "New Jersey" in table
    assert_is_the_call(json.loads(brace + rest))


FORMATS = ("srt", "vtt", "txt", "tsv", "json")


@pytest.mark.slow
def test_twenty_files_without_a_server(sample: Samples, tmp_path: Path) -> None:
    """Killed and run again, it goes on; all files are, to the byte, what whisperx's writers make."""
    folder, out, mark = tmp_path / "calls", tmp_path / "out", f"whisperx-test-{uuid.uuid4().hex}"
    folder.mkdir()
    for number in range(20):
        clip = sample[number * SAMPLE_RATE_HZ : (number + 8) * SAMPLE_RATE_HZ]
        (folder / f"{number:02d}.wav").write_bytes(wav(clip))
    command = [sys.executable, "-m", "serve_app", "transcribe", str(folder), "-o", str(out), "--diarize"]
    environment = {**os.environ, "WHISPERX_TEST_MARK": mark}
    killed = subprocess.Popen(command, env=environment, cwd=PROJECT, stderr=subprocess.DEVNULL)
    until(lambda: len([*out.glob("*.json")]) >= 5, timeout_s=START_S)
    killed.kill()
    killed.wait()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
    until(lambda: not processes_with(mark), timeout_s=START_S)
    done = run("transcribe", str(folder), "-o", str(out), "--diarize")
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ transcribed, ([5-9]|1\d) done before, 0 failed\.", done.stderr), done.stderr
    assert before.items() <= {path: path.stat().st_mtime_ns for path in out.glob("*.json")}.items()
    layout = {"max_line_width": None, "max_line_count": None, "highlight_words": False}
    speakers = set()
    for path in sorted(out.glob("*.json")):
        result = json.loads(path.read_text())
        speakers |= {segment.get("speaker") for segment in result["segments"]}
        get_writer("all", str(tmp_path))(result, path.with_suffix(".wav").name, layout)
        for form in FORMATS:
            written = (tmp_path / f"{path.stem}.{form}").read_bytes()
            assert path.with_suffix(f".{form}").read_bytes() == written
    assert len([*out.glob("*.srt")]) == 20
    assert len(speakers) > 1


def test_a_port_that_is_taken_is_one_sentence(tmp_path: Path) -> None:
    """The server does not start beside another one, and says which setting to change."""
    with socket.create_server(("127.0.0.1", PORT)):
        done = run("serve", str(demo_config(tmp_path)))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"cannot listen on 127.0.0.1:{PORT} (Address already in use)" in done.stderr


@pytest.fixture
def server(tmp_path: Path, files: Files) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`python -m serve_app serve`, ready, and the mark that its processes carry."""
    mark = f"whisperx-test-{uuid.uuid4().hex}"
    config = demo_config(tmp_path, intake={"allowed_hosts": [files.host]})
    process = subprocess.Popen(
        [sys.executable, "-m", "serve_app", "serve", str(config)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "WHISPERX_TEST_MARK": mark, "HF_TOKEN": TOKEN},
    )
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    read_until(process, "Ready on")
    watchdog.cancel()
    yield process, mark
    if process.poll() is None:
        process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()


def read_until(process: "subprocess.Popen[str]", marker: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if marker in line:
            return
    pytest.fail(f"ended before {marker!r}:\n{''.join(seen)}")


@pytest.mark.parametrize(
    "signum",
    [
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGINT, id="Ctrl-C", marks=pytest.mark.slow),  # a minute for another signal
    ],
)
def test_stopping_answers_what_runs_and_leaves_no_process(
    server: tuple["subprocess.Popen[str]", str], files: Files, tmp_path: Path, signum: signal.Signals
) -> None:
    """A running request gets its answer, a new one a 503, and no process or file is left.

    Before, a handle in another process works as README.md and docs/api.md say. The two replicas that read
    what strangers send have no Hugging Face token, and the folder to which Ray spills audio is closed to
    other users.
    """
    process, mark = server
    for document in ("README.md", "docs/api.md"):
        *reports, answer = second_process(document, mark, files, tmp_path).splitlines()
        assert "New Jersey" in answer
        assert all(report.startswith("[") for report in [*reports, answer])
    url = files.url("/inflight.wav", demo_sample().read_bytes())
    answers: list[httpx.Response] = []

    def post() -> None:
        answers.append(httpx.post(f"{URL}/predict", json={"audio_file": url}, timeout=120))

    in_flight = threading.Thread(target=post)
    in_flight.start()
    assert files.requested("/inflight.wav").wait(60)
    knowing = [Path(f"/proc/{pid}/cmdline").read_text() for pid in processes_with(f"HF_TOKEN={TOKEN}")]
    assert any("Diarizer" in name for name in knowing)
    assert not any("Ingress" in name or "AudioLoader" in name for name in knowing)
    spilled = Path(argument(mark, "fallback_directory"))
    assert spilled.stat().st_mode & 0o777 == 0o700
    process.send_signal(signum)
    read_until(process, "Stopping")
    refused = httpx.post(f"{URL}/predict", files={"file": b"RIFF"}, timeout=60)
    while refused.status_code == 422:  # the stop had not reached the ingress yet
        refused = httpx.post(f"{URL}/predict", files={"file": b"RIFF"}, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert "retry-after" in refused.headers
    in_flight.join(120)
    assert answers[0].status_code == 200
    assert_is_the_call(answers[0].json())
    assert process.wait(60) == 0
    assert processes_with(mark) == []
    assert not spilled.exists()


@pytest.mark.slow
def test_a_second_signal_does_not_wait_for_running_requests(
    server: tuple["subprocess.Popen[str]", str],
) -> None:
    """A request whose body never arrives would take half a minute; it is cut off and no process is left."""
    process, mark = server
    with socket.create_connection(("127.0.0.1", PORT)) as client:
        head = (
            "POST /predict HTTP/1.1",
            "Host: 127.0.0.1",
            "Content-Type: application/json",
            "Content-Length: 99",
        )
        client.sendall("\r\n".join([*head, "", "{"]).encode())
        assert httpx.get(f"{URL}/healthz", timeout=60).status_code == 200  # it has been received by now
        process.send_signal(signal.SIGTERM)
        read_until(process, "Stopping")
        refused = httpx.post(f"{URL}/predict", files={"file": b"RIFF"}, timeout=60)
        while refused.status_code != 503:  # until it is being stopped
            refused = httpx.post(f"{URL}/predict", files={"file": b"RIFF"}, timeout=60)
        process.send_signal(signal.SIGTERM)
        read_until(process, "cut off")
        assert process.wait(20) == 0
    assert processes_with(mark) == []
