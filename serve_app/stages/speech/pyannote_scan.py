"""pyannote's segmentation network over a file of any length, part by part.

The network looks at overlapping chunks of 5 s, and its scores are averaged where chunks overlap. Frames that
no later chunk reaches are final, so speech is known up to there before the rest of the file is. Scores and
segments are those of pyannote's `Inference` and whisperx's `Binarize` over the whole file.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.stage_requests import SpeechRequest
from serve_app.transcript import SAMPLE_RATE_HZ

# On one core larger batches are no faster; on a GPU as many as whisperx has.
CHUNKS_PER_STEP = {"cpu": 16, "cuda": 32}

Scores = npt.NDArray[np.float32]  # (frames,), probability of speech


@dataclass(frozen=True, slots=True)
class Criteria:
    """What counts as speech, and how long a window of it may be."""

    onset: float
    offset: float
    min_silence_s: float  # a shorter silence does not end a stretch of speech
    window_s: float


class PyannoteScan:
    """How far one file has been searched with pyannote."""

    def __init__(self, criteria: Criteria, step_s: float, chunks_per_batch: int) -> None:
        """A chunk begins every `step_s` seconds, whatever `inference` would do: another replica may go on."""
        self._hysteresis = Hysteresis(criteria)
        self._step_samples = round(step_s * SAMPLE_RATE_HZ)
        self._step_s = step_s
        self._chunks_per_batch = chunks_per_batch
        self._next_chunk = 0
        self._overlap = _OverlapAdd()

    @property
    def resume_s(self) -> float:
        """The next search needs the samples from here on."""
        return self._next_chunk * self._step_samples / SAMPLE_RATE_HZ

    def find_segments(self, inference: Any, request: SpeechRequest) -> list[tuple[float, float]]:
        """The segments that are sure now; `inference` is pyannote's around a segmentation model."""
        first, frame = self._overlap.given, inference.model.receptive_field
        scores = self.scores(inference, request).tolist()
        starts_s = [number * frame.step for number in range(first, first + len(scores))]
        middles_s = [0.5 * (start_s + (start_s + frame.duration)) for start_s in starts_s]
        segments = self._hysteresis.feed(middles_s, scores)
        return segments + self._hysteresis.finish() if request.is_last else segments

    def scores(self, inference: Any, request: SpeechRequest) -> Scores:
        """Probabilities of speech of the next frames: pyannote's `Inference.slide` and `aggregate`.

        Where the file goes on, the last chunks wait until there is a whole batch of them: a batch of another
        size would have other rounding errors.
        """
        import torch
        from pyannote.core import Segment, SlidingWindow

        field = inference.model.receptive_field
        frames = SlidingWindow(start=0.0, duration=field.duration, step=field.step)
        chunk_samples = inference.model.audio.get_num_samples(inference.duration)
        start = round(request.start_s * SAMPLE_RATE_HZ)
        end = start + len(request.samples)
        chunks = max(0, (end - chunk_samples) // self._step_samples + 1)
        is_padded = end < chunk_samples or (end - chunk_samples) % self._step_samples > 0
        if request.is_last:
            chunks += is_padded
        else:
            chunks -= (chunks - self._next_chunk) % self._chunks_per_batch

        def first_frame(chunk: int) -> int:
            return int(frames.closest_frame(chunk * self._step_s + 0.5 * frames.duration))

        while self._next_chunk < chunks:
            numbers = range(self._next_chunk, min(self._next_chunk + self._chunks_per_batch, chunks))
            batch = np.zeros((len(numbers), 1, chunk_samples), np.float32)  # in [-1, 1), zero beyond the end
            for row, number in zip(batch, numbers, strict=True):
                chunk = request.samples[number * self._step_samples - start :][:chunk_samples]
                np.divide(chunk, 32768, out=row[0, : len(chunk)], dtype=np.float32)
            speech = inference.infer(torch.from_numpy(batch)).max(axis=-1)
            for number, score in zip(numbers, speech, strict=True):
                self._overlap.add(first_frame(number), score, inference)
            self._next_chunk = numbers.stop
        if not request.is_last:
            return self._overlap.give(first_frame(chunks))  # a later chunk changes nothing before that
        end_s = inference.duration + (chunks - 1) * self._step_s
        count = frames.closest_frame(end_s + 0.5 * frames.duration) + 1
        if is_padded:  # the frames of the padding are nobody's
            sound = Segment(0.0, end / SAMPLE_RATE_HZ)
            count = min(count, frames.crop(sound, mode="loose", return_ranges=True)[-1][1])
        return self._overlap.give(count)


class _OverlapAdd:
    """Overlap-add of the chunks' scores, weighted as pyannote's `Inference.aggregate` does for a file.

    Holds the frames from number `given` on; the scores of those before have been given.
    """

    def __init__(self) -> None:
        self.given = 0
        self._total = np.zeros(0, np.float32)
        self._weight = np.zeros(0, np.float32)

    def add(self, first: int, score: npt.NDArray[np.float32], inference: Any) -> None:
        """Adds the scores of one chunk, whose first frame has that number in the file."""
        weight = np.hamming(len(score))
        left, right = (round(warm_up_s / inference.duration * len(score)) for warm_up_s in inference.warm_up)
        weight[:left] *= 1e-12
        weight[len(score) - right :] *= 1e-12
        begin = first - self.given
        self._make_room(begin + len(score))
        self._total[begin : begin + len(score)] += score * weight
        self._weight[begin : begin + len(score)] += weight

    def give(self, end: int) -> Scores:
        """The means of all frames before number `end`."""
        count = max(0, end - self.given)
        self._make_room(count)
        means = self._total[:count] / np.maximum(self._weight[:count], 1e-12)
        self.given += count
        self._total, self._weight = self._total[count:].copy(), self._weight[count:].copy()
        return np.asarray(means, dtype=np.float32)

    def _make_room(self, frames: int) -> None:
        missing = max(0, frames - len(self._total))
        self._total, self._weight = np.pad(self._total, (0, missing)), np.pad(self._weight, (0, missing))


class Hysteresis:
    """Scores to segments: on above `onset`, off below `offset`; whisperx's `Binarize`, fed piece by piece.

    A segment that grows beyond `window_s` is cut at the lowest score in the second half of those kept
    (Gelly and Gauvain 2015; the cut is whisperx's, https://arxiv.org/abs/2303.00747). A segment stays open
    over a silence shorter than `min_silence_s`, which whisperx has not, unless it would grow too long.
    """

    def __init__(self, criteria: Criteria) -> None:
        self._criteria = criteria
        self._active = False
        self._start_s = self._last_s = 0.0
        self._quiet_s: float | None = None  # since when an open segment is silent
        self._kept: list[tuple[float, float]] = []  # score and time since the segment began or was cut

    def feed(self, times_s: list[float], scores: list[float]) -> list[tuple[float, float]]:
        """The segments that end in these frames."""
        segments = []
        for time_s, score in zip(times_s, scores, strict=True):
            self._last_s = time_s
            was_active, is_speech = self._active, score > self._criteria.onset
            is_too_long = was_active and time_s - self._start_s > self._criteria.window_s
            if was_active and self._quiet_s is None:
                if is_too_long:
                    segments.append((self._start_s, self._cut()))
                elif score < self._criteria.offset:
                    self._quiet_s = time_s
            if self._quiet_s is not None:
                if is_too_long or time_s - self._quiet_s >= self._criteria.min_silence_s:
                    segments.append((self._start_s, self._quiet_s))
                    self._active, self._quiet_s, self._kept = False, None, []
                elif is_speech:
                    self._quiet_s = None
            if not self._active:
                self._active, self._start_s = is_speech, time_s
            if was_active or not self._kept:  # empty here: the file's first frame
                self._kept.append((score, time_s))
        return segments

    def finish(self) -> list[tuple[float, float]]:
        """The segment that is still open at the end of the file, if any."""
        end_s = self._last_s if self._quiet_s is None else self._quiet_s
        return [(self._start_s, end_s)] if self._active and end_s > self._start_s else []

    def _cut(self) -> float:
        lowest = min(range(len(self._kept) // 2, len(self._kept)), key=lambda n: self._kept[n][0])
        self._start_s = self._kept[lowest][1]
        self._kept = self._kept[lowest + 1 :]
        return self._start_s
