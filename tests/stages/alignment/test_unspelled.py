"""Text that is shorter than what is said: numbers, symbols, foreign letters, and words that are missing."""

from itertools import pairwise

import pytest
from emissions import ENGLISH, RUSSIAN, spoken
from hypothesis import given
from hypothesis import strategies as st

NEAR_S = 0.2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "We paid 50% of the price. Then we went home.",
            "we paid fifty+percent of the price _ then we went home",
        ),
        ("25 people came to the party.", "twenty+five people came to the party"),
        ("The answer is 42,000.", "the answer is forty+two+thousand"),
        (
            "Dial 10001 90210 01803 now!",
            "dial one+zero+zero+zero+one _ nine+oh+two+one+oh _ zero+one+eight+oh+three now",
        ),
        ("It was 50%. 20 people came.", "it was fifty+percent _ twenty people came"),
        ("It costs $1,000 a month.", "it costs one+thousand+dollars a month"),
        ("We paid 5 € (about £4) for it.", "we paid five euros about four+pounds for it"),
        ("Rock & roll and #5, the 3rd.", "rock and roll and number+five the third"),
        ("She said π is 3.14 or so.", "she said pie is three+point+one+four or so"),
        ("I met 田中 in the café today.", "i met tanaka in the cafe today"),
        ("Он купил Microsoft вчера.", "он купил майкрософт вчера"),
        ("Статья № 5 вышла вчера.", "статья номер пять вышла вчера"),
        ("Это стоит 1000 ₽ в месяц.", "это стоит тысяча рублей в месяц"),
    ],
)
def test_what_a_model_cannot_spell_lasts_as_long_as_its_sound(text: str, said: str, seed: int) -> None:
    """A number spans all that is said for it, and no word behind it is early."""
    language, characters = ("ru", RUSSIAN) if text[0] in "ОСЭ" else ("en", ENGLISH)
    speech = spoken(said, characters, seed)
    found = speech.aligned(text, language)
    assert len(found) == len(speech.words)
    for (word, start_s, end_s), (_, true_start_s, true_end_s) in zip(found, speech.words, strict=True):
        assert start_s == pytest.approx(true_start_s, abs=NEAR_S), word
        if set(word.lower()) - set(characters) - set(".,()!"):
            assert end_s == pytest.approx(true_end_s, abs=NEAR_S), word


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Then we went home.", "so um you know that is just how it was _ then we went home"),
        (
            "We had supper. Then everybody left.",
            "we had supper with all our friends _ then everybody left",
        ),
        ("We had supper", "we had supper with all our friends _ then everybody left"),
        ("Mr. Brown is here.", "mister brown is here"),
    ],
)
def test_words_that_are_missing_move_no_other_word(text: str, said: str, seed: int) -> None:
    """What the recogniser left out, at the start, in the middle or at the end, is skipped as a whole."""
    speech = spoken(said, seed=seed)
    true_starts_s = {word.replace("mister", "mr"): start_s for word, start_s, _ in speech.words}
    for word, start_s, _ in speech.aligned(text):
        assert start_s == pytest.approx(true_starts_s[word.lower().strip(".")], abs=NEAR_S), word


TEXTS = st.text(st.sampled_from("ab 1250%$é你♪.,'- "), max_size=30)
SAID = st.lists(st.sampled_from(["_", "go", "hello", "ten+dollars"]), max_size=4).map(" ".join)


@given(TEXTS.filter(lambda text: any(map(str.isalnum, text))), SAID, st.integers(0, 3))
def test_no_text_over_no_sound_breaks_the_batch(text: str, said: str, seed: int) -> None:
    """Numbers over silence, notes over nothing: every word has some time, none before the one before it."""
    found = spoken(f"{said} _ _", seed=seed).aligned(" ".join(text.split()))
    assert all(start_s < end_s for _, start_s, end_s in found)
    assert all(a[1] <= b[1] for a, b in pairwise(found))
