"""Recognition without a model: what is asked of CTranslate2, and what is made of its answers."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from faster_whisper import WhisperModel
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.random_whisper import whisper_tokenizer
from serve_app.errors import InvalidRequest, ModelUnavailable
from serve_app.settings import AsrSettings
from serve_app.stage_requests import AsrRequest, Decoding
from serve_app.stages.asr.recognizer import (
    ENCODER_SAMPLES,
    Recognizer,
    load_recognizer,
)
from serve_app.stages.devices import choose_compute_type
from serve_app.transcript import WindowText

TOKENIZER = whisper_tokenizer()
FEATURES = np.zeros((80, 3000), np.float32)
HELLO = (2425, 1002)  # two text tokens


class FakeCTranslate2:
    """Hears the same `samples` in every window, in French, and counts its calls."""

    n_mels = 80

    def __init__(self, *, multilingual: bool) -> None:
        self.is_multilingual = multilingual
        self.calls: list[tuple[str, int]] = []
        self.prompts: list[list[str]] = []
        self.options: dict[str, Any] = {}
        self.samples: tuple[list[int], ...] = ([*HELLO, TOKENIZER.token_to_id("<|0.00|>")],)

    def encode(self, features: Any) -> list[int]:
        self.calls.append(("encode", features.shape[0]))
        return list(range(features.shape[0]))

    def detect_language(self, encoded: list[int]) -> list[list[tuple[str, float]]]:
        self.calls.append(("detect_language", len(encoded)))
        return [[("<|fr|>", 0.75), ("<|en|>", 0.25)] for _ in encoded]

    def generate(self, encoded: list[int], prompts: list[list[int]], **options: Any) -> list[Any]:
        self.calls.append(("generate", len(encoded)))
        self.options = options
        self.prompts = [[TOKENIZER.id_to_token(token) for token in prompt] for prompt in prompts]
        scores = [-0.4 - number / 10 for number in range(len(self.samples))]
        return [
            SimpleNamespace(sequences_ids=list(self.samples), scores=scores, no_speech_prob=0.1)
            for _ in prompts
        ]


def whisper_of(model: FakeCTranslate2) -> Any:
    languages = ["en", "de", "fr", "yue"] if model.is_multilingual else ["en"]
    whisper = SimpleNamespace(
        model=model, hf_tokenizer=TOKENIZER, max_length=448, supported_languages=languages
    )
    whisper.get_prompt = partial(WhisperModel.get_prompt, whisper)
    return whisper


def recognizer_of(model: FakeCTranslate2, **options: Any) -> Recognizer:
    return Recognizer(whisper_of(model), "fake", AsrSettings(**options))


@pytest.fixture
def model() -> FakeCTranslate2:
    return FakeCTranslate2(multilingual=True)


@pytest.fixture
def recognizer(model: FakeCTranslate2) -> Recognizer:
    return recognizer_of(model)


@pytest.mark.parametrize(
    ("device", "offered", "chosen"),
    [
        ("cuda", {"int8_float16", "float16", "float32"}, "int8_float16"),
        ("cuda", {"float16", "bfloat16", "float32"}, "float16"),  # Blackwell
        ("cpu", {"int8", "float32"}, "int8"),
    ],
)
def test_compute_type_auto_is_one_that_the_device_has(
    device: str, offered: set[str], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` is int8 where a GPU has that, else float16, and int8 on a CPU; a named type stays."""
    monkeypatch.setattr("ctranslate2.get_supported_compute_types", lambda on: offered if on == device else {})
    assert choose_compute_type("auto", device) == chosen
    assert choose_compute_type("float32", device) == "float32"


def test_mixed_batch_is_one_call_of_each_kind(model: FakeCTranslate2, recognizer: Recognizer) -> None:
    """Languages, tasks and a missing language share one encoding, one detection and one search."""
    recognizer.transcribe(
        [AsrRequest(FEATURES, "de"), AsrRequest(FEATURES, "en", Decoding("translate")), AsrRequest(FEATURES)]
    )
    assert model.calls == [("encode", 3), ("detect_language", 3), ("generate", 3)]
    start, end = "<|startoftranscript|>", "<|notimestamps|>"
    assert model.prompts == [
        [start, "<|de|>", "<|transcribe|>", end],
        [start, "<|en|>", "<|translate|>", end],
        [start, "<|fr|>", "<|transcribe|>", end],
    ]


