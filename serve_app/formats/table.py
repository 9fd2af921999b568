"""What each response format can show, and the writers of those that are text. Pure.

A new format is one entry in FORMATS, its name in `FormatName`, and a writer.

No subtitle library writes SRT and WebVTT safely: pysubs2 reads `{}` and `\\N` in a text as its own markup and
stops at 99:59:59, webvtt-py does not escape, srt lets `-->` through. Tests read them back by the last two.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Literal

from serve_app.formats.cue_words import one_line
from serve_app.formats.subtitles import SubtitleLayout, cues
from serve_app.transcript import Transcript

FormatName = Literal["json", "text", "srt", "vtt", "tsv", "rttm", "words"]


@dataclass(frozen=True, slots=True)
class Format:
    """A response format. One without `write` is JSON, which `http` builds."""

    name: FormatName
    media_type: str = "application/json"
    write: Callable[[Transcript, SubtitleLayout], str] | None = None
    has_words: bool = False  # words with times
    has_speakers: bool = True
    has_lines: bool = False  # subtitle lines, which a SubtitleLayout lays out
    has_segments: bool = True
    needs_words: bool = False  # words with times are all that it shows
    needs_speakers: bool = False  # speaker turns are all that it shows


_escaped = partial(escape, quote=False)


def write_text(transcript: Transcript, _: SubtitleLayout) -> str:
    """One line per segment, after `[speaker]: ` where it has one."""
    return "".join(f"{_prefix(part.speaker)}{one_line(part.text)}\n" for part in transcript.segments)


def write_srt(transcript: Transcript, layout: SubtitleLayout) -> str:
    """SubRip subtitles; a speaker stands before the text, as in plain text."""
    blocks = []
    for number, cue in enumerate(cues(transcript, layout), start=1):
        text = re.sub("-{2,}>", "->", _prefix(cue.speaker) + cue.text)  # SRT cannot escape its arrow
        blocks.append(f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{text}\n\n")
    return "".join(blocks)


def write_vtt(transcript: Transcript, layout: SubtitleLayout) -> str:
    """WebVTT subtitles; speakers are voices, `<v name>`."""
    blocks = ["WEBVTT\n\n"]
    for cue in cues(transcript, layout, _escaped):
        voice = f"<v {_escaped(one_line(cue.speaker))}>" if cue.speaker else ""
        start, end = (_clock(ms, ".").removeprefix("00:") for ms in (cue.start_ms, cue.end_ms))
        blocks.append(f"{start} --> {end}\n{voice}{cue.text}\n\n")
    return "".join(blocks)


def write_tsv(transcript: Transcript, _: SubtitleLayout) -> str:
    """A table of segments with times in milliseconds, without speakers."""
    rows = [
        f"{round(1000 * part.start_s)}\t{round(1000 * part.end_s)}\t{one_line(part.text)}\n"
        for part in transcript.segments
    ]
    return "".join(["start\tend\ttext\n", *rows])


def write_rttm(transcript: Transcript, _: SubtitleLayout) -> str:
    """The speaker turns, without text."""
    rows = []
    for turn in transcript.turns:
        start_ms, end_ms = round(1000 * turn.start_s), round(1000 * turn.end_s)
        name = re.sub(r"\s", "_", one_line(turn.speaker))  # fields end at spaces
        times = f"{start_ms / 1000:.3f} {(end_ms - start_ms) / 1000:.3f}"
        rows.append(f"SPEAKER audio 1 {times} <NA> <NA> {name} <NA> <NA>\n")
    return "".join(rows)


def _prefix(speaker: str | None) -> str:
    return f"[{one_line(speaker)}]: " if speaker else ""


def _clock(ms: int, point: str) -> str:
    minutes, ms = divmod(ms, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}{point}{ms % 1000:03d}"


FORMATS: dict[FormatName, Format] = {
    form.name: form
    for form in (
        Format("json", has_words=True),
        Format("text", "text/plain; charset=utf-8", write_text),
        # Not a registered type, but the one that desktops and players know.
        Format("srt", "application/x-subrip; charset=utf-8", write_srt, has_lines=True),
        Format("vtt", "text/vtt; charset=utf-8", write_vtt, has_lines=True),
        Format("tsv", "text/tab-separated-values; charset=utf-8", write_tsv, has_speakers=False),
        # RTTM has no media type of its own.
        Format("rttm", "text/plain; charset=utf-8", write_rttm, needs_speakers=True, has_segments=False),
        Format("words", has_words=True, needs_words=True, has_segments=False),
    )
}
