"""Models whose answers are trivial and whose time is that of `large-v2` and its companions on a T4.

What is real around them is everything else: Ray Serve, handles, decoding, batching, the order of things. A
model call holds its thread and its GPU for as long as a roofline says (figures below), so two cores can show
what the scheduling of many GPUs is worth.

A GPU is a lock that processes take for a slice at a time, as CUDA kernels of several processes take turns.
"""

# No `from __future__ import annotations` here: Ray validates `args:` only when the annotation is a class.

import fcntl
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel
from ray.serve import Application

from serve_app.app import graph
from serve_app.models.loaders import Loaders
from serve_app.settings import Settings
from serve_app.settings.jobs import JobsSettings
from serve_app.stage_requests import AlignRequest, AsrRequest, SpeechRequest
from serve_app.transcript import (
    SAMPLE_RATE_HZ,
    Diarization,
    Samples,
    Segment,
    Speech,
    Turn,
    Window,
    WindowText,
)

SLICE_S = 0.02
WINDOW_S = 30.0
TOKENS_PER_S = 4.0  # of speech

# large-v2, int8 weights, beam 5, on a T4 at 40 % of its arithmetic and 75 % of its bandwidth.
ENCODE_S = 0.1  # each window, always padded to 30 s
STEP_S = 0.0033  # each decoding step reads the weights once for the whole batch
STEP_PER_WINDOW_S = 0.00103  # and each window's cross-attention keys and values

# Seconds of GPU at 40 % of 8.1 TFLOP/s (float32, as whisperx and pyannote compute); ours in float16 less,
# as much as NVIDIA gives for ResNet-50 in PyTorch on a T4: 420 and 1128 images a second, 32 at a time.
HALF = 420 / 1128
STOCK_ALIGN = 50 / 3600 / 3.2  # for each second of audio: wav2vec2-base, 50 TFLOP an hour
ALIGN = HALF * STOCK_ALIGN
DIARIZE_CHUNK_S, DIARIZE_STEP_S = 10.0, 1.0
STOCK_DIARIZE = 488 / 3600 / 3.2  # for each chunk: ResNet34 once for each speaker, 488 TFLOP an hour
DIARIZE = HALF * 163 / 3600 / 3.2  # and with one trunk for all its speakers
DETECT_CHUNK_S, DETECT_STEP_S = 5.0, 0.5
DETECT = 9.4 / 7200 / 3.2  # for each chunk: pyannote's speech detection, on the GPU as in whisperx
# Seconds of CPU for each second of audio.
STOCK_ALIGN_CPU = 50 * (73e-6 + 13e-6) + 0.0026  # per-frame torch operations at 50 frames a second, pandas


def asr_s(windows_s: Sequence[float]) -> float:
    """Seconds that one batch of windows takes; finished ones leave it, as CTranslate2 removes them."""
    lengths = sorted(int(TOKENS_PER_S * seconds) for seconds in windows_s)
    decoding_s, done = 0.0, 0
    for n, length in enumerate(lengths):
        left = len(lengths) - n
        decoding_s += (length - done) * (STEP_S + STEP_PER_WINDOW_S * left)
        done = length
    return ENCODE_S * len(lengths) + decoding_s


def align_s(duration_s: float, per_s: float = ALIGN) -> float:
    return per_s * duration_s


def diarize_s(duration_s: float, chunk: float = DIARIZE) -> float:
    return chunk * _chunks(duration_s, DIARIZE_CHUNK_S, DIARIZE_STEP_S)


def detect_s(duration_s: float) -> float:
    return DETECT * _chunks(duration_s, DETECT_CHUNK_S, DETECT_STEP_S)


def _chunks(duration_s: float, chunk_s: float, step_s: float) -> int:
    """As pyannote cuts a file: overlapping, at least one, and the last one padded."""
    return 1 + max(0, math.ceil((duration_s - chunk_s) / step_s))


@dataclass(frozen=True)
class Gpu:
    """One simulated GPU, shared by the processes that name the same file; its log says when it was busy."""

    path: Path

    def run(self, seconds: float) -> None:
        """Holds the GPU for so long altogether, letting others in between slices."""
        left_s = seconds
        with self.path.open("ab", buffering=0) as log:
            while left_s > 0:
                fcntl.flock(log, fcntl.LOCK_EX)
                begun_s = time.monotonic()
                time.sleep(min(left_s, SLICE_S))
                held_s = time.monotonic() - begun_s
                log.write(f"{begun_s:.6f} {held_s:.6f}\n".encode())
                fcntl.flock(log, fcntl.LOCK_UN)
                left_s -= held_s
                os.sched_yield()

    def show(self) -> None:
        """To this process and nobody else, as Ray does."""
        os.environ["CUDA_VISIBLE_DEVICES"] = self.path.name

    def busy_s(self, begin_s: float, end_s: float) -> float:
        """Seconds busy between two readings of the monotonic clock."""
        if not self.path.exists():
            return 0.0
        rows = (map(float, line.split()) for line in self.path.read_text().splitlines())
        return sum(held for begun, held in rows if begin_s <= begun < end_s)


