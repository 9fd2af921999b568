"""What half precision changes: `python -m benchmarks.half_precision` prints one line of JSON.

It runs the bundled aligner and diarizer over benchmarks/recordings (23 minutes) in float32 and in half
precision, by torch's autocast on a CPU: numbers are rounded as on a GPU, which sums in another order. It
counts for each type the words whose times differ, with the largest difference in seconds, and the recordings
whose turns differ.
"""

import json
import platform
import warnings
from typing import Any

import typer

from benchmarks import truth
from benchmarks.alignment import RECORDINGS, request_for, turns_of
from serve_app import bundled
from serve_app.errors import TranscriptionError
from serve_app.settings import ComputeType, DiarizationSettings
from serve_app.stages.alignment.aligner import align_language, load_language_model
from serve_app.stages.diarization.diarizer import load_pyannote
from serve_app.transcript import Diarization

TYPES: tuple[ComputeType, ...] = ("float16", "bfloat16")
PADDED_S = 60.0  # as on a GPU

TimedWord = tuple[float | None, float | None]


def words(compute_type: ComputeType, recordings: list[truth.Recording]) -> list[TimedWord]:
    """The times of the true words, with one window for each turn."""
    max_padded_s = 0.0 if compute_type == "float32" else PADDED_S
    model = load_language_model("en", str(bundled.ALIGNERS["en"]), "cpu", max_padded_s, compute_type)
    found: list[TimedWord] = []
    for file in map(turns_of, recordings):
        requests = [request_for(segment, file) for segment in file.segments]
        for segments in align_language(model, requests):
            assert not isinstance(segments, TranscriptionError)
            found += [(word.start_s, word.end_s) for segment in segments for word in segment.words]
    return found


def turns(compute_type: ComputeType, recordings: list[truth.Recording]) -> list[Diarization]:
    settings = DiarizationSettings(compute_type=compute_type)
    diarizer = load_pyannote(bundled.NAME, device="cpu", token=None, settings=settings)
    return [diarizer.diarize(recording.samples) for recording in recordings]


def moved_s(ours: TimedWord, other: TimedWord) -> float:
    """The larger difference between the same word's times, in seconds."""
    return max(abs((a or 0.0) - (b or 0.0)) for a, b in zip(ours, other, strict=True))


def main() -> None:
    warnings.simplefilter("ignore")  # pyannote's and torchaudio's advice
    recordings = [truth.load(path) for path in sorted(RECORDINGS.glob("*/*.opus"))]
    exact_words, exact_turns = words("float32", recordings), turns("float32", recordings)
    figures: dict[str, Any] = {"words": len(exact_words), "recordings": len(recordings)}
    for compute_type in TYPES:
        pairs = zip(exact_words, words(compute_type, recordings), strict=True)
        moved = [distance for pair in pairs if (distance := moved_s(*pair)) > 1e-6]
        other = sum(a != b for a, b in zip(exact_turns, turns(compute_type, recordings), strict=True))
        figures[compute_type] = {
            "words_moved": len(moved),
            "by_s_at_most": round(max(moved, default=0.0), 3),
            "recordings_with_other_turns": other,
        }
    print(json.dumps({**figures, "machine": platform.machine()}))


if __name__ == "__main__":
    typer.run(main)
