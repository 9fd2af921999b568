"""Speech detection without a model: merging, clipping, stretches, and what importing it costs."""

import itertools
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from serve_app.stages.speech.detector import Joining, SpeechDetector, StretchSearch, clip, to_float32
from serve_app.stages.speech.pyannote_scan import Hysteresis, SegmentationSearch
from serve_app.transcript import SAMPLE_RATE_HZ, Audio, Segments, Window


def random_segments(seed: int, *, longest_s: float) -> list[tuple[float, float]]:
    """Up to 60 segments in order, which do not overlap and may touch."""
    random = np.random.default_rng(seed)
    count = int(random.integers(1, 60))
    # Multiples of 1/64 s, which floats add without error.
    pauses_s = random.integers(0, 128, count) * random.integers(0, 2, count) / 64
    lengths_s = random.integers(1, int(longest_s * 64), count) / 64
    ends_s = np.cumsum(pauses_s + lengths_s)
    return [(float(end - length), float(end)) for end, length in zip(ends_s, lengths_s, strict=True)]


def merge(segments: Segments, window_s: float) -> tuple[Window, ...]:
    """The windows of a whole file's segments."""
    joining = Joining(window_s)
    return (*joining.feed(segments), *joining.finish())


def test_no_segments_give_no_windows() -> None:
    """Silence has no windows."""
    assert merge([], 30.0) == ()


def test_segments_join_until_the_window_is_full() -> None:
    """A window takes the silence between its segments along, and ends where the next would not fit."""
    segments = [(1.0, 9.0), (10.0, 20.0), (21.0, 31.0), (31.5, 40.0)]
    assert merge(segments, 30.0) == (Window(1.0, 31.0), Window(31.5, 40.0))


def test_long_segment_stays_one_window() -> None:
    """A segment longer than the window is not cut here: the detectors cut where speech is weakest."""
    assert merge([(0.0, 45.0), (46.0, 47.0)], 30.0) == (Window(0.0, 45.0), Window(46.0, 47.0))


@pytest.mark.parametrize("seed", range(20))
def test_windows_cover_all_segments_within_the_limit(seed: int) -> None:
    """Each segment lies in one window; windows are in order, disjoint, full and never too long."""
    window_s = 12.0
    segments = random_segments(seed, longest_s=window_s)
    windows = merge(segments, window_s)
    assert all(sum(w.start_s <= start and end <= w.end_s for w in windows) == 1 for start, end in segments)
    assert all(window.end_s - window.start_s <= window_s for window in windows)
    assert all(one.end_s <= other.start_s for one, other in itertools.pairwise(windows))
    for one, other in itertools.pairwise(windows):
        next_end_s = next(end for start, end in segments if start == other.start_s)
        assert next_end_s - one.start_s > window_s


def test_windows_are_clipped_to_the_audio() -> None:
    """What reaches over an end is cut off, and what lies behind it is dropped."""
    windows = (Window(-0.1, 2.0), Window(3.0, 10.1), Window(10.05, 10.2))
    assert clip(windows, 10.0) == (Window(0.0, 2.0), Window(3.0, 10.0))


def test_conversion_leaves_read_only_samples_alone() -> None:
    """Samples of another replica are read-only; the float32 copy is whisperx's and writable."""
    samples = np.array([-32768, -1, 0, 32767], np.int16)
    samples.flags.writeable = False
    waveform = to_float32(samples)
    assert waveform.dtype == np.float32
    assert waveform.flags.writeable
    np.testing.assert_array_equal(waveform, samples.astype(np.float32) / 32768.0)


@pytest.mark.parametrize("seed", range(20))
def test_windows_do_not_depend_on_the_steps(seed: int) -> None:
    """However a file's segments arrive, its windows are the same, and each is there as soon as it is sure."""
    segments = random_segments(seed, longest_s=12.0)
    random = np.random.default_rng(seed)
    edges = [0, *sorted(random.integers(0, len(segments) + 1, 5).tolist()), len(segments)]
    steps = [segments[a:b] for a, b in itertools.pairwise(edges)]
    joining = Joining(12.0)
    found = [*map(joining.feed, steps), joining.finish()]
    assert tuple(itertools.chain.from_iterable(found)) == merge(segments, 12.0)
    for n in range(len(steps)):  # what the first steps gave is all but the window that may still grow
        known = tuple(itertools.chain.from_iterable(found[: n + 1]))
        assert known == merge(list(itertools.chain.from_iterable(steps[: n + 1])), 12.0)[:-1]


def test_speech_switches_with_hysteresis() -> None:
    """On above the onset, off below the offset, however the scores are split into pieces."""
    scores = [0.1, 0.6, 0.4, 0.4, 0.3, 0.4, 0.9, 0.2, 0.8, 0.8]
    times_s = [float(n) for n in range(len(scores))]
    for split in range(len(scores) + 1):
        hysteresis = Hysteresis(0.5, 0.363, 30.0)
        found = hysteresis.feed(times_s[:split], scores[:split])
        found += hysteresis.feed(times_s[split:], scores[split:])
        assert found + hysteresis.finish() == [(1.0, 4.0), (6.0, 7.0), (8.0, 9.0)]


def test_long_speech_is_cut_where_it_is_least_probable() -> None:
    """Beyond the window the segment ends at the lowest score of its second half and goes on from there."""
    scores = [0.9, 0.9, 0.5, 0.9, 0.9, 0.6, 0.9, 0.9, 0.9]
    hysteresis = Hysteresis(0.5, 0.363, 6.0)
    found = hysteresis.feed([float(n) for n in range(len(scores))], scores)
    assert found + hysteresis.finish() == [(0.0, 5.0), (5.0, 8.0)]


def test_audio_without_samples_has_no_speech() -> None:
    """The models, which refuse an empty waveform, are not asked."""

    def find(samples: npt.NDArray[np.int16]) -> Iterator[Segments]:
        raise AssertionError("asked")

    for begin in (StretchSearch, partial(SegmentationSearch, 0.5, 0.363, 30.0)):
        detector = SpeechDetector(find, begin, 30.0)
        found = detector.scan(Audio(np.zeros(0, np.int16)), detector.new_scan())
        assert list(itertools.chain.from_iterable(found)) == []


def runs(samples: npt.NDArray[np.int16]) -> list[tuple[int, int]]:
    """A detector without memory: runs of sound, too short ones left out."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], samples != 0, [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 400]


@pytest.mark.parametrize("seed", range(20))
def test_stretches_find_what_the_whole_would(seed: int) -> None:
    """A long file, worked on in stretches, has the segments it has in one piece."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 5_000, 80)
    samples = np.repeat(np.arange(80) % 2, lengths).astype(np.int16)
    expected = [(start / SAMPLE_RATE_HZ, end / SAMPLE_RATE_HZ) for start, end in runs(samples)]
    for cuts in ([0], random.integers(0, len(samples), 3).tolist()):
        search = StretchSearch(stretch=20_480, context=1_024)
        found: list[tuple[float, float]] = []
        for end in sorted(cuts):  # more and more of the file, as it is decoded
            search = pickle.loads(pickle.dumps(search))
            found += itertools.chain.from_iterable(search.segments(runs, samples[:end], whole=False))
        found += itertools.chain.from_iterable(search.segments(runs, samples, whole=True))
        assert found == expected


def test_importing_the_module_brings_no_torch() -> None:
    """A replica that uses Silero, and everything that only needs windows, does without torch."""
    module = "serve_app.stages.speech.detector"
    script = f"import sys, {module}; print({{'torch', 'faster_whisper'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
