"""The aligner against whisperx.align itself, on the same weights: equal to the last digit, and offline."""

import os
import random
import threading
import wave
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nltk
import numpy as np
import pytest
import torch
from telephone import said_on_the_telephone
from whisperx import alignment as upstream
from whisperx.utils import interpolate_nans

from benchmarks.random_wav2vec2 import NARROW, save_torchaudio_base, save_transformers_base
from serve_app.errors import ModelUnavailable
from serve_app.settings import AlignmentSettings
from serve_app.stage_requests import AlignRequest
from serve_app.stages.alignment.aligner import (
    Aligner,
    LanguageModel,
    load_language_model,
)
from serve_app.stages.alignment.forced import letter_times, spell
from serve_app.stages.alignment.words import fill_nearest, word_ranges
from serve_app.transcript import Character, Samples, Segment, Window, WindowText, Word

pytestmark = [
    # torchaudio announces its next version's removals on import and on every use of a model.
    pytest.mark.filterwarnings("ignore:.*torchaudio.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*torchaudio.*:DeprecationWarning"),
    # torch's old weight_norm, which wav2vec2's loaders use.
    pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning"),
]

# Without digits and foreign letters, whose times are not whisperx's: `serve_app.stages.alignment.unspelled`.
WORDS = ["the", "cat.", "sat", "on", "my", "mat", "Dr.", "Smith!", "(so)", "don't", "—", "«it»"]
WORDS += ["a", "I?", "No...", "|", "ok,", "\t", "so\nit", "x"]


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a hub nor NLTK's server is asked for anything."""

    def download(*_: object, **__: object) -> None:
        raise AssertionError("a download was attempted")

    monkeypatch.setattr(nltk, "download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.download_url_to_file", download)


@pytest.fixture(scope="module")
def samples() -> Samples:
    """Twelve seconds of two people talking."""
    package = find_spec("pyannote.audio")
    assert package is not None
    assert package.origin is not None
    with wave.open(str(Path(package.origin).parent / "sample" / "sample.wav")) as recording:
        return np.frombuffer(recording.readframes(12 * 16_000), np.int16)


def heard(text: str, language: str, avg_logprob: float = -0.5) -> WindowText:
    return WindowText(text, language, None, avg_logprob, 0.0, 1.0)


def aligner_of(models: dict[str, str], max_padded_s: float = 0, max_loaded_languages: int = 2) -> Aligner:
    settings = AlignmentSettings(max_loaded_languages=max_loaded_languages, preload=())
    return Aligner(models, device="cpu", max_padded_s=max_padded_s, settings=settings)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a narrow wav2vec2 with random weights."""
    directory = tmp_path_factory.mktemp("wav2vec2") / "narrow"
    save_transformers_base(directory, **NARROW)
    return str(directory)


def as_upstream(segments: tuple[Segment, ...]) -> list[dict[str, Any]]:
    """Our segments as whisperx writes them: what is unknown is left out."""
    named = []
    for segment in segments:
        words = [
            {"word": word.text, "start": word.start_s, "end": word.end_s, "score": word.score}
            for word in segment.words
        ]
        named.append(
            {
                "start": segment.start_s,
                "end": segment.end_s,
                "text": segment.text,
                "words": [{k: v for k, v in word.items() if v is not None} for word in words],
                "avg_logprob": segment.avg_logprob,
            }
        )
    return named


def random_segments(rng: random.Random, duration_s: float, count: int) -> list[dict[str, Any]]:
    """Windows of 10 ms to 4 s, some past the end of the audio, with texts that fit and texts that do not."""
    segments = []
    for _ in range(count):
        start_s = round(rng.uniform(0, duration_s + 0.5), 3)
        length_s = rng.choice([0.01, 0.02, 0.2, 1.0, 2.5, 4.0])
        text = " ".join(rng.choice(WORDS) for _ in range(rng.choice([0, 1, 2, 5, 12, 30])))
        text = rng.choice(["", " "]) + text + rng.choice(["", " ", "  "])
        segments.append(
            {
                "start": start_s,
                "end": round(start_s + length_s, 3),
                "text": text,
                "avg_logprob": -rng.random(),
            }
        )
    return segments


def by_upstream(model: LanguageModel, language: str, segments: list[Any], samples: Samples) -> list[Any]:
    metadata = {
        "language": language,
        "dictionary": model.dictionary,
        "type": "torchaudio" if model.acoustic.from_torchaudio else "huggingface",
    }
    audio = samples.astype(np.float32) / 32768
    aligned = upstream.align(segments, model.acoustic.model, metadata, audio, "cpu")["segments"]
    return [{key: value for key, value in segment.items() if key != "chars"} for segment in aligned]


def by_ours(aligner: Aligner, language: str, segments: list[Any], samples: Samples) -> list[Any]:
    requests = [
        AlignRequest.for_window(
            samples, Window(s["start"], s["end"]), heard(s["text"], language, s["avg_logprob"])
        )
        for s in segments
    ]
    ours = aligner.align(requests)
    assert len(ours) == len(requests)
    named = []
    for result in ours:
        assert isinstance(result, tuple)
        named += as_upstream(result)
    return named


@pytest.mark.usefixtures("_punkt")
@pytest.mark.parametrize(("language", "count"), [("en", 40), ("ja", 15)])
def test_windows_align_exactly_as_with_whisperx(
    language: str, count: int, samples: Samples, narrow: str
) -> None:
    """Words, times, scores and segments of random texts and windows are whisperx.align's own."""
    aligner = aligner_of({language: narrow})
    segments = random_segments(random.Random(language), len(samples) / 16_000, count)
    expected = by_upstream(aligner.load(language), language, segments, samples)
    assert by_ours(aligner, language, segments, samples) == expected