def test_named_languages_are_not_detected(model: FakeCTranslate2, recognizer: Recognizer) -> None:
    """Detection runs only when an item needs it, and only that item gets a probability."""
    [named] = recognizer.transcribe([AsrRequest(FEATURES, "de")])
    assert model.calls == [("encode", 1), ("generate", 1)]
    named_again, detected = recognizer.transcribe([AsrRequest(FEATURES, "de"), AsrRequest(FEATURES)])
    assert named == named_again
    assert isinstance(named, WindowText)
    assert isinstance(detected, WindowText)
    assert (named.language, named.language_probability) == ("de", None)
    assert (detected.language, detected.language_probability) == ("fr", 0.75)


@pytest.mark.parametrize(("certain_at", "taken"), [(0.75, "fr"), (0.8, "de")])
def test_a_window_may_be_certain_of_another_language(
    recognizer: Recognizer, certain_at: float, taken: str
) -> None:
    """Then it is decoded in that one; with less certainty it takes what it was given."""
    [heard] = recognizer.transcribe([AsrRequest(FEATURES, "de", certain_at=certain_at)])
    assert isinstance(heard, WindowText)
    assert (heard.language, heard.languages) == (taken, (("fr", 0.75), ("en", 0.25)))
    assert heard.language_probability == (0.75 if taken == "fr" else None)
    [named, _] = recognizer.transcribe([AsrRequest(FEATURES, "de"), AsrRequest(FEATURES)])
    assert isinstance(named, WindowText)
    assert (named.language, named.languages) == ("de", ())


CODES = ("en", "de", "fr")
rankings = st.permutations(CODES).flatmap(
    lambda codes: st.lists(st.floats(0, 1), min_size=3, max_size=3).map(
        lambda values: [(f"<|{code}|>", p) for code, p in zip(codes, sorted(values)[::-1], strict=True)]
    )
)


@given(
    rankings, st.sets(st.sampled_from(CODES), min_size=1), st.sampled_from([None, *CODES]), st.floats(0, 1)
)
def test_a_window_has_one_of_the_languages_that_are_allowed(
    ranking: list[tuple[str, float]], allowed: set[str], file_has: str | None, certain_at: float
) -> None:
    """The likeliest of them, unless the file's is another one of them and this one is not certain."""
    model = FakeCTranslate2(multilingual=True)
    model.detect_language = lambda encoded: [ranking for _ in encoded]  # type: ignore[method-assign]
    named = file_has if file_has in allowed else None
    decoding = Decoding(languages=tuple(sorted(allowed)))
    request = AsrRequest(FEATURES, named, decoding, certain_at=certain_at if named else None)
    [heard] = recognizer_of(model).transcribe([request])
    assert isinstance(heard, WindowText)
    among = [(code.strip("<|>"), p) for code, p in ranking if code.strip("<|>") in allowed]
    likeliest, probability = among[0][0], among[0][1] / (sum(p for _, p in among) or 1.0)
    assert heard.language == (named if named and probability < certain_at else likeliest)
    assert {code for code, _ in heard.languages} <= allowed
    assert heard.languages


@pytest.mark.parametrize("only_language", [False, True])
def test_probabilities_are_those_among_the_allowed_languages(only_language: bool) -> None:
    """A third one, which is not spoken, makes a window no less certain of one of the two."""
    model = FakeCTranslate2(multilingual=True)
    ranking = [("<|fr|>", 0.55), ("<|en|>", 0.43), ("<|de|>", 0.01)]
    model.detect_language = lambda encoded: [ranking for _ in encoded]  # type: ignore[method-assign]
    decoding = Decoding(languages=("en", "de"))
    request = AsrRequest(FEATURES, "de", decoding, certain_at=0.9, only_language=only_language)
    [heard] = recognizer_of(model).transcribe([request])
    assert isinstance(heard, WindowText)
    assert heard.language == "en"
    assert dict(heard.languages) == {
        "en": pytest.approx(0.977, abs=1e-3),
        "de": pytest.approx(0.023, abs=1e-3),
    }


def test_a_language_that_the_model_lacks_cannot_be_allowed() -> None:
    """It is refused by the option's name, also beside one that the model has."""
    english = recognizer_of(FakeCTranslate2(multilingual=False))
    [answer] = english.transcribe([AsrRequest(FEATURES, decoding=Decoding(languages=("en", "de")))])
    assert isinstance(answer, InvalidRequest)
    assert (answer.param, "'de'" in answer.message) == ("languages", True)


def test_text_keeps_its_leading_space_and_loses_special_tokens(recognizer: Recognizer) -> None:
    """The text is what whisperx gives: text tokens only, unstripped; scores count all tokens."""
    [answer] = recognizer.transcribe([AsrRequest(FEATURES, "en")])
    assert isinstance(answer, WindowText)
    assert answer.text == TOKENIZER.decode(list(HELLO))
    assert answer.text.startswith(" ")
    assert answer.avg_logprob == pytest.approx(-0.3)
    assert answer.no_speech_prob == 0.1
    assert 0 < answer.compression_ratio < 1


