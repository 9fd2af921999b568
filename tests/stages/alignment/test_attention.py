"""Token times to words and sentences: property tests on made-up windows, no model."""

from collections.abc import Sequence

import ctranslate2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.random_whisper import whisper_tokenizer
from serve_app.stages.alignment.attention import characters_complete, sentences, spelled, token_times
from serve_app.stages.alignment.sound import FRAMES_PER_S, Loudness, loudness
from serve_app.transcript import Segment, Token, Window, WindowText, Word

LOUD = np.ones(1000, np.float32)  # ten seconds
TOKENIZER = whisper_tokenizer()


def loud_at(*spans_s: tuple[float, float]) -> Loudness:
    """Sound at these seconds, silence elsewhere, to half a second behind the last."""
    loud = np.zeros(round((spans_s[-1][1] + 0.5) * FRAMES_PER_S), np.float32)
    for start_s, end_s in spans_s:
        loud[round(start_s * FRAMES_PER_S) : round(end_s * FRAMES_PER_S)] = 1.0
    return loud


def text_of(text: str, tokens: Sequence[Token], language: str = "en") -> WindowText:
    return WindowText(text, language, None, -0.3, 0.0, 1.0, tokens=tuple(tokens))


def words_of(segments: Sequence[Segment]) -> list[Word]:
    return [word for segment in segments for word in segment.words]


def token_for_each_character(text: str, *, step_s: float = 0.1) -> list[Token]:
    return [Token(n * step_s, (n + 1) * step_s, 0.9, n + 1) for n in range(len(text))]


@given(
    text=st.text(st.sampled_from("ab 1.,?!é中。กั\n"), min_size=1, max_size=40),
    language=st.sampled_from(["en", "zh", "th", "ar"]),
    seed=st.integers(0, 99),
)
def test_every_word_has_a_time_within_its_window(text: str, language: str, seed: int) -> None:
    """Whatever the text, nothing of it is lost, and all times lie inside the window, ends after starts."""
    loud = np.random.default_rng(seed).random(400).astype(np.float32)
    window = Window(100.0, 104.0)
    found = sentences(text_of(text, token_for_each_character(text), language), window, loud, 0.04)
    words = words_of(found)
    if any(character.isalnum() for character in text):
        said = "".join("".join(word.text for word in words).split())
        assert said == "".join(text.split())
    for word in words:
        assert word.start_s is not None
        assert word.end_s is not None
        assert 100.0 <= word.start_s <= word.end_s <= 104.0


def test_a_word_begins_and_ends_in_sound() -> None:
    """Attention reaches into the silence around a word; its time does not."""
    loud = np.zeros(300, np.float32)
    loud[100:150] = 1.0  # from 1.0 to 1.5 s
    [segment] = sentences(text_of(" yes", [Token(0.2, 2.6, 0.8, 4)]), Window(10.0, 13.0), loud, 0.0)
    assert segment.words == (Word("yes", 11.0, 11.5, 0.8),)


def test_a_pause_belongs_to_no_word() -> None:
    """Of a word with a long pause inside, the part after the pause is the word."""
    loud = np.ones(300, np.float32)
    loud[20:150] = 0.0
    [segment] = sentences(text_of(" yes", [Token(0.0, 2.0, 0.8, 4)]), Window(0.0, 3.0), loud, 0.0)
    assert (segment.words[0].start_s, segment.words[0].end_s) == (1.5, 2.0)


def test_the_models_constant_error_is_taken_off() -> None:
    """A model whose attention is early by 40 ms has its words 40 ms later."""
    [segment] = sentences(
        text_of(" a b", [Token(1.0, 1.2, 1, 2), Token(1.2, 1.4, 1, 4)]), Window(0, 9), LOUD, 0.04
    )
    assert [(word.text, word.start_s) for word in segment.words] == [("a", 1.04), ("b", 1.24)]


def test_digits_and_scripts_without_spaces_have_times_of_their_own() -> None:
    """Each written character is a word where no spaces are, and a full stop of the script ends a sentence."""
    text = "你好。再见"
    found = sentences(text_of(text, token_for_each_character(text), "zh"), Window(0.0, 10.0), LOUD, 0.0)
    assert [segment.text for segment in found] == ["你好。", "再见"]
    assert [word.start_s for word in words_of(found) if word.text != "。"] == [0.0, 0.1, 0.3, 0.4]
    [segment] = sentences(
        text_of(" in 1984", [Token(0, 1, 1, 3), Token(4, 6, 1, 8)]), Window(0, 6), LOUD[:600], 0.0
    )
    assert (segment.words[1].text, segment.words[1].start_s, segment.words[1].end_s) == ("1984", 4.0, 6.0)


def spans_of(
    text: str, tokens: Sequence[Token], loud: Loudness
) -> list[tuple[str, float | None, float | None]]:
    window = Window(0.0, len(loud) / FRAMES_PER_S)
    found = words_of(sentences(text_of(text, tokens), window, loud, 0.0))
    return [(word.text, word.start_s, word.end_s) for word in found]


def test_symbols_that_are_read_aloud_have_time() -> None:
    """A number lasts until the end of "percent", and "and" has a time although it is written as "&"."""
    tokens = [Token(1.0, 1.4, 1, 3), Token(1.4, 1.9, 1, 4), Token(2.0, 2.4, 1, 6), Token(2.4, 2.8, 1, 10)]
    assert spans_of(" 50% & off", tokens, loud_at((1.0, 1.9), (2.0, 2.8))) == [
        ("50%", 1.0, 1.9),
        ("&", 2.0, 2.4),
        ("off", 2.4, 2.8),
    ]


