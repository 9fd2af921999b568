"""The steps of the Dockerfile's build stage, run in a folder: they need no builder of images."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from deploy_files import DEPLOY, PROJECT, answers

pytestmark = pytest.mark.slow

INSTRUCTIONS = re.findall(
    r"^([A-Z]+) ((?:.*\\\n)*.*)", (DEPLOY / "Dockerfile").read_text().split("\nFROM ")[1], re.MULTILINE
)
STEP_S = 1800.0


def defaults() -> dict[str, str]:
    """The build arguments and variables of the stage."""
    words = [word for name, text in INSTRUCTIONS if name in ("ARG", "ENV") for word in shlex.split(text)]
    return dict(word.split("=", 1) for word in words)


def stand_ins(folder: Path, requirements: Path) -> str:
    """An index with empty packages of these versions, where PyTorch's own cannot be reached."""
    text = re.sub(r" \\\n *--hash=\S+", "", requirements.read_text())  # theirs are those of the real ones
    requirements.write_text(text)
    for name, version in re.findall(r"^(\w+)==(\S+)", text, re.MULTILINE):
        info = f"{name}-{version}.dist-info"
        files = {
            f"{name}.py": "",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
        wheel = folder / name / f"{name}-{version}-py3-none-any.whl"
        wheel.parent.mkdir(parents=True)
        with zipfile.ZipFile(wheel, "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
        (wheel.parent / "index.html").write_text(
            f'<a href="{wheel.name.replace("+", "%2B")}">{wheel.name}</a>'
        )
    return folder.as_uri()


def test_the_variant_cpu_is_installed_and_runs(tmp_path: Path) -> None:
    """Every package is found and has its hash, torch stays the one without CUDA, and the command works."""
    source, tools = tmp_path / "src", tmp_path / "bin"
    source.mkdir()
    tools.mkdir()
    (tools / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")},
        **defaults(),
        "VARIANT": "cpu",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    steps = [(name, text.replace("\\\n", "")) for name, text in INSTRUCTIONS if name in ("COPY", "RUN")]
    for name, text in steps:
        if name == "COPY":
            *files, target = text.split()
            for file in files:
                place = source / target / ("" if (PROJECT / file).is_dir() else Path(file).name)
                copy = shutil.copytree if (PROJECT / file).is_dir() else shutil.copy
                place.parent.mkdir(exist_ok=True)
                copy(PROJECT / file, place)
                if place.name == "torch-cpu.txt" and not answers(environment["TORCH_CPU_INDEX"]):
                    environment["TORCH_CPU_INDEX"] = stand_ins(tmp_path / "index", place)
        elif "apt-get" not in text:  # Debian's packages are those of this machine
            script = text.replace("/opt/", f"{tmp_path}/opt/")
            done = subprocess.run(
                ["sh", "-c", script],
                cwd=source,
                env=environment,
                capture_output=True,
                text=True,
                timeout=STEP_S,
                check=False,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    venv = tmp_path / "opt" / "venv"
    (packages,) = venv.glob("lib/python3*/site-packages")
    assert [path.name for path in packages.glob("torch-*.dist-info")] == ["torch-2.8.0+cpu.dist-info"]
    assert not (packages / "nvidia").exists()
    command = [str(venv / "bin" / "whisperx-serve"), "key", "acme"]
    key = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert "sha256" in key.stdout, key.stderr
    command = [*command[:1], "serve", str(DEPLOY / "config.yaml")]
    refused = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "there are no API keys" in refused.stderr + refused.stdout