def test_unknown_language_concerns_its_item_only(model: FakeCTranslate2, recognizer: Recognizer) -> None:
    """An error takes the place of its item; the others are recognised, without it, in order."""
    answers = recognizer.transcribe(
        [AsrRequest(FEATURES, "xx"), AsrRequest(FEATURES, "de"), AsrRequest(FEATURES, "yy")]
    )
    assert [type(answer) for answer in answers] == [InvalidRequest, WindowText, InvalidRequest]
    assert isinstance(answers[0], InvalidRequest)
    assert answers[0].param == "language"
    assert "'xx'" in answers[0].message
    assert model.calls == [("encode", 1), ("generate", 1)]


def test_language_needs_a_token_of_the_model(recognizer: Recognizer) -> None:
    """Cantonese is refused by a model from before large-v3, although faster-whisper lists it."""
    assert recognizer.languages == {"en", "de", "fr"}


def test_english_only_model_refuses_other_languages_and_translation() -> None:
    """An English-only model takes English and no language, and says which option it cannot follow."""
    model = FakeCTranslate2(multilingual=False)
    english, unnamed, german, translation = recognizer_of(model).transcribe(
        [
            AsrRequest(FEATURES, "en"),
            AsrRequest(FEATURES),
            AsrRequest(FEATURES, "de"),
            AsrRequest(FEATURES, "en", Decoding("translate")),
        ]
    )
    assert english == unnamed
    assert isinstance(unnamed, WindowText)
    assert (unnamed.language, unnamed.language_probability) == ("en", None)
    assert isinstance(german, InvalidRequest)
    assert german.param == "language"
    assert isinstance(translation, InvalidRequest)
    assert translation.param == "task"
    assert model.calls == [("encode", 2), ("generate", 2)]
    assert model.prompts == [["<|startoftranscript|>", "<|notimestamps|>"]] * 2


def test_nothing_to_recognise_never_reaches_the_model(model: FakeCTranslate2, recognizer: Recognizer) -> None:
    """No items, or only refused ones, cost no call."""
    assert recognizer.transcribe([]) == []
    recognizer.transcribe([AsrRequest(FEATURES, "xx")])
    assert model.calls == []


def test_batch_key_does_not_split_languages_and_tasks(recognizer: Recognizer) -> None:
    """Items that differ in language and task, even in a wrong language, may share a batch."""
    requests = [
        AsrRequest(FEATURES),
        AsrRequest(FEATURES, "de", Decoding("translate")),
        AsrRequest(FEATURES, "xx"),
    ]
    assert len({recognizer.batch_key(request) for request in requests}) == 1