@pytest.mark.usefixtures("_punkt")
def test_characters_are_whisperx_own(samples: Samples, narrow: str) -> None:
    """Those of `return_char_alignments`, but for spaces, which are no part of a word here."""
    aligner = aligner_of({"en": narrow})
    model, segments = aligner.load("en"), random_segments(random.Random("chars"), len(samples) / 16_000, 20)
    metadata = {"language": "en", "dictionary": model.dictionary, "type": "torchaudio"}
    metadata["type"] = "torchaudio" if model.acoustic.from_torchaudio else "huggingface"
    audio = samples.astype(np.float32) / 32768
    theirs = upstream.align(
        segments, model.acoustic.model, metadata, audio, "cpu", return_char_alignments=True
    )
    expected = [
        (char["char"], char.get("start"), char.get("end"), char.get("score"))
        for segment in theirs["segments"]
        for char in segment["chars"]
        if not char["char"].isspace()
    ]
    found: list[Character] = []
    for each in segments:
        window = Window(each["start"], each["end"])
        request = AlignRequest.for_window(samples, window, heard(each["text"], "en", each["avg_logprob"]))
        (result,) = aligner.align([replace(request, has_chars=True)])
        assert isinstance(result, tuple)
        found += [char for segment in result for word in segment.words for char in word.chars]
    assert expected
    assert found == expected


def test_letters_align_exactly_as_with_whisperx() -> None:
    """First and last frame and score of every letter, on random emissions soft and sharp."""
    rng = np.random.default_rng(0)
    dictionary = {"<pad>": 0, "|": 1} | {chr(ord("a") + i): 2 + i for i in range(26)}
    for case in range(100):
        n_frames = int(rng.integers(1, 80))
        text = "".join(rng.choice(list("abcdefgh ij,—"), size=int(rng.integers(1, 60)))).strip()
        letters = spell(text, "en", dictionary)
        if not letters:
            continue
        raw = torch.from_numpy(rng.normal(size=(n_frames, 28)) * rng.choice([0.1, 1, 5]))
        emission = torch.log_softmax(raw.float(), -1)
        log_probs, probs = emission.numpy(), emission.exp().numpy()
        ours = letter_times(text, letters, log_probs, probs, dictionary, Window(0.0, float(n_frames)))
        if None in letters.values():
            emission = torch.cat([emission, emission[:, 1:].max(1).values[:, None]], 1)
        tokens = [28 if token is None else token for token in letters.values()]
        path = upstream.backtrack(upstream.get_trellis(emission, tokens), emission, tokens)
        if path is None:
            assert ours is None, case
            continue
        assert ours is not None, case
        theirs = [(s.start, s.end, round(s.score, 3)) for s in upstream.merge_repeats(path, tokens)]
        assert [(t.start_s, t.end_s, t.score) for t in ours.values()] == theirs, case


