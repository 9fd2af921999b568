"""The wheel's content, and what works with only a part of its dependencies."""

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from played_service import played

PROJECT = Path(__file__).parents[2]
HEAVY = {"ray", "torch", "whisperx", "pyannote-audio", "fastapi", "sqlalchemy", "huggingface-hub"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this project."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=PROJECT, check=True, capture_output=True)
    (packed,) = folder.glob("*.whl")
    return packed


@pytest.fixture(scope="module")
def wheel(packed: Path) -> Path:
    """The folder of the unpacked wheel."""
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(packed.parent / "site")
    return packed.parent / "site"


@pytest.fixture
def installed(packed: Path, tmp_path: Path) -> Path:
    """The folder of commands of an environment with this wheel and its dependencies only."""
    environment = tmp_path / "environment"
    uv = [sys.executable, "-m", "uv"]
    python = str(environment / "bin" / "python")
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, environment], check=True)
    install = [*uv, "pip", "install", "--quiet", "--python", python, str(packed)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    if re.search("Failed to (fetch|download)|error sending request", done.stderr):
        pytest.skip("The package registry cannot be reached, so the wheel cannot be installed.")
    assert done.returncode == 0, done.stderr
    return environment / "bin"


def test_the_wheel_installed_alone(installed: Path, tmp_path: Path, figure: Callable[[str], None]) -> None:
    """The command shows its help and transcribes by a service; the client loads neither Ray nor torch."""
    (tmp_path / "talk.mp3").write_bytes(b"audio")

    def run(name: str, *arguments: str) -> str:
        command = [str(installed / name), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "transcribe" in run("whisperx-serve", "--help")
    with played(tmp_path / "state") as service:
        run("whisperx-serve", "transcribe", "talk.mp3", "--server", service.url, "-f", "txt")
    assert "four score" in (tmp_path / "talk.txt").read_text()
    code = """if True:
        import importlib.util, json, sys, time
        def rss_kb():
            return int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0])
        before_kb, begun_s = rss_kb(), time.perf_counter()
        import serve_app.client
        took_s = time.perf_counter() - begun_s
        heavy = [name for name in ("ray", "torch", "numpy", "fastapi") if importlib.util.find_spec(name)]
        print(json.dumps([took_s, before_kb, rss_kb(), heavy]))
    """
    took_s, before_kb, after_kb, heavy = min(json.loads(run("python", "-c", code)) for _ in range(3))
    assert heavy == []
    memory = f"{(after_kb - before_kb) / 1024:.0f} MB more, {after_kb / 1024:.0f} MB in all"
    figure(f"the wheel alone: import serve_app.client: {took_s * 1000:.0f} ms, {memory}")


def python(wheel: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with this wheel, in a folder that has one recording."""
    folder.mkdir()
    (folder / "talk.mp3").write_bytes(b"audio")
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(wheel)},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_only_the_extra_server_brings_ray_and_torch(wheel: Path) -> None:
    """`pip install .` is small."""
    (metadata,) = wheel.glob("*.dist-info/METADATA")
    listed = Parser().parsestr(metadata.read_text()).get_all("Requires-Dist", [])
    needed = [Requirement(each) for each in listed]
    small = {each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": "client"})}
    assert small == {"httpx", "rich", "tenacity", "typer"}
    server = {each.name for each in needed if each.marker and each.marker.evaluate({"extra": "server"})}
    assert server >= HEAVY - {"torch"}  # whisperx brings it


def test_the_demo_has_its_config(wheel: Path, tmp_path: Path) -> None:
    """The demo's config is found from any folder, and is that of the repository."""
    code = "from serve_app.cli import config_file as c; c.read(c.DEMO_CONFIG); print(c.DEMO_CONFIG)"
    done = python(wheel, tmp_path / "elsewhere", "-c", code)
    assert done.stdout.strip() == str(wheel / "serve_app" / "cli" / "serve_config.demo.yaml"), done.stderr
    assert Path(done.stdout.strip()).read_bytes() == (PROJECT / "serve_config.demo.yaml").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo"], "pip install '.[server]'"),
        (["serve", "config.yaml"], "pip install '.[server]'"),
        (["doctor"], "pip install '.[server]'"),
        (["prefetch", "base"], "pip install '.[server]'"),
        (["transcribe", "talk.mp3"], "--server URL"),
    ],
)
def test_without_the_servers_packages(wheel: Path, tmp_path: Path, arguments: list[str], says: str) -> None:
    """A command that needs the server's packages says in a sentence how to install them."""
    missing = ["ray", "yaml", "filelock", "pydantic_settings"]
    code = f"""if True:
        import sys
        class Missing:
            def find_spec(name, *_):
                if name in {missing}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Missing)
        import importlib.util
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name in {missing} else real(name)
        sys.argv = ["whisperx-serve", *{arguments}]
        from serve_app.__main__ import main
        main()
    """
    done = python(wheel, tmp_path / "elsewhere", "-c", code)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
