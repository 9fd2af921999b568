"""pyannote's segmentation network over a file of any length, part by part.

The network looks at overlapping chunks of 5 s, and its scores are averaged where chunks overlap. Frames that
no later chunk reaches are final, so speech is known up to there before the rest of the file is. Scores and
segments are those of pyannote's `Inference` and whisperx's `Binarize` over the whole file.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.transcript import SAMPLE_RATE_HZ, Samples, SpeechRequest

# On one core larger batches are no faster; on a GPU as many as whisperx has.
CHUNKS_PER_STEP = {"cpu": 16, "cuda": 32}

Scores = npt.NDArray[np.float32]  # (frames,), probability of speech


class PyannoteScan:
    """How far one file has been searched with pyannote.

    Its segments are cut where speech is least probable once they reach `window_s`.
    """

    def __init__(
        self, onset: float, offset: float, window_s: float, step_s: float, chunks_per_batch: int
    ) -> None:
        """A chunk begins every `step_s` seconds, whatever `inference` would do: another replica may go on."""
        self._hysteresis = Hysteresis(onset, offset, window_s)
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
        first = self._overlap.given
        scores = self.scores(inference, request).tolist()
        frames = inference.model.receptive_field
        segments = self._hysteresis.feed([_middle_s(frames, first + n) for n in range(len(scores))], scores)
        return segments + self._hysteresis.finish() if request.is_last else segments

    def scores(self, inference: Any, request: SpeechRequest) -> Scores:
        """Probabilities of speech of the next frames: pyannote's `Inference.slide` and `aggregate`.

        Where the file goes on, the last chunks wait until there is a whole batch of them: a batch of another
        size would have other rounding errors.
        """
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
            after = min(self._next_chunk + self._chunks_per_batch, chunks)
            starts = [n * self._step_samples - start for n in range(self._next_chunk, after)]
            speech = inference.infer(_batch(request.samples, starts, chunk_samples)).max(axis=-1)
            for number, score in enumerate(speech, start=self._next_chunk):
                self._overlap.add(first_frame(number), score, inference)
            self._next_chunk = after
        if not request.is_last:
            return self._overlap.give(first_frame(chunks))  # a later chunk changes nothing before that
        end_s = inference.duration + (chunks - 1) * self._step_s
        count = frames.closest_frame(end_s + 0.5 * frames.duration) + 1
        if is_padded:  # the frames of the padding are nobody's
            sound = Segment(0.0, end / SAMPLE_RATE_HZ)
            count = min(count, frames.crop(sound, mode="loose", return_ranges=True)[-1][1])
        return self._overlap.give(count)


def _middle_s(frames: Any, number: int) -> float:
    start_s = number * frames.step
    return float(0.5 * (start_s + (start_s + frames.duration)))


def _batch(samples: Samples, starts: list[int], chunk_samples: int) -> Any:
    """A batch (chunks, 1, samples) of float32 in [-1, 1); what reaches beyond the end is zero."""
    import torch

    batch = np.zeros((len(starts), 1, chunk_samples), np.float32)
    for row, start in zip(batch, starts, strict=True):
        chunk = samples[start : start + chunk_samples]
        np.divide(chunk, 32768, out=row[0, : len(chunk)], dtype=np.float32)
    return torch.from_numpy(batch)


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
        """The segment that is still open at the end of the file, if any."""
        return [(self._start_s, self._last_s)] if self._active and self._last_s > self._start_s else []

    def _cut(self) -> float:
        half = len(self._kept) // 2
        lowest = half + int(np.argmin(self._kept[half:]))
        self._start_s = self._kept_s[lowest]
        self._kept, self._kept_s = self._kept[lowest + 1 :], self._kept_s[lowest + 1 :]
        return self._start_s
