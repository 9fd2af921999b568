"""Where the speech is: voice activity detection, and windows of at most the recogniser's length.

Two methods: whisperx's default, the pyannote model shipped in its wheel, and Silero, shipped with
faster-whisper. Importing this module is cheap; each loader imports what its method needs, which
for pyannote is torch and some 20 s. Neither asks a hub.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve_app.errors import ModelUnavailable
from serve_app.settings import SpeechSettings
from serve_app.stages.segmentation import SegmentationScan
from serve_app.transcript import SAMPLE_RATE_HZ, Audio, Samples, Segments, Window

SILERO_FRAME_SAMPLES = 512
SILERO_STRETCH_SAMPLES = 18_750 * SILERO_FRAME_SAMPLES  # 10 minutes
SILERO_CONTEXT_SAMPLES = 128 * SILERO_FRAME_SAMPLES  # 4 s: it misses up to 1 s of speech from a cold start


def windows_in_steps(
    steps: Iterable[Segments], window_s: float, duration_s: float
) -> Iterator[tuple[Window, ...]]:
    """Joins neighbouring segments as long as the window stays within `window_s`, step by step.

    Gives the windows that each step completes, within [0, duration]: pyannote's last frame can reach
    beyond the end of the audio. All steps together are whisperx's `Vad.merge_chunks`
    (https://arxiv.org/abs/2303.00747, section 2): the silence between joined segments stays in, and a
    segment that is longer by itself becomes a longer window.
    """
    growing: tuple[float, float] | None = None
    for segments in steps:
        complete = []
        for start_s, end_s in segments:
            if growing is None:
                growing = (start_s, start_s)
            if end_s - growing[0] > window_s and growing[1] > growing[0]:
                complete.append(Window(*growing))
                growing = (start_s, end_s)
            growing = (growing[0], end_s)
        yield clip(complete, duration_s)
    if growing is not None:
        yield clip([Window(*growing)], duration_s)


def clip(windows: Sequence[Window], duration_s: float) -> tuple[Window, ...]:
    """The parts of the windows within [0, duration], without empty ones."""
    clipped = (Window(max(0.0, w.start_s), min(w.end_s, duration_s)) for w in windows)
    return tuple(window for window in clipped if window.end_s > window.start_s)


def to_float32(samples: Samples) -> npt.NDArray[np.float32]:
    """Samples in [-1, 1), exactly whisperx's, as a copy."""
    waveform = samples.astype(np.float32)
    waveform /= 32768
    return waveform


@dataclass(frozen=True)
class SpeechDetector:
    """A loaded detector: `find` goes through a file's samples and gives each step's segments of speech."""

    find: Callable[[Samples], Iterator[Segments]]
    window_s: float

    def scan(self, audio: Audio) -> Iterator[tuple[Window, ...]]:
        """The windows of speech in the audio, in order; each step is about a second of work at most.

        Steps without a complete window give none: whoever calls can turn to another file meanwhile.
        """
        steps = self.find(audio.samples) if len(audio.samples) else iter(())
        return windows_in_steps(steps, self.window_s, audio.duration_s)


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
    return SpeechDetector(SegmentationScan(inference, settings.onset, settings.offset, window_s), window_s)


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

    def find(samples: Samples) -> Iterator[Segments]:
        for found in in_stretches(find_in_stretch, samples, SILERO_STRETCH_SAMPLES, SILERO_CONTEXT_SAMPLES):
            yield [(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ) for start, end in found]

    return SpeechDetector(find, window_s)


def in_stretches(
    find: Callable[[Samples], list[tuple[int, int]]], samples: Samples, stretch: int, context: int
) -> Iterator[list[tuple[int, int]]]:
    """Applies `find` to stretches of the samples, in turn; segments are in samples of the whole.

    Faster-whisper copies its input three times as float32: 2 GB for 3 hours at once. Each stretch
    begins `context` samples (a multiple of find's frame) early, so that the detector knows what went
    before. A segment that reaches the end of its stretch is left to the next one; so is the end of
    one without: a word that has just begun is too short to be found.
    """
    done = 0  # all segments that begin before are known
    while done < len(samples):
        begin = max(0, done - context) // SILERO_FRAME_SAMPLES * SILERO_FRAME_SAMPLES
        stop = min(begin + stretch, len(samples))
        shifted = [(begin + start, begin + end) for start, end in find(samples[begin:stop])]
        found = [(max(start, done), end) for start, end in shifted if end > done]
        if stop == len(samples):
            done = stop
        elif found and found[-1][1] == stop and found[-1][0] > done:
            done = found.pop()[0]
        else:
            done = max(found[-1][1] if found else 0, stop - context)
        yield found
