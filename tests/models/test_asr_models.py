"""Recognition with real models: the same texts and scores as whisperx, whatever else is in the batch."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.random_whisper import build_random_whisper
from serve_app import bundled
from serve_app.errors import InvalidRequest
from serve_app.settings import SpeechSettings
from serve_app.stages.asr import Recognizer, load_recognizer
from serve_app.stages.speech import load_pyannote_detector, to_float32
from serve_app.transcript import SAMPLE_RATE_HZ, AsrRequest, Audio, Decoding, Samples, WindowText

WINDOW_S = bundled.ASR_WINDOW_S


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return load_recognizer(str(bundled.ASR), device="cpu", compute_type="auto", threads=2, beam_size=5)


@pytest.fixture(scope="module")
def random_english(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    """An English-only model with large-v3's 128 mel bands; a narrow beam, as random text never ends."""
    directory = build_random_whisper(
        tmp_path_factory.mktemp("random_english"), english_only=True, mel_bands=128
    )
    return load_recognizer(str(directory), device="cpu", compute_type="auto", threads=2, beam_size=1)


def load_whisperx(model: Path, compute_type: str, **options: Any) -> Any:
    import whisperx

    return whisperx.load_model(str(model), "cpu", compute_type=compute_type, threads=2, **options)


def windows_of(samples: Samples, count: int) -> list[Samples]:
    seconds = int(WINDOW_S) * SAMPLE_RATE_HZ
    return [samples[i * seconds : (i + 1) * seconds] for i in range(count)]


def assert_equal(one: object, other: object) -> None:
    """Equal up to the rounding of a batch of another size."""
    assert isinstance(one, WindowText)
    assert isinstance(other, WindowText)
    assert (one.text, one.tokens, one.language) == (other.text, other.tokens, other.language)
    assert one.language_probability == pytest.approx(other.language_probability, abs=1e-4)
    assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-4)
    assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=1e-4)


def test_transcript_is_whisperx_own(audio: Audio) -> None:
    """Windows, texts and scores of a recording are those of plain whisperx with its defaults.

    In float32: int8 rounds activations, which turns the 2e-5 between numpy's features and torch's
    into 0.01 of log-probability (`test_whisper_of_true_dimensions_equals_whisperx` has int8).
    """
    segments = load_whisperx(bundled.ASR, "float32").transcribe(
        to_float32(audio.samples), batch_size=4, chunk_size=int(WINDOW_S), language="en"
    )["segments"]
    scan = load_pyannote_detector(SpeechSettings(), int(WINDOW_S)).scan(audio)
    windows = tuple(itertools.chain.from_iterable(scan))
    recognizer = load_recognizer(
        str(bundled.ASR), device="cpu", compute_type="float32", threads=2, beam_size=5
    )
    texts = recognizer.transcribe(
        [AsrRequest(recognizer.features(window.cut(audio.samples)), "en") for window in windows]
    )
    assert len(windows) == len(segments) >= 3
    for window, text, segment in zip(windows, texts, segments, strict=True):
        assert isinstance(text, WindowText)
        assert round(window.start_s, 3) == segment["start"]
        assert round(window.end_s, 3) == min(segment["end"], round(audio.duration_s, 3))
        assert text.text == segment["text"]
        assert text.avg_logprob == pytest.approx(segment["avg_logprob"], abs=1e-4)


def test_mixed_batch_equals_each_item_alone(audio: Audio, recognizer: Recognizer) -> None:
    """Neighbours in a batch, of other languages and tasks, change nothing about an item."""
    features = [recognizer.features(window) for window in windows_of(audio.samples, 3)]
    batch = [
        AsrRequest(features[0], "en"),
        AsrRequest(features[1]),
        AsrRequest(features[2], "de"),
        AsrRequest(features[0], "fr", Decoding("translate")),
        AsrRequest(features[2], None, Decoding("translate")),
        AsrRequest(features[1], "en"),
    ]
    together = recognizer.transcribe(batch)
    for item, request in zip(together, batch, strict=True):
        [alone] = recognizer.transcribe([request])
        assert_equal(item, alone)
    # And the model is as it was before.
    for item, again in zip(together, recognizer.transcribe(batch), strict=True):
        assert_equal(item, again)


def test_detected_language_is_whisperx_own(audio: Audio, recognizer: Recognizer) -> None:
    """Language and probability of a window are what faster-whisper's own detection gives for it."""
    from faster_whisper import WhisperModel

    window = audio.samples[-int(WINDOW_S) * SAMPLE_RATE_HZ :]
    whisper = WhisperModel(str(bundled.ASR), device="cpu", compute_type="int8", cpu_threads=2)
    encoded = whisper.encode(recognizer.features(window))
    token, probability = whisper.model.detect_language(encoded)[0][0]
    [heard] = recognizer.transcribe([AsrRequest(recognizer.features(window))])
    assert isinstance(heard, WindowText)
    assert f"<|{heard.language}|>" == token
    assert heard.language_probability == pytest.approx(probability, abs=1e-5)


def test_features_are_whisperx_own(audio: Audio, recognizer: Recognizer, random_english: Recognizer) -> None:
    """Log-mel features agree with whisperx's, with 80 and 128 bands, for windows of any length."""
    from whisperx.audio import N_SAMPLES, log_mel_spectrogram

    assert not audio.samples.flags.writeable  # as they arrive from another replica
    models = ((recognizer, 80), (random_english, 128))
    for (model, mel_bands), seconds in itertools.product(models, (0.05, 1.7, 8.0, 24.0)):
        samples = audio.samples[: int(seconds * SAMPLE_RATE_HZ)]
        expected = log_mel_spectrogram(to_float32(samples), mel_bands, padding=N_SAMPLES - len(samples))
        assert expected.shape == (mel_bands, 3000)
        np.testing.assert_allclose(model.features(samples), expected.numpy(), atol=1e-4)


def test_english_only_model_speaks_english_or_says_no(audio: Audio, random_english: Recognizer) -> None:
    """Without a language it is English, undetected; German and translation are errors of their items."""
    features = random_english.features(windows_of(audio.samples, 1)[0])
    english, german, translation = random_english.transcribe(
        [AsrRequest(features), AsrRequest(features, "de"), AsrRequest(features, "en", Decoding("translate"))]
    )
    assert isinstance(english, WindowText)
    assert (english.language, english.language_probability) == ("en", None)
    assert english.text
    assert isinstance(german, InvalidRequest)
    assert german.param == "language"
    assert isinstance(translation, InvalidRequest)
    assert translation.param == "task"


def test_whisper_of_true_dimensions_equals_whisperx(audio: Audio, tmp_path: Path) -> None:
    """A Whisper `tiny` with random weights, in int8 and from equal features, gives whisperx's text."""
    directory = build_random_whisper(tmp_path)
    reference = load_whisperx(directory, "int8", asr_options={"beam_size": 1}, language="en")
    window = {"inputs": to_float32(windows_of(audio.samples, 1)[0])}
    [expected] = reference([window], batch_size=1)
    features = reference.preprocess(window)["inputs"].numpy()
    recognizer = load_recognizer(str(directory), device="cpu", compute_type="auto", threads=2, beam_size=1)
    [heard] = recognizer.transcribe([AsrRequest(features, "en")])
    assert isinstance(heard, WindowText)
    assert len(heard.tokens) > 100
    assert [heard.text] == expected["text"]
    assert [heard.avg_logprob] == pytest.approx(expected["avg_logprob"], abs=1e-5)
