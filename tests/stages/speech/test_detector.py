"""Speech detection without a model: merging, clipping, stretches, and what importing it costs."""

import itertools
import math
import pickle
import subprocess
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyannote.core import SlidingWindow

from serve_app.errors import InvalidRequest, Overloaded
from serve_app.stage_requests import SpeechRequest, SpeechSearch
from serve_app.stages.speech.detector import (
    SileroScan,
    SpeechDetector,
    WindowMerger,
    clip,
    to_float32,
)
from serve_app.stages.speech.pyannote_scan import Criteria, Hysteresis, PyannoteScan
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Segments, Speech, Window


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
    merger = WindowMerger(window_s)
    return (*merger.feed(segments), *merger.finish())


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
    merger = WindowMerger(12.0)
    found = [*map(merger.feed, steps), merger.finish()]
    assert tuple(itertools.chain.from_iterable(found)) == merge(segments, 12.0)
    for n in range(len(steps)):  # what the first steps gave is all but the window that may still grow
        known = tuple(itertools.chain.from_iterable(found[: n + 1]))
        assert known == merge(list(itertools.chain.from_iterable(steps[: n + 1])), 12.0)[:-1]


def test_speech_switches_with_hysteresis() -> None:
    """On above the onset, off below the offset, however the scores are split into pieces."""
    scores = [0.1, 0.6, 0.4, 0.4, 0.3, 0.4, 0.9, 0.2, 0.8, 0.8]
    times_s = [float(n) for n in range(len(scores))]
    for split in range(len(scores) + 1):
        hysteresis = Hysteresis(Criteria(0.5, 0.363, 0.0, 30.0))
        found = hysteresis.feed(times_s[:split], scores[:split])
        found += hysteresis.feed(times_s[split:], scores[split:])
        assert found + hysteresis.finish() == [(1.0, 4.0), (6.0, 7.0), (8.0, 9.0)]


def test_long_speech_is_cut_where_it_is_least_probable() -> None:
    """Beyond the window the segment ends at the lowest score of its second half and goes on from there."""
    scores = [0.9, 0.9, 0.5, 0.9, 0.9, 0.6, 0.9, 0.9, 0.9]
    hysteresis = Hysteresis(Criteria(0.5, 0.363, 0.0, 6.0))
    found = hysteresis.feed([float(n) for n in range(len(scores))], scores)
    assert found + hysteresis.finish() == [(0.0, 5.0), (5.0, 8.0)]


def segments_of(scores: list[float], criteria: Criteria) -> list[tuple[float, float]]:
    """The segments of scores that come once a second."""
    hysteresis = Hysteresis(criteria)
    found = hysteresis.feed([float(n) for n in range(len(scores))], scores)
    return found + hysteresis.finish()


@given(
    scores=st.lists(st.sampled_from([0.1, 0.4, 0.9]), max_size=60),
    min_silence_s=st.floats(0.0, 8.0),
)
def test_short_silences_do_not_end_speech(scores: list[float], min_silence_s: float) -> None:
    """Segments with less than that between them are one, and nothing else changes."""
    scores = [*scores, 0.1]  # speech that begins with the last frame has no length, and is none
    apart = segments_of(scores, Criteria(0.5, 0.363, 0.0, math.inf))
    joined: list[tuple[float, float]] = []
    for start_s, end_s in apart:
        is_near = joined and start_s - joined[-1][1] < min_silence_s
        joined.append((joined.pop()[0], end_s) if is_near else (start_s, end_s))
    assert segments_of(scores, Criteria(0.5, 0.363, min_silence_s, math.inf)) == joined


@given(
    scores=st.lists(st.sampled_from([0.1, 0.4, 0.9]), min_size=1, max_size=60),
    min_silence_s=st.floats(0.0, 100.0),
    window_s=st.floats(2.0, 10.0),
)
def test_no_stretch_is_longer_than_the_window(
    scores: list[float], min_silence_s: float, window_s: float
) -> None:
    """However long a silence has to be."""
    found = segments_of(scores, Criteria(0.5, 0.363, min_silence_s, window_s))
    assert all(end_s - start_s <= window_s for start_s, end_s in found)