def test_prompts_stand_before_the_start_token(model: FakeCTranslate2, recognizer: Recognizer) -> None:
    """Hotwords, then the initial prompt, stripped, each after a space, as faster-whisper has them."""
    recognizer.transcribe([AsrRequest(FEATURES, "en", Decoding("transcribe", " by Hegel ", "Kant"))])
    [prompt] = model.prompts
    start = prompt.index("<|startoftranscript|>")
    assert prompt[0] == "<|startofprev|>"
    assert prompt[start:] == ["<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    assert TOKENIZER.decode([TOKENIZER.token_to_id(token) for token in prompt[1:start]]) == " Kant by Hegel"


def test_batch_key_splits_prompts_of_other_lengths_and_temperatures(recognizer: Recognizer) -> None:
    """Only equally long prompts share a batch, whatever they say; 0 and no temperature are one."""

    def key(*options: Any) -> Any:
        return recognizer.batch_key(AsrRequest(FEATURES, "en", Decoding("transcribe", *options)))

    assert key("one two") == key("two one") == key(None, "one two") == key("one", "two")
    assert key() == key(None, None, 0.0) == key(None, None, None)
    assert len({key(), key("one"), key("one two"), key(None, None, 0.2), key("one", None, 0.2)}) == 5


def test_a_temperature_samples_five_times(model: FakeCTranslate2, recognizer: Recognizer) -> None:
    """Above 0 there is no beam search but sampling, best of five, and the answer says at what temperature."""
    [cold] = recognizer.transcribe([AsrRequest(FEATURES, "en", Decoding(temperature=0.0))])
    assert (model.options["beam_size"], "sampling_temperature" in model.options) == (5, False)
    [hot] = recognizer.transcribe([AsrRequest(FEATURES, "en", Decoding(temperature=0.4))])
    wanted = {"beam_size": 1, "num_hypotheses": 5, "sampling_topk": 0, "sampling_temperature": 0.4}
    assert {name: model.options[name] for name in wanted} == wanted
    assert isinstance(cold, WindowText)
    assert isinstance(hot, WindowText)
    assert (cold.temperature, hot.temperature) == (0.0, 0.4)


def test_the_beam_is_the_requests_or_the_servers(model: FakeCTranslate2) -> None:
    """1 is greedy; the server's own by its number, and any where text is sampled, split no batch."""
    recognizer = recognizer_of(model, beam_size=4)

    def asked(**options: Any) -> tuple[Any, Any]:
        request = AsrRequest(FEATURES, "en", Decoding(**options))
        recognizer.transcribe([request])
        return model.options["beam_size"], recognizer.batch_key(request)

    assert [asked()[0], asked(beam_size=1)[0], asked(beam_size=20)[0]] == [4, 1, 20]
    assert asked() == asked(beam_size=4)
    assert len({asked(beam_size=size)[1] for size in (1, 2, None)}) == 3
    assert asked(temperature=0.4) == asked(temperature=0.4, beam_size=2)  # as a fallback has it


def test_numerals_are_suppressed_for_one_request(model: FakeCTranslate2, recognizer: Recognizer) -> None:
    """Tokens with digits or signs of amounts, and no others; such windows have batches of their own."""
    plain = AsrRequest(FEATURES, "en")
    wordy = AsrRequest(FEATURES, "en", Decoding(suppress_numerals=True))
    assert recognizer.batch_key(plain) != recognizer.batch_key(wordy)
    recognizer.transcribe([wordy])
    of_config, *suppressed = model.options["suppress_tokens"]
    assert of_config == -1
    assert all(set(TOKENIZER.decode([token])) & set("0123456789%$£€¹²³¼½¾") for token in suppressed)
    left = set(range(TOKENIZER.token_to_id("<|endoftext|>"))) - {*suppressed}
    assert not any(set(TOKENIZER.decode([token])) & set("0123456789%$£€") for token in left)
    recognizer.transcribe([plain])
    assert model.options["suppress_tokens"] == [-1]


def test_a_model_of_one_language_tells_none_of_its_windows() -> None:
    """`language: multiple` is refused by name, and the other items of the batch are recognised."""
    english = recognizer_of(FakeCTranslate2(multilingual=False))
    refused, heard = english.transcribe(
        [AsrRequest(FEATURES, decoding=Decoding(own_languages=True)), AsrRequest(FEATURES)]
    )
    assert isinstance(refused, InvalidRequest)
    assert (refused.param, "English-only" in refused.message) == ("language", True)
    assert isinstance(heard, WindowText)


def test_a_language_alone_is_one_of_those_that_it_may_be(
    model: FakeCTranslate2, recognizer: Recognizer
) -> None:
    """The likeliest of them; one that the model does not have is refused."""
    english, unknown = (Decoding(languages=codes) for codes in (("de", "en"), ("en", "xx")))
    heard, refused = recognizer.transcribe(
        [AsrRequest(FEATURES, decoding=each, only_language=True) for each in (english, unknown)]
    )
    assert isinstance(heard, WindowText)
    assert (heard.language, heard.languages) == ("en", (("en", 1.0),))
    assert isinstance(refused, InvalidRequest)
    assert refused.param == "languages"
    assert model.calls == [("encode", 1), ("detect_language", 1)]


def test_of_samples_the_likeliest_that_does_not_repeat_is_taken(
    model: FakeCTranslate2, recognizer: Recognizer
) -> None:
    """A loop is likelier than words, but it is taken only where there is nothing else."""
    loop, words = list(HELLO) * 50, list(HELLO)
    window = AsrRequest(FEATURES, "en", Decoding(temperature=0.8))

    def taken(*samples: list[int]) -> WindowText:
        model.samples = samples
        [text] = recognizer.transcribe([window])
        assert isinstance(text, WindowText)
        return text

    assert taken(loop, words, words + words).text == TOKENIZER.decode(words)
    assert taken(loop, words).avg_logprob == pytest.approx(-0.5 * 2 / 3)
    assert taken(loop, loop + loop).text == TOKENIZER.decode(loop)
    assert taken(loop).text == TOKENIZER.decode(loop)


def test_a_long_initial_prompt_keeps_its_end_and_says_so(
    model: FakeCTranslate2, recognizer: Recognizer
) -> None:
    """Whisper has room for 223 tokens: hotwords come first, and what is cut is counted."""
    decoding = Decoding("transcribe", " ".join(["cat"] * 300) + " end", "one few let")
    [heard] = recognizer.transcribe([AsrRequest(FEATURES, "en", decoding)])
    [prompt] = model.prompts
    assert prompt.index("<|startoftranscript|>") == 224
    assert prompt[1:4] == ["Ġone", "Ġfew", "Ġlet"]
    assert prompt[223] == "Ġend"
    assert isinstance(heard, WindowText)
    assert heard.prompt_tokens_cut == 301 + 3 - 223


@pytest.mark.parametrize(
    ("decoding", "param"),
    [
        (Decoding(hotwords="word " * 224), "hotwords"),
        (Decoding(hotwords="a <|startoftranscript|>"), "hotwords"),
        (Decoding(initial_prompt="<|endoftext|>"), "initial_prompt"),
        (Decoding(initial_prompt="<|0.00|>" + " word" * 300), "initial_prompt"),
    ],
)
def test_a_prompt_that_cannot_be_followed_concerns_its_item_only(
    model: FakeCTranslate2, recognizer: Recognizer, decoding: Decoding, param: str
) -> None:
    """Too many hotwords, or Whisper's own tokens, which it would obey, are an error of their item."""
    refused, heard = recognizer.transcribe([AsrRequest(FEATURES, "en", decoding), AsrRequest(FEATURES, "en")])
    assert isinstance(refused, InvalidRequest)
    assert refused.param == param
    assert isinstance(heard, WindowText)
    assert len(model.prompts) == 1
    recognizer.batch_key(AsrRequest(FEATURES, "en", decoding))  # raises nothing


def test_features_are_those_of_the_window_padded_to_30_s(recognizer: Recognizer) -> None:
    """Any window, even read-only or of no samples, gives 3000 frames of float32; more than 30 s is cut."""
    samples = np.full(ENCODER_SAMPLES, 1000, np.int16)
    samples.flags.writeable = False
    for length in (0, 1, 800, 16_000, ENCODER_SAMPLES):
        features = recognizer.features(samples[:length])
        assert features.shape == (80, 3000)
        assert features.dtype == np.float32
    one_too_many = np.append(samples, np.int16(1000))
    assert np.array_equal(recognizer.features(one_too_many), recognizer.features(samples))


def test_only_quiet_windows_are_amplified(recognizer: Recognizer) -> None:
    """Below -40 dBFS two levels of one sound look the same; above they are what whisperx makes of them."""
    sound = np.sin(np.arange(16_000) / 7)

    def features(peak: int) -> Any:
        return recognizer.features(np.round(sound * peak).astype(np.int16))

    assert np.abs(features(320) - features(16_000)).mean() < 0.02
    assert np.abs(features(330) - features(16_000)).mean() > 0.2
    assert np.isfinite(recognizer.features(np.zeros(16_000, np.int16))).all()


@pytest.mark.parametrize("model", ["larg-v2", "/no/such/directory", "empty"])
def test_model_that_cannot_be_loaded_says_so(model: str, tmp_path: Path) -> None:
    """An unknown name, a missing and an empty directory become ModelUnavailable with the reason."""
    name = str(tmp_path) if model == "empty" else model
    with pytest.raises(ModelUnavailable) as caught:
        load_recognizer(name, device="cpu", threads=1, settings=AsrSettings())
    assert name in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.__cause__ is not None


def test_a_language_alone_costs_no_search(model: FakeCTranslate2, recognizer: Recognizer) -> None:
    """One encoding and one step; such windows share no batch with others, which need a search."""
    requests = [AsrRequest(FEATURES, only_language=True) for _ in range(2)]
    assert recognizer.batch_key(requests[0]) != recognizer.batch_key(AsrRequest(FEATURES))
    for text in recognizer.transcribe(requests):
        assert isinstance(text, WindowText)
        assert (text.text, text.language, text.language_probability) == ("", "fr", 0.75)
        assert text.languages == (("fr", 0.75), ("en", 0.25))
    assert model.calls == [("encode", 2), ("detect_language", 2)]


def test_a_model_of_one_language_tells_none() -> None:
    """It would call everything English; the caller gets the reason, and nothing is computed."""
    model = FakeCTranslate2(multilingual=False)
    (refused,) = recognizer_of(model).transcribe([AsrRequest(FEATURES, only_language=True)])
    assert isinstance(refused, InvalidRequest)
    assert "English-only" in str(refused)
    assert str(refused).endswith("choose a multilingual model.")
    assert model.calls == []
