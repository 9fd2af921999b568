"""Where the speech is: voice activity detection, and windows of at most the recogniser's length.

Two methods: whisperx's default, the pyannote model shipped in its wheel, and Silero, shipped with
faster-whisper. Importing this module is cheap; each loader imports what its method needs, which
for pyannote is torch and some 20 s. Neither asks a hub.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serve_app.errors import ModelUnavailable, Overloaded
from serve_app.settings import SpeechSettings
from serve_app.stages.speech.pyannote_scan import CHUNKS_PER_STEP, SegmentationSearch
from serve_app.transcript import SAMPLE_RATE_HZ, Audio, Samples, Segments, Window

SILERO_FRAME_SAMPLES = 512
SILERO_STRETCH_SAMPLES = 18_750 * SILERO_FRAME_SAMPLES  # 10 minutes
SILERO_CONTEXT_SAMPLES = 128 * SILERO_FRAME_SAMPLES  # 4 s: it misses up to 1 s of speech from a cold start


class Joining:
    """Joins neighbouring segments as long as the window stays within `window_s`, fed piece by piece.

    All windows together are whisperx's `Vad.merge_chunks` (https://arxiv.org/abs/2303.00747, section 2): the
    silence between joined segments stays in, and a segment that is longer by itself becomes a longer window.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._growing: tuple[float, float] | None = None

    def feed(self, segments: Segments) -> list[Window]:
        """The windows that these segments complete."""
        complete = []
        for start_s, end_s in segments:
            if self._growing is None:
                self._growing = (start_s, start_s)
            begin_s, grown_s = self._growing
            if end_s - begin_s > self._window_s and grown_s > begin_s:
                complete.append(Window(begin_s, grown_s))
                begin_s = start_s
            self._growing = (begin_s, end_s)
        return complete

    def finish(self) -> list[Window]:
        """The window that is still growing at the end; asked again, none."""
        grown, self._growing = self._growing, None
        return [] if grown is None else [Window(*grown)]


def clip(windows: Sequence[Window], duration_s: float) -> tuple[Window, ...]:
    """The parts of the windows within [0, duration], without empty ones."""
    clipped = (Window(max(0.0, w.start_s), min(w.end_s, duration_s)) for w in windows)
    return tuple(window for window in clipped if window.end_s > window.start_s)


def to_float32(samples: Samples) -> npt.NDArray[np.float32]:
    """Samples in [-1, 1), exactly whisperx's, as a copy."""
    waveform = samples.astype(np.float32)
    waveform /= 32768
    return waveform


class Search(Protocol):
    """The search for speech in one file: what is known so far, and can be pickled."""

    def segments(self, model: Any, samples: Samples, /, *, whole: bool) -> Iterator[Segments]:
        """Goes on where it was, step by step, as far as the samples (all from the file's start) reach."""


@dataclass
class Scan:
    """How far a file has been searched: to be gone on with when there is more of it."""

    search: Search
    joining: Joining


@dataclass(frozen=True)
class SpeechDetector:
    """A loaded detector: its model, and how to begin the search through a file with it."""

    model: Any
    begin: Callable[[], Search]
    window_s: float

    def new_scan(self) -> Scan:
        return Scan(self.begin(), Joining(self.window_s))

    def scan(self, audio: Audio, scan: Scan) -> Iterator[tuple[Window, ...]]:
        """The next windows of speech in the audio, in order; each step is about a second of work at most.

        Steps without a complete window give none: whoever calls can turn to another file meanwhile. After
        any of them `scan` is such that another call goes on behind it. Windows lie within [0, duration]:
        pyannote's last frame can reach beyond the end of the audio.
        """
        if type(scan.search) is not type(self.begin()):
            raise Overloaded(
                "The method of speech detection was changed while the file was decoded; send it again.",
                "model",
            )
        for segments in scan.search.segments(self.model, audio.samples, whole=audio.whole):
            yield clip(scan.joining.feed(segments), audio.duration_s)
        if audio.whole:
            yield clip(scan.joining.finish(), audio.duration_s)