def runs(samples: Samples, criteria: Criteria) -> list[tuple[int, int]]:
    """A detector without memory: runs of sound, too short ones left out; near ones are one."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], samples != 0, [0]])))
    found: list[tuple[int, int]] = []
    for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        is_near = found and start - found[-1][1] < criteria.min_silence_s * SAMPLE_RATE_HZ
        found.append((found.pop()[0], end) if is_near else (start, end))
    return [(start, end) for start, end in found if end - start > 400]


class LoudnessNetwork:
    """Stands for pyannote's `Inference` around a model: a frame of 20 ms is speech where it is loud.

    A frame at a chunk's edge is half as loud, so scores depend on all chunks that overlap, and in a larger
    batch all are louder: what is a rounding error of a real network is large here.
    """

    duration = 5.0
    warm_up = (0.1, 0.1)
    model = SimpleNamespace(
        receptive_field=SlidingWindow(start=0.0, duration=0.025, step=0.02),
        audio=SimpleNamespace(get_num_samples=lambda duration_s: round(duration_s * SAMPLE_RATE_HZ)),
    )

    def infer(self, batch: Any) -> npt.NDArray[np.float32]:
        frames = np.abs(batch.numpy()[:, 0]).reshape(len(batch), 250, 320).mean(axis=-1)
        frames[:, [0, -1]] /= 2
        return np.asarray(frames + 0.05 * len(batch), np.float32)[..., None]


def talk(seed: int, seconds: int) -> Samples:
    """Sound and silence in turns of up to 3 s."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 3 * SAMPLE_RATE_HZ, seconds)
    sound = np.repeat(np.arange(seconds) % 2, lengths)[: seconds * SAMPLE_RATE_HZ]
    return np.asarray(sound * random.integers(8_000, 32_000, len(sound)), np.int16)


def searched_in_parts(
    detector: SpeechDetector, samples: Samples, cuts: list[int], *, held: int = 0
) -> list[Window]:
    """The windows of a file that is searched part by part, each time by another replica.

    Each request begins at most `held` samples before what the search needs.
    """
    found: list[Window] = []
    scan, resume_s = None, 0.0
    for end in [*sorted(cuts), len(samples)]:
        start = max(0, round(resume_s * SAMPLE_RATE_HZ) - held)
        is_last = end == len(samples)
        request = SpeechRequest(samples[start:end], start / SAMPLE_RATE_HZ, is_last, scan)
        before = pickle.dumps(scan)
        (speech,) = detector.find_speech([request])
        assert isinstance(speech, Speech)
        assert pickle.dumps(scan) == before  # a call that is repeated after a failure finds the same
        found += speech.windows
        scan, resume_s = pickle.loads(pickle.dumps(speech.scan)), speech.resume_s
        if is_last:
            return found
    raise AssertionError("unreachable")


CRITERIA = Criteria(0.5, 0.363, 0.0, 4.0)
PYANNOTE = SpeechDetector(LoudnessNetwork(), partial(PyannoteScan, step_s=0.5, chunks_per_batch=4), CRITERIA)
SILERO = SpeechDetector(runs, partial(SileroScan, context=1_024), CRITERIA)


@pytest.mark.parametrize("detector", [PYANNOTE, SILERO], ids=["pyannote", "silero"])
@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    seconds=st.integers(1, 60),
    cuts=st.lists(st.floats(0.0, 1.0), max_size=6),
    held=st.sampled_from([0, 1, 5_000, 1_000_000]),
)
def test_windows_do_not_depend_on_the_parts(
    detector: SpeechDetector, seed: int, seconds: int, cuts: list[float], held: int
) -> None:
    """However a file is cut, and however much of the past comes again, its windows are the whole file's."""
    samples = talk(seed, seconds)
    ends = [round(cut * len(samples)) for cut in cuts]
    assert searched_in_parts(detector, samples, ends, held=held) == searched_in_parts(detector, samples, [])


@pytest.mark.parametrize("detector", [PYANNOTE, SILERO], ids=["pyannote", "silero"])
def test_windows_come_while_the_file_is_decoded(detector: SpeechDetector) -> None:
    """A search needs only the last seconds of what was before, and has given all but the last windows."""
    samples = talk(0, 60)
    (whole,) = detector.find_speech([SpeechRequest(samples, 0.0, True)])
    (early,) = detector.find_speech([SpeechRequest(samples[: 50 * SAMPLE_RATE_HZ], 0.0, False)])
    assert isinstance(whole, Speech)
    assert isinstance(early, Speech)
    assert early.windows == whole.windows[: len(early.windows)]
    assert early.windows[-1].end_s > 35.0
    assert 40.0 < early.resume_s <= 50.0


