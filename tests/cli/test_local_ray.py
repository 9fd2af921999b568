"""A Ray that cannot start is reported in one sentence, a slow one is waited for: real starts and faults."""

import os
import re
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from inside import processes_with

PROJECT = Path(__file__).parents[2]
START = """
import sys
from serve_app.cli import local_ray, note
from serve_app.cli import CommandFailed
local_ray.START_TRIES = 2
try:
    with local_ray.local_ray(show_logs=False, num_cpus=1):
        note.print("up")
except CommandFailed as error:
    note.print(f"error: {error}")
"""
# Agents that do not come up in 15 s, which is when their raylet gives up: the first one, or each.
SLOW_AGENT = """
import os, sys, time
if any("dashboard/agent.py" in argument for argument in sys.orig_argv):
    once = os.environ.get("SLOW_ONCE")
    if not once or not os.path.exists(once):
        if once:
            os.mkdir(once)
        time.sleep(60)
"""


def start(*before: str, **environment: str) -> str:
    """The output of a process that starts a local Ray with this environment."""
    done = subprocess.run(
        [*before, sys.executable, "-c", START],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
        cwd=PROJECT,
        env={**os.environ, **environment},
    )
    return done.stderr


@pytest.mark.parametrize(
    ("variable", "place", "says"),
    [
        ("RAY_TMPDIR", "file", "Not a directory"),
        ("RAY_TMPDIR", "a" * 100, "path length"),
        ("HOME", "file", "Not a directory"),
        ("RAY_AUTH_TOKEN_PATH", "nowhere", "file cannot be opened"),
    ],
)
def test_a_place_that_cannot_be_written_to_is_one_sentence(
    variable: str, place: str, says: str, tmp_path: Path
) -> None:
    """The sentence names the place, the error and the places to which Ray writes."""
    (tmp_path / "file").touch()
    (tmp_path / ("a" * 100)).mkdir()
    said = start(**{variable: str(tmp_path / place)})
    assert said.startswith("error: Ray cannot start: ")
    assert said.count("\n") == 1
    assert says in said
    assert place in said


def in_namespaces(*options: str) -> list[str]:
    """The start of a command that runs the rest in namespaces of its own."""
    command = ["unshare", "--user", "--map-root-user", *options]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        pytest.skip("this machine allows no namespaces")
    return command


def test_a_machine_without_loopback_is_one_sentence() -> None:
    """Ray would try for a quarter of an hour, in lines that name no cause."""
    said = start(*in_namespaces("--net"))
    reason = "127.0.0.1 does not answer (Network is unreachable)"
    assert said == f"error: {reason}; Ray needs it, so bring the interface lo up.\n"


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """A file system without room for Ray's folders."""
    mount = f'mount -t tmpfs -o nr_inodes=3 tmpfs "{tmp_path}" && exec "$@"'
    said = start(*in_namespaces("--mount"), "sh", "-c", mount, "sh", RAY_TMPDIR=str(tmp_path))
    assert re.fullmatch(r"error: Ray cannot start: .*No space left on device.*\n", said)


@pytest.mark.slow
@pytest.mark.parametrize("is_slow", ["once", "always"])
def test_a_slow_machine_is_waited_for(is_slow: str, tmp_path: Path) -> None:
    """The start is reported as slow, repeated, and given up in one sentence; no process is left running."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_AGENT)
    mark = f"whisperx-test-{uuid.uuid4().hex}"
    environment = {"PYTHONPATH": f"{tmp_path}:{PROJECT}", "WHISPERX_TEST_MARK": mark}
    if is_slow == "once":
        environment["SLOW_ONCE"] = str(tmp_path / "was_slow")
    said = start(**environment)
    assert (
        "Ray has not started after 20 s: this machine is slow or busy.\nStarting it again (2 of 2).\n" in said
    )
    if is_slow == "once":
        assert "\nup\n" in said
    else:
        assert re.search(r"\nerror: Ray cannot start: its raylet did not come up in 2 tries, .*\n\Z", said)
    assert "Traceback" not in said
    assert processes_with(mark) == []
