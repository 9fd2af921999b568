"""How `make eval` judges an answer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.people import TimedWord, Turn
from benchmarks.scoring import (
    WordErrors,
    diarization_errors,
    percentile,
    time_errors,
    untimed_words,
    word_errors,
)

TRUE_WORDS = (TimedWord("I'll", 1.0, 1.2), TimedWord("hedge", 1.3, 1.6), TimedWord("bets", 3.0, 3.4))
TURNS = (Turn(1.0, 2.0, "ann"), Turn(3.0, 4.0, "bob"))


def test_case_punctuation_fillers_and_the_way_numbers_are_written_are_no_errors() -> None:
    """As Whisper's English normaliser has it; numbers are compared digit by digit."""
    assert word_errors("uh I'll take twenty one", "I will take 21.", "en") == WordErrors(words=5)
    assert word_errors("one two three", "1, 2, 3", "en") == WordErrors(words=3)


def test_lost_invented_and_other_words_are_counted_apart() -> None:
    """One of each; where nobody speaks every word is invented."""
    assert word_errors("a b c d", "x a d c", "en").rate == 0.75
    assert word_errors("one cat sat here", "one dog sat", "en") == WordErrors(4, lost=1, wrong=1)
    assert word_errors("one cat", "one cat sat", "en") == WordErrors(2, invented=1)
    assert word_errors("", "Thank you.", "en") == WordErrors(invented=2)
    assert word_errors("", "Thank you.", "en").rate is None
    assert word_errors("Thank you", "", None) == WordErrors(2, lost=2)


def test_languages_without_spaces_are_counted_by_character() -> None:
    """Spaces and punctuation do not count there; elsewhere a word is a word."""
    assert word_errors("广州市房", "广州, 市方。", "zh") == WordErrors(4, wrong=1)
    assert word_errors("на его месте", "На его месте!", "ru") == WordErrors(3)


WORDS = st.lists(st.sampled_from(["cat", "dog", "sun"]))


@given(WORDS, WORDS)
def test_counts_explain_the_difference_in_length(true: list[str], said: list[str]) -> None:
    """What is said has the reference's words, less the lost and more the invented ones."""
    found = word_errors(" ".join(true), " ".join(said), "en")
    assert found.words == len(true)
    assert found.words - found.lost + found.invented == len(said)
    assert (found.lost + found.invented + found.wrong == 0) == (true == said)


def test_errors_add_up_to_a_rate_over_all_words() -> None:
    """Not a mean of rates: a long recording counts for more."""
    whole = WordErrors(1, lost=1) + WordErrors(9)
    assert whole.rate == 0.1


def test_times_of_words_that_were_recognised_are_compared() -> None:
    """A word that was misheard or has no time counts for none."""
    words = [
        {"word": "i'll", "start": 1.02, "end": 1.2},
        {"word": "Hedge,", "start": None, "end": None},
        {"word": "my", "start": 2.0, "end": 2.5},
        {"word": "bets.", "start": 2.9, "end": 3.6},
    ]
    found = time_errors(TRUE_WORDS, [{"text": "", "words": words}])
    assert found.start_ms == pytest.approx((20, 100))
    assert found.end_ms == pytest.approx((0, 200))
    assert percentile(found.start_ms, 50) == pytest.approx(60)
    assert time_errors(TRUE_WORDS, [{"text": "I'll hedge"}]).start_ms == ()
    assert percentile((), 95) is None


def test_words_without_a_time_are_counted_where_there_is_no_alignment_too() -> None:
    """A segment that was not aligned has its text's words, none with a time."""
    timed = {"word": "so", "start": 0.0, "end": 0.1}
    segments: list[dict[str, Any]] = [
        {"text": "so we", "words": [timed, {"word": "we"}]},
        {"text": "go on now"},
    ]
    assert untimed_words(segments) == (4, 5)


def test_speakers_may_have_any_name_but_not_each_others_turns() -> None:
    """Both turns given to one speaker are half confused; with one turn not heard, half is missed."""
    renamed = (Turn(1.0, 2.0, "S1"), Turn(3.0, 4.0, "S0"))
    assert diarization_errors(TURNS, renamed, 5.0) == pytest.approx((0, 2))
    assert diarization_errors(TURNS, [Turn(1.0, 2.0, "x"), Turn(3.0, 4.0, "x")], 5.0) == pytest.approx((1, 2))
    assert diarization_errors(TURNS, renamed[:1], 5.0) == pytest.approx((1, 2))


def test_no_collar_forgives_and_overlap_counts() -> None:
    """A turn that begins 0.1 s late is 0.1 s missed; two speakers at once are twice the time."""
    late = (Turn(1.1, 2.0, "a"), Turn(3.0, 4.0, "b"))
    assert diarization_errors(TURNS, late, 5.0) == pytest.approx((0.1, 2))
    both = (Turn(1.0, 2.0, "ann"), Turn(1.0, 2.0, "bob"))
    assert diarization_errors(both, both[:1], 5.0) == pytest.approx((1, 2))
