"""An image is built from deploy/Dockerfile where it can be, and runs as deploy/README.md says.

WHISPERX_IMAGE names one that was built already. tests/deploy/test_build_steps.py needs no builder.
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import httpx
import pytest
from deploy_files import DEPLOY, PROJECT, answers
from tenacity import Retrying, stop_after_delay, wait_fixed

from serve_app.cli.demo import sample
from serve_app.http.auth import new_key

BUILD_S = 3600.0
START_S = 900.0  # it may fetch models first
GUARDED = [
    "--read-only",
    "--tmpfs=/tmp:size=2g,mode=1777",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=12g",
    "--shm-size=4g",
]

pytestmark = pytest.mark.slow


@cache
def program() -> str:
    """Docker where its daemon answers, or podman."""
    for name in ("docker", "podman"):
        if (
            shutil.which(name)
            and not subprocess.run([name, "info"], capture_output=True, check=False).returncode
        ):
            return name
    pytest.skip("Neither Docker nor podman runs here.")


def engine(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    """Runs Docker, or podman."""
    return subprocess.run(
        [program(), *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )


@pytest.fixture(scope="module")
def image() -> str:
    """The image of WHISPERX_IMAGE, or the variant `cpu`, which is built here."""
    if given := os.environ.get("WHISPERX_IMAGE"):
        return given
    arguments = dict(re.findall(r"^ARG (\w+)=(\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE))
    if (
        engine("image", "inspect", arguments["BASE"]).returncode
        and engine("pull", arguments["BASE"]).returncode
    ):
        pytest.skip(f"There is no image {arguments['BASE']}, and no registry that has it.")
    if not answers(arguments["TORCH_CPU_INDEX"]):
        pytest.skip(f"{arguments['TORCH_CPU_INDEX']} does not answer.")
    name = "whisperx-serve:test"
    build = [
        "build",
        "-f",
        str(DEPLOY / "Dockerfile"),
        "-t",
        name,
        "--build-arg",
        "VARIANT=cpu",
        str(PROJECT),
    ]
    done = engine(*build, timeout_s=BUILD_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return name


@dataclass(frozen=True)
class Running:
    """A service in a container."""

    name: str
    url: str
    key: str


@pytest.fixture(scope="module")
def service(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The image with a key in its config file, a published port, and all restrictions."""
    key, sha256 = new_key()
    config = tmp_path_factory.mktemp("config") / "config.yaml"
    text = (DEPLOY / "config.yaml").read_text()
    config.write_text(text.replace("keys: []", f'keys: [{{name: acme, sha256: "{sha256}"}}]'))
    config.chmod(0o644)
    for folder in config.parents:
        if folder.owner() == config.owner() and folder.name.startswith(("config", "pytest-")):
            folder.chmod(0o755)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    name = f"whisperx-test-{port}"
    models = os.environ.get("MODELS_DIR")  # belongs to user 10001
    mounts = [f"-v={config}:/etc/whisperx/config.yaml:ro", *([f"-v={models}:/models"] if models else [])]
    ports = f"-p=127.0.0.1:{port}:8000"
    started = engine("run", "-d", f"--name={name}", ports, *GUARDED, *mounts, image)
    assert started.returncode == 0, started.stderr
    url = f"http://127.0.0.1:{port}"
    try:
        for attempt in Retrying(stop=stop_after_delay(START_S), wait=wait_fixed(2), reraise=True):
            with attempt:
                httpx.get(f"{url}/readyz").raise_for_status()
        yield Running(name, url, key)
    finally:
        print(engine("logs", name))
        engine("rm", "-f", "-v", name)


def test_without_keys_it_ends_and_says_why(image: str) -> None:
    """An operator who has only started the image reads what to do."""
    done = engine("run", "--rm", *GUARDED, image)
    assert done.returncode == 1
    assert "there are no API keys" in done.stderr + done.stdout


def test_the_published_port_answers_keys_and_refuses_others(service: Running) -> None:
    """With a sentence, not with a closed connection."""
    with sample().open("rb") as file, httpx.Client(base_url=service.url, timeout=300) as client:
        refused = client.post("/predict", files={"file": file})
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "missing_api_key")
        file.seek(0)
        headers = {"Authorization": f"Bearer {service.key}"}
        answer = client.post("/predict", files={"file": file}, headers=headers)
    assert answer.status_code == 200, answer.text
    assert "new jersey" in str(answer.json()["model_output"]).lower()


def test_nothing_runs_as_root_and_the_root_is_read_only(service: Running) -> None:
    """What a broken decoder could do is what this user may do."""
    assert engine("exec", service.name, "id", "-u").stdout.strip() == "10001"
    assert engine("exec", service.name, "touch", "/etc/x").returncode != 0


def test_it_stops_with_status_0(service: Running) -> None:
    """The signal reaches the service; this test is the last, because the service is gone then."""
    assert engine("stop", "-t", "60", service.name).returncode == 0
    status = engine("inspect", "-f", "{{.State.ExitCode}}", service.name)
    assert status.stdout.strip() == "0"
