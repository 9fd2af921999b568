"""pyannote's segmentation network over a file of any length, a few seconds of work at a time.

The network looks at overlapping chunks of 5 s and its scores are averaged where chunks overlap. Frames
that no later chunk reaches are final, so speech is known up to there while the rest is still unheard.
Scores and segments are those of pyannote's `Inference` and whisperx's `Binarize` over the whole file.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Segments

# Half a second of work on one core, where larger batches are no faster; on a GPU as many as whisperx.
CHUNKS_PER_STEP = {"cpu": 16, "cuda": 32}

Scores = npt.NDArray[np.float32]  # (frames,), probability of speech


class SegmentationSearch:
    """Segments of speech, each cut where speech is least probable once it reaches `window_s`.

    Holds what is known of one file so far; the same whether it is searched at once or as it is decoded.
    """

    def __init__(
        self,
        onset: float,
        offset: float,
        window_s: float,
        step_s: float = 0.5,
        chunks_per_step: int = CHUNKS_PER_STEP["cpu"],
    ) -> None:
        """A chunk begins every `step_s` seconds, whatever `inference` would do: another replica may go on."""
        self._hysteresis = Hysteresis(onset, offset, window_s)
        self._step_s = step_s
        self._chunks_per_step = chunks_per_step
        self._next_chunk = 0
        self._overlap = _Overlap()

    def segments(self, inference: Any, samples: Samples, /, *, whole: bool) -> Iterator[Segments]:
        """The segments in (samples,) of int16, step by step, each a batch of chunks.

        `inference` is pyannote's around a segmentation model. Where the samples are not the whole
        file, the search ends before the first batch that they do not fill.
        """
        if not len(samples):
            return
        frames = inference.model.receptive_field
        first = self._overlap.given
        for scores in self.scores(inference, samples, whole=whole):
            times_s = [_middle_s(frames, first + n) for n in range(len(scores))]
            first += len(scores)
            yield self._hysteresis.feed(times_s, scores.tolist())
        if whole:
            yield self._hysteresis.finish()

    def scores(self, inference: Any, samples: Samples, *, whole: bool) -> Iterator[Scores]:
        """Probabilities of speech, frame after frame: pyannote's `Inference.slide` and `aggregate`."""
        from pyannote.core import Segment, SlidingWindow

        frames = SlidingWindow(
            start=0.0,
            duration=inference.model.receptive_field.duration,
            step=inference.model.receptive_field.step,
        )
        chunk_samples = inference.model.audio.get_num_samples(inference.duration)
        step_samples = round(self._step_s * SAMPLE_RATE_HZ)
        chunks = max(0, (len(samples) - chunk_samples) // step_samples + 1)
        padded = len(samples) < chunk_samples or (len(samples) - chunk_samples) % step_samples > 0
        chunks += whole and padded

        def first_frame(chunk: int) -> int:
            return int(frames.closest_frame(chunk * self._step_s + 0.5 * frames.duration))

        while self._next_chunk < chunks:
            after = self._next_chunk + self._chunks_per_step
            if after > chunks and not whole:
                return
            batch = _chunks(samples, range(self._next_chunk, min(after, chunks)), chunk_samples, step_samples)
            for number, score in enumerate(_speech(inference.infer(batch)), start=self._next_chunk):
                self._overlap.add(first_frame(number), score, inference)
            self._next_chunk = after
            if after < chunks or not whole:
                yield self._overlap.give(first_frame(after))  # a later chunk changes nothing before that
        if whole:
            end_s = inference.duration + (chunks - 1) * self._step_s
            frame_count = frames.closest_frame(end_s + 0.5 * frames.duration) + 1
            if padded:  # the frames of the padding are nobody's
                ranges = frames.crop(
                    Segment(0.0, len(samples) / SAMPLE_RATE_HZ), mode="loose", return_ranges=True
                )
                frame_count = min(frame_count, ranges[-1][1])
            yield self._overlap.give(frame_count)


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
    """Overlap-add of the chunks' scores, weighed as pyannote's `Inference.aggregate` does for a file.

    Holds the frames from number `given` on: of those before, the scores have been given.
    """

    def __init__(self) -> None:
        self.given = 0
        self._total = np.zeros(0, np.float32)
        self._weight = np.zeros(0, np.float32)

    def add(self, first: int, score: npt.NDArray[np.float32], inference: Any) -> None:
        """The scores of one chunk, whose first frame has that number in the file."""
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
        """The segment that is still open at the end; asked again, none."""
        was_active, self._active = self._active, False
        return [(self._start_s, self._last_s)] if was_active and self._last_s > self._start_s else []

    def _cut(self) -> float:
        half = len(self._kept) // 2
        lowest = half + int(np.argmin(self._kept[half:]))
        self._start_s = self._kept_s[lowest]
        self._kept, self._kept_s = self._kept[lowest + 1 :], self._kept_s[lowest + 1 :]
        return self._start_s
