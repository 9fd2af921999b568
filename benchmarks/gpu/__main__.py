"""`make gpu-check`: correctness, memory and speed of every stage on a GPU, within ten minutes.

Steps are sorted by value. Each is a process of its own, which is killed when it hangs; one that would not
fit in the time that is left is skipped. On a machine without a GPU the same steps run on the CPU with tiny
models, to try them. Exit status 1 when a step failed or a figure is outside of its limit.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.gpu.budget import Outcome, Step, chosen, run_child, run_within
from benchmarks.gpu.constants import diff, measured
from benchmarks.gpu.figures import as_json
from benchmarks.gpu.machine import environment, gpu_of, install_missing, machine_name

PROJECT = Path(__file__).parents[2]

# Sorted by value. Seconds are guesses for a GPU machine with a dozen cores; nobody has measured them there.
STEPS = (
    Step("machine", "GPU, driver, libraries, packages", 5, 90),
    Step("correctness.recognizer", "encoder, texts and word times, GPU against CPU", 40, 150),
    Step("correctness.aligner", "probabilities and word times, GPU against CPU", 20, 90),
    Step("correctness.detector", "windows of speech, GPU against CPU", 15, 60),
    Step("correctness.diarizer", "turns, GPU against CPU", 20, 120),
    Step("cost.recognizer", "memory and speed of large-v2 by batch size", 40, 150),
    Step("cost.aligner", "memory and speed of wav2vec2-base", 15, 60),
    Step("cost.detector", "memory and speed of pyannote's speech detection", 15, 60),
    Step("cost.diarizer", "memory and speed of community-1's networks", 20, 90),
    Step("whisperx", "32 clips in batches against whisperx, clip after clip", 60, 180),
    Step("large-v3", "memory and speed with 128 mel bands", 40, 120),
    Step("graph", "the whole graph by Ray with the demo's recording", 60, 180),
)

SLOWER_ON_CPU = 4  # limits; the machines on which the command is tried are small and busy

say = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)  # errors have brackets


def main(
    device: Annotated[
        Literal["auto", "cuda", "cpu"], typer.Option(help="auto: a GPU if there is one.")
    ] = "auto",
    seconds: Annotated[float, typer.Option(help="For everything; more is never taken.")] = 540,
    only: Annotated[str, typer.Option(help="Steps or groups, separated by commas.")] = "",
    skip: Annotated[str, typer.Option(help="Steps or groups to leave out.")] = "",
    wheels: Annotated[Path | None, typer.Option(help="Folder of wheels; missing ones are installed.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for gpu.json, gpu.log and gpu.diff.")] = PROJECT / "out",
    tiny: Annotated[bool | None, typer.Option(help="Tiny models. On a CPU the default.")] = None,
    list_steps: Annotated[bool, typer.Option("--list", help="Print the steps and end.")] = False,
) -> None:
    begun_s = time.monotonic()
    try:
        steps = chosen(STEPS, only, skip)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if list_steps:
        print("\n".join(f"{step.name:24} {step.what}" for step in steps))
        return
    if device == "auto":
        device = "cuda" if gpu_of("name") else "cpu"
    tiny = device == "cpu" if tiny is None else tiny
    if device == "cpu":
        steps = [replace(step, limit_s=SLOWER_ON_CPU * step.limit_s) for step in steps]
    out.mkdir(parents=True, exist_ok=True)
    log = out / "gpu.log"
    log.unlink(missing_ok=True)
    name = machine_name(device)
    about: dict[str, Any] = {"machine": name, "device": device, "tiny": tiny, "budget_s": seconds}
    dimensions = "tiny dimensions, only to try it" if tiny else "true dimensions"
    say.print(f"{name}; {dimensions}; at most {seconds:.0f} s.")
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="gpu-check-", ignore_cleanup_errors=True) as place:
        folder = Path(place)
        if wheels is not None:
            about["installed"] = install_missing(wheels, folder / "site")
            say.print(f"Installed {len(about['installed'])} of the wheels in {wheels}.")
        run = partial(
            _run, device, folder, name, tiny, log, environment(folder / "site", folder / "libraries")
        )
        left_s = seconds - (time.monotonic() - begun_s)
        for outcome in run_within(left_s, steps, run):
            outcomes.append(outcome)
            say.print(f"{outcome.step}: {outcome.state}, {outcome.seconds:.0f} s. {outcome.reason}")
            _write(out, about | {"seconds": round(time.monotonic() - begun_s, 1)}, outcomes)
    title = f"Measured on {name}; {dimensions}; {time.monotonic() - begun_s:.0f} of {seconds:.0f} s"
    Console(width=None if sys.stdout.isatty() else 130).print(table(outcomes, title))
    if changes := diff(measured(figure for outcome in outcomes for figure in outcome.figures), name):
        print(f"The simulated device's constants as measured, with {dimensions} (not applied):\n\n{changes}")
    say.print(f"Written to {out / 'gpu.json'}; what the steps printed is in {log}.")
    if not all_well(outcomes):
        raise typer.Exit(1)


def _run(
    device: str,
    folder: Path,
    name: str,
    tiny: bool,
    log: Path,
    variables: dict[str, str],
    step: Step,
    limit_s: float,
) -> Outcome:
    command = [sys.executable, "-m", "benchmarks.gpu.child", step.name, "--device", device]
    command += ["--folder", str(folder), "--machine-name", name, "--limit-s", f"{limit_s:.1f}"]
    command += ["--tiny"] if tiny else []
    return run_child(step, limit_s, command, folder, log, PROJECT, variables)


def all_well(outcomes: Iterable[Outcome]) -> bool:
    """No step failed or was killed, and no figure is outside of its limit. Skipped steps do not count."""
    return all(
        outcome.state in ("done", "skipped") and all(figure.is_within for figure in outcome.figures)
        for outcome in outcomes
    )


def table(outcomes: Iterable[Outcome], title: str) -> Table:
    found = Table("step", "figure", "measured", "allowed", "", title=title)
    for outcome in outcomes:
        for number, figure in enumerate(outcome.figures):
            verdict = "" if not figure.has_limit else "ok" if figure.is_within else "[bold red]outside[/]"
            step = "" if number else outcome.step
            found.add_row(step, figure.name, escape(figure.shown), figure.limit_shown, verdict)
        if outcome.state != "done":
            found.add_row(outcome.step, f"[yellow]{outcome.state}[/]: {escape(outcome.reason)}")
        found.add_section()
    return found


def _write(out: Path, about: dict[str, Any], outcomes: list[Outcome]) -> None:
    """After every step, so that an end from outside costs nothing."""
    steps = [
        {**vars(outcome), "figures": [as_json(figure) for figure in outcome.figures]} for outcome in outcomes
    ]
    changes = diff(measured(figure for one in outcomes for figure in one.figures), about["machine"])
    whole = about | {"steps": steps, "simulated_diff": changes}
    (out / "gpu.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
