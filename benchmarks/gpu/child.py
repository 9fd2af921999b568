"""One step in a process of its own: `python -m benchmarks.gpu.child STEP ...`, started by benchmarks.gpu."""

import faulthandler
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.gpu import correctness, cost, graph, machine, sequential
from benchmarks.gpu.budget import NOT_POSSIBLE
from benchmarks.gpu.figures import Report
from benchmarks.gpu.stages import Check, NotPossible

RUN: dict[str, Callable[[Check], None]] = {
    "machine": machine.machine,
    "correctness.recognizer": correctness.recognizer,
    "correctness.aligner": correctness.aligner,
    "correctness.detector": correctness.detector,
    "correctness.diarizer": correctness.diarizer,
    "cost.recognizer": cost.recognizer,
    "cost.aligner": cost.aligner,
    "cost.detector": cost.detector,
    "cost.diarizer": cost.diarizer,
    "whisperx": sequential.against_whisperx,
    "large-v3": cost.large_v3,
    "graph": graph.whole_graph,
}


def main(
    step: str,
    device: Annotated[str, typer.Option()],
    folder: Annotated[Path, typer.Option(help="Of random weights and figures.")],
    machine_name: Annotated[str, typer.Option()],
    limit_s: Annotated[float, typer.Option(help="When it is going to be killed.")],
    tiny: Annotated[bool, typer.Option()] = False,
) -> None:
    faulthandler.enable()
    faulthandler.dump_traceback_later(max(1.0, limit_s - 1))  # the log says where it hung
    warnings.simplefilter("ignore")  # advice of pyannote's and torchaudio's
    report = Report(folder / f"{step}.jsonl", machine_name)
    try:
        RUN[step](Check(device, tiny, folder, report))
    except ModuleNotFoundError as error:
        print(f"there is no module {error.name}", file=sys.stderr)
        raise typer.Exit(NOT_POSSIBLE) from None
    except NotPossible as error:
        print(error, file=sys.stderr)
        raise typer.Exit(NOT_POSSIBLE) from None
    except Exception as error:  # noqa: BLE001  (whatever a kernel or a library raises)
        traceback.print_exc()
        # Last, for the table: what CUDA's errors say beyond their first line is the same for all of them.
        print(f"{type(error).__name__}: {error}".partition("\n")[0], file=sys.stderr)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
