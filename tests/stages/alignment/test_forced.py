"""From emissions to words without a model: spelling, trellis, gaps, words, sentences."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from serve_app.stage_requests import AlignRequest
from serve_app.stages.alignment.forced import (
    Emission,
    blank_token,
    first_frames,
    letter_times,
    spell,
    with_wildcard,
)
from serve_app.stages.alignment.words import LetterTime, assemble, fill_nearest, word_ranges
from serve_app.transcript import Character, Segment, Window, WindowText, Word

DICTIONARY = {"<pad>": 0, "|": 1, "a": 2, "b": 3, "c": 4}


def emission(spoken: str, loud: float = 0.9) -> Emission:
    """Log-probabilities with one frame for every character of `spoken`, "-" being the blank."""
    probs = np.full((len(spoken), len(DICTIONARY)), (1 - loud) / 4)
    for frame, character in enumerate(spoken):
        probs[frame, 0 if character == "-" else DICTIONARY[character]] = loud
    log_probs: Emission = np.log(probs).astype(np.float32)
    return log_probs


def times_of(text: str, spoken: str, window: Window) -> dict[int, LetterTime] | None:
    log_probs = emission(spoken)
    letters = spell(text, "en", DICTIONARY)
    return letter_times(text, letters, log_probs, np.exp(log_probs), DICTIONARY, window)


def test_spelling_keeps_separators_between_words_only() -> None:
    """White space around the text is not looked for, spaces within it are."""
    assert spell(" A b ", "en", DICTIONARY) == {1: 2, 2: 1, 3: 3}


def test_unknown_characters_are_spelled_as_the_wildcard() -> None:
    """Digits, symbols and foreign scripts get a place in time although the model cannot write them."""
    assert list(spell("a5é京", "en", DICTIONARY).values()) == [2, None, None, None]


def test_a_character_whose_lower_case_is_longer_stays_one_character() -> None:
    """The Turkish capital I with a dot does not shift the characters behind it."""
    assert spell("İab", "tr", DICTIONARY) == {0: None, 1: 2, 2: 3}


def test_spaces_are_skipped_where_the_model_has_none() -> None:
    """Neither a dictionary without a separator nor a language without spaces looks for them."""
    assert list(spell("a b", "en", {"-": 0, "a": 1, "b": 2})) == [0, 2]
    assert list(spell("a b", "ja", DICTIONARY)) == [0, 2]


@pytest.mark.parametrize("text", ["", " ", "  \t\n"])
def test_white_space_spells_nothing(text: str) -> None:
    """A text of white space has nothing to look for."""
    assert spell(text, "en", DICTIONARY) == {}


def test_the_blank_is_the_padding_token_or_the_first() -> None:
    """Hugging Face names its blank, torchaudio's comes first."""
    assert blank_token({"a": 0, "[pad]": 7}) == 7
    assert blank_token({"-": 0, "a": 1}) == 0


def test_the_wildcard_is_the_best_token_that_is_not_blank() -> None:
    """Its column follows the others."""
    probs = np.array([[0.7, 0.1, 0.2], [0.1, 0.5, 0.4]], np.float32)
    assert with_wildcard(probs, 0)[:, 3].tolist() == [np.float32(0.2), np.float32(0.5)]


def test_tokens_start_where_they_are_loudest() -> None:
    """A clear emission is found frame by frame; silence after the last token is not part of it."""
    assert first_frames(emission("--a-b--c-"), [2, 3, 4], 0) == [2, 4, 7, 8]


def test_more_tokens_than_frames_have_no_path() -> None:
    """A text too long for its window gives no alignment instead of a wrong one."""
    assert first_frames(emission("ab"), [2, 3, 4, 2], 0) is None


def _first_frames_by_trial(log_probs: Emission, tokens: list[int]) -> float:
    """The best score of any placement that may stop early: token i at frame f[i], blanks between."""
    best = -np.inf
    for end in range(len(tokens), len(log_probs) + 1):
        for frames in itertools.combinations(range(end), len(tokens)):
            score = sum(log_probs[f, 0] for f in range(end) if f not in frames)
            score += sum(log_probs[f, t] for f, t in zip(frames, tokens, strict=True))
            best = max(best, float(score))
    return best


