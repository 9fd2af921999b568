"""What half precision changes: `python -m benchmarks.half_precision` prints one line of JSON.

It runs CAM++ diarization over recordings of real people in float32 and in half precision, by torch's autocast
on a CPU: numbers are rounded as on a GPU, which sums in another order. It counts for each type the recordings
whose turns differ.
"""

import json
import platform
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks import people
from serve_app.models.prefetch import directory_of
from serve_app.settings import DiarizationSettings
from serve_app.settings.types import ComputeType
from serve_app.stages.diarization.diarizer import load_pyannote
from serve_app.transcript import Diarization

TYPES: tuple[ComputeType, ...] = ("float16", "bfloat16")


def turns(compute_type: ComputeType, recordings: list[people.Recording]) -> list[Diarization]:
    settings = DiarizationSettings(compute_type=compute_type)
    diarizer = load_pyannote(directory_of("campplus"), device="cpu", token=None, settings=settings)
    return [diarizer.diarize(recording.samples) for recording in recordings]


def main(
    folder: Annotated[
        Path, typer.Option("--people", envvar="EVAL_PEOPLE", help="Folder of recordings with manifest.jsonl.")
    ] = people.FOLDER,
) -> None:
    warnings.simplefilter("ignore")  # pyannote's and torchaudio's advice
    recordings = [recording for recording in people.found(folder) if recording.turns]
    exact = turns("float32", recordings)
    figures: dict[str, Any] = {"recordings": len(recordings)}
    for compute_type in TYPES:
        others = sum(a != b for a, b in zip(exact, turns(compute_type, recordings), strict=True))
        figures[compute_type] = {"recordings_with_other_turns": others}
    print(json.dumps({**figures, "machine": platform.machine()}))


if __name__ == "__main__":
    typer.run(main)