def test_gaps_are_filled_exactly_as_with_whisperx() -> None:
    """pandas' nearest interpolation, ties and borders included."""
    pandas: Any = pytest.importorskip("pandas")

    rng = random.Random(0)
    for _ in range(300):
        values = [rng.choice([None, rng.random()]) for _ in range(rng.randint(1, 12))]
        if set(values) == {None}:
            continue
        assert fill_nearest(values) == interpolate_nans(pandas.Series(values, dtype=float)).tolist()


@pytest.mark.usefixtures("_punkt")
def test_wav2vec2_base_of_torchaudio_aligns_exactly_as_with_whisperx(
    samples: Samples, tmp_path: Path
) -> None:
    """whisperx's English default at its true size, random weights, in a folder of its own."""
    save_torchaudio_base(tmp_path)
    compare_briefly(
        aligner_of({"en": str(tmp_path / "hub" / "checkpoints")}), from_torchaudio=True, samples=samples
    )


@pytest.mark.usefixtures("_punkt")
def test_wav2vec2_base_of_transformers_aligns_exactly_as_with_whisperx(
    samples: Samples, tmp_path: Path
) -> None:
    """A directory with a Hugging Face model of true size, random weights, named in the settings."""
    save_transformers_base(tmp_path / "model")
    aligner = aligner_of({"en": str(tmp_path / "model")})
    compare_briefly(aligner, from_torchaudio=False, samples=samples)


def compare_briefly(aligner: Aligner, *, from_torchaudio: bool, samples: Samples) -> None:
    assert aligner.load("en").acoustic.from_torchaudio is from_torchaudio
    times = [(7.0, 8.2), (9.5, 9.51), (20.0, 21.0)]  # speech, less than one frame, after the end
    segments = [
        {"start": start, "end": end, "text": " Hello, you two. And you?", "avg_logprob": -0.5}
        for start, end in times
    ]
    segments[1]["text"] = "a"
    expected = by_upstream(aligner.load("en"), "en", segments, samples)
    assert by_ours(aligner, "en", segments, samples) == expected
    assert len(expected) == 4


@pytest.mark.usefixtures("_no_punkt")
def test_windows_in_one_pass_have_the_words_and_times_of_each_alone(sample: Samples, narrow: str) -> None:
    """Every sentence of a call, padded into batches and one by one."""
    requests = [
        AlignRequest.for_window(sample, Window(line.start_s, line.end_s), heard(line.text, "en"))
        for line in said_on_the_telephone()
    ]
    alone = by_requests(aligner_of({"en": narrow}, max_padded_s=0), requests)
    together = by_requests(aligner_of({"en": narrow}, max_padded_s=60), requests)
    assert len(alone) > 50
    assert [(w.text, w.start_s, w.end_s) for w in together] == [(w.text, w.start_s, w.end_s) for w in alone]
    scores = [word.score for word in alone]
    assert [word.score for word in together] == pytest.approx(scores, abs=0.001)  # they have three digits


def by_requests(aligner: Aligner, requests: list[AlignRequest]) -> list[Word]:
    """All words, in order."""
    words: list[Word] = []
    for result in aligner.align(requests):
        assert isinstance(result, tuple)
        words += [word for segment in result for word in segment.words]
    return words


@pytest.mark.usefixtures("_no_punkt")
def test_one_language_without_a_model_does_not_fail_the_others(samples: Samples, narrow: str) -> None:
    """Its windows get the error as their value, in place."""
    aligner = aligner_of({"en": narrow})
    english = AlignRequest.for_window(samples, Window(7.0, 9.0), heard("hello you", "en"))
    results = aligner.align([replace(english, language="yo"), english, replace(english, language="yo")])
    assert isinstance(results[1], tuple)
    assert [word.text for word in results[1][0].words] == ["hello", "you"]
    for result in (results[0], results[2]):
        assert isinstance(result, ModelUnavailable)
        assert (result.code, "'yo'" in result.message) == ("alignment_unavailable", True)