def load_pyannote_detector(settings: SpeechSettings, window_s: float, device: str = "cpu") -> SpeechDetector:
    """Whisperx's default detector, window for window, on "cpu" or "cuda".

    Segments are cut where speech is least probable once they reach `window_s`. Raises ModelUnavailable
    where the wheel's model file is missing.
    """
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # else each file's duration is sent to its makers
    with warnings.catch_warnings():
        # Files are decoded elsewhere, so a broken torchcodec is none of pyannote's business here.
        warnings.filterwarnings("ignore", r"\s*torchcodec is not installed correctly", UserWarning)
        import torch
        from pyannote.audio import Inference, Model
        from pyannote.audio.utils.reproducibility import fix_reproducibility
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it advises to upgrade whisperx's file
    # As whisperx's load_vad_model, which also creates torch.hub's home directory for no use: that
    # fails in a container with a read-only home.
    path = _whisperx_assets() / "pytorch_model.bin"
    if not path.is_file():
        raise ModelUnavailable(f"The speech detection model {path} is missing: install whisperx again.")
    fix_reproducibility(torch.device(device))  # TensorFloat-32 off, as pyannote does before each file
    inference = Inference(Model.from_pretrained(path), step=settings.step_s, device=torch.device(device))
    begin = partial(
        SegmentationSearch,
        settings.onset,
        settings.offset,
        window_s,
        settings.step_s,
        CHUNKS_PER_STEP[device],
    )
    return SpeechDetector(inference, begin, window_s)


def _whisperx_assets() -> Path:
    spec = find_spec("whisperx")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "assets"


def load_silero_detector(settings: SpeechSettings, window_s: float) -> SpeechDetector:
    """Silero on ONNX, on the CPU: 25 times cheaper than pyannote there, and without torch.

    The times are Silero's own defaults, which whisperx's Silero uses too (faster-whisper's differ).
    """
    from faster_whisper.vad import VadOptions, get_speech_timestamps, get_vad_model

    get_vad_model()  # now rather than in the first request
    options = VadOptions(
        threshold=settings.onset,
        neg_threshold=settings.offset,
        min_speech_duration_ms=250,
        max_speech_duration_s=window_s,
        min_silence_duration_ms=100,
        speech_pad_ms=30,
    )

    def find_in_stretch(samples: Samples) -> list[tuple[int, int]]:
        return [(s["start"], s["end"]) for s in get_speech_timestamps(to_float32(samples), options)]

    return SpeechDetector(find_in_stretch, StretchSearch, window_s)


@dataclass
class StretchSearch:
    """Applies a detector of whole recordings to stretches of a file, in turn.

    Faster-whisper copies its input three times as float32: 2 GB for 3 hours at once. Each stretch
    begins `context` samples (a multiple of the detector's frame) early, so that it knows what went
    before. A segment that reaches the end of its stretch is left to the next one; so is the end of
    one without: a word that has just begun is too short to be found.
    """

    stretch: int = SILERO_STRETCH_SAMPLES
    context: int = SILERO_CONTEXT_SAMPLES
    done: int = 0  # samples: all segments that begin before are known

    def segments(
        self, find: Callable[[Samples], list[tuple[int, int]]], samples: Samples, /, *, whole: bool
    ) -> Iterator[Segments]:
        """`find` gives the segments of a stretch, in samples from its start."""
        while self.done < len(samples):
            begin = max(0, self.done - self.context) // SILERO_FRAME_SAMPLES * SILERO_FRAME_SAMPLES
            stop = begin + self.stretch
            last = whole and stop >= len(samples)
            if not last and stop > len(samples):
                return
            shifted = [(begin + start, begin + end) for start, end in find(samples[begin:stop])]
            found = [(max(start, self.done), end) for start, end in shifted if end > self.done]
            if last:
                self.done = len(samples)
            elif found and found[-1][1] == stop and found[-1][0] > self.done:
                self.done = found.pop()[0]
            else:
                self.done = max(found[-1][1] if found else 0, stop - self.context)
            yield [(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ) for start, end in found]
