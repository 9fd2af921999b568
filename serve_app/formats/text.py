"""A transcript as text: plain, subtitles (SRT and WebVTT), TSV, and speaker turns as RTTM. Pure.

No subtitle library writes these: pysubs2 takes `{}` and `\\N` in what was said for its own markup and stops
at 99:59:59, webvtt-py does not escape, srt lets `-->` through. srt and webvtt-py read these back in tests.
"""

import re
from collections.abc import Iterator
from html import escape

from serve_app.formats.subtitles import PLAIN, Cue, SubtitleLayout, cues, one_line
from serve_app.transcript import Transcript

__all__ = ["MEDIA_TYPES", "SubtitleLayout", "rendered"]

MEDIA_TYPES = {
    "text": "text/plain; charset=utf-8",
    "srt": "application/x-subrip; charset=utf-8",  # not registered, but what desktops and players know
    "vtt": "text/vtt; charset=utf-8",
    "tsv": "text/tab-separated-values; charset=utf-8",
    "rttm": "text/plain; charset=utf-8",  # has no type of its own
}


def rendered(transcript: Transcript, response_format: str, layout: SubtitleLayout = PLAIN) -> str:
    """The transcript in one of the formats of MEDIA_TYPES; `layout` is for srt and vtt.

    Speakers, where segments have them: `[name]: ` before the text in text and srt, `<v name>` in vtt, the
    turns themselves in rttm, none in tsv.
    """
    writers = {"text": _text, "tsv": _tsv, "rttm": _rttm}
    if response_format == "srt":
        return "".join(_srt(cues(transcript, layout)))
    if response_format == "vtt":
        return "".join(_vtt(cues(transcript, layout, _escaped)))
    return "".join(writers[response_format](transcript))


def _text(transcript: Transcript) -> Iterator[str]:
    for segment in transcript.segments:
        yield f"{_prefix(segment.speaker)}{one_line(segment.text)}\n"


def _srt(found: Iterator[Cue]) -> Iterator[str]:
    for number, cue in enumerate(found, start=1):
        text = re.sub("-{2,}>", "->", _prefix(cue.speaker) + cue.text)  # SRT cannot escape its arrow
        yield f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{text}\n\n"


def _vtt(found: Iterator[Cue]) -> Iterator[str]:
    yield "WEBVTT\n\n"
    for cue in found:
        voice = f"<v {_escaped(one_line(cue.speaker))}>" if cue.speaker else ""
        start, end = (_clock(ms, ".").removeprefix("00:") for ms in (cue.start_ms, cue.end_ms))
        yield f"{start} --> {end}\n{voice}{cue.text}\n\n"


def _tsv(transcript: Transcript) -> Iterator[str]:
    yield "start\tend\ttext\n"
    for segment in transcript.segments:
        yield f"{round(1000 * segment.start_s)}\t{round(1000 * segment.end_s)}\t{one_line(segment.text)}\n"


def _rttm(transcript: Transcript) -> Iterator[str]:
    for turn in transcript.turns:
        start_ms, end_ms = round(1000 * turn.start_s), round(1000 * turn.end_s)
        name = re.sub(r"\s", "_", one_line(turn.speaker))  # fields end at spaces
        times = f"{start_ms / 1000:.3f} {(end_ms - start_ms) / 1000:.3f}"
        yield f"SPEAKER audio 1 {times} <NA> <NA> {name} <NA> <NA>\n"


def _prefix(speaker: str | None) -> str:
    return f"[{one_line(speaker)}]: " if speaker else ""


def _escaped(text: str) -> str:
    return escape(text, quote=False)


def _clock(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{ms:03d}"
