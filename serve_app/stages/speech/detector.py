"""Where the speech is: voice activity detection, and windows of at most the recogniser's length.

There are two methods: whisperx's default, the pyannote model shipped in its wheel, and Silero, shipped with
faster-whisper. Importing this module is cheap; each loader imports what its method needs, which for pyannote
is torch and some 20 s. Neither asks a hub.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.errors import InvalidRequest, Overloaded, TranscriptionError
from serve_app.settings import SpeechSettings
from serve_app.stage_requests import SpeechRequest, SpeechSearch
from serve_app.stages.speech.pyannote_scan import CHUNKS_PER_STEP, Criteria, PyannoteScan
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Segments, Speech, Window

# To start and end of speech, in samples.
FindInRecording = Callable[[Samples, Criteria], list[tuple[int, int]]]

# What was before whisperx had a choice: pyannote's silences end speech at once, Silero's after its default.
PYANNOTE_MIN_SILENCE_S, SILERO_MIN_SILENCE_S = 0.0, 0.1
SILERO_FRAME_SAMPLES = 512
SILERO_CONTEXT_SAMPLES = 128 * SILERO_FRAME_SAMPLES  # 4 s: it misses up to 1 s of speech from a cold start


@dataclass
class WindowMerger:
    """Joins neighbouring segments as long as the window stays within `window_s`, fed piece by piece.

    All windows together are whisperx's `Vad.merge_chunks` (https://arxiv.org/abs/2303.00747, section 2): the
    silence between joined segments stays in, and a segment that is longer by itself becomes a longer window.
    """

    window_s: float
    _open: tuple[float, float] | None = None

    def feed(self, segments: Segments) -> list[Window]:
        """The windows that these segments complete."""
        complete = []
        for start_s, end_s in segments:
            open_start_s, open_end_s = self._open or (start_s, start_s)
            if end_s - open_start_s > self.window_s and open_end_s > open_start_s:
                complete.append(Window(open_start_s, open_end_s))
                open_start_s = start_s
            self._open = (open_start_s, end_s)
        return complete

    def finish(self) -> list[Window]:
        """The window that is still open at the end of the file, if any."""
        return [] if self._open is None else [Window(*self._open)]


def clip(windows: Sequence[Window], duration_s: float) -> tuple[Window, ...]:
    """The parts of the windows within [0, duration], without empty ones."""
    clipped = (Window(max(0.0, w.start_s), min(w.end_s, duration_s)) for w in windows)
    return tuple(window for window in clipped if window.end_s > window.start_s)


def to_float32(samples: Samples) -> npt.NDArray[np.float32]:
    """Samples in [-1, 1), exactly whisperx's, as a copy."""
    return samples.astype(np.float32) / np.float32(32768)


@dataclass
class SileroScan:
    """How far one file has been searched with Silero, which searches whole recordings.

    Each search begins `context` samples (a multiple of the model's frame) early, so that it knows what was
    before. A segment that reaches the end of the samples is left to the next search; so is the end without
    one: a word that has just begun is too short to be found.
    """

    criteria: Criteria
    context: int = SILERO_CONTEXT_SAMPLES
    done: int = 0  # samples: all segments that begin before are known

    @property
    def resume_s(self) -> float:
        """The next search needs the samples from here on."""
        first_frame = max(0, self.done - self.context) // SILERO_FRAME_SAMPLES
        return first_frame * SILERO_FRAME_SAMPLES / SAMPLE_RATE_HZ

    def find_segments(self, find: FindInRecording, request: SpeechRequest) -> Segments:
        """The segments that are sure now."""
        start, begin = round(request.start_s * SAMPLE_RATE_HZ), round(self.resume_s * SAMPLE_RATE_HZ)
        end = start + len(request.samples)
        found_in_part = find(request.samples[begin - start :], self.criteria)
        shifted = [(begin + first, begin + last) for first, last in found_in_part]
        found = [(max(first, self.done), last) for first, last in shifted if last > self.done]
        if request.is_last:
            self.done = end
        elif found and found[-1][1] == end:
            self.done = found.pop()[0]
        else:
            self.done = max(found[-1][1] if found else self.done, end - self.context)
        return [(first / SAMPLE_RATE_HZ, last / SAMPLE_RATE_HZ) for first, last in found]


