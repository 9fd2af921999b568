"""`make bench`: the short set of every benchmark; a table, a plot, and out/bench.json."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).parents[1]

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Goal:
    """A figure of the summary and where it should be."""

    name: str
    at_least: float | None = None
    at_most: float | None = None

    def met(self, value: float) -> bool:
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )

    def __str__(self) -> str:
        return f"≥ {self.at_least:g}" if self.at_least is not None else f"≤ {self.at_most:g}"


# Script, the options that make it short, and its figures.
SHORT = {
    "scheduling": (("--long-s", "900", "--files", "48", "--clients", "16"), (
        Goal("throughput_ratio_sim", at_least=3),
        Goal("occupancy_sim", at_least=0.9),
        Goal("busy_sim", at_least=0.9),
        Goal("overhead_sim", at_most=1.1),
        Goal("scaling_2", at_least=1.9),
        Goal("scaling_4", at_least=3.6),
        Goal("short_beside_long_p95_ratio", at_most=2),
        Goal("long_beside_short_ratio", at_most=1.1),
        Goal("first_segment_fraction", at_most=0.05),
    )),
    "throughput": (("--clips", "8"), (
        Goal("throughput_ratio_cpu", at_least=1.5),
        Goal("throughput_ratio_cpu_asr", at_least=1.3),
    )),
    "diarization": (("--audio-s", "20"), (
        Goal("diarize_ratio", at_least=3),
        Goal("identical_turns", at_least=1),
    )),
    "alignment": (("--audio-s", "600"), (
        Goal("align_cpu_ratio", at_least=10),
        Goal("identical_share", at_least=1),
    )),
}  # fmt: skip


def main(
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.png.")] = PROJECT / "out",
    only: Annotated[str, typer.Option(help="Scripts to run, separated by commas.")] = ",".join(SHORT),
    profile: Annotated[bool, typer.Option(help="A flame graph of each run's processes, by py-spy.")] = False,
) -> None:
    begun_s = time.monotonic()
    out.mkdir(exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for name in only.split(","):
        say.print(f"benchmarks.{name} {' '.join(SHORT[name][0])}")
        found[name] = run(name, SHORT[name][0], out / f"{name}.svg" if profile else None)
    rows = [(goal, float(found[name][goal.name])) for name in found for goal in SHORT[name][1]]
    table = Table("figure", "measured", "goal", "", title=f"{time.monotonic() - begun_s:.0f} s")
    for goal, value in rows:
        table.add_row(goal.name, f"{value:.2f}", str(goal), "" if goal.met(value) else "missed")
    Console().print(table)
    summary = {goal.name: value for goal, value in rows}
    (out / "bench.json").write_text(json.dumps({"summary": summary, "runs": found}, indent=1) + "\n")
    plot(rows, out / "bench.png")
    say.print(f"Written to {out / 'bench.json'} and {out / 'bench.png'}.")


def run(name: str, options: tuple[str, ...], picture: Path | None) -> dict[str, Any]:
    """The JSON line of a benchmark that runs in a process of its own; with a `picture` it runs slower."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *options]
    if picture:
        py_spy = str(Path(sys.executable).with_name("py-spy"))
        command = [
            py_spy,
            "record",
            "--subprocesses",
            "--nonblocking",
            "--output",
            str(picture),
            "--",
            *command,
        ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=not picture, cwd=PROJECT)
    # whisperx and py-spy write there too.
    figures: dict[str, Any] = json.loads([x for x in done.stdout.splitlines() if x.startswith("{")][-1])
    return figures


def plot(rows: list[tuple[Goal, float]], path: Path) -> None:
    """Each figure over its goal: to the right of the line is better, also where less is better."""
    from matplotlib.figure import Figure

    names = [f"{goal.name} ({goal})" for goal, _ in rows]
    ratios = [value / goal.at_least if goal.at_least else (goal.at_most or 0) / value for goal, value in rows]
    figure = Figure(figsize=(9, 0.4 * len(rows) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh(names, ratios, color=["#2a7f62" if ratio >= 1 else "#b3462e" for ratio in ratios])
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("times the goal (right of the line is better)")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    typer.run(main)
