"""The stages' models and their input: as the service loads them, on either device."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import people
from benchmarks.gpu.figures import Report
from serve_app.settings import AsrSettings, DiarizationSettings, SpeechSettings
from serve_app.settings.types import ComputeType
from serve_app.stage_requests import AlignRequest, AsrRequest, SpeechRequest
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, Samples, Speech, Window, WindowText

TEXT_TOKENS = 56  # of each random text: 4 a second of a clip of 14 s
BATCH = {"cpu": 4, "cuda": 16}  # serve_app.app has the same, but needs Ray
REAL_WHISPERS = ("base", "tiny.en")


class NotPossible(Exception):
    """A step lacks something that this machine does not have."""


@dataclass(frozen=True)
class Check:
    """What a step is told: where it runs, how large its models are, and where its figures go."""

    device: str
    is_tiny: bool
    folder: Path  # of random weights, which steps share
    report: Report

    @property
    def batch(self) -> int:
        """Windows in a batch of the recogniser."""
        return BATCH[self.device]

    def goal(self, value: float) -> float | None:
        """A limit of speed: only on a GPU, and with models of true dimensions."""
        return value if self.device == "cuda" and not self.is_tiny else None

    def synchronize(self) -> None:
        """Waits until the GPU has done all that it was told to."""
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()


def real_whisper(check: Check) -> Path | None:
    """A trained Whisper on this machine; the smallest one where all is to be tiny."""
    names = reversed(REAL_WHISPERS) if check.is_tiny else REAL_WHISPERS
    return next(filter(None, map(real_model, names)), None)


def real_model(name: str) -> Path | None:
    """The directory of a model that was fetched to this machine."""
    from serve_app.models.store import open_store

    return open_store(None).find(name)


def random_whisper(check: Check, *, mel_bands: int = 80) -> Path:
    """`large-v2` (with 128 mel bands large-v3) with random weights; a toy where the dimensions are tiny."""
    from benchmarks.random_whisper import build_random_whisper

    name = "toy" if check.is_tiny else "large-v2"
    folder = check.folder / f"whisper-{mel_bands}"
    if not (folder / "done").exists():
        build_random_whisper(
            folder,
            name,
            mel_bands=mel_bands,
            text_tokens=TEXT_TOKENS,
            weights="float32" if check.device == "cpu" else "float16",
        )
        (folder / "done").touch()
    return folder / name


def random_wav2vec2(check: Check) -> Path:
    """wav2vec2-base, or a narrow one."""
    from benchmarks.random_wav2vec2 import NARROW, save_transformers_base

    folder = check.folder / "wav2vec2"
    if not (folder / "done").exists():
        save_transformers_base(folder, **(NARROW if check.is_tiny else {}))
        (folder / "done").touch()
    return folder


def random_pyannote(check: Check, *, trained_segmentation: bool) -> Path:
    """ResNet34 with random weights, around the trained segmentation of whisperx, or as in community-1."""
    from benchmarks.random_pyannote import save_community_1, save_with_real_segmentation

    folder = check.folder / ("pyannote-trained" if trained_segmentation else "pyannote")
    if not (folder / "done").exists():
        folder.mkdir()
        (save_with_real_segmentation if trained_segmentation else save_community_1)(folder)
        (folder / "done").touch()
    return folder


def load_recognizer(directory: Path, device: str, compute_type: str = "auto") -> Any:
    from serve_app.models.loaders import load_cublas
    from serve_app.stages.asr import recognizer

    if device == "cuda":
        load_cublas()
    settings = AsrSettings(compute_type=compute_type)
    return recognizer.load_recognizer(str(directory), device=device, threads=cores(), settings=settings)


def load_aligner(directory: Path, device: str, compute_type: ComputeType = "auto") -> Any:
    from serve_app.models.loaders import GPU_PADDED_S
    from serve_app.stages.alignment.aligner import load_language_model

    max_padded_s = GPU_PADDED_S if device == "cuda" else 0.0
    return load_language_model("en", str(directory), device, max_padded_s, compute_type)


def load_detector(device: str) -> Any:
    from serve_app.stages.speech.detector import load_pyannote_detector

    return load_pyannote_detector(SpeechSettings(), 30.0, device)


def load_diarizer(directory: Path, device: str, compute_type: ComputeType = "auto") -> Any:
    from serve_app.stages.diarization.diarizer import load_pyannote

    settings = DiarizationSettings(compute_type=compute_type)
    return load_pyannote(str(directory), device=device, token=None, settings=settings)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def said() -> list[tuple[Window, str]]:
    """What is said in the packaged sample, and when."""
    package = find_spec("pyannote.audio")
    assert package is not None
    assert package.origin is not None
    lines = (Path(package.origin).parent / "sample" / "sample.stm").read_text().splitlines()
    rows = [line.split(maxsplit=5) for line in lines]
    return [(Window(float(start), float(end)), text) for _, _, _, start, end, text in rows]


def align_requests() -> list[AlignRequest]:
    """Every utterance of the packaged sample that is at least a second long."""
    [recording] = people.packaged()
    return [
        AlignRequest.for_window(recording.samples, window, WindowText(text, "en", None, -0.1, 0.0, 1.0))
        for window, text in said()
        if window.end_s - window.start_s >= 1
    ]


def asr_requests(recognizer: Any, windows: Sequence[Samples]) -> list[AsrRequest]:
    """English windows whose words are to have times."""
    return [
        AsrRequest(recognizer.features(samples), "en", times_until_s=len(samples) / SAMPLE_RATE_HZ)
        for samples in windows
    ]


def windows_of(seconds: float, count: int) -> list[Samples]:
    """Pieces of real speech, none like another."""
    return np.array_split(people.speech(seconds * count), count)


def find_speech(detector: Any, samples: Samples) -> tuple[Window, ...]:
    """The windows of a whole file."""
    [found] = detector.find_speech([SpeechRequest(samples, 0.0, is_last=True)])
    assert isinstance(found, Speech), found
    return found.windows


def diarize(diarizer: Any, samples: Samples) -> Diarization:
    found: Diarization = diarizer.diarize(samples)
    return found