@dataclass(frozen=True)
class SpeechDetector:
    """A loaded model, and how the scan of a file begins with it."""

    model: Any
    new_scan: Callable[[Criteria], PyannoteScan | SileroScan]
    criteria: Criteria  # as configured

    def find_speech(self, requests: Sequence[SpeechRequest]) -> list[Speech | TranscriptionError]:
        """The windows of speech that are sure with the samples of each request, in order.

        With pyannote a file's windows are the same however it is cut into requests; Silero may cut long
        speech elsewhere. Windows lie within [0, duration]: pyannote's last frame can reach beyond the end.
        """
        return [self._find(request) for request in requests]

    def _find(self, request: SpeechRequest) -> Speech | TranscriptionError:
        criteria = self._criteria(request.search)
        if isinstance(criteria, InvalidRequest):
            return criteria
        new_scan = self.new_scan(criteria)
        scan, merger = deepcopy(request.scan) or (new_scan, WindowMerger(criteria.window_s))
        if type(scan) is not type(new_scan):
            return Overloaded(
                "The method of speech detection was changed while the file was decoded; send it again."
            )
        end_s = (round(request.start_s * SAMPLE_RATE_HZ) + len(request.samples)) / SAMPLE_RATE_HZ
        segments = scan.find_segments(self.model, request) if end_s else []
        windows = merger.feed(segments)
        if request.is_last:
            windows += merger.finish()
        spoken = clip([Window(*segment) for segment in segments], end_s)
        return Speech(clip(windows, end_s), (scan, merger), scan.resume_s, spoken)

    def _criteria(self, search: SpeechSearch) -> Criteria | InvalidRequest:
        """What a request asks for, and otherwise what is configured."""
        asked = {name: value for name, value in asdict(search).items() if value is not None}
        criteria = replace(self.criteria, **asked)
        if criteria.offset > criteria.onset:  # only one was sent: Options refuses two that contradict
            name, other = ("offset", "onset") if search.onset is None else ("onset", "offset")
            why = f"vad_offset must not be above vad_onset, and this server's {other} is"
            remedy = f"{getattr(criteria, other)}; send vad_{other}, too."
            return InvalidRequest(f"vad_{name}: {why} {remedy}", f"vad_{name}")
        return replace(criteria, window_s=min(criteria.window_s, self.criteria.window_s))


def load_pyannote_detector(settings: SpeechSettings, window_s: float, device: str = "cpu") -> SpeechDetector:
    """Whisperx's default detector, window for window, on "cpu" or "cuda".

    Segments are cut where speech is least probable once they reach `window_s`.
    """
    import torch

    from serve_app.stages.torch_support import WHISPERX_SEGMENTATION, import_pyannote

    import_pyannote()
    from pyannote.audio import Inference, Model
    from pyannote.audio.utils.reproducibility import fix_reproducibility

    fix_reproducibility(torch.device(device))  # TensorFloat-32 off, as pyannote does before each file
    # As whisperx's load_vad_model, which also creates torch.hub's home directory for no use: that
    # fails in a container with a read-only home.
    network, step_s = Model.from_pretrained(WHISPERX_SEGMENTATION), settings.step_s
    inference = Inference(network, step=step_s, device=torch.device(device))
    chunks = CHUNKS_PER_STEP[device]
    criteria = Criteria(settings.onset, settings.offset, PYANNOTE_MIN_SILENCE_S, window_s)
    new_scan = partial(PyannoteScan, step_s=step_s, chunks_per_batch=chunks)
    return SpeechDetector(inference, new_scan, criteria)


def load_silero_detector(settings: SpeechSettings, window_s: float) -> SpeechDetector:
    """Silero on ONNX, on the CPU: 25 times cheaper than pyannote there, and without torch.

    The times are Silero's own defaults, which whisperx's Silero uses too (faster-whisper's differ).
    """
    from faster_whisper.vad import VadOptions, get_speech_timestamps, get_vad_model

    get_vad_model()  # now rather than in the first request

    def find(samples: Samples, criteria: Criteria) -> list[tuple[int, int]]:
        options = VadOptions(
            threshold=criteria.onset,
            neg_threshold=criteria.offset,
            min_speech_duration_ms=250,
            max_speech_duration_s=criteria.window_s,
            min_silence_duration_ms=round(1000 * criteria.min_silence_s),
            speech_pad_ms=30,
        )
        return [(s["start"], s["end"]) for s in get_speech_timestamps(to_float32(samples), options)]

    criteria = Criteria(settings.onset, settings.offset, SILERO_MIN_SILENCE_S, window_s)
    return SpeechDetector(find, SileroScan, criteria)
