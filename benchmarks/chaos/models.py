"""Models whose answers are checksums of what they heard: a sample too many, or another file's, shows.

They take time by the second of audio, asleep, for to take time is all they are for; and they load in a
moment, so that a replica is back in seconds.
"""

# No `from __future__ import annotations` here: Ray validates `args:` only when the annotation is a class.

import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel
from ray.serve import Application

from benchmarks.simulated import fixed_windows
from serve_app.app import graph
from serve_app.models.loaders import Loaders
from serve_app.settings import Settings
from serve_app.stage_requests import AlignRequest, AsrRequest, SpeechRequest
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, Samples, Segment, Turn, WindowText, Word

WINDOW_S = 5.0
TURN_S = 2.0


class Chaos(BaseModel):
    """`args:` of the application."""

    settings: Settings
    load_s: float = 0.5  # of each model
    asr: float = 0.01  # seconds that one second of audio takes, here and below
    others: float = 0.001
    device: str = "cpu"  # cuda: the models book GPUs, which these do not need
    is_broken: bool = False  # the recogniser does not start


def checksum(samples: Samples) -> int:
    return zlib.crc32(samples.tobytes())


@dataclass(frozen=True)
class CountingDetector:
    """All of the file is speech, in windows of 5 s."""

    pace: float

    def find_speech(self, requests: Sequence[SpeechRequest]) -> list[Any]:
        found = [fixed_windows(request, WINDOW_S) for request in requests]
        windows = [window for speech in found for window in speech.windows]
        time.sleep(self.pace * sum(window.end_s - window.start_s for window in windows))
        return found


class CountingRecognizer:
    """Hears the checksum of each window's samples, a batch at a time."""

    def __init__(self, pace: float) -> None:
        self._pace = pace
        self._device = threading.Lock()

    def features(self, samples: Samples) -> npt.NDArray[np.float32]:
        heard = checksum(samples)
        return np.array([heard >> 16, heard & 0xFFFF, len(samples) / SAMPLE_RATE_HZ], np.float32)

    def batch_key(self, request: AsrRequest) -> Any:
        return request.decoding

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[Any]:
        with self._device:
            time.sleep(self._pace * sum(float(request.features[2]) for request in requests))
        return [
            WindowText(f"{int(high):04x}{int(low):04x}", "en", 0.9, -0.1, 0.0, 1.0)
            for high, low, _ in (request.features for request in requests)
        ]


@dataclass(frozen=True)
class CountingAligner:
    """One word a window."""

    pace: float

    def align(self, requests: Sequence[AlignRequest]) -> list[Any]:
        time.sleep(self.pace * sum(request.end_s - request.start_s for request in requests))
        return [
            (Segment(r.start_s, r.end_s, r.text, (Word(r.text, r.start_s, r.end_s, 0.9),)),) for r in requests
        ]


@dataclass(frozen=True)
class CountingDiarizer:
    """Turns of 2 s; the checksum of each says which of two people speaks."""

    pace: float

    def diarize(self, samples: Samples, **_: Any) -> Diarization:
        time.sleep(self.pace * len(samples) / SAMPLE_RATE_HZ)
        step = int(TURN_S * SAMPLE_RATE_HZ)
        turns = tuple(
            Turn(
                first / SAMPLE_RATE_HZ,
                min(first + step, len(samples)) / SAMPLE_RATE_HZ,
                f"SPEAKER_0{checksum(samples[first : first + step]) % 2}",
            )
            for first in range(0, len(samples), step)
        )
        return Diarization(turns, turns)


def _load(model: Callable[[float], Any], pace: float, load_s: float) -> Any:
    time.sleep(load_s)
    return model(pace)


def _fail() -> Any:
    raise RuntimeError("this version of the recogniser does not start")


def build(chaos: Chaos) -> Application:
    """The graph around these models."""

    def loader(model: Callable[[float], Any], pace: float = chaos.others) -> Callable[[], Any]:
        return partial(_load, model, pace, chaos.load_s)

    loaders = Loaders(
        detector=loader(CountingDetector),
        recognizer=_fail if chaos.is_broken else loader(CountingRecognizer, chaos.asr),
        aligner=loader(CountingAligner),
        diarizer=loader(CountingDiarizer),
    )
    return graph(chaos.settings, loaders, chaos.device)
