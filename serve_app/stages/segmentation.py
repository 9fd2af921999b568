"""pyannote's segmentation network over a file of any length, a few seconds of work at a time.

The network looks at overlapping chunks of 5 s and its scores are averaged where chunks overlap. Frames
that no later chunk reaches are final, so speech is known up to there while the rest is still unheard.
Scores and segments are those of pyannote's `Inference` and whisperx's `Binarize` over the whole file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Segments

CHUNKS_PER_STEP = 16  # half a second of work on one core; larger batches are no faster there

Scores = npt.NDArray[np.float32]  # (frames,), probability of speech


@dataclass(frozen=True)
class SegmentationScan:
    """Segments of speech, each cut where speech is least probable once it reaches `window_s`."""

    inference: Any  # pyannote's Inference around a segmentation model
    onset: float
    offset: float
    window_s: float

    def __call__(self, samples: Samples) -> Iterator[Segments]:
        """The segments in (samples,) of int16, step by step: each step is CHUNKS_PER_STEP chunks of work."""
        frames = self.inference.model.receptive_field
        hysteresis = Hysteresis(self.onset, self.offset, self.window_s)
        first = 0
        for scores in self.scores(samples):
            times_s = [_middle_s(frames, first + n) for n in range(len(scores))]
            first += len(scores)
            yield hysteresis.feed(times_s, scores.tolist())
        yield hysteresis.finish()

    def scores(self, samples: Samples) -> Iterator[Scores]:
        """Probabilities of speech, frame after frame: pyannote's `Inference.slide` and `aggregate`."""
        from pyannote.core import Segment, SlidingWindow

        inference = self.inference
        frames = SlidingWindow(
            start=0.0,
            duration=inference.model.receptive_field.duration,
            step=inference.model.receptive_field.step,
        )
        chunk_samples = inference.model.audio.get_num_samples(inference.duration)
        step_samples = round(inference.step * SAMPLE_RATE_HZ)
        whole_chunks = max(0, (len(samples) - chunk_samples) // step_samples + 1)
        padded = len(samples) < chunk_samples or (len(samples) - chunk_samples) % step_samples > 0
        chunks = whole_chunks + padded
        end_s = inference.duration + (chunks - 1) * inference.step
        frame_count = frames.closest_frame(end_s + 0.5 * frames.duration) + 1
        if padded:  # the frames of the padding are nobody's
            ranges = frames.crop(
                Segment(0.0, len(samples) / SAMPLE_RATE_HZ), mode="loose", return_ranges=True
            )
            frame_count = min(frame_count, ranges[-1][1])

        overlap = _Overlap(frame_count, inference.warm_up, inference.duration)
        given = 0
        for first in range(0, chunks, CHUNKS_PER_STEP):
            batch = _chunks(
                samples, range(first, min(first + CHUNKS_PER_STEP, chunks)), chunk_samples, step_samples
            )
            for number, score in enumerate(_speech(inference.infer(batch)), start=first):
                overlap.add(frames.closest_frame(number * inference.step + 0.5 * frames.duration), score)
            after = first + CHUNKS_PER_STEP  # whose chunk is the first that still changes anything
            final = frame_count
            if after < chunks:
                final = frames.closest_frame(after * inference.step + 0.5 * frames.duration)
            yield overlap.mean(given, min(final, frame_count))
            given = final


def _middle_s(frames: Any, number: int) -> float:
    start_s = number * frames.step
    return float(0.5 * (start_s + (start_s + frames.duration)))


def _chunks(samples: Samples, numbers: range, chunk_samples: int, step_samples: int) -> Any:
    """A batch (chunks, 1, samples) of float32 in [-1, 1); what reaches beyond the end is zero."""
    import torch

    batch = np.zeros((len(numbers), 1, chunk_samples), np.float32)
    for row, number in zip(batch, numbers, strict=True):
        part = samples[number * step_samples : number * step_samples + chunk_samples]
        np.divide(part, 32768, out=row[0, : len(part)], dtype=np.float32)
    return torch.from_numpy(batch)


def _speech(outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(chunks, frames, local speakers) to (chunks, frames): somebody speaks."""
    return np.asarray(outputs.max(axis=-1))


class _Overlap:
    """Overlap-add of the chunks' scores, weighed as pyannote's `Inference.aggregate` does for a file."""

    def __init__(self, frame_count: int, warm_up: tuple[float, float], chunk_s: float) -> None:
        self._total = np.zeros(frame_count, np.float32)
        self._weight = np.zeros(frame_count, np.float32)
        self._warm_up = (warm_up[0] / chunk_s, warm_up[1] / chunk_s)

    def add(self, first: int, score: npt.NDArray[np.float32]) -> None:
        weight = np.hamming(len(score))
        left, right = (round(share * len(score)) for share in self._warm_up)
        weight[:left] *= 1e-12
        weight[len(score) - right :] *= 1e-12
        room = len(self._total[first : first + len(score)])
        self._total[first : first + room] += (score * weight)[:room]
        self._weight[first : first + room] += weight[:room]

    def mean(self, first: int, end: int) -> Scores:
        return np.asarray(
            self._total[first:end] / np.maximum(self._weight[first:end], 1e-12), dtype=np.float32
        )


class Hysteresis:
    """Scores to segments: on above `onset`, off below `offset`; whisperx's `Binarize`, fed piece by piece.

    A segment that grows beyond `window_s` is cut at the lowest score in the second half of what was kept
    (Gelly and Gauvain 2015; the cut is whisperx's, https://arxiv.org/abs/2303.00747).
    """

    def __init__(self, onset: float, offset: float, window_s: float) -> None:
        self._onset, self._offset, self._window_s = onset, offset, window_s
        self._active: bool | None = None  # None before the first frame
        self._start_s = self._last_s = 0.0
        self._kept: list[float] = []  # scores since the segment began or was cut
        self._kept_s: list[float] = []

    def feed(self, times_s: list[float], scores: list[float]) -> list[tuple[float, float]]:
        """The segments that end in these frames."""
        segments = []
        for time_s, score in zip(times_s, scores, strict=True):
            self._last_s = time_s
            if self._active is None:
                self._active, self._start_s = score > self._onset, time_s
                self._kept, self._kept_s = [score], [time_s]
            elif not self._active:
                if score > self._onset:
                    self._active, self._start_s = True, time_s
            else:
                if time_s - self._start_s > self._window_s:
                    segments.append((self._start_s, self._cut()))
                elif score < self._offset:
                    segments.append((self._start_s, time_s))
                    self._active, self._start_s = False, time_s
                    self._kept, self._kept_s = [], []
                self._kept.append(score)
                self._kept_s.append(time_s)
        return segments

    def finish(self) -> list[tuple[float, float]]:
        """The segment that is still open at the end."""
        return [(self._start_s, self._last_s)] if self._active and self._last_s > self._start_s else []

    def _cut(self) -> float:
        half = len(self._kept) // 2
        lowest = half + int(np.argmin(self._kept[half:]))
        self._start_s = self._kept_s[lowest]
        self._kept, self._kept_s = self._kept[lowest + 1 :], self._kept_s[lowest + 1 :]
        return self._start_s
