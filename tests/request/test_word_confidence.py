"""Which of the recogniser's probabilities a word gets, whichever model has found its time."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.request.word_confidence import letter_probabilities, with_confidence
from serve_app.transcript import Segment, Token, WindowText, Word

words = st.lists(st.text("abc,.", min_size=1, max_size=6), min_size=1, max_size=8)


def text_of(said: str, *tokens: tuple[str, float]) -> WindowText:
    """A text whose tokens have these pieces and probabilities."""
    ends = accumulate(len(piece) for piece, _ in tokens)
    timed = (Token(0.0, 0.0, score, end) for (_, score), end in zip(tokens, ends, strict=True))
    return WindowText(said, "en", None, -0.1, 0.0, 1.0, tokens=tuple(timed))


def confidences(text: WindowText, *sentences: str) -> list[float | None]:
    segments = [Segment(0.0, 1.0, each, tuple(map(Word, each.split()))) for each in sentences]
    return [word.confidence for segment in with_confidence(segments, text) for word in segment.words]


def test_a_word_has_the_mean_of_its_letters() -> None:
    """Spaces and punctuation do not count, nor do other words of the same letters."""
    text = text_of(" the theme, the", (" the", 0.9), (" the", 0.4), ("me,", 0.7), (" the", 0.2))
    assert confidences(text, "the theme,", "the") == [0.9, round((3 * 0.4 + 2 * 0.7) / 5, 3), 0.2]


def test_a_sign_alone_has_its_own_probability() -> None:
    """It is a word of the answer, although nobody says it."""
    assert confidences(text_of(" a - b", (" a", 0.9), (" -", 0.3), (" b", 0.5)), "a - b") == [0.9, 0.3, 0.5]


def test_a_character_of_several_tokens_is_as_likely_as_all_of_them() -> None:
    """The last of them is nearly certain, once the others are there."""
    text = text_of("中a", ("", 0.5), ("中", 0.8), ("a", 0.9))
    assert letter_probabilities(text) == pytest.approx({0: 0.4, 1: 0.9})


def test_a_word_without_tokens_has_none() -> None:
    """Of a very long text only the first tokens are known; a word that is not in the text has no place."""
    assert confidences(text_of(" one two", (" one", 0.9)), "one two") == [0.9, None]
    assert confidences(text_of(" one two", (" one", 0.9), (" two", 0.8)), "uno two") == [None, 0.8]


@given(words, st.data())
def test_every_word_finds_its_own_place(spoken: list[str], data: st.DataObject) -> None:
    """However often its letters stand elsewhere, and however the text is cut into sentences."""
    scores = data.draw(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=len(spoken), max_size=len(spoken)))
    text = text_of(
        "".join(f" {word}" for word in spoken),
        *((f" {word}", score) for word, score in zip(spoken, scores, strict=True)),
    )
    cut = data.draw(st.integers(0, len(spoken)))
    assert confidences(text, " ".join(spoken[:cut]), " ".join(spoken[cut:])) == scores
