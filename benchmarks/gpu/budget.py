"""Steps under one time limit: each is a process of its own, which is killed when it takes too long."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from benchmarks.gpu.figures import Figure, read

KILL_S = 5.0  # that a killed step may take to be gone
NOT_POSSIBLE = 3  # exit status of a step that lacks something


@dataclass(frozen=True)
class Step:
    """One process; its name is `group` or `group.stage`."""

    name: str
    what: str
    needs_s: float  # it is not started with less
    limit_s: float  # it is killed after


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    step: str
    state: Literal["done", "skipped", "failed", "killed"]
    reason: str = ""
    seconds: float = 0.0
    figures: tuple[Figure, ...] = ()


def chosen(steps: Sequence[Step], only: str, skip: str) -> list[Step]:
    """The steps that are in `only` (empty: all) and not in `skip`: names or groups, separated by commas.

    Raises ValueError for a name that no step has.
    """
    wanted, unwanted = _names(only), _names(skip)
    if unknown := [name for name in wanted + unwanted if not any(_is_in(step, [name]) for step in steps)]:
        known = dict.fromkeys(part for step in steps for part in (step.name.partition(".")[0], step.name))
        raise ValueError(f"There is no step {unknown[0]}; there are {', '.join(known)}.")
    return [step for step in steps if (not wanted or _is_in(step, wanted)) and not _is_in(step, unwanted)]


def _names(listed: str) -> list[str]:
    return [name.strip() for name in listed.split(",") if name.strip()]


def _is_in(step: Step, names: Sequence[str]) -> bool:
    return any(step.name == name or step.name.startswith(f"{name}.") for name in names)


def run_within(
    seconds: float,
    steps: Iterable[Step],
    run: Callable[[Step, float], Outcome],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Outcome]:
    """Runs each step that still fits, in order, and yields what became of it.

    `run` gets the seconds after which it must have killed its step.
    """
    begun_s = clock()
    for step in steps:
        left_s = seconds - KILL_S - (clock() - begun_s)
        if left_s < step.needs_s:
            reason = f"it needs {step.needs_s:.0f} s, and {max(0.0, left_s):.0f} s are left"
            yield Outcome(step.name, "skipped", reason)
        else:
            yield run(step, min(step.limit_s, left_s))


def run_child(
    step: Step,
    limit_s: float,
    command: Sequence[str],
    folder: Path,
    log: Path,
    cwd: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Outcome:
    """Runs the command, which writes its figures into `folder`; its output is appended to `log`."""
    begun_s = time.monotonic()
    with log.open("ab") as output:
        output.write(f"\n--- {step.name}\n".encode())
        output.flush()
        begin = output.tell()
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=cwd,
            env=variables,
        )
        try:
            status: int | None = child.wait(limit_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            kill_all(child)
    spent_s = time.monotonic() - begun_s
    figures = tuple(read(folder / f"{step.name}.jsonl"))
    if status is None:
        return Outcome(step.name, "killed", f"it took over {limit_s:.0f} s", spent_s, figures)
    if status == 0:
        return Outcome(step.name, "done", "", spent_s, figures)
    with log.open("rb") as written:
        written.seek(begin)
        lines = written.read().decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else f"exit status {status}"
    if status < 0:
        reason = f"{signal.Signals(-status).name}; {reason}"
    return Outcome(step.name, "skipped" if status == NOT_POSSIBLE else "failed", reason, spent_s, figures)


def kill_all(child: subprocess.Popen[bytes]) -> None:
    """Kills a process that leads a session, and what it started; waits, but not for one that cannot die."""
    found: list[psutil.Process] = []
    with suppress(psutil.Error):
        found = psutil.Process(child.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)  # also those whose parent has ended
    for process in found:
        with suppress(psutil.Error):
            process.kill()
    with suppress(subprocess.TimeoutExpired):
        child.wait(KILL_S)  # a process inside a hung driver stays
