"""Speech detection with the real models: whisperx's windows, and inputs that are hardly any."""

import itertools
import pickle
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from serve_app.settings import SpeechSettings
from serve_app.stages.speech.detector import (
    Joining,
    SpeechDetector,
    StretchSearch,
    load_pyannote_detector,
    load_silero_detector,
    to_float32,
)
from serve_app.stages.speech.pyannote_scan import SegmentationSearch
from serve_app.transcript import SAMPLE_RATE_HZ, Audio, Window

SETTINGS = SpeechSettings()
WINDOW_S = 8


@pytest.fixture(scope="module")
def silero() -> SpeechDetector:
    return load_silero_detector(SETTINGS, WINDOW_S)


@pytest.fixture(scope="module")
def pyannote() -> SpeechDetector:
    return load_pyannote_detector(SETTINGS, WINDOW_S)


@pytest.fixture(params=["silero", "pyannote"])
def detector(request: pytest.FixtureRequest) -> SpeechDetector:
    found: SpeechDetector = request.getfixturevalue(request.param)
    return found


def windows_of(detector: SpeechDetector, audio: Audio) -> tuple[Window, ...]:
    return tuple(itertools.chain.from_iterable(detector.scan(audio, detector.new_scan())))


def speech_mask(windows: tuple[Window, ...], duration_s: float) -> np.ndarray:
    """One flag per 10 ms."""
    mask = np.zeros(int(duration_s * 100), bool)
    for window in windows:
        mask[int(window.start_s * 100) : int(window.end_s * 100)] = True
    return mask


def test_windows_are_whisperx_own(audio: Audio, pyannote: SpeechDetector) -> None:
    """Windows are whisperx's to the last digit, except that none reaches beyond the audio."""
    import torch
    from whisperx.vads import Pyannote

    reference = Pyannote(torch.device("cpu"), vad_onset=SETTINGS.onset, vad_offset=SETTINGS.offset)
    scores = reference(
        {"waveform": Pyannote.preprocess_audio(to_float32(audio.samples)), "sample_rate": SAMPLE_RATE_HZ}
    )
    expected = Pyannote.merge_chunks(scores, WINDOW_S, SETTINGS.onset, SETTINGS.offset)
    assert len(expected) >= 3
    assert windows_of(pyannote, audio) == tuple(
        Window(chunk["start"], min(chunk["end"], audio.duration_s)) for chunk in expected
    )


