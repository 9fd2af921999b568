"""Every block of docs/client.md and docs/transcribe.md is run as it stands there."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from played_service import Played, played

from serve_app.errors import UnusableAudio

PROJECT = Path(__file__).parents[2]
IN_PYTHON = re.findall(r"^```python\n(.*?)^```$", (PROJECT / "docs" / "client.md").read_text(), re.M | re.S)
IN_SHELL = re.findall(
    r"^whisperx-serve (transcribe [^#\n]*)", (PROJECT / "docs" / "transcribe.md").read_text(), re.M
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Played]:
    with played(tmp_path / "state") as service:
        yield service


def test_there_are_blocks() -> None:
    """Else nothing below would be run."""
    assert (len(IN_PYTHON), len(IN_SHELL)) == (5, 4)


@pytest.mark.parametrize("block", IN_PYTHON, ids=range(len(IN_PYTHON)))
def test_a_block_in_python(block: str, service: Played, tmp_path: Path) -> None:
    """In a folder with talk.mp3."""
    (tmp_path / "talk.mp3").write_bytes(b"audio")
    service.failures[b"no audio"] = UnusableAudio("This is no audio.")
    done = subprocess.run(
        [sys.executable, "-c", block.replace("http://127.0.0.1:8000", service.url)],
        env={**os.environ, "WHISPERX_URL": service.url, "PYTHONPATH": str(PROJECT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "four score" in done.stdout or done.stdout == "This is no audio. undecodable_audio 422\n"


@pytest.mark.parametrize("command", IN_SHELL)
def test_a_command(command: str, service: Played, tmp_path: Path) -> None:
    """By a service that is there, since starting one is for tests with Ray; a watch is stopped."""
    for path in ("talk.mp3", "recordings/deep/talk.mp3", "inbox/talk.mp3"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"audio")
    arguments = shlex.split(command.replace("http://127.0.0.1:8000", service.url))
    process = subprocess.Popen(
        [sys.executable, "-m", "serve_app", *arguments],
        env={**os.environ, "WHISPERX_URL": service.url, "PYTHONPATH": str(PROJECT)},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        if "--watch" in arguments:
            service.until((tmp_path / "texts" / "talk.txt").exists)
        else:
            assert process.wait(60) == 0
            assert [*tmp_path.rglob("talk.txt")]
    finally:
        process.kill()
        process.communicate()
