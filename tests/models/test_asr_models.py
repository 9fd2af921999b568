"""Recognition with real models: the same texts and scores as whisperx, whatever else is in the batch."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_whisper import WhisperModel

from benchmarks.random_whisper import build_random_whisper
from serve_app.errors import InvalidRequest
from serve_app.settings import AsrSettings, SpeechSettings
from serve_app.stage_requests import AsrRequest, Decoding, SpeechRequest
from serve_app.stages.asr.fallback import Fallback
from serve_app.stages.asr.recognizer import Features, Recognizer, load_recognizer
from serve_app.stages.speech.detector import load_pyannote_detector, to_float32
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Speech, WindowText

WINDOW_S = 8


@pytest.fixture(scope="module")
def talk(sample: Samples) -> Samples:
    """The last 24 s of the telephone call: people talk all the time."""
    return sample[6 * SAMPLE_RATE_HZ :]


@pytest.fixture(scope="module")
def random_english(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    """An English-only model with large-v3's 128 mel bands; a narrow beam, as random text never ends."""
    directory = build_random_whisper(
        tmp_path_factory.mktemp("random_english"), english_only=True, mel_bands=128
    )
    return load_recognizer(str(directory), device="cpu", threads=2, settings=AsrSettings(beam_size=1))


@pytest.fixture(scope="module")
def recognizer32(tiny_en: Path) -> Recognizer:
    return load_recognizer(
        str(tiny_en), device="cpu", threads=2, settings=AsrSettings(compute_type="float32")
    )


@pytest.fixture(scope="module")
def whisperx32(tiny_en: Path) -> Any:
    """whisperx's pipeline around the same weights."""
    return load_whisperx(tiny_en, "float32", language="en")


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a model whose texts have some twenty tokens."""
    return build_random_whisper(tmp_path_factory.mktemp("random_multilingual"), text_tokens=20)


@pytest.fixture(scope="module")
def random_multilingual(multilingual: Path) -> Recognizer:
    return load_recognizer(str(multilingual), device="cpu", threads=2, settings=AsrSettings(beam_size=2))


def load_whisperx(model: Path, compute_type: str, **options: Any) -> Any:
    import whisperx

    return whisperx.load_model(str(model), "cpu", compute_type=compute_type, threads=2, **options)


def windows_of(samples: Samples, count: int) -> list[Samples]:
    seconds = WINDOW_S * SAMPLE_RATE_HZ
    return [samples[i * seconds : (i + 1) * seconds] for i in range(count)]


def assert_equal(one: object, other: object) -> None:
    """Equal up to the rounding of a batch of another size."""
    assert isinstance(one, WindowText)
    assert isinstance(other, WindowText)
    assert (one.text, one.language) == (other.text, other.language)
    assert one.language_probability == pytest.approx(other.language_probability, abs=1e-4)
    assert one.avg_logprob == pytest.approx(other.avg_logprob, abs=1e-4)
    assert one.no_speech_prob == pytest.approx(other.no_speech_prob, abs=1e-4)


def test_transcript_is_whisperx_own(talk: Samples, recognizer32: Recognizer, whisperx32: Any) -> None:
    """Windows, texts and scores of a recording are those of plain whisperx with its defaults.

    In float32: int8 rounds activations, which turns the 2e-5 between numpy's features and torch's
    into 0.01 of log-probability (`test_whisper_of_true_dimensions_equals_whisperx` has int8).
    """
    segments = whisperx32.transcribe(to_float32(talk), batch_size=4, chunk_size=WINDOW_S, language="en")[
        "segments"
    ]
    detector = load_pyannote_detector(SpeechSettings(), WINDOW_S)
    (speech,) = detector.find_speech([SpeechRequest(talk, 0.0, is_last=True)])
    assert isinstance(speech, Speech)
    texts = recognizer32.transcribe(
        [AsrRequest(recognizer32.features(window.cut(talk)), "en") for window in speech.windows]
    )
    assert len(speech.windows) == len(segments) >= 3
    for window, text, segment in zip(speech.windows, texts, segments, strict=True):
        assert isinstance(text, WindowText)
        assert round(window.start_s, 3) == segment["start"]
        assert round(window.end_s, 3) == min(segment["end"], round(len(talk) / SAMPLE_RATE_HZ, 3))
        assert text.text == segment["text"]
        assert text.avg_logprob == pytest.approx(segment["avg_logprob"], abs=1e-4)


def test_mixed_batch_equals_each_item_alone(talk: Samples, random_multilingual: Recognizer) -> None:
    """Neighbours in a batch, of other languages and tasks, change nothing about an item."""
    recognizer = random_multilingual
    features = [recognizer.features(window) for window in windows_of(talk, 3)]
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


def test_detected_language_is_whisperx_own(
    talk: Samples, random_multilingual: Recognizer, multilingual: Path
) -> None:
    """Language and probability of a window are what faster-whisper's own detection gives for it."""
    recognizer, [window] = random_multilingual, windows_of(talk, 1)
    whisper = WhisperModel(str(multilingual), device="cpu", compute_type="int8", cpu_threads=2)
    encoded = whisper.encode(recognizer.features(window))
    token, probability = whisper.model.detect_language(encoded)[0][0]
    features = recognizer.features(window)
    for request in (AsrRequest(features), AsrRequest(features, only_language=True)):
        [heard] = recognizer.transcribe([request])
        assert isinstance(heard, WindowText)
        assert f"<|{heard.language}|>" == token
        assert heard.language_probability == pytest.approx(probability, abs=1e-5)
        assert bool(heard.text) != request.only_language


