"""Every block of README.md, docs/, examples/*.md and benchmarks/README.md is run unchanged.

The service is the one of played_service.py: the real API, jobs and their runner with a transcription that is
made up, no Ray and no models. Blocks that need more are listed in ELSEWHERE with the test that runs them, or
with the reason why none can.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from clients import until
from played_service import KEY, Played, played
from transcripts import WITH_SOURCES

from serve_app.cli.config_file import DEMO_CONFIG, check
from serve_app.cli.demo import sample
from serve_app.cli.launcher import free_port
from serve_app.errors import UnusableAudio
from serve_app.jobs.webhooks.signatures import VARIABLE, new_secret

PROJECT = Path(__file__).parents[2]
DOCUMENTS = [
    PROJECT / "README.md",
    *sorted((PROJECT / "docs").glob("*.md")),
    *sorted((PROJECT / "examples").glob("*.md")),
    PROJECT / "benchmarks" / "README.md",
]
PICTURES = ("", "text", "mermaid")  # and settings without a syntax of their own

_COMMANDS = "tests/models/test_commands.py"
_METRICS = "tests/cluster/test_metrics.py"
_RECEIVERS = "tests/jobs/webhooks/test_webhook_receivers.py"
_DOWNLOADS = "downloads models: tests/cli/test_prefetch_command.py"
_OWN_SERVICE = "starts a service of its own: tests/cli/test_transcribe.py"
_GPU_CHECK = "tests/benchmarks/test_gpu_check.py"
_OTHERS = "another service or program, from which one migrates"
ELSEWHERE = {  # document and first line -> a test, or a reason
    ("README.md", "git clone"): f"downloads 3 GB; the demo and the service: {_COMMANDS}",
    ("README.md", '{"model_output": ['): "shortened; docs/api.md has a whole answer",
    ("README.md", "whisperx-serve serve"): f"starts a Ray: {_COMMANDS} and tests/cli/test_launcher.py",
    ("README.md", "import ray"): _COMMANDS,
    ("docs/api.md", "import ray"): _COMMANDS,
    ("docs/api.md", "for item in handle.options"): f"{_COMMANDS} and tests/test_project.py",
    ("docs/deploy.md", "whisperx-serve serve serve_config.yaml"): _COMMANDS,
    ("docs/deploy.md", "export RAY_AUTH_MODE=token"): "a cluster; up to Ray's start: tests/test_project.py",
    ("docs/jobs.md", "import base64, hmac, json, os, time"): _RECEIVERS,
    ("docs/jobs.md", "import os"): _RECEIVERS,
    ("docs/jobs.md", "const { createHmac, timingSafeEqual }"): _RECEIVERS,
    ("docs/jobs.md", "import hmac, os"): _RECEIVERS,
    ("docs/models.md", "whisperx-serve prefetch base"): _DOWNLOADS,
    ("docs/howto.md", "whisperx-serve prefetch base"): _DOWNLOADS,
    ("docs/howto.md", "whisperx-serve serve"): _COMMANDS,
    ("docs/operations.md", "make gpu-check"): _GPU_CHECK,
    ("docs/operations.md", "whisperx-serve serve serve_config.yaml --metrics-port"): _METRICS,
    ("docs/operations.md", "ray start --head"): "a cluster of several nodes",
    ("docs/operations.md", "export OTEL_EXPORTER_OTLP_ENDPOINT"): _METRICS,
    ("docs/tutorial.md", "sudo apt-get update"): "needs root",
    ("docs/tutorial.md", "git clone"): f"downloads 3 GB; the service that it starts: {_COMMANDS}",
    ("docs/tutorial.md", ". .venv/bin/activate\nexport WEBHOOK_SECRETS"): _COMMANDS,
    ("benchmarks/README.md", "make gpu-check"): _GPU_CHECK,
    ("benchmarks/README.md", "mkdir -p ~/gpu"): f"a machine without a network: {_GPU_CHECK}",
    ("benchmarks/README.md", "cat ~/gpu/part-*"): f"a machine without a network: {_GPU_CHECK}",
    ("docs/migrate.md", "curl -s https://model-abc123.api.baseten.co"): _OTHERS,
    ("docs/migrate.md", "whisperx talk.mp3"): _OTHERS,
    ("docs/migrate.md", "whisperx-serve transcribe talk.mp3 --model small"): _OWN_SERVICE,
    ("docs/migrate.md", 'curl -s "http://127.0.0.1:9000/asr'): _OTHERS,
}


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    document: str
    kind: str
    text: str

    def is_elsewhere(self, listed: tuple[str, str]) -> bool:
        document, first_line = listed
        return self.document == document and self.text.startswith(first_line)


FENCED = [
    Block(str(path.relative_to(PROJECT)), kind, text)
    for path in DOCUMENTS
    for kind, text in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.M | re.S)
]
BLOCKS = [block for block in FENCED if block.kind not in PICTURES]
RUN_HERE = [block for block in BLOCKS if not any(map(block.is_elsewhere, ELSEWHERE))]


def blocks_of(*kinds: str) -> pytest.MarkDecorator:
    """Parametrizes a test with the blocks of these kinds that are not in ELSEWHERE."""
    chosen = [block for block in RUN_HERE if block.kind in kinds]
    ids = [f"{block.document}: {block.text.splitlines()[0][:60]}" for block in chosen]
    return pytest.mark.parametrize("block", chosen, ids=ids)


class Receiver(BaseHTTPRequestHandler):
    """Takes webhooks."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (its name in the base class)
        """Says nothing."""


