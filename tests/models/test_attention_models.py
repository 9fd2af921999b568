"""Word times by Whisper's attention on a real telephone call, with the real weights."""

import asyncio
from dataclasses import replace
from pathlib import Path

import jiwer
import numpy as np
import pytest
from conftest import SHARED
from telephone import said_on_the_telephone, word_error_rate, words_of

from benchmarks.decoding import decode_whole
from benchmarks.people import TimedWord
from benchmarks.people import words_of as labelled_words_of
from serve_app.models.catalogue import catalogue
from serve_app.request.segment_length import shortened
from serve_app.settings import AsrSettings
from serve_app.stage_requests import AsrRequest, Decoding
from serve_app.stages.asr.recognizer import Recognizer, load_recognizer
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Segment, Window, WindowText, Word

WINDOWS = (Window(6.4, 17.78), Window(17.78, 30.0))  # cut between two speakers


def recognizer_of(directory: Path) -> Recognizer:
    known = catalogue().get(directory.name)
    assert known is not None
    return load_recognizer(
        str(directory),
        device="cpu",
        threads=2,
        settings=AsrSettings(),
        attention_shift_s=known.attention_shift_s,
    )


def request_of(recognizer: Recognizer, sample: Samples, window: Window, language: str = "en") -> AsrRequest:
    features = recognizer.features(window.cut(sample))
    return AsrRequest(features, language, times_until_s=window.end_s - window.start_s)


def words_in(recognizer: Recognizer, request: AsrRequest, window: Window, text: object) -> list[Word]:
    """The words of a window's sentences, which have its whole text and nothing else, all with times in it."""
    assert isinstance(text, WindowText)
    found = recognizer.sentences(text, window, request.features)
    assert " ".join(segment.text.strip() for segment in found).split() == text.text.split()
    words = [word for segment in found for word in segment.words]
    assert [word.text for word in words] == text.text.split()
    at_s = window.start_s
    for word in words:
        assert word.start_s is not None
        assert word.end_s is not None
        assert at_s <= word.start_s <= word.end_s <= window.end_s
        at_s = word.start_s
    return words


def test_tokens_have_the_probabilities_that_the_search_found(sample: Samples, tiny_en: Path) -> None:
    """Read a second time, the text is as likely as when it was found; the tokens' bytes are its."""
    recognizer = recognizer_of(tiny_en)
    plain = [request_of(recognizer, sample, window) for window in WINDOWS]
    for text in recognizer.transcribe([replace(each, decoding=Decoding(logprobs=True)) for each in plain]):
        assert isinstance(text, WindowText)
        assert bytes(byte for token in text.tokens for byte in token.utf8_bytes).decode() == text.text
        assert all(0.0 < token.score <= 1.0 for token in text.tokens)
        mean = float(np.mean([np.log(token.score) for token in text.tokens]))
        assert mean == pytest.approx(text.avg_logprob, abs=0.05)


def test_sentences_of_a_call_are_as_short_as_asked_for(sample: Samples, tiny_en: Path) -> None:
    """None is longer than 2 s, although some were; every word is there, in order, with its times."""
    recognizer = recognizer_of(tiny_en)
    requests = [request_of(recognizer, sample, window) for window in WINDOWS]
    whole: list[Segment] = []
    for request, window, text in zip(requests, WINDOWS, recognizer.transcribe(requests), strict=True):
        assert isinstance(text, WindowText)
        whole += recognizer.sentences(text, window, request.features)
    assert max(segment.end_s - segment.start_s for segment in whole) > 3.0
    parts = shortened(whole, 2.0)
    assert all(segment.end_s - segment.start_s <= 2.0 for segment in parts)
    assert [word for part in parts for word in part.words] == [word for each in whole for word in each.words]
    said = [text for each in (parts, whole) for text in [" ".join(part.text for part in each).split()]]
    assert said[0] == said[1]


def test_words_of_a_call_are_where_they_are_spoken(sample: Samples, tiny_en: Path) -> None:
    """Every word has a time, in order and inside its window; those that are right are within their line."""
    recognizer = recognizer_of(tiny_en)
    requests = [request_of(recognizer, sample, window) for window in WINDOWS]
    words: list[Word] = []
    for request, window, text in zip(requests, WINDOWS, recognizer.transcribe(requests), strict=True):
        words += words_in(recognizer, request, window, text)
    lines = said_on_the_telephone()
    assert word_error_rate(lines, " ".join(word.text for word in words)) <= 0.25
    spoken = [(token, line) for line in lines for token in words_of(line.text)]
    heard = [(token, word) for word in words for token in words_of(word.text)]
    aligned = jiwer.process_words(" ".join(t for t, _ in spoken), " ".join(t for t, _ in heard))
    right = 0
    for chunk in aligned.alignments[0]:
        if chunk.type == "equal":
            pairs = zip(
                spoken[chunk.ref_start_idx : chunk.ref_end_idx],
                heard[chunk.hyp_start_idx : chunk.hyp_end_idx],
                strict=True,
            )
            for (_, line), (_, word) in pairs:
                assert word.start_s is not None
                assert word.end_s is not None
                assert line.start_s - 0.3 <= word.start_s <= word.end_s <= line.end_s + 0.3
                right += 1
    assert right > 60