def test_features_are_whisperx_own(
    talk: Samples, random_multilingual: Recognizer, random_english: Recognizer
) -> None:
    """Log-mel features agree with whisperx's, with 80 and 128 bands, for windows of any length."""
    from whisperx.audio import N_SAMPLES, log_mel_spectrogram

    assert not talk.flags.writeable  # as they arrive from another replica
    models = ((random_multilingual, 80), (random_english, 128))
    loudest = int(np.abs(talk[: 8 * SAMPLE_RATE_HZ].astype(int)).argmax())  # quiet windows are amplified
    for (model, mel_bands), seconds in itertools.product(models, (0.05, 1.7, 8.0, 16.0)):
        samples = talk[loudest : loudest + int(seconds * SAMPLE_RATE_HZ)]
        expected = log_mel_spectrogram(to_float32(samples), mel_bands, padding=N_SAMPLES - len(samples))
        assert expected.shape == (mel_bands, 3000)
        np.testing.assert_allclose(model.features(samples), expected.numpy(), atol=1e-4)


def test_english_only_model_speaks_english_or_says_no(talk: Samples, random_english: Recognizer) -> None:
    """Without a language it is English, undetected; German and translation are errors of their items."""
    features = random_english.features(windows_of(talk, 1)[0])
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


def test_whisper_of_true_dimensions_equals_whisperx(talk: Samples, tmp_path: Path) -> None:
    """A Whisper `tiny` with random weights, in int8 and from equal features, gives whisperx's text."""
    directory = build_random_whisper(tmp_path)
    reference = load_whisperx(directory, "int8", asr_options={"beam_size": 1}, language="en")
    window = {"inputs": to_float32(windows_of(talk, 1)[0])}
    [expected] = reference([window], batch_size=1)
    features = reference.preprocess(window)["inputs"].numpy()
    recognizer = load_recognizer(str(directory), device="cpu", threads=2, settings=AsrSettings(beam_size=1))
    [heard] = recognizer.transcribe([AsrRequest(features, "en")])
    assert isinstance(heard, WindowText)
    assert len(heard.text) > 100
    assert [heard.text] == expected["text"]
    assert [heard.avg_logprob] == pytest.approx(expected["avg_logprob"], abs=1e-5)


HEARD_BEFORE = "Hello. I heard a beep."
NAMES = "Diane Sheila"


@pytest.mark.parametrize(
    ("initial_prompt", "hotwords"),
    [
        (f" {HEARD_BEFORE} ", f"{NAMES} "),
        pytest.param(HEARD_BEFORE, None, marks=pytest.mark.slow),
        pytest.param(None, NAMES, marks=pytest.mark.slow),
    ],
)
def test_prompted_text_is_whisperx_own(
    talk: Samples,
    recognizer32: Recognizer,
    whisperx32: Any,
    monkeypatch: pytest.MonkeyPatch,
    initial_prompt: str | None,
    hotwords: str | None,
) -> None:
    """Texts and scores with an initial prompt and hotwords are whisperx's with these `asr_options`."""
    windows = windows_of(talk, 2)
    prompted = replace(whisperx32.options, initial_prompt=initial_prompt, hotwords=hotwords)
    monkeypatch.setattr(whisperx32, "options", prompted)
    expected = list(whisperx32([{"inputs": to_float32(window)} for window in windows], batch_size=1))
    requests = [
        AsrRequest(recognizer32.features(window), "en", Decoding("transcribe", initial_prompt, hotwords))
        for window in windows
    ]
    assert len({recognizer32.batch_key(request) for request in requests}) == 1
    plain = recognizer32.transcribe([replace(request, decoding=Decoding()) for request in requests])
    texts = recognizer32.transcribe(requests)
    assert texts != plain  # a prompt that changes nothing would show nothing
    for text, theirs in zip(texts, expected, strict=True):
        assert isinstance(text, WindowText)
        assert [text.text] == theirs["text"]
        assert [text.avg_logprob] == pytest.approx(theirs["avg_logprob"], abs=1e-4)