@dataclass(frozen=True)
class Services:
    """The servers for the blocks: a service without keys, one with a key, and a receiver of webhooks."""

    free: Played
    keyed: Played
    hook: str
    secret: str
    home: Path

    def of(self, block: Block) -> Played:
        return self.keyed if "WHISPERX_API_KEY" in block.text else self.free


def prepared(service: Played) -> Played:
    """Gives the service an answer with every field, and a file that is not audio."""
    service.transcript = WITH_SOURCES
    service.failures[b"no audio"] = UnusableAudio("This is no audio.")
    return service


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    secret = new_secret()
    receiver = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=receiver.serve_forever)
    thread.start()
    home = tmp_path_factory.mktemp("home")
    (home / ".curlrc").write_text("fail-with-body\nmax-time = 60\n")
    command = home / "bin" / "whisperx-serve"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m serve_app "$@"\n')
    command.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, secret)
        free, keyed = tmp_path_factory.mktemp("free"), tmp_path_factory.mktemp("keyed")
        with played(free) as one, played(keyed, with_keys=True) as other:
            hook = f"http://127.0.0.1:{receiver.server_port}/hook"
            yield Services(prepared(one), prepared(other), hook, secret, home)
    receiver.shutdown()
    thread.join()
    receiver.server_close()


@pytest.fixture
def folder(tmp_path: Path, services: Services) -> Path:
    """A folder with recordings and the files of the project that blocks use."""
    for path in (
        "talk.wav",
        "talk.mp3",
        "anna.wav",
        "call.wav",
        "recordings/deep/talk.mp3",
        "inbox/meeting.mp3",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample(), tmp_path / path)
    for name in ("serve_config.yaml", "serve_config.demo.yaml"):
        config = (PROJECT / name).read_text()
        (tmp_path / name).write_text(config.replace("port: 8000", f"port: {free_port()}"))  # doctor looks
    (tmp_path / "talk.raw").write_bytes(bytes(32_000))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "examples").symlink_to(PROJECT / "examples")
    (tmp_path / "webhook.secret").write_text(services.secret)
    return tmp_path