def test_languages_mix_in_a_batch(sample: Samples, base: Path) -> None:
    """A window in English and one in German have, together, the text and the times that each has alone."""
    recognizer = recognizer_of(base)
    window = WINDOWS[0]
    requests = [request_of(recognizer, sample, window, language) for language in ("en", "de")]
    together = recognizer.transcribe(requests)
    for request, text in zip(requests, together, strict=True):
        [alone] = recognizer.transcribe([request])
        words, words_alone = (words_in(recognizer, request, window, each) for each in (text, alone))
        assert [word.text for word in words] == [word.text for word in words_alone]
        starts_s = [word.start_s for word in words_alone]
        assert [word.start_s for word in words] == pytest.approx(starts_s, abs=0.03)  # a frame, by rounding
    assert "Diane in New Jersey" in " ".join(word.text for word in words)
    assert isinstance(together[1], WindowText)
    assert together[1].language == "de"


def test_who_wants_no_times_pays_for_none(sample: Samples, tiny_en: Path) -> None:
    """Beside a window whose words get times, one that is not to be aligned has a text alone."""
    recognizer = recognizer_of(tiny_en)
    wanted = request_of(recognizer, sample, WINDOWS[0])
    timed, plain = recognizer.transcribe([wanted, AsrRequest(wanted.features, "en")])
    assert isinstance(timed, WindowText)
    assert isinstance(plain, WindowText)
    assert timed.text == plain.text
    assert timed.tokens[-1].text_end == len(timed.text)
    assert plain.tokens == ()


PEOPLE = SHARED / "people"


def labelled(name: str) -> tuple[Samples, list[TimedWord]]:
    """A recording from the start of its first word, and the words by hand."""
    words = labelled_words_of((PEOPLE / f"{name}.TextGrid").read_text(encoding="utf-8"))
    with (PEOPLE / f"{name}.wav").open("rb") as file:
        samples = asyncio.run(decode_whole(file, max_audio_s=60, timeout_s=60))[1]
    begin_s, end_s = words[0].start_s, words[-1].end_s
    cut = samples[round(begin_s * SAMPLE_RATE_HZ) : round(end_s * SAMPLE_RATE_HZ)]
    return cut, [TimedWord(w.text, w.start_s - begin_s, w.end_s - begin_s) for w in words]


@pytest.mark.skipif(not PEOPLE.exists(), reason="the folder ../shared/data with labelled speech is not there")
@pytest.mark.parametrize(
    ("before", "behind"),
    [("msajc010", "msajc023"), ("msajc022", "msajc023"), ("msajc023", "msajc057"), ("msajc010", "msajc057")],
)
def test_a_noisy_pause_belongs_to_none_of_its_words(before: str, behind: str, tiny_en: Path) -> None:
    """Two sentences, 2.5 s apart in a room that hisses and clicks: the words beside the pause are in time."""
    recognizer, rng = recognizer_of(tiny_en), np.random.default_rng(0)
    (first, first_words), (second, second_words) = labelled(f"emur-{before}"), labelled(f"emur-{behind}")
    pause = round(2.5 * SAMPLE_RATE_HZ)
    clean = np.concatenate([first, np.zeros(pause), second])
    noise = rng.normal(size=len(clean)) * 100
    for at in rng.integers(0, len(clean), len(clean) // (SAMPLE_RATE_HZ // 2)):
        noise[at : at + SAMPLE_RATE_HZ // 40] *= 7
    samples = np.clip(clean + noise, -32768, 32767).astype(np.int16)
    window = Window(0.0, len(samples) / SAMPLE_RATE_HZ)
    request = request_of(recognizer, samples, window)
    [text] = recognizer.transcribe([request])
    words = words_in(recognizer, request, window, text)
    ends_s = first_words[-1].end_s
    begins_s = ends_s + 2.5
    heard = {word.text.lower().strip(".,"): word for word in words}
    last, next_word = heard[first_words[-1].text.lower()], heard[second_words[0].text.lower()]
    assert last.end_s == pytest.approx(ends_s, abs=0.25)
    assert next_word.start_s == pytest.approx(begins_s, abs=0.25)