def test_prompts_of_equal_length_mix_in_a_batch(talk: Samples, random_multilingual: Recognizer) -> None:
    """Two requests' prompts, other words in other fields, change nothing about each other's windows."""
    recognizer = random_multilingual
    window = recognizer.features(windows_of(talk, 1)[0])
    batch = [
        AsrRequest(window, "en", Decoding("transcribe", "one cat")),
        AsrRequest(window, "en", Decoding("transcribe", None, "few dog")),
        AsrRequest(window, "de", Decoding("translate", "cat", "dog")),
    ]
    assert len({recognizer.batch_key(request) for request in batch}) == 1
    for text, request in zip(recognizer.transcribe(batch), batch, strict=True):
        [alone] = recognizer.transcribe([request])
        assert_equal(text, alone)


def looping_window(recognizer: Recognizer, talk: Samples) -> Samples:
    """Speech backwards, in which the decoder hears the same sentence again and again.

    In how much of it depends on the processor's arithmetic.
    """
    for seconds in (20, 18, 22, 16, 24, 14, 12, 10):
        samples = talk[: seconds * SAMPLE_RATE_HZ][::-1].copy()
        (text,) = recognizer.transcribe([AsrRequest(recognizer.features(samples), "en")])
        if isinstance(text, WindowText) and text.compression_ratio > 2.4:
            return samples
    return pytest.fail("None of these windows is a loop here.")


@pytest.fixture
def seeded(tiny_en: Path) -> Iterator[Callable[[int], WhisperModel]]:
    """Loads the model with a seed: its thread draws from it when it first samples."""
    from ctranslate2 import set_random_seed

    def load(seed: int) -> WhisperModel:
        set_random_seed(seed)
        return WhisperModel(str(tiny_en), device="cpu", compute_type="int8", cpu_threads=1)

    yield load
    set_random_seed(2**32 - 1)  # what means none


def test_fallback_is_faster_whispers(
    talk: Samples, seeded: Callable[[int], WhisperModel], tiny_en: Path
) -> None:
    """Texts, scores and temperatures are those of `generate_with_fallback`, sample by sample.

    Of five samples, it takes the likeliest although it repeats itself; so does ours, when told that nothing
    repeats itself.
    """
    from faster_whisper.tokenizer import Tokenizer

    recognizer = Recognizer(seeded(3), "tiny.en", AsrSettings(compression_ratio_threshold=1000.0))
    windows = [looping_window(recognizer, talk), *windows_of(talk, 1)]
    features = [recognizer.features(window) for window in windows]
    ours = [by_transcriber(recognizer, window) for window in features]
    theirs = seeded(3)
    options = load_whisperx(tiny_en, "int8", language="en").options  # the defaults of both
    tokenizer = Tokenizer(theirs.hf_tokenizer, False, task="transcribe", language="en")
    prompt = theirs.get_prompt(tokenizer, [], without_timestamps=True)
    for text, window in zip(ours, features, strict=True):
        result, avg_logprob, temperature, compression_ratio = theirs.generate_with_fallback(
            theirs.encode(window), prompt, tokenizer, options
        )
        assert text.text == tokenizer.decode(result.sequences_ids[0])
        assert text.avg_logprob == pytest.approx(avg_logprob, abs=1e-5)
        assert text.compression_ratio == compression_ratio
        # Where no text is believable, it tells the last temperature instead of the best text's.
        assert temperature == (text.temperature if Fallback().is_believable(text) else 1.0)
    assert [text.attempts > 1 for text in ours] == [True, False]


def test_a_loop_ends(talk: Samples, seeded: Callable[[int], WhisperModel]) -> None:
    """A window in which the decoder repeats itself ends with a text that does not."""
    recognizer = Recognizer(seeded(0), "tiny.en", AsrSettings())
    text = by_transcriber(recognizer, recognizer.features(looping_window(recognizer, talk)))
    assert text.attempts > 1
    assert text.compression_ratio <= 2.4


def by_transcriber(recognizer: Recognizer, features: Features) -> WindowText:
    """One window through the deployment's loop."""
    fallback = Fallback()
    attempts: list[WindowText] = []
    for temperature in fallback.schedule(Decoding()):
        [text] = recognizer.transcribe([AsrRequest(features, "en", Decoding(temperature=temperature))])
        assert isinstance(text, WindowText)
        attempts.append(text)
        if fallback.is_believable(text):
            break
    return fallback.best_attempt(attempts)


def test_sampling_is_random(talk: Samples, random_multilingual: Recognizer) -> None:
    """At temperature 1 no two texts of a window are alike, in one batch or in several."""
    features = random_multilingual.features(windows_of(talk, 1)[0])
    batch = [AsrRequest(features, "en", Decoding(temperature=1.0))] * 2
    answers = [random_multilingual.transcribe(batch) for _ in range(2)]
    texts = [text for answer in answers for text in answer if isinstance(text, WindowText)]
    assert len({text.text for text in texts}) == 4
    assert {text.temperature for text in texts} == {1.0}
