"""Formats that are text: read back by other parsers, and whole files that must not change unnoticed."""

import csv
import html
import re
from datetime import timedelta
from pathlib import Path

import pytest
import srt
import webvtt
from hypothesis import given
from transcripts import FIXED, transcripts

from serve_app.formats.subtitles import SubtitleLayout
from serve_app.formats.table import FORMATS
from serve_app.languages import LANGUAGES_WITHOUT_SPACES
from serve_app.transcript import Segment, Transcript, Turn, Word

GOLDEN = Path(__file__).parents[1] / "golden"
MS = timedelta(milliseconds=1)
PLAIN = SubtitleLayout()
TEXT_FORMATS = [entry.name for entry in FORMATS.values() if entry.write]

Shown = tuple[int, int, str | None, str]  # start and end in ms, speaker, text


def written(transcript: Transcript, response_format: str, layout: SubtitleLayout = PLAIN) -> str:
    [entry] = [entry for entry in FORMATS.values() if entry.name == response_format]
    assert entry.write is not None
    return entry.write(transcript, layout)


def expected(transcript: Transcript) -> list[Shown]:
    """A cue for each segment, from its first word with times to its last."""
    between = "" if transcript.language in LANGUAGES_WITHOUT_SPACES else " "
    found = []
    for segment in transcript.segments:
        starts = [word.start_s for word in segment.words if word.start_s is not None] or [segment.start_s]
        text = between.join(word.text for word in segment.words) or segment.text
        found.append((round(min(starts) * 1000), round(segment.end_s * 1000), segment.speaker, text))
    return found


@given(transcripts(unaligned=True))
def test_srt_is_read_back_as_it_was(transcript: Transcript) -> None:
    """Times to the millisecond, texts and speakers; only the arrow, which SRT cannot escape, is shorter."""
    read = [(sub.start // MS, sub.end // MS, sub.content) for sub in srt.parse(written(transcript, "srt"))]
    assert read == [
        (start, end, re.sub("-{2,}>", "->", f"[{speaker}]: {text}" if speaker else text))
        for start, end, speaker, text in expected(transcript)
    ]


@given(transcripts(unaligned=True))
def test_vtt_is_read_back_as_it_was(transcript: Transcript) -> None:
    """Times to the millisecond, texts and speakers, whatever characters they have."""

    def ms(clock: str) -> int:
        hours, minutes, seconds = clock.split(":")
        return (int(hours) * 60 + int(minutes)) * 60_000 + round(float(seconds) * 1000)

    read = [
        (ms(cue.start), ms(cue.end), cue.voice and html.unescape(cue.voice), html.unescape(cue.text))
        for cue in webvtt.from_string(written(transcript, "vtt"))
    ]
    assert read == expected(transcript)


@given(transcripts(unaligned=True))
def test_tsv_and_text_are_read_back_as_they_were(transcript: Transcript) -> None:
    """A line for each segment: whole milliseconds in TSV, the speaker in text."""
    lines = written(transcript, "tsv").split("\n")[:-1]
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [(int(row["start"]), int(row["end"]), row["text"]) for row in rows] == [
        (round(s.start_s * 1000), round(s.end_s * 1000), s.text) for s in transcript.segments
    ]
    assert written(transcript, "text").split("\n")[:-1] == [
        f"[{s.speaker}]: {s.text}" if s.speaker else s.text for s in transcript.segments
    ]


def test_rttm_is_read_back_as_it_was(tmp_path: Path) -> None:
    """By pyannote's reader: overlapping turns, to the millisecond; a name with spaces stays one field."""
    from pyannote.database.util import load_rttm

    turns = (
        Turn(0.3, 3.3504, "SPEAKER_00"),
        Turn(3.2, 3.95, "Zoë B"),
        Turn(400_000.5, 400_001.25, "SPEAKER_00"),
    )
    path = tmp_path / "x.rttm"
    path.write_text(written(Transcript((), "en", 1.0, "made", turns), "rttm"))
    read = load_rttm(str(path))["audio"]
    assert [
        (round(s.start, 3), round(s.end, 3), label) for s, _, label in read.itertracks(yield_label=True)
    ] == [
        (0.3, 3.35, "SPEAKER_00"),
        (3.2, 3.95, "Zoë_B"),
        (400_000.5, 400_001.25, "SPEAKER_00"),
    ]


@pytest.mark.parametrize("response_format", TEXT_FORMATS)
def test_what_would_break_a_format_becomes_a_space(response_format: str) -> None:
    """Ends of lines, blank lines, tabs and control characters in texts and names."""
    bad, text = "a\n\n1\r\tb\x00\u2028\x85c", "a 1 b c"
    words = (Word(bad, 0.0, 1.0), Word("\n", 1.0, 2.0))
    segments = (Segment(0.0, 1.0, bad, words, bad), Segment(1.0, 2.0, f"\n{bad}\n"))
    turns = (Turn(0.0, 1.0, bad),)
    clean = Transcript(
        (Segment(0.0, 1.0, text, (Word(text, 0.0, 1.0),), text), Segment(1.0, 2.0, text)), None, 2, ""
    )
    if response_format in ("tsv", "rttm", "text"):
        lines = written(Transcript(segments, None, 2, "", turns), response_format).splitlines()
        assert len(lines) == {"tsv": 3, "rttm": 1, "text": 2}[response_format]
        assert {len(line.split("\t")) for line in lines} == ({3} if response_format == "tsv" else {1})
    else:
        assert written(Transcript(segments, None, 2, ""), response_format) == written(clean, response_format)


@pytest.mark.parametrize("response_format", TEXT_FORMATS)
def test_silence_is_an_empty_file(response_format: str) -> None:
    """With what the format says at its start, and nothing else."""
    start = {"vtt": "WEBVTT\n\n", "tsv": "start\tend\ttext\n"}
    assert written(Transcript((), None, 1.0, "made"), response_format) == start.get(response_format, "")


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("fixed.text", PLAIN),
        ("fixed.srt", PLAIN),
        ("fixed.vtt", PLAIN),
        ("fixed.tsv", PLAIN),
        ("fixed.rttm", PLAIN),
        ("lines.srt", SubtitleLayout(16, 2)),
        ("lines.vtt", SubtitleLayout(16)),
        ("highlighted.srt", SubtitleLayout(highlight_words=True)),
        ("highlighted.vtt", SubtitleLayout(16, 2, highlight_words=True)),
    ],
)
def test_files_are_as_they_were(name: str, layout: SubtitleLayout) -> None:
    """Byte for byte; whoever changes a format changes tests/golden with it, and the changelog."""
    assert written(FIXED, name.partition(".")[2], layout).encode() == (GOLDEN / name).read_bytes()
