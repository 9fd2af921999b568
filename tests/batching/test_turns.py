"""Turns on a device: who holds it is seen by others, and nobody holds it who has died."""

import asyncio
import math
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve_app.batching import turns as turns_module
from serve_app.batching.turns import GivingWay, Turns

HOLD = """
import sys
from pathlib import Path
from serve_app.batching.turns import Turns
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


def test_a_wait_that_is_cut_short_costs_what_it_lasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is there the next time, and so is the time between."""
    now_s = 100.0

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    monkeypatch.setattr(turns_module, "time", SimpleNamespace(monotonic=lambda: now_s))
    monkeypatch.setattr(turns_module, "asyncio", SimpleNamespace(sleep=sleep))
    short = Turns(tmp_path / "gpu-0")
    giving_way = GivingWay({short: 1.0})

    async def waited_s(most_s: float = math.inf) -> float:
        begun_s = now_s
        await giving_way.wait(lambda: now_s < begun_s + most_s)
        return now_s - begun_s

    async def scenario() -> list[float]:
        with short.first():
            waited = [await waited_s(0.6), await waited_s()]
            await sleep(0.3)
            return [*waited, await waited_s(), await waited_s()]

    assert asyncio.run(scenario()) == pytest.approx([0.6, 0.4, 0.3, 0.0], abs=2 * turns_module.LOOK_S)
