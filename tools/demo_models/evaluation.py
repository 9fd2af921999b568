"""Word errors end to end, through the unmodified `whisperx.load_model` and `transcribe`."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import whisperx
from whisperx.vads import Pyannote

from tools.demo_models.recordings import Recording
from tools.demo_models.vocabulary import words_of

VAD_OPTIONS = {"vad_onset": 0.5, "vad_offset": 0.363, "chunk_size": 30}


@dataclass(frozen=True)
class WordErrors:
    errors: int
    words: int
    heard: str

    @property
    def rate(self) -> float:
        return self.errors / self.words


@functools.cache
def speech_detector() -> "RememberingDetector":
    return RememberingDetector()


class RememberingDetector:
    """whisperx's own speech detector, run once for each recording: no recogniser changes its scores."""

    def __init__(self) -> None:
        import torch

        self._detector = Pyannote(torch.device("cpu"), **VAD_OPTIONS)
        self._scores: dict[int, Any] = {}

    def __call__(self, audio: dict[str, Any], **_: Any) -> Any:
        key = hash(audio["waveform"].numpy().tobytes())
        if key not in self._scores:
            self._scores[key] = self._detector(audio)
        return self._scores[key]


def load_recogniser(folder: Path, threads: int = 1, language: str | None = "en") -> Any:
    return whisperx.load_model(
        str(folder),
        "cpu",
        compute_type="int8",
        language=language,
        threads=threads,
        vad_model=speech_detector(),
    )


def word_errors(recogniser: Any, recording: Recording, chunk_size: int) -> WordErrors:
    """What the recogniser makes of one recording with windows of at most `chunk_size` seconds."""
    result = recogniser.transcribe(recording.samples, batch_size=4, chunk_size=chunk_size)
    heard = " ".join(words_of(" ".join(segment["text"] for segment in result["segments"])))
    counts = jiwer.process_words(recording.text, heard or "-")
    return WordErrors(
        counts.substitutions + counts.deletions + counts.insertions, len(recording.words), heard
    )


def total(results: Sequence[WordErrors]) -> float:
    """Errors over words of all the recordings together."""
    return sum(r.errors for r in results) / sum(r.words for r in results)
