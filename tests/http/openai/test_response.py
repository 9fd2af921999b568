"""Which tokens are whose, and what speakers are called."""

import pytest
from tokenizers import Tokenizer

from serve_app import bundled
from serve_app.http.openai.request import Ask
from serve_app.http.openai.response import own_tokens, speaker_names, verbose
from serve_app.options import Options
from serve_app.stages.asr.token_ends import token_ends
from serve_app.transcript import Segment, Transcript, Window, WindowText


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Whisper's multilingual one, which the bundled model has, too."""
    return Tokenizer.from_file(str(bundled.ASR / "tokenizer.json"))


def heard(tokenizer: Tokenizer, text: str) -> WindowText:
    tokens = tuple(tokenizer.encode(text, add_special_tokens=False).ids)
    return WindowText(text, "en", None, -0.1, 0.0, 1.0, tokens, token_ends(tokenizer, tokens, text))


def segments_of(window: WindowText, *texts: str) -> list[Segment]:
    return [Segment(0.0, 1.0, text, heard=window) for text in texts]


SENTENCES = [
    ("Four score.", "And seven years ago!", "Our fathers"),
    ("你好，世界。", "𠮷野家で🎉食べた。", "ありがとう"),
    ("Naïve façade…", "Ελλάδα; 🧑‍🚀", "ok"),
    ("Yes.", "Yes.", "Yes."),
    ("alone",),
]


@pytest.mark.parametrize("gap", [" ", ""])
@pytest.mark.parametrize("sentences", SENTENCES)
def test_each_sentence_has_its_own_tokens(tokenizer: Tokenizer, sentences: tuple[str, ...], gap: str) -> None:
    """They give its text, in scripts whose characters take several tokens, too; together they are all."""
    window = heard(tokenizer, " " + gap.join(sentences))
    found = own_tokens(segments_of(window, *sentences))
    assert sum(found, ()) == window.tokens
    if gap:  # without, a token can reach over the end of a sentence
        assert [tokenizer.decode(list(tokens)).strip() for tokens in found] == list(sentences)


def test_seek_is_where_the_window_starts(tokenizer: Tokenizer) -> None:
    """In hundredths of a second, also where the product is just below a whole number."""
    window = heard(tokenizer, " ok")
    starts = (0.0, 0.29, 1.13, 4.35, 16.9)
    segments = tuple(Segment(s, s + 1, "ok", window=Window(s, s + 1), heard=window) for s in starts)
    items = verbose(Transcript(segments, "en", 20.0, "made"), Ask(Options()))
    assert [item.seek for item in items] == [0, 29, 113, 435, 1690]


def test_several_windows_and_one_that_is_whole(tokenizer: Tokenizer) -> None:
    """Equal text in another window is not taken for it."""
    first, second = heard(tokenizer, " One. Two."), heard(tokenizer, " One. Two.")
    segments = [*segments_of(first, "One.", "Two."), *segments_of(second, "One. Two.")]
    found = own_tokens(segments)
    assert found[0] + found[1] == first.tokens
    assert found[2] == second.tokens


def test_text_that_is_not_in_the_window_has_all_of_its_tokens(tokenizer: Tokenizer) -> None:
    """Sentences that changed places cannot be told apart."""
    window = heard(tokenizer, " One. Two.")
    assert own_tokens(segments_of(window, "Two.", "One.")) == [window.tokens] * 2


def test_bytes_that_are_no_text_have_no_ends(tokenizer: Tokenizer) -> None:
    """Half a character at the end of a window counts; elsewhere there may be no ends, but no wrong ones."""
    whole = tokenizer.encode(" ok 🎉", add_special_tokens=False).ids
    half = whole[:-1]
    text = tokenizer.decode(half)
    ends = token_ends(tokenizer, half, text)
    assert (text, ends[-1]) == (" ok \N{REPLACEMENT CHARACTER}", len(text))
    broken = [*half, *tokenizer.encode(" more", add_special_tokens=False).ids]
    text = tokenizer.decode(broken)
    ends = token_ends(tokenizer, broken, text)
    assert ends == () or (len(ends) == len(broken) and ends[-1] == len(text))
    assert token_ends(tokenizer, [], "") == ()


def test_speakers_have_letters_unless_they_are_known() -> None:
    """In order of appearance; a letter that is somebody's name is left out, and after Z comes AA."""
    speakers = [
        "SPEAKER_07",
        "Ann",
        None,
        *(f"SPEAKER_{number:02d}" for number in range(10, 36)),
        "SPEAKER_07",
    ]
    segments = [Segment(0.0, 1.0, "x", speaker=speaker) for speaker in speakers]
    names = speaker_names(segments, ("Ann", "B"))
    called = [names[speaker] for speaker in speakers]
    assert called[:5] == ["A", "Ann", "unknown", "C", "D"]
    assert called[-3:] == ["AA", "AB", "A"]