def fixed_windows(request: SpeechRequest, window_s: float) -> Speech:
    """All of the file is speech: windows of one length, but for the last one. The scan counts them."""
    found = request.scan or 0
    end_s = request.start_s + len(request.samples) / SAMPLE_RATE_HZ
    windows = []
    while (start_s := found * window_s) < end_s and (request.is_last or start_s + window_s <= end_s):
        windows.append(Window(start_s, min(start_s + window_s, end_s)))
        found += 1
    return Speech(tuple(windows), found, found * window_s)


@dataclass(frozen=True)
class SimulatedDetector:
    """All of the file is speech: windows of 30 s, and one with the rest."""

    gpu: Gpu

    def __post_init__(self) -> None:
        self.gpu.show()

    def find_speech(self, requests: Sequence[SpeechRequest]) -> list[Any]:
        found = [fixed_windows(request, WINDOW_S) for request in requests]
        for window in (window for speech in found for window in speech.windows):
            self.gpu.run(detect_s(window.end_s) - (detect_s(window.start_s) if window.start_s else 0.0))
        return found


class SimulatedRecognizer:
    """Every window says how long it is, after the time its batch takes."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._gpu, self._claim = _claim_one(gpus, "recognizer")

    def features(self, samples: Samples) -> npt.NDArray[np.float32]:
        return np.full((80, 3000), len(samples) / SAMPLE_RATE_HZ, np.float32)

    def batch_key(self, request: AsrRequest) -> Any:
        return None

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[Any]:
        windows_s = [float(request.features[0, 0]) for request in requests]
        self._gpu.run(asr_s(windows_s))
        return [WindowText(f"{seconds:.3f} s.", "en", None, -0.1, 0.0, 1.0) for seconds in windows_s]


def _claim_one(gpus: Sequence[Gpu], model: str) -> tuple[Gpu, BinaryIO]:
    """The first GPU that has no such model yet, and the file whose lock keeps it."""
    for gpu in gpus:
        claim = gpu.path.with_suffix(f".{model}").open("ab")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            claim.close()
        else:
            gpu.show()
            return gpu, claim
    raise RuntimeError(f"all {len(gpus)} simulated GPUs are taken")


class SimulatedAligner:
    """One segment a window."""

    def __init__(self, gpus: Sequence[Gpu]) -> None:
        self._gpu, self._claim = _claim_one(gpus, "aligner")

    def align(self, requests: Sequence[AlignRequest]) -> list[Any]:
        self._gpu.run(sum(align_s(request.end_s - request.start_s) for request in requests))
        return [(Segment(request.start_s, request.end_s, request.text),) for request in requests]


@dataclass(frozen=True)
class SimulatedDiarizer:
    """One speaker."""

    gpu: Gpu

    def diarize(self, samples: Samples, **_: Any) -> Diarization:
        duration_s = len(samples) / SAMPLE_RATE_HZ
        self.gpu.run(diarize_s(duration_s))
        turns = (Turn(0.0, duration_s, "SPEAKER_00"),)
        return Diarization(turns, turns)


class Simulated(BaseModel):
    """What to simulate: `args:` of the application."""

    folder: Path  # of the GPUs' files
    gpu_count: int = 1


def gpus_in(folder: Path, count: int) -> tuple[Gpu, ...]:
    return tuple(Gpu(folder / f"gpu-{number}") for number in range(count))


def build(simulated: Simulated) -> Application:
    """The graph around simulated models."""
    gpus = gpus_in(simulated.folder, simulated.gpu_count)
    settings = Settings(model="simulated", device="cpu", jobs=JobsSettings(store="off"))
    loaders = Loaders(
        detector=partial(SimulatedDetector, gpus[0]),
        recognizer=partial(SimulatedRecognizer, gpus),
        aligner=partial(SimulatedAligner, gpus),
        diarizer=partial(SimulatedDiarizer, gpus[0]),
    )
    return graph(settings, loaders, "cpu")


def run_like_whisperx(duration_s: float, gpu: Gpu, *, diarize: bool = True) -> None:
    """The time whisperx takes for one file on the same T4, called in its documented order."""
    gpu.run(detect_s(duration_s))
    windows_s = [min(WINDOW_S, duration_s - start) for start in np.arange(0, duration_s, WINDOW_S)]
    for first in range(0, len(windows_s), 16):
        gpu.run(asr_s(windows_s[first : first + 16]))
    gpu.run(align_s(duration_s, STOCK_ALIGN))
    time.sleep(STOCK_ALIGN_CPU * duration_s)
    if diarize:
        gpu.run(diarize_s(duration_s, STOCK_DIARIZE))
