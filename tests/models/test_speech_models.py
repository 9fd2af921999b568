"""Speech detection with the real models: whisperx's windows, and inputs that are hardly any."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app.settings import SpeechSettings
from serve_app.stage_requests import SpeechRequest, SpeechSearch
from serve_app.stages.speech.detector import (
    SpeechDetector,
    WindowMerger,
    load_pyannote_detector,
    load_silero_detector,
    to_float32,
)
from serve_app.stages.speech.pyannote_scan import PyannoteScan
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Speech, Window

SETTINGS = SpeechSettings()
WINDOW_S = 8


@pytest.fixture(scope="module")
def talk(sample: Samples) -> Samples:
    """Its last 24 s: people talk from the first second on."""
    return sample[6 * SAMPLE_RATE_HZ :]


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


def speech_in(detector: SpeechDetector, samples: Samples, **rest: Any) -> Speech:
    request = SpeechRequest(samples, **{"start_s": 0.0, "is_last": True, **rest})
    (speech,) = detector.find_speech([request])
    assert isinstance(speech, Speech)
    return speech


def windows_of(detector: SpeechDetector, samples: Samples) -> tuple[Window, ...]:
    return speech_in(detector, samples).windows


def windows_in_parts(
    detector: SpeechDetector, samples: Samples, ends_s: tuple[float, ...]
) -> list[tuple[Window, ...]]:
    """What each part gives; the scan goes through a pickle, as to another replica."""
    found: list[tuple[Window, ...]] = []
    scan, start_s = None, 0.0
    for end_s in ends_s:
        part = samples[round(start_s * SAMPLE_RATE_HZ) : int(end_s * SAMPLE_RATE_HZ)]
        is_last = end_s == ends_s[-1]
        speech = speech_in(detector, part, start_s=start_s, is_last=is_last, scan=scan)
        found.append(speech.windows)
        scan, start_s = pickle.loads(pickle.dumps(speech.scan)), speech.resume_s
    return found


def speech_mask(windows: tuple[Window, ...], duration_s: float) -> np.ndarray:
    """One flag per 10 ms."""
    mask = np.zeros(int(duration_s * 100), bool)
    for window in windows:
        mask[int(window.start_s * 100) : int(window.end_s * 100)] = True
    return mask


def test_windows_are_whisperx_own(talk: Samples, pyannote: SpeechDetector) -> None:
    """Windows are whisperx's to the last digit, except that none reaches beyond the audio."""
    import torch
    from whisperx.vads import Pyannote

    reference = Pyannote(torch.device("cpu"), vad_onset=SETTINGS.onset, vad_offset=SETTINGS.offset)
    scores = reference(
        {"waveform": Pyannote.preprocess_audio(to_float32(talk)), "sample_rate": SAMPLE_RATE_HZ}
    )
    expected = Pyannote.merge_chunks(scores, WINDOW_S, SETTINGS.onset, SETTINGS.offset)
    assert len(expected) >= 3
    assert windows_of(pyannote, talk) == tuple(
        Window(chunk["start"], min(chunk["end"], len(talk) / SAMPLE_RATE_HZ)) for chunk in expected
    )


