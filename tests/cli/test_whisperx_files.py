"""The files of `transcribe` are those that whisperx's own writers make of the same segments."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transcripts import FIXED, transcripts
from whisperx.utils import get_writer

from serve_app.cli.transcribe.writers import ALL, WRITERS, Layout, whisperx_result
from serve_app.http.responses import answer
from serve_app.options import Options
from serve_app.transcript import Character, Segment, Transcript, Voices, Word

LAYOUTS = [
    Layout(width, count, highlighted)
    for width, count, highlighted in product((None, 1, 12, 42), (None, 1, 2), (False, True))
]


def answered(transcript: Transcript, **options: Any) -> dict[str, Any]:
    """What the service answers to the command."""
    shown = answer(transcript, Options(**options))
    assert isinstance(shown, dict)
    return shown


def by_whisperx(form: str, result: dict[str, Any], layout: Layout, folder: Path) -> str:
    """What whisperx's command line writes."""
    asked = {name: getattr(layout, name) for name in Layout.__slots__}
    get_writer(form, str(folder))(result, "talk.mp3", asked)
    return (folder / f"talk.{form}").read_bytes().decode()


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("has_words", [True, False])
def test_a_file_is_whisperx_own(form: str, has_words: bool, tmp_path: Path) -> None:
    """With every layout, speakers, words without times, segments without words, and 100 hours."""
    result = whisperx_result(answered(FIXED, word_timestamps=has_words))
    for layout in LAYOUTS:
        assert WRITERS[form](result, layout) == by_whisperx(form, result, layout, tmp_path)


@settings(max_examples=150)
@given(transcripts(unaligned=True), st.sampled_from(LAYOUTS), st.booleans())
def test_any_transcript(
    tmp_path_factory: pytest.TempPathFactory, transcript: Transcript, layout: Layout, has_words: bool
) -> None:
    """The files are the same without segments, in Chinese, and with overlapping words."""
    folder = tmp_path_factory.mktemp("files")
    result = whisperx_result(answered(transcript, word_timestamps=has_words))
    for form in WRITERS:
        assert WRITERS[form](result, layout) == by_whisperx(form, result, layout, folder)


def test_characters_are_those_of_the_segment() -> None:
    """As with whisperx's `--return_char_alignments`, but for the spaces, which have no time here."""
    chars = (Character("o", 0.0, 0.5, 0.5), Character("k", 0.5, 0.75, 1.0), Character("."))
    segment = Segment(0.0, 0.75, "ok.", (Word("ok.", 0.0, 0.75, 0.75, chars=chars),))
    options = {"word_timestamps": True, "char_timestamps": True}
    (shown,) = whisperx_result(answered(replace(FIXED, segments=(segment,)), **options))["segments"]
    assert shown["chars"] == [
        {"char": "o", "start": 0.0, "end": 0.5, "score": 0.5},
        {"char": "k", "start": 0.5, "end": 0.75, "score": 1.0},
        {"char": "."},
    ]
    assert shown["words"] == [{"word": "ok.", "start": 0.0, "end": 0.75, "score": 0.75}]


def test_embeddings_are_where_whisperx_has_them(tmp_path: Path) -> None:
    """Label -> numbers, in the whole result; not there where they were not asked for."""
    spoken = replace(FIXED, voices=Voices("net", 2, {"SPEAKER_00": (0.5, -1.25)}))
    result = whisperx_result(answered(spoken, embeddings=True))
    assert result["speaker_embeddings"]["SPEAKER_00"] == [0.5, -1.25]
    assert json.loads(WRITERS["json"](result, LAYOUTS[0])) == result
    assert "speaker_embeddings" not in whisperx_result(answered(spoken))


def test_what_is_not_known_is_left_out() -> None:
    """Unknown values are left out, as whisperx does, and not null."""
    result = whisperx_result(answered(FIXED, word_timestamps=True))
    assert list(result) == ["segments", "word_segments", "language"]
    first, *_, unaligned, late = result["segments"]
    assert list(first) == ["start", "end", "text", "words", "speaker"]
    assert first["words"][2] == {"word": "&", "speaker": "SPEAKER_00"}
    assert "speaker" not in late
    assert [word["word"] for word in unaligned["words"]] == [
        "this",
        "window",
        "could",
        "not",
        "be",
        "aligned",
    ]
    assert "word_segments" not in whisperx_result(answered(FIXED))


def test_all_are_the_formats_that_whisperx_calls_all(tmp_path: Path) -> None:
    """`all` has exactly the formats of whisperx's."""
    layout = {"max_line_width": None, "max_line_count": None, "highlight_words": False}
    get_writer("all", str(tmp_path))(whisperx_result(answered(FIXED)), "talk.mp3", layout)
    assert {path.suffix[1:] for path in tmp_path.iterdir()} == set(ALL)
