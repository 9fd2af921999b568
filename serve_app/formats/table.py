"""What each response format can show, and which function writes it.

A new format is one entry here, its name in `FormatName`, and a writer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from serve_app.formats import writers
from serve_app.formats.subtitles import SubtitleLayout
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
    needs_words: bool = False  # words with times are all that it shows
    needs_speakers: bool = False  # speaker turns are all that it shows


_ALL = (
    Format("json", has_words=True),
    Format("text", "text/plain; charset=utf-8", writers.write_text),
    # Not a registered type, but the one that desktops and players know.
    Format("srt", "application/x-subrip; charset=utf-8", writers.write_srt, has_lines=True),
    Format("vtt", "text/vtt; charset=utf-8", writers.write_vtt, has_lines=True),
    Format("tsv", "text/tab-separated-values; charset=utf-8", writers.write_tsv, has_speakers=False),
    # RTTM has no media type of its own.
    Format("rttm", "text/plain; charset=utf-8", writers.write_rttm, needs_speakers=True),
    Format("words", has_words=True, needs_words=True),
)
FORMATS: dict[FormatName, Format] = {entry.name: entry for entry in _ALL}