@pytest.mark.parametrize("seconds", [3.0, 5.0, 11.3, 20.5, 24.0])
def test_scores_are_pyannotes_own(audio: Audio, pyannote: SpeechDetector, seconds: float) -> None:
    """Step by step or over the whole file at once: the same probability in every frame, none missing."""
    import torch
    from whisperx.vads import Pyannote

    samples = audio.samples[: int(seconds * SAMPLE_RATE_HZ)]
    search = pyannote.begin()
    assert isinstance(search, SegmentationSearch)
    found = np.concatenate(list(search.scores(pyannote.model, samples, whole=True)))
    reference = Pyannote(torch.device("cpu"), vad_onset=SETTINGS.onset, vad_offset=SETTINGS.offset)
    waveform = Pyannote.preprocess_audio(to_float32(samples))
    expected = reference({"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ}).data[:, 0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_first_window_is_there_long_before_the_last(audio: Audio, pyannote: SpeechDetector) -> None:
    """Two minutes: the first window comes within the first quarter of the steps."""
    steps = list(pyannote.scan(Audio(np.tile(audio.samples, 5)), pyannote.new_scan()))
    first = next(n for n, windows in enumerate(steps) if windows)
    assert first < len(steps) / 4


@pytest.mark.parametrize("seed", range(20))
def test_merge_is_whisperx_own(seed: int) -> None:
    """Joining segments equals Vad.merge_chunks on segments of any length, touching or not."""
    from whisperx.diarize import Segment
    from whisperx.vads import Vad

    random = np.random.default_rng(seed)
    edges_s = np.cumsum(random.exponential(1.5, 120) * random.integers(0, 3, 120)).tolist()
    segments = [(start, end) for start, end in zip(edges_s[::2], edges_s[1::2], strict=True) if start < end]
    chunks = Vad.merge_chunks([Segment(start, end) for start, end in segments], WINDOW_S, 0.5, None)
    joining = Joining(WINDOW_S)
    found = (*joining.feed(segments), *joining.finish())
    assert found == tuple(Window(chunk["start"], chunk["end"]) for chunk in chunks)


def test_methods_agree_on_where_speech_is(
    audio: Audio, silero: SpeechDetector, pyannote: SpeechDetector
) -> None:
    """Silero's windows cover pyannote's for at least nine tenths of the recording, within the limit."""
    by_silero, by_pyannote = windows_of(silero, audio), windows_of(pyannote, audio)
    assert all(window.end_s - window.start_s <= WINDOW_S for window in by_silero + by_pyannote)
    duration_s = audio.duration_s
    same = speech_mask(by_silero, duration_s) == speech_mask(by_pyannote, duration_s)
    assert same.mean() >= 0.9


def test_silence_has_no_windows(detector: SpeechDetector) -> None:
    """Ten seconds of zeros hold no speech."""
    assert windows_of(detector, Audio(np.zeros(10 * SAMPLE_RATE_HZ, np.int16))) == ()


@pytest.mark.parametrize("samples", [1, 800, 1600])
def test_hardly_any_audio_is_no_error(audio: Audio, detector: SpeechDetector, samples: int) -> None:
    """A single sample, 50 ms and 100 ms of a recording give no error and no window beyond the end."""
    middle = len(audio.samples) // 2
    found = windows_of(detector, Audio(audio.samples[middle : middle + samples]))
    assert all(0 <= window.start_s < window.end_s <= samples / SAMPLE_RATE_HZ for window in found)


def test_samples_may_be_read_only(audio: Audio, detector: SpeechDetector) -> None:
    """Samples out of another replica's memory are read, never written to, and nothing warns."""
    before = audio.samples.copy()
    assert not audio.samples.flags.writeable
    assert windows_of(detector, audio)
    np.testing.assert_array_equal(audio.samples, before)


@pytest.mark.parametrize("ends_s", [(20.0,), (1.0, 3.0, 29.7, 80.0), (150.0, 167.0)])
def test_a_file_is_searched_as_it_is_decoded(
    audio: Audio, detector: SpeechDetector, ends_s: tuple[float, ...]
) -> None:
    """The windows are the whole file's to the last digit, and the first are there before the end is."""
    samples = np.tile(audio.samples, 7)
    if isinstance(detector.begin(), StretchSearch):
        detector = replace(detector, begin=partial(StretchSearch, 60 * SAMPLE_RATE_HZ))
    scan, found = detector.new_scan(), list[Window]()
    for end_s in ends_s:
        beginning = Audio(samples[: int(end_s * SAMPLE_RATE_HZ)], whole=False)
        found += itertools.chain.from_iterable(detector.scan(beginning, scan))
        scan = pickle.loads(pickle.dumps(scan))
    early = len(found)
    found += itertools.chain.from_iterable(detector.scan(Audio(samples), scan))
    assert tuple(found) == windows_of(detector, Audio(samples))
    assert (0 < early < len(found)) == (ends_s[-1] > 60)


def test_a_search_that_breaks_off_goes_on(audio: Audio, detector: SpeechDetector) -> None:
    """After any step, the very last included, another replica finds the rest and nothing twice."""
    scan, found, states = detector.new_scan(), list[Window](), []
    for windows in detector.scan(audio, scan):
        found += windows
        states.append((len(found), pickle.dumps(scan)))
    assert len(found) > 1
    for given, state in (states[0], states[len(states) // 2], *states[-3:]):
        rest = itertools.chain.from_iterable(detector.scan(audio, pickle.loads(state)))
        assert list(rest) == found[given:]


def test_long_file_in_stretches_is_the_same_to_silero(audio: Audio, silero: SpeechDetector) -> None:
    """Stretches of a minute, which keep memory small, find the speech that one piece has."""
    samples = np.tile(audio.samples, 7)
    whole = windows_of(silero, Audio(samples))
    in_minutes = replace(silero, begin=partial(StretchSearch, 60 * SAMPLE_RATE_HZ))
    pieces = windows_of(in_minutes, Audio(samples))
    duration_s = len(samples) / SAMPLE_RATE_HZ
    same = speech_mask(whole, duration_s) == speech_mask(pieces, duration_s)
    assert same.mean() >= 0.995


def test_pyannote_loads_without_a_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading writes nothing to torch.hub's directory, which whisperx would create."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    load_pyannote_detector(SETTINGS, WINDOW_S)
    assert not (tmp_path / "torch").exists()
    assert "torch" in sys.modules