def test_requests_are_answered_in_order() -> None:
    """Two files in one call do not mix; a scan of another method is an error of its own request only."""
    files = [talk(seed, 20) for seed in range(2)]
    alone = [PYANNOTE.find_speech([SpeechRequest(file, 0.0, True)])[0] for file in files]
    (other,) = SILERO.find_speech([SpeechRequest(files[0], 0.0, False)])
    assert isinstance(other, Speech)
    changed = SpeechRequest(files[0], 0.0, True, other.scan)
    first, refused, second = PYANNOTE.find_speech(
        [SpeechRequest(files[0], 0.0, True), changed, SpeechRequest(files[1], 0.0, True)]
    )
    assert isinstance(refused, Overloaded)
    for together, by_itself in zip((first, second), alone, strict=True):
        assert isinstance(together, Speech)
        assert isinstance(by_itself, Speech)
        assert together.windows == by_itself.windows


@pytest.mark.parametrize("detector", [PYANNOTE, SILERO], ids=["pyannote", "silero"])
def test_requests_with_other_criteria_share_a_call(detector: SpeechDetector) -> None:
    """Each has its own: the windows are shorter, silences join stretches, quiet sound is none."""
    file = talk(0, 20)
    searches = [SpeechSearch(), SpeechSearch(window_s=2.0), SpeechSearch(window_s=60.0)]
    found = detector.find_speech([SpeechRequest(file, 0.0, True, search=search) for search in searches])
    plain, short, long = [speech.windows for speech in found if isinstance(speech, Speech)]
    assert len(short) > len(plain) > 1
    assert plain == long  # never longer than is configured
    loud = talk(0, 20) // 2
    quiet = SpeechRequest(loud, 0.0, True, search=SpeechSearch(onset=0.95, offset=0.9))
    joined = SpeechRequest(file, 0.0, True, search=SpeechSearch(min_silence_s=10.0))
    higher, longer = detector.find_speech([quiet, joined])
    assert isinstance(higher, Speech)
    assert isinstance(longer, Speech)
    assert longer.windows != plain
    if detector is PYANNOTE:
        assert higher.windows == ()


@pytest.mark.parametrize("detector", [PYANNOTE, SILERO], ids=["pyannote", "silero"])
@pytest.mark.parametrize(
    ("search", "name"),
    [(SpeechSearch(onset=0.2), "vad_onset"), (SpeechSearch(offset=0.7), "vad_offset")],
)
def test_a_value_that_contradicts_the_configured_one_is_refused(
    detector: SpeechDetector, search: SpeechSearch, name: str
) -> None:
    """By name, with the other one, and for its own request only."""
    other = SpeechRequest(talk(0, 5), 0.0, True)
    refused, found = detector.find_speech([SpeechRequest(talk(0, 5), 0.0, True, search=search), other])
    assert isinstance(found, Speech)
    assert isinstance(refused, InvalidRequest)
    assert refused.param == name
    assert "vad_onset" in refused.message
    assert "vad_offset" in refused.message


def test_audio_without_samples_has_no_speech() -> None:
    """The models, which refuse an empty waveform, are not asked."""

    def find(samples: Samples, criteria: Criteria) -> Segments:
        raise AssertionError("asked")

    for new_scan in (SileroScan, partial(PyannoteScan, step_s=0.5, chunks_per_batch=16)):
        detector = SpeechDetector(find, new_scan, CRITERIA)
        (speech,) = detector.find_speech([SpeechRequest(np.zeros(0, np.int16), 0.0, True)])
        assert isinstance(speech, Speech)
        assert speech.windows == ()


def test_importing_the_module_brings_no_torch() -> None:
    """A replica that uses Silero, and everything that only needs windows, does without torch."""
    module = "serve_app.stages.speech.detector"
    script = f"import sys, {module}; print({{'torch', 'faster_whisper'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
