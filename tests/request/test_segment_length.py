"""Segments that are longer than a request wants, split between words."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.formats.cue_words import words_of
from serve_app.request.segment_length import shortened
from serve_app.transcript import Segment, Window, WindowText, Word


def heard(language: str) -> WindowText:
    return WindowText("", language, None, -0.1, 0.0, 1.0)


def sentence(*words: tuple[str, float, float], language: str = "en") -> Segment:
    """A sentence of words with their times, with spaces between them."""
    spoken = tuple(Word(text, start_s, end_s, 0.9) for text, start_s, end_s in words)
    text = " ".join(word.text for word in spoken)
    return Segment(words[0][1], words[-1][2], text, spoken, source_text=heard(language))


def said(segments: tuple[Segment, ...]) -> list[str]:
    return [segment.text for segment in segments]


def test_a_sentence_is_split_at_its_largest_pause() -> None:
    """Its parts have their words, and their words' times; what is short enough stays as it is."""
    long = sentence(("one", 0.0, 0.4), ("two", 0.5, 0.9), ("three", 2.5, 2.9), ("four", 3.0, 3.4))
    short = sentence(("five", 5.0, 5.5))
    first, second, third = shortened((long, short), 3.0)
    assert (first.text, first.start_s, first.end_s) == ("one two", 0.0, 0.9)
    assert (second.text, second.start_s, second.end_s) == ("three four", 2.5, 3.4)
    assert third is short
    assert first.words + second.words == long.words
    assert first.source_text is long.source_text


def test_a_pause_is_found_where_words_last_until_the_next_one() -> None:
    """As wav2vec2 has them: a pause is a part of the word before it."""
    long = sentence(("one", 0.0, 0.5), ("two", 0.5, 2.5), ("three", 2.5, 3.0), ("four", 3.0, 3.5))
    assert said(shortened((long,), 3.0)) == ["one two", "three four"]


def test_without_pauses_it_is_split_before_a_clause() -> None:
    """After a comma, of whichever script."""
    for comma, language in ((",", "en"), ("،", "ar")):
        texts = ["a", "b", "c" + comma, "d", "e", "f", "g"]
        words = [(text, 0.3 * n, 0.3 * n + 0.3) for n, text in enumerate(texts)]
        parts = said(shortened((sentence(*words, language=language),), 1.5))
        assert parts == ["a b c" + comma, "d e f g"]


def test_parts_are_about_equally_long() -> None:
    """Where no place is better than another."""
    words = [(f"w{n}", 0.1 * n, 0.1 * n + 0.1) for n in range(60)]
    parts = shortened((sentence(*words),), 2.5)
    assert [len(part.words) for part in parts] == pytest.approx([20, 20, 20], abs=5)


def test_a_word_that_is_too_long_stays_whole() -> None:
    """There is nowhere to split it."""
    long = sentence(("so", 0.0, 0.2), ("loooong", 0.2, 9.0), ("it", 9.0, 9.2))
    assert said(shortened((long,), 2.0)) == ["so", "loooong", "it"]


def test_a_segment_without_words_is_split_by_the_length_of_its_text() -> None:
    """Its parts have no words either: their times are estimated."""
    window = Segment(10.0, 20.0, "aaaa bbbb cccc dddd", source_text=heard("en"), window=Window(10.0, 20.0))
    parts = shortened((window,), 5.5)
    assert said(parts) == ["aaaa bbbb", "cccc dddd"]
    assert [(part.start_s, part.end_s) for part in parts] == [(10.0, 15.0), (15.0, 20.0)]
    assert all(part.words == () and part.window == window.window for part in parts)


def test_where_no_spaces_are_written_none_is_added() -> None:
    """And what stands between two words stays in the text."""
    words = tuple(Word(text, 0.5 * n, 0.5 * n + 0.5) for n, text in enumerate("今日天氣好"))
    segment = Segment(0.0, 2.5, "「今日」天氣好", words, source_text=heard("zh"))
    parts = shortened((segment,), 1.0)
    assert "".join(said(parts)) == segment.text
    assert len(parts) >= 3


times_s = st.floats(0.0, 100.0).map(lambda value: round(value, 3))
texts = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=6)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    """A segment in any language: of words with any times, without some of them, or without words."""
    language = draw(st.sampled_from(["en", "zh", "th", "de", "ar"]))
    spoken = draw(
        st.lists(st.tuples(texts, st.none() | st.tuples(times_s, times_s)), min_size=1, max_size=30)
    )
    words = tuple(Word(text, *(sorted(span) if span else (None, None))) for text, span in spoken)
    joint = draw(st.sampled_from([" ", "", "  "]))
    text = joint.join(word.text for word in words)
    start_s, end_s = sorted(draw(st.tuples(times_s, times_s)))
    has_words = draw(st.booleans())
    return Segment(start_s, end_s, text, words if has_words else (), source_text=heard(language))


@settings(max_examples=300)
@given(found=st.lists(segments(), max_size=4), longest_s=st.floats(1.0, 60.0))
def test_no_segment_is_longer_and_no_word_is_lost(found: list[Segment], longest_s: float) -> None:
    """Whatever is transcribed: words and text are the same, in the same order."""
    parts = shortened(found, longest_s)
    for part in parts:
        timed = [word for word in part.words if word.start_s is not None]
        is_one_word = len(timed) == 1 or len(words_of(part, None)) == 1
        assert part.end_s - part.start_s <= longest_s + 1e-9 or is_one_word
        assert part.start_s <= part.end_s
        assert part.text
    assert [word for part in parts for word in part.words] == [w for each in found for w in each.words]
    assert squeezed(parts) == squeezed(found)


def squeezed(parts: tuple[Segment, ...] | list[Segment]) -> str:
    return "".join("".join(part.text.split()) for part in parts)
