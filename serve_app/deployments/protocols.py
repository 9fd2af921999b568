"""What the deployments need of a model: real ones are in `stages`, fakes in the tests."""

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serve_app.errors import TranscriptionError
from serve_app.options import Options
from serve_app.transcript import (
    AlignRequest,
    AsrRequest,
    Audio,
    Diarization,
    KnownSpeaker,
    Samples,
    Segment,
    Window,
    WindowText,
)

DiarizeRequest = tuple[Samples, Options, tuple[KnownSpeaker, ...]]  # with decoded clips


class Recognizer(Protocol):
    lanes: int  # so many batches at a time, and one of newcomers

    def features(self, samples: Samples) -> npt.NDArray[np.float32]: ...
    def batch_key(self, request: AsrRequest) -> Any: ...
    def transcribe(self, requests: list[AsrRequest]) -> list[WindowText | TranscriptionError]: ...


class SpeechModel(Protocol):
    def new_scan(self) -> Any: ...  # can be pickled
    def scan(self, audio: Audio, scan: Any) -> Iterator[tuple[Window, ...]]: ...


class AlignModel(Protocol):
    def align(self, requests: list[AlignRequest]) -> list[tuple[Segment, ...] | TranscriptionError]: ...


class DiarizeModel(Protocol):
    def diarize(
        self,
        samples: Samples,
        *,
        num_speakers: int | None,
        min_speakers: int | None,
        max_speakers: int | None,
        known: tuple[KnownSpeaker, ...],
    ) -> Diarization: ...