def test_the_path_found_is_the_best_of_all() -> None:
    """No other placement of the tokens, ending anywhere, is more probable."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        raw = rng.normal(size=(7, 5)) * 2
        log_probs = (raw - np.log(np.exp(raw).sum(axis=1, keepdims=True))).astype(np.float32)
        tokens = rng.integers(1, 5, size=3).tolist()
        found = first_frames(log_probs, tokens, 0)
        assert found is not None
        *frames, end = found
        score = sum(log_probs[f, 0] for f in range(end) if f not in frames)
        score += sum(log_probs[f, t] for f, t in zip(frames, tokens, strict=True))
        assert score == pytest.approx(_first_frames_by_trial(log_probs, tokens), abs=1e-4)


def test_times_are_seconds_of_the_file() -> None:
    """Frames are scaled to the window and shifted to its start; scores are means of probabilities."""
    assert times_of("ab", "-a-b", Window(10.0, 10.4)) == {
        0: LetterTime(10.1, 10.3, 0.9),
        1: LetterTime(10.3, 10.4, 0.9),
    }


def test_a_wildcard_takes_the_loudest_frame_left() -> None:
    """A digit between two letters lies between them."""
    times = times_of("a7b", "a-c-b", Window(0.0, 0.5))
    assert times is not None
    assert (times[0].start_s, times[1].start_s, times[2].start_s) == (0.0, 0.2, 0.4)


def test_too_little_audio_gives_no_times() -> None:
    """A text with more characters than frames cannot be aligned."""
    assert times_of("abcabc", "a-b", Window(0.0, 0.1)) is None


@pytest.mark.parametrize(
    ("values", "filled"),
    [
        ([], []),
        ([None, None], [None, None]),
        ([1.0, 2.0], [1.0, 2.0]),
        ([None, 1.0, None, None, None, 5.0, None], [1.0, 1.0, 1.0, 1.0, 5.0, 5.0, 5.0]),
        ([None, None, 3.0], [3.0, 3.0, 3.0]),
    ],
)
def test_gaps_take_the_nearest_value(values: list[float | None], filled: list[float | None]) -> None:
    """The earlier one of two equally near, and nothing where nothing is known."""
    assert fill_nearest(values) == filled


def test_words_end_before_spaces() -> None:
    """Ranges cover the text; in languages without spaces every character is a word."""
    assert word_ranges(" ab c", "en") == [(0, 3), (3, 5)]
    assert word_ranges("ab", "zh") == [(0, 1), (1, 2)]
    assert word_ranges("", "en") == []


def letters(text: str) -> dict[int, LetterTime]:
    """One second for every character that is not a space."""
    return {i: LetterTime(float(i), i + 1.0, 0.5) for i, c in enumerate(text) if c != " "}


def test_sentences_become_segments_with_their_words() -> None:
    """Times of words and sentences come from their characters, avg_logprob from the window."""
    text = " Ab c. De."
    assert assemble(text, "en", letters(text), [(1, 6), (7, 10)], -0.25) == (
        Segment(1.0, 6.0, "Ab c.", (Word("Ab", 1.0, 3.0, 0.5), Word("c.", 4.0, 6.0, 0.5)), avg_logprob=-0.25),
        Segment(7.0, 10.0, "De.", (Word("De.", 7.0, 10.0, 0.5),), avg_logprob=-0.25),
    )


def test_words_have_their_characters_where_those_are_wanted() -> None:
    """With the times of each; what was not looked for has none, as has a word without times."""
    text = " A b, |"
    times = {i: time for i, time in letters(text).items() if text[i] not in ",|"}
    [segment] = assemble(text, "en", times, [(0, 7)], None, has_chars=True)
    assert [word.chars for word in segment.words] == [
        (Character("A", 1.0, 2.0, 0.5),),
        (Character("b", 3.0, 4.0, 0.5), Character(",")),
        (Character("|"),),
    ]
    [plain] = assemble(text, "en", times, [(0, 7)], None)
    assert plain.words == tuple(replace(word, chars=()) for word in segment.words)


def test_characters_of_speech_are_where_they_are_heard() -> None:
    """Those of forced alignment: in order, within their word, and the word's score is their mean."""
    said = times_of("ab cab", "-a-bb--|-c-a-b--", Window(10.0, 26.0))
    assert said is not None
    [segment] = assemble("ab cab", "en", said, [(0, 6)], None, has_chars=True)
    for word in segment.words:
        spans = [(char.start_s, char.end_s) for char in word.chars]
        assert "".join(char.text for char in word.chars) == word.text
        assert spans == sorted(spans)
        assert (spans[0][0], spans[-1][1]) == (word.start_s, word.end_s)
        scores = [char.score for char in word.chars if char.score is not None]
        assert sum(scores) / len(word.chars) == pytest.approx(word.score, abs=0.001)
    first = segment.words[0].chars
    assert [(char.text, char.start_s) for char in first] == [("a", 11.0), ("b", 13.0)]


def test_a_word_without_times_takes_its_neighbours() -> None:
    """Its score stays unknown."""
    text = "ab | c"
    times = {i: time for i, time in letters(text).items() if text[i] != "|"}
    [segment] = assemble(text, "en", times, [(0, 6)], None)
    assert segment.words == (Word("ab", 0.0, 2.0, 0.5), Word("|", 0.0, 2.0), Word("c", 5.0, 6.0, 0.5))


def test_sentences_with_equal_times_become_one_segment() -> None:
    """A sentence without times of its own joins its neighbour: with a space, or without in Japanese."""
    times = {0: LetterTime(1.0, 2.0, 0.5), 1: LetterTime(1.5, 2.0, 0.5)}
    [segment] = assemble("a. b.", "en", times, [(0, 2), (3, 5)], None)
    assert (segment.text, [word.text for word in segment.words]) == ("a. b.", ["a.", "b."])
    [segment] = assemble("a. b.", "ja", times, [(0, 2), (3, 5)], None)
    assert segment.text == "a.b."


def test_no_times_at_all_give_no_segments() -> None:
    """The caller then keeps the window whole."""
    assert assemble("a b", "en", {}, [(0, 3)], None) == ()


def test_a_request_is_cut_at_whisperx_times() -> None:
    """Times are rounded to milliseconds before samples are cut, a view and not a copy."""
    samples = np.arange(32_000, dtype=np.int16)
    request = AlignRequest.for_window(samples, Window(0.50004, 1.2501), WindowText("a", "en", 1, -0.5, 0, 1))
    assert (request.start_s, request.end_s) == (0.5, 1.25)
    assert (request.text, request.language, request.avg_logprob) == ("a", "en", -0.5)
    assert (request.samples[0], len(request.samples)) == (8_000, 12_000)
    assert request.samples.base is samples
