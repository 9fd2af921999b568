"""Wrong words of a recogniser, end to end through the unmodified `whisperx.load_model` and `transcribe`."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks import truth
from benchmarks.accuracy import count_errors
from benchmarks.truth import Recording
from tools.demo_models.export_recogniser import export

WINDOW_S = 6  # the card's
WINDOWS_S = (6, 8, 10, 30)
NOISE_DB = 20
VAD_OPTIONS = {"vad_onset": 0.5, "vad_offset": 0.363, "chunk_size": 30}


@dataclass(frozen=True)
class Row:
    name: str
    words: int
    rates: dict[int, float]  # word error rate by longest window, seconds


def choose_checkpoint(
    checkpoints: list[Path], tokenizer: Tokenizer, chosen: list[Recording], scratch: Path
) -> Path:
    """The checkpoint with the fewest wrong words end to end; losses on training windows are a poor guide."""
    rates = {}
    for checkpoint in checkpoints:
        export(checkpoint, tokenizer, scratch)
        rates[checkpoint] = word_error_rate(load_recogniser(scratch), chosen, WINDOW_S)
        print(f"{checkpoint.name}: {rates[checkpoint]:.1%} of the words wrong", flush=True)
    return min(rates, key=lambda checkpoint: rates[checkpoint])


def measure(asr: Path, evaluation: Path, conversation: Recording) -> list[Row]:
    """Word errors of the exported recogniser, by kind of voice and by window."""
    recogniser = load_recogniser(asr)
    seen = truth.load_folder(evaluation / "seen")
    groups = {
        "seen voices": seen,
        f"seen voices, noise at {NOISE_DB} dB": [
            truth.with_noise(recording, NOISE_DB, seed) for seed, recording in enumerate(seen)
        ],
        "unseen voices": truth.load_folder(evaluation / "unseen"),
        "the demo's conversation": [conversation],
    }
    return [
        Row(
            name,
            sum(len(recording.words) for recording in chosen),
            {window_s: word_error_rate(recogniser, chosen, window_s) for window_s in WINDOWS_S},
        )
        for name, chosen in groups.items()
    ]


def word_error_rate(recogniser: Any, chosen: Sequence[Recording], chunk_size: int) -> float:
    """Errors over words of all the recordings together, with windows of at most `chunk_size` seconds."""
    errors = 0
    for recording in chosen:
        samples = recording.samples.astype(np.float32) / 32768
        result = recogniser.transcribe(samples, batch_size=4, chunk_size=chunk_size)
        errors += count_errors(recording, " ".join(segment["text"] for segment in result["segments"]))
    return errors / sum(len(recording.words) for recording in chosen)


def load_recogniser(folder: Path) -> Any:
    import whisperx

    return whisperx.load_model(
        str(folder), "cpu", compute_type="int8", language="en", threads=2, vad_model=speech_detector()
    )


@functools.cache
def speech_detector() -> "RememberingDetector":
    return RememberingDetector()


class RememberingDetector:
    """whisperx's own speech detector, run once for each recording: no recogniser changes its scores."""

    def __init__(self) -> None:
        import torch
        from whisperx.vads import Pyannote

        self._detector = Pyannote(torch.device("cpu"), **VAD_OPTIONS)
        self._scores: dict[int, Any] = {}

    def __call__(self, audio: dict[str, Any], **_: Any) -> Any:
        key = hash(audio["waveform"].numpy().tobytes())
        if key not in self._scores:
            self._scores[key] = self._detector(audio)
        return self._scores[key]


def as_markdown(rows: list[Row]) -> str:
    """The rows as a table of percentages."""
    head = ["recordings", "words", *(f"{window_s} s" for window_s in WINDOWS_S)]
    lines = [" | ".join(head), " | ".join(["---"] + ["--:"] * (len(head) - 1))]
    for row in rows:
        lines.append(
            " | ".join([row.name, str(row.words), *(f"{100 * row.rates[w]:.1f} %" for w in WINDOWS_S)])
        )
    return "\n".join(f"| {line} |" for line in lines)
