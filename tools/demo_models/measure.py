"""What the finished models reach: recordings that training never saw, and a table of their figures."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from tools.demo_models import recordings
from tools.demo_models.conversation import conversation_recording
from tools.demo_models.evaluation import load_recogniser, total, word_errors
from tools.demo_models.export_recogniser import export
from tools.demo_models.recordings import Recording
from tools.demo_models.voices import SEEN_IN_EVALUATION, UNSEEN_IN_EVALUATION

SECONDS = 60
WINDOW_S = 6  # the card's
WINDOWS_S = (6, 8, 10, 30)
NOISE_DECIBELS = 20


@dataclass(frozen=True)
class Row:
    name: str
    words: int
    rates: dict[int, float]  # word error rate by longest window, seconds


def make_recordings(name: str, seed: int, programs: Path, known: set[str], folder: Path) -> None:
    """A minute by each pair of voices, saved under folder/name-seen and folder/name-unseen."""
    rng = random.Random(seed)
    for kind, groups in (("seen", SEEN_IN_EVALUATION), ("unseen", UNSEEN_IN_EVALUATION)):
        for number, voices in enumerate(groups):
            recording = recordings.sample_recording(
                f"{kind}-{number}", voices, SECONDS, rng, programs=programs, known=known
            )
            recordings.save(recording, folder / f"{name}-{kind}")


def choose_checkpoint(checkpoints: list[Path], tokenizer: Tokenizer, folder: Path, scratch: Path) -> Path:
    """The checkpoint with the fewest wrong words end to end; losses on training windows are a poor guide."""
    chosen = recordings.load(folder / "choice-seen") + recordings.load(folder / "choice-unseen")
    rates = {}
    for checkpoint in checkpoints:
        export(checkpoint, tokenizer, scratch)
        recogniser = load_recogniser(scratch)
        rates[checkpoint] = total([word_errors(recogniser, recording, WINDOW_S) for recording in chosen])
        print(f"{checkpoint.name}: {rates[checkpoint]:.1%} of the words wrong", flush=True)
    return min(rates, key=lambda checkpoint: rates[checkpoint])


def measure(asr: Path, folder: Path, conversation: Path) -> list[Row]:
    """Word errors of the exported recogniser, by kind of voice and by window."""
    recogniser = load_recogniser(asr)
    seen, unseen = recordings.load(folder / "report-seen"), recordings.load(folder / "report-unseen")
    noise = np.random.default_rng(5)
    noisy = [recordings.with_noise(recording, NOISE_DECIBELS, noise) for recording in seen]
    rows = [
        _row(recogniser, "seen voices", seen),
        _row(recogniser, f"seen voices, noise at {NOISE_DECIBELS} dB", noisy),
    ]
    for recording in unseen:
        voices = ", ".join(sorted({word.speaker for word in recording.words}))
        rows.append(_row(recogniser, f"unseen: {voices}", [recording]))
    rows.append(_row(recogniser, "unseen voices, all", unseen))
    rows.append(_row(recogniser, "the demo's conversation", [conversation_recording(conversation)]))
    return rows


def _row(recogniser: Any, name: str, chosen: list[Recording]) -> Row:
    rates = {w: total([word_errors(recogniser, recording, w) for recording in chosen]) for w in WINDOWS_S}
    return Row(name, sum(len(recording.words) for recording in chosen), rates)


def as_markdown(rows: list[Row]) -> str:
    """The rows as a table of percentages."""
    head = ["recordings", "words", *(f"{window} s" for window in WINDOWS_S)]
    lines = [" | ".join(head), " | ".join(["---"] + ["--:"] * (len(head) - 1))]
    for row in rows:
        lines.append(
            " | ".join([row.name, str(row.words), *(f"{100 * row.rates[w]:.1f} %" for w in WINDOWS_S)])
        )
    return "\n".join(f"| {line} |" for line in lines)