def test_clicks_do_not_make_a_pause_a_part_of_a_word() -> None:
    """Background noise in a pause between two sentences is not the start of the second one."""
    tokens = [Token(0.0, 0.5, 1, 4), Token(0.5, 0.7, 1, 5), Token(0.7, 3.0, 1, 10)]
    clicks = [(at_s, at_s + 0.06) for at_s in (0.9, 1.2, 1.5, 1.8, 2.2)]
    assert spans_of(" Yes. This", tokens, loud_at((0.0, 0.5), *clicks, (2.6, 3.0))) == [
        ("Yes.", 0.0, 0.5),
        ("This", 2.6, 3.0),
    ]


def test_what_is_said_between_two_sentences_does_not_move_the_second() -> None:
    """A filler that the recogniser left out belongs to no word: no first word lasts for two seconds."""
    tokens = [Token(0.0, 0.4, 1, 4), Token(0.4, 0.6, 1, 5), Token(0.6, 2.8, 1, 8)]
    [_, (word, start_s, end_s)] = spans_of(" Yes. So", tokens, loud_at((0.0, 0.4), (0.6, 2.8)))
    assert start_s is not None
    assert (word, end_s) == ("So", 2.8)
    assert start_s > 2.2


def test_a_first_word_is_not_left_over_a_sentence_that_is_missing() -> None:
    """Where the recogniser left out a sentence, the next one begins behind the pause, not with its sound."""
    tokens = [Token(0.0, 1.6, 0.1, 3), Token(1.6, 3.8, 1, 6), Token(3.8, 4.4, 1, 13)]
    sound = loud_at((0.1, 1.2), (3.6, 4.4))
    assert spans_of(" It is futile", tokens, sound) == [
        ("It", 3.6, 3.7),
        ("is", 3.7, 3.8),
        ("futile", 3.8, 4.4),
    ]


def test_a_word_ends_with_its_sound_and_not_with_its_full_stop() -> None:
    """Attention is at the full stop while the word fades; the next word's time is not touched."""
    tokens = [Token(0.0, 0.6, 1, 11), Token(0.6, 1.4, 1, 12), Token(1.4, 1.7, 1, 17)]
    assert spans_of(" resistance. This", tokens, loud_at((0.0, 0.9), (1.4, 1.7))) == [
        ("resistance.", 0.0, 0.9),
        ("This", 1.4, 1.7),
    ]


def test_a_character_of_several_tokens_is_complete_after_the_last() -> None:
    """Whisper's tokens are bytes; one that ends inside a character completes nothing."""
    pieces = {1: b" ", 2: "中".encode()[:2], 3: "中".encode()[2:], 4: b"a"}

    def decode(tokens: Sequence[int]) -> str:
        return b"".join(pieces[token] for token in tokens).decode(errors="replace")

    assert characters_complete([1, 2, 3, 4], decode) == [1, 1, 2, 3]


@given(st.text(max_size=8))
def test_tokens_have_the_bytes_of_their_text(text: str) -> None:
    """Whatever GPT-2's tokenizer makes of a text, parts of characters too."""
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    tokens = spelled([Token(0, 0, 1, 0)] * len(ids), [TOKENIZER.id_to_token(token) for token in ids])
    assert bytes(byte for token in tokens for byte in token.utf8_bytes) == text.encode()


class FakeWhisper:
    """Answers `align` with the frames that are in the tokens, and notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[int], int]] = []

    def align(
        self, encoded: object, start: list[int], texts: list[list[int]], mels: list[int]
    ) -> list[object]:
        self.asked.append((start, len(texts)))
        return [_Path([(n, token) for n, token in enumerate(text)]) for text in texts]


class _Path:
    def __init__(self, alignments: list[tuple[int, int]]) -> None:
        self.alignments = alignments
        self.text_token_probs = [0.5] * len(alignments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_languages_mix_in_a_batch(dtype: str) -> None:
    """There is one call for each language; each window gets its own times, whatever the encoder gives."""
    whisper = FakeWhisper()
    encoded = ctranslate2.StorageView.from_array(np.zeros((3, 4, 2), np.float32))
    found = token_times(
        whisper,
        encoded.to(getattr(ctranslate2.DataType, dtype)),
        [[1, 2], [1, 3], [1, 2]],
        [[10, 20], [0], []],
        [1.0] * 3,
        lambda ids: "x" * len(ids),
    )
    assert whisper.asked == [([1, 2], 1), ([1, 3], 1)]
    assert [token.start_s for token in found[0]] == [0.2, 0.4]
    assert found[0][-1].end_s == 1.0
    assert found[2] == ()


def test_a_text_that_the_decoder_cannot_read_whole_has_times_all_the_same() -> None:
    """Its first tokens have their own; words behind them take the last one's."""
    encoded, long = np.zeros((1, 4, 2), np.float32), [n // 10 for n in range(444)]
    found = token_times(FakeWhisper(), encoded, [[1, 2]], [long], [1.0], lambda ids: "a " * len(ids))
    text = text_of("a " * 444, found[0])
    (segment,) = sentences(text, Window(5.0, 6.0), np.zeros(100, np.float32), 0.0)
    assert len(segment.words) == 444
    assert all(word.start_s is not None and 5.0 <= word.start_s <= 6.0 for word in segment.words)


def test_loudness_ends_with_the_window() -> None:
    """The padding behind a window is not taken for its silence."""
    features = np.zeros((80, 3000), np.float32)
    features[:, :100] = 1.0
    assert loudness(features, 1.0).tolist() == [1.0] * 100
