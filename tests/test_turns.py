"""Turns on a device: who holds it is seen by others, and nobody holds it who has died."""

import signal
import subprocess
import sys
from pathlib import Path

from serve_app.turns import Turns

HOLD = """
import sys
from pathlib import Path
from serve_app.turns import Turns
with Turns(Path(sys.argv[1])).first():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_turn_is_seen_until_it_ends(tmp_path: Path) -> None:
    """By others on the same device, and by nobody on another one; two may hold it at once."""
    mine, yours, elsewhere = (Turns(tmp_path / name) for name in ("gpu-0", "gpu-0", "gpu-1"))
    assert not yours.taken()
    with mine.first():
        with mine.first():
            assert yours.taken()
            assert not elsewhere.taken()
        assert yours.taken()
    assert not yours.taken()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    """Its turn ends with it."""
    turns = Turns(tmp_path / "gpu-0")
    command = [sys.executable, "-c", HOLD, str(tmp_path / "gpu-0")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert turns.taken()
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        assert not turns.taken()


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    """Then nobody waits for anybody; work goes on."""
    (tmp_path / "gpu-0").symlink_to(tmp_path / "elsewhere")
    turns = Turns(tmp_path / "gpu-0")
    with turns.first():
        assert not Turns(tmp_path / "gpu-0").taken()
    assert not (tmp_path / "elsewhere").exists()