@pytest.mark.parametrize("seconds", [3.0, 5.0, 11.3, 20.5, 24.0])
def test_scores_are_pyannotes_own(talk: Samples, pyannote: SpeechDetector, seconds: float) -> None:
    """The same probability in every frame, none missing."""
    import torch
    from whisperx.vads import Pyannote

    samples = talk[: int(seconds * SAMPLE_RATE_HZ)]
    scan = pyannote.new_scan(pyannote.criteria)
    assert isinstance(scan, PyannoteScan)
    found = scan.scores(pyannote.model, SpeechRequest(samples, 0.0, True))
    reference = Pyannote(torch.device("cpu"), vad_onset=SETTINGS.onset, vad_offset=SETTINGS.offset)
    waveform = Pyannote.preprocess_audio(to_float32(samples))
    expected = reference({"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ}).data[:, 0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_merge_is_whisperx_own(seed: int) -> None:
    """Joining segments equals Vad.merge_chunks on segments of any length, touching or not."""
    from whisperx.diarize import Segment
    from whisperx.vads import Vad

    random = np.random.default_rng(seed)
    edges_s = np.cumsum(random.exponential(1.5, 120) * random.integers(0, 3, 120)).tolist()
    segments = [(start, end) for start, end in zip(edges_s[::2], edges_s[1::2], strict=True) if start < end]
    chunks = Vad.merge_chunks([Segment(start, end) for start, end in segments], WINDOW_S, 0.5, None)
    merger = WindowMerger(WINDOW_S)
    found = (*merger.feed(segments), *merger.finish())
    assert found == tuple(Window(chunk["start"], chunk["end"]) for chunk in chunks)


def test_methods_agree_on_where_speech_is(
    talk: Samples, silero: SpeechDetector, pyannote: SpeechDetector
) -> None:
    """Silero's windows cover pyannote's for at least nine tenths of the recording, within the limit."""
    by_silero, by_pyannote = windows_of(silero, talk), windows_of(pyannote, talk)
    assert all(window.end_s - window.start_s <= WINDOW_S for window in by_silero + by_pyannote)
    same = speech_mask(by_silero, 24.0) == speech_mask(by_pyannote, 24.0)
    assert same.mean() >= 0.9


def test_a_request_has_its_own_criteria(talk: Samples, detector: SpeechDetector) -> None:
    """In one call with others: a higher onset finds less, longer silences join stretches, windows fit."""
    searches = [
        SpeechSearch(),
        SpeechSearch(onset=0.95, offset=0.9),
        SpeechSearch(window_s=1.5),
        SpeechSearch(window_s=1.5, min_silence_s=0.8),
    ]
    requests = [SpeechRequest(talk, 0.0, is_last=True, search=search) for search in searches]
    found = [speech.windows for speech in detector.find_speech(requests) if isinstance(speech, Speech)]
    plain, _, short, joined = found
    assert plain == windows_of(detector, talk)
    assert all(window.end_s - window.start_s <= 1.5 for window in short + joined)
    spoken = [speech_mask(windows, 24.0).sum() for windows in found]
    assert spoken[1] < spoken[0]
    assert spoken[2] < spoken[3]
    assert not (speech_mask(short, 24.0) & ~speech_mask(plain, 24.0)).sum() > 50  # of 10 ms


def test_silence_has_no_windows(detector: SpeechDetector) -> None:
    """Ten seconds of zeros hold no speech."""
    assert windows_of(detector, np.zeros(10 * SAMPLE_RATE_HZ, np.int16)) == ()


@pytest.mark.parametrize("count", [1, 800, 1600])
def test_hardly_any_audio_is_no_error(talk: Samples, detector: SpeechDetector, count: int) -> None:
    """A single sample, 50 ms and 100 ms of a recording give no error and no window beyond the end."""
    middle = len(talk) // 2
    found = windows_of(detector, talk[middle : middle + count])
    assert all(0 <= window.start_s < window.end_s <= count / SAMPLE_RATE_HZ for window in found)


def test_samples_may_be_read_only(talk: Samples, detector: SpeechDetector) -> None:
    """Samples out of another replica's memory are read, never written to, and nothing warns."""
    before = talk.copy()
    assert not talk.flags.writeable
    assert windows_of(detector, talk)
    np.testing.assert_array_equal(talk, before)


@pytest.mark.parametrize(
    "ends_s",
    [
        (1.0, 3.0, 29.7, 80.0, 120.0),
        pytest.param((30.0, 60.0, 90.0, 120.0), marks=pytest.mark.slow),
        pytest.param((119.99, 120.0), marks=pytest.mark.slow),
    ],
)
def test_windows_in_parts_are_those_of_the_whole(
    talk: Samples, pyannote: SpeechDetector, ends_s: tuple[float, ...]
) -> None:
    """To the last digit, and the first are there before the end is."""
    samples = np.tile(talk, 5)
    found = windows_in_parts(pyannote, samples, ends_s)
    assert sum(found, ()) == windows_of(pyannote, samples)
    assert all(found[n] for n, end_s in enumerate(ends_s) if end_s >= 29.7 and end_s < 119)


def test_silero_in_parts_finds_the_speech_of_the_whole(talk: Samples, silero: SpeechDetector) -> None:
    """It starts again with every part, but early enough to miss nothing."""
    samples = np.tile(talk, 7)
    duration_s = len(samples) / SAMPLE_RATE_HZ
    found = windows_in_parts(silero, samples, (30.0, 60.0, 90.0, 120.0, 150.0, duration_s))
    same = speech_mask(windows_of(silero, samples), duration_s) == speech_mask(sum(found, ()), duration_s)
    assert same.mean() >= 0.995
    assert all(found)


def test_pyannote_loads_without_a_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading writes nothing to torch.hub's directory, which whisperx would create."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    load_pyannote_detector(SETTINGS, WINDOW_S)
    assert not (tmp_path / "torch").exists()
    assert "torch" in sys.modules