def environment(services: Services, service: Played) -> dict[str, str]:
    """The environment of a block: of the developer's variables only the path."""
    url = service.url
    headers = {"Authorization": f"Bearer {KEY}"}
    job = httpx.post(f"{url}/v1/jobs", files={"file": b"audio"}, headers=headers).json()["id"]
    until(lambda: httpx.get(f"{url}/v1/jobs/{job}", headers=headers).json()["status"] == "succeeded")
    commands = [services.home / "bin", Path(sys.executable).parent]
    return {
        "HOME": str(services.home),
        "PATH": os.pathsep.join([*map(str, commands), os.environ["PATH"]]),
        "PYTHONPATH": str(PROJECT),
        "WHISPERX_URL": url,
        "WHISPERX_API_KEY": KEY,
        "ID": job,
        VARIABLE: services.secret,
        "OPENAI_BASE_URL": f"{url}/v1",
        "OPENAI_API_KEY": "none",
    }


def here(text: str, services: Services, environment: dict[str, str]) -> str:
    """The block with its addresses replaced by those of this machine."""
    for written, real in {
        "http://127.0.0.1:8000": environment["WHISPERX_URL"],
        "https://example.com/hook": services.hook,
    }.items():
        text = text.replace(written, real)
    return text


@blocks_of("bash", "python")
def test_a_block_runs(block: Block, services: Services, folder: Path) -> None:
    """The block ends with 0, and so does each curl; a curl fails for a status of 400 or more."""
    service = services.of(block)
    variables = environment(services, service)
    command = ["bash", "-euo", "pipefail", "-c"] if block.kind == "bash" else [sys.executable, "-c"]
    process = subprocess.Popen(
        [*command, here(block.text, services, variables)],
        env=variables,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        if "--watch" in block.text:  # only Ctrl-C ends it
            until(lambda: [*folder.rglob("meeting.txt")] or process.poll() is not None)
            os.killpg(process.pid, signal.SIGINT)
        said, errors = process.communicate(timeout=120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == (130 if "--watch" in block.text else 0), said + errors
    assert said or errors or block.kind == "bash", "a program that says nothing shows nothing"
    if "whisperx-serve transcribe" in block.text:
        assert "0 failed" in errors or "Stopped" in errors, errors


@blocks_of("json")
def test_json_can_be_read(block: Block) -> None:
    """The block is valid JSON."""
    json.loads(block.text)


@blocks_of("yaml")
def test_a_config_is_valid(block: Block) -> None:
    """`whisperx-serve check` accepts it, a part within the demo's file; other programs' settings are YAML."""
    shown = yaml.safe_load(block.text.replace("9f86d0...", "9f" * 32))
    if block.document == "examples/clients.md":
        return
    raw = yaml.safe_load(DEMO_CONFIG.read_text())
    raw["applications"][0]["args"] |= shown.pop("args", {})
    raw["applications"][0]["deployments"] = shown.pop("deployments", [])
    check(raw | shown, Path(block.document))


def test_nothing_is_left_out() -> None:
    """Every fence is found, every block is of a kind that is run, and what ELSEWHERE lists exists."""
    fences = sum(len(re.findall(r"^\s*(?:```|~~~)", path.read_text(), re.M)) for path in DOCUMENTS)
    assert fences == 2 * len(FENCED)
    assert {block.kind for block in RUN_HERE} <= {"bash", "python", "json", "yaml"}
    gone = [listed for listed in ELSEWHERE if not any(block.is_elsewhere(listed) for block in BLOCKS)]
    assert gone == []
    named = {name for reason in ELSEWHERE.values() for name in re.findall(r"tests/\S+\.py", reason)}
    assert [name for name in named if not (PROJECT / name).exists()] == []


def test_what_is_said_to_be_missing_is(services: Services) -> None:
    """docs/migrate.md names paths of SubGen and Baseten as missing; they are 404."""
    for path in ("/status", "/production/predict"):
        answered = httpx.post(services.free.url + path, files={"audio_file": b"audio"})
        assert answered.status_code == 404, path
