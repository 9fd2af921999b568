"""The Dockerfile and its companions agree with the lock, the documents and each other."""

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from deploy_files import DEPLOY, PROJECT, documents, interpolated, of_kind

from serve_app import __version__

TEXT = (DEPLOY / "Dockerfile").read_text()
FINAL_STAGE = TEXT.rpartition("FROM ${BASE}")[2]


def instruction(name: str) -> str:
    """The arguments of the only instruction of this name in the stage that runs."""
    (found,) = re.findall(rf"^{name} ((?:.*\\\n)*.*)", FINAL_STAGE, re.MULTILINE)
    return str(found)


def variables() -> dict[str, str]:
    """The image's environment."""
    return dict(word.split("=", 1) for word in shlex.split(instruction("ENV").replace("\\\n", "")))


def test_nobody_is_root_and_a_stop_lets_requests_end() -> None:
    """The user is a number, which Kubernetes can check; the service drains at SIGTERM."""
    assert int(instruction("USER").partition(":")[0]) >= 10_000
    assert instruction("STOPSIGNAL") == "SIGTERM"


def test_folders_that_are_written_to_are_volumes() -> None:
    """So that `--read-only --tmpfs /tmp` is all that a read-only container needs."""
    volumes = {Path(name) for name in yaml.safe_load(instruction("VOLUME"))} | {Path("/tmp")}
    folders = {
        name: Path(value) for name, value in variables().items() if value.startswith("/") and name != "PATH"
    }
    assert {"HOME", "MODELS_DIR", "RAY_TMPDIR", "TMPDIR"} <= set(folders)
    assert {name for name, folder in folders.items() if not volumes & {folder, *folder.parents}} == set()


def test_ports_are_those_of_the_config_file() -> None:
    """What is exposed, what is probed, what clients and Prometheus are told."""
    port = str(yaml.safe_load((DEPLOY / "config.yaml").read_text())["http_options"]["port"])
    command = yaml.safe_load(instruction("CMD"))
    assert instruction("EXPOSE").split() == [port, command[command.index("--metrics-port") + 1]]
    assert f"http://127.0.0.1:{port}/healthz" in instruction("HEALTHCHECK")


def test_the_context_has_what_is_copied_and_no_more() -> None:
    """Docker sends nothing else to its daemon: no environment, no .git, no secrets."""
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)", TEXT, re.MULTILINE)
        for source in line.split()[:-1]
    }
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    assert {line[1:] for line in ignore if line.startswith("!")} == copied
    assert all((PROJECT / source).exists() for source in copied)


def test_torch_without_cuda_is_the_version_of_the_lock() -> None:
    """The variants differ in what torch is built for."""
    lock = dict(re.findall(r"^([a-z]+)==(\S+)", (PROJECT / "requirements.lock").read_text(), re.MULTILINE))
    pins = re.findall(r"^(torch\w*)==(\S+?)\+cpu", (DEPLOY / "torch-cpu.txt").read_text(), re.MULTILINE)
    assert [name for name, _ in pins] == ["torch", "torchaudio", "torchvision"]
    assert all(lock[name] == version for name, version in pins)


def test_all_files_name_the_same_image() -> None:
    """Each tag is the version of the package and a variant."""
    files = [
        path for path in DEPLOY.rglob("*") if path.suffix in {".yaml", ".md"} or path.name == "Dockerfile"
    ]
    tags = {
        tag for path in files for tag in re.findall(r"whisperx-serve:(\S+)", interpolated(path.read_text()))
    }
    (overlay,) = documents(DEPLOY / "kustomize" / "cpu" / "kustomization.yaml")
    tags |= {image["newTag"] for image in overlay["images"]}
    assert {tag.strip("`") for tag in tags} == {f"{__version__}-cpu", f"{__version__}-cuda"}


def test_variables_are_documented() -> None:
    """Each that the image, compose or Kubernetes sets for the service is explained."""
    services = yaml.safe_load(interpolated((DEPLOY / "compose.yaml").read_text()))["services"]
    names = (
        set(variables()) | set(services["whisperx"]["environment"]) | set(services["migrate"]["environment"])
    )
    names |= set(
        of_kind("ConfigMap", documents(DEPLOY / "kubernetes" / "rayservice.yaml"), "whisperx-env")["data"]
    )
    text = (PROJECT / "docs" / "deploy.md").read_text() + (DEPLOY / "README.md").read_text()
    assert {name for name in names if f"`{name}" not in text} == set()


def test_secrets_come_from_files(tmp_path: Path) -> None:
    """entrypoint.sh exports what the files hold, and nothing where there are none."""
    (tmp_path / "tini").write_text('#!/bin/sh\necho "$@"\necho "$PGPASSWORD,${HF_TOKEN-none}"\n')
    (tmp_path / "tini").chmod(0o755)
    (tmp_path / "password").write_text("it's $ecret\n")
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PGPASSWORD_FILE": str(tmp_path / "password")}
    command = ["sh", str(DEPLOY / "entrypoint.sh"), "serve", "a file"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-- whisperx-serve serve a file", "it's $ecret,none"]


def test_a_secret_that_is_missing_stops_the_container(tmp_path: Path) -> None:
    """The service would start without its password, and fail later for another reason."""
    environment = {"PATH": os.environ["PATH"], "PGPASSWORD_FILE": str(tmp_path / "none")}
    with pytest.raises(subprocess.CalledProcessError) as failed:
        subprocess.run(
            ["sh", DEPLOY / "entrypoint.sh"], env=environment, capture_output=True, text=True, check=True
        )
    assert str(tmp_path / "none") in failed.value.stderr