def test_a_model_that_cannot_be_loaded_is_not_asked_for_at_every_window(
    samples: Samples, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Failing without a network takes 20 s, so a failure holds for a minute; then it is tried again."""
    now_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: now_s)
    monkeypatch.setattr("serve_app.stages.alignment.aligner.time", clock)
    attempts = []
    load = upstream.load_align_model

    def counted(*arguments: Any, **place: Any) -> Any:
        attempts.append(arguments)
        return load(*arguments, **place)

    monkeypatch.setattr(upstream, "load_align_model", counted)
    aligner = aligner_of({"en": str(tmp_path / "none")})
    request = AlignRequest.for_window(samples, Window(7.0, 9.0), heard("hello you", "en"))
    for now_s, n_attempts in ((0.0, 1), (59.0, 1), (61.0, 2)):  # noqa: B007
        [result] = aligner.align([request])
        assert isinstance(result, ModelUnavailable)
        assert result.message.startswith("The alignment model")
        assert len(attempts) == n_attempts


def test_a_model_is_downloaded_beside_the_windows(samples: Samples, tmp_path: Path) -> None:
    """No window waits for a download: it gets an error of its own at once, and later ones the model."""
    save_torchaudio_base(tmp_path)
    answers, asked = threading.Event(), []

    def download() -> str:
        asked.append(1)
        answers.wait(60)
        return str(tmp_path / "hub" / "checkpoints")

    settings = AlignmentSettings(preload=())
    aligner = Aligner({}, device="cpu", max_padded_s=0, settings=settings, downloads={"en": download})
    request = AlignRequest.for_window(samples, Window(7.0, 9.0), heard("hello you", "en"))
    for _ in range(2):
        [error] = aligner.align([request])
        assert isinstance(error, ModelUnavailable)
        assert error.code == "alignment_downloading"
    answers.set()
    aligner._downloads._running["en"][0].result(60)
    [segments] = aligner.align([request])
    assert isinstance(segments, tuple)
    assert len(segments[0].words) == 2
    assert asked == [1]


def test_a_model_without_room_on_the_gpu_is_out_of_memory_and_not_missing(
    samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it is not tried again, so that callers go elsewhere instead of giving up."""

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(upstream, "load_align_model", full)
    aligner = aligner_of({"en": "full"})
    request = AlignRequest.for_window(samples, Window(7.0, 9.0), heard("hello you", "en"))
    for _ in range(2):
        [result] = aligner.align([request])
        assert isinstance(result, ModelUnavailable)
        assert result.code == "alignment_out_of_memory"


@pytest.mark.usefixtures("_no_punkt")
def test_the_least_recently_used_language_makes_room(narrow: str) -> None:
    """No more than the given number of models stay in memory."""
    aligner = aligner_of({"en": narrow, "de": narrow, "fr": narrow}, max_loaded_languages=2)
    english, german = aligner.load("en"), aligner.load("de")
    assert aligner.load("en") is english
    aligner.load("fr")
    assert aligner.load("en") is english
    assert aligner.load("de") is not german


@pytest.mark.usefixtures("_no_punkt")
def test_texts_and_audio_that_cannot_be_aligned_stay_whole(samples: Samples, narrow: str) -> None:
    """No text, no samples or far too little time give the window as one segment, never an exception."""
    aligner = aligner_of({"en": narrow})
    requests = [
        AlignRequest(samples[:16_000], 1.0, 2.0, "", "en", -0.5),
        AlignRequest(samples[:0], 20.0, 21.0, "hello", "en", -0.5),
        AlignRequest(samples[:160], 1.0, 1.01, "far too many words", "en", -0.5),
    ]
    for request, result in zip(requests, aligner.align(requests), strict=True):
        assert result == (Segment(request.start_s, request.end_s, request.text, avg_logprob=-0.5),)
    assert aligner.align([]) == []


def test_words_of_random_texts_cover_them() -> None:
    """No character is lost between words."""
    rng = random.Random(0)
    for _ in range(50):
        text = " ".join(rng.choices(["a", "bc", "", "d."], k=rng.randint(0, 9)))
        assert "".join(text[begin:end] for begin, end in word_ranges(text, "en")) == text


class _Code:
    """Becomes a call when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return os.mkdir, (self.mark,)


def test_weights_are_data_and_no_code(tmp_path: Path) -> None:
    """A file in the place of torchaudio's weights that would run something is refused."""
    torch.save(_Code(tmp_path / "ran"), tmp_path / "wav2vec2_fairseq_base_ls960_asr_ls960.pth")
    with pytest.raises(ModelUnavailable, match="could not be loaded"):
        load_language_model("en", str(tmp_path), "cpu", 0.0)
    assert not (tmp_path / "ran").exists()
