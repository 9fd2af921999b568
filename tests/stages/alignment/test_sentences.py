"""Where sentences end: punkt with and without its trained data, and full stops of other scripts."""

from pathlib import Path

import pytest

from serve_app.stages.alignment.sentences import sentence_splitter


@pytest.mark.usefixtures("_no_punkt")
def test_sentences_split_without_punkt_data() -> None:
    """Abbreviations and initials do not end a sentence, and nothing is downloaded for it."""
    split = sentence_splitter("en")
    text = " Dr. Smith met J. Bach at 5 p.m. on Main St. here. Is it true? Yes! He said so."
    sentences = [text[begin:end] for begin, end in split(text)]
    assert sentences == [
        " Dr. Smith met J. Bach at 5 p.m. on Main St. here.",
        "Is it true?",
        "Yes!",
        "He said so.",
    ]
    assert split("") == []


@pytest.mark.usefixtures("_punkt")
def test_installed_punkt_data_is_used(tmp_path: Path) -> None:
    """Trained data on the machine decides, as in whisperx."""
    assert sentence_splitter("en")("Dr. Smith came.") == [(0, 3), (4, 15)]  # the empty data know no Dr.
    trained = tmp_path / "nltk_data" / "tokenizers" / "punkt_tab" / "english" / "abbrev_types.txt"
    trained.write_text("dr\n")
    sentence_splitter.cache_clear()
    assert sentence_splitter("en")("Dr. Smith came.") == [(0, 15)]


@pytest.mark.usefixtures("_no_punkt")
@pytest.mark.parametrize(
    ("language", "text", "sentences"),
    [
        ("zh", "你好！我来了。「再见。」他说", ["你好！", "我来了。", "「再见。」", "他说"]),
        ("ja", "はい。そうです。", ["はい。", "そうです。"]),
        ("hi", "नमस्ते। आप कैसे हैं?", ["नमस्ते।", "आप कैसे हैं?"]),
        ("de", "Das ist z.B. gut. Ja.", ["Das ist z.B. gut.", "Ja."]),
    ],
)
def test_full_stops_of_every_script_end_sentences(language: str, text: str, sentences: list[str]) -> None:
    """Also where no space follows them; a closing quote stays with its sentence."""
    assert [text[begin:end] for begin, end in sentence_splitter(language)(text)] == sentences
