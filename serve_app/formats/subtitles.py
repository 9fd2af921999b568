"""Cues of a transcript: which words stand together, on which lines, from when to when.

The rules are those of whisperx's command line (`--max_line_width`, `--max_line_count`,
`--highlight_words`), whose writer gives the same cues, except where it

- counts a line without the spaces between its words, so that it gets longer than asked for,
- labels a cue over several segments with the speaker of the first one: here a cue ends with its speaker,
- drops a segment without words beside others with words: here it is a cue of its own,
- joins words by spaces in Chinese and Japanese when one of them is highlighted, and else leaves out there
  the spaces that the text has (between Latin words),
- gives cues that end before, or when, they start, which WebVTT forbids.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from serve_app.languages import NO_SPACE_BETWEEN_SENTENCES, NO_SPACE_BETWEEN_WORDS
from serve_app.transcript import Segment, Transcript, Word

LONG_PAUSE_S = 3.0  # between the starts of two words; where lines are counted, a cue ends there
NO_LIMIT = 1000  # characters in a line, as whisperx

# What ends a line for any reader, and other control characters, which none of the formats can hold.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

# What no line may begin with, in scripts without spaces.
_MARKS = ("Mn", "Mc", "Me", "Cf")  # as Unicode calls them
_VOWELS_BEHIND = "\u0e33\u0eb3"  # Thai and Lao am, which are half a mark
_STACKERS = "\u1039\u17d2"  # Myanmar and Khmer: the next consonant stands below the one before


@dataclass(frozen=True)
class SubtitleLayout:
    """How subtitles are laid out; whisperx's options of the same names."""

    max_line_width: int | None = None  # characters in a line, without the speaker's prefix
    max_line_count: int | None = None  # lines in a cue; without max_line_width it says nothing
    highlight_words: bool = False  # a cue for every word, which is underlined in it


PLAIN = SubtitleLayout()


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown from `start_ms` until `end_ms`; lines of `text` end with a newline, but not the last."""

    start_ms: int
    end_ms: int
    text: str
    speaker: str | None


@dataclass(frozen=True, slots=True)
class _Said:
    """A word in a cue; times are None where it could not be aligned."""

    text: str
    start_s: float | None
    end_s: float | None
    spaced: bool  # a space stands before it, unless it is the first of a line
    segment: Segment


_Lines = list[list[_Said]]  # of one cue


def one_line(text: str) -> str:
    """The text without control characters and ends of lines: a space stands where some were."""
    return _CONTROL.sub(" ", text).strip()


def words_of(segment: Segment, language: str | None) -> tuple[Word, ...]:
    """The segment's words; where it was not aligned, its text in words without times and scores."""
    if segment.words:
        return segment.words
    texts = segment.text.split()
    if language in NO_SPACE_BETWEEN_WORDS:
        texts = [character for text in texts for character in _characters(text)]
    return tuple(Word(text, speaker=segment.speaker) for text in texts)


def _characters(text: str) -> list[str]:
    """Characters as they are read: each with the marks on it, and what is written below another with that."""
    found: list[str] = []
    for character in text:
        is_mark = unicodedata.category(character) in _MARKS or character in _VOWELS_BEHIND
        if found and (is_mark or found[-1][-1] in _STACKERS):
            found[-1] += character
        else:
            found.append(character)
    return found


def cues(
    transcript: Transcript, layout: SubtitleLayout, escaped: Callable[[str], str] = lambda text: text
) -> Iterator[Cue]:
    """The cues in order. `escaped` is applied to every word, not to the `<u>` around a highlighted one."""

    def text(lines: _Lines, underlined: _Said | None = None) -> str:
        shown = ""
        for line in lines:
            for word in line:
                if word is line[0]:
                    shown += "\n" if shown else ""
                elif word.spaced:
                    shown += " "
                shown += f"<u>{escaped(word.text)}</u>" if word is underlined else escaped(word.text)
        return shown

    for run in _runs(transcript.segments):
        aligned = _aligned(run[0])
        said = [word for segment in run for word in _said(segment, transcript.language)]
        for lines in _laid_out(said, layout):
            speaker, (start_ms, end_ms) = run[0].speaker, _span_ms(lines)
            timed = [word for line in lines for word in line if word.start_s is not None]
            if not (layout.highlight_words and aligned and timed):
                yield Cue(start_ms, end_ms, text(lines), speaker)
                continue
            for word in timed:
                word_start_ms, word_end_ms = _span_ms([[word]])
                if word_start_ms > start_ms:
                    yield Cue(start_ms, word_start_ms, text(lines), speaker)
                yield Cue(word_start_ms, word_end_ms, text(lines, word), speaker)
                start_ms = word_end_ms


def _runs(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Segments that may share cues: neighbours with one speaker; one without times of words is alone."""
    run: list[Segment] = []
    for segment in segments:
        if run and not (run[0].speaker == segment.speaker and _aligned(run[0]) and _aligned(segment)):
            yield run
            run = []
        run.append(segment)
    if run:
        yield run


def _aligned(segment: Segment) -> bool:
    return any(word.start_s is not None for word in segment.words)


def _said(segment: Segment, language: str | None) -> list[_Said]:
    """The words to show. Without any times, the segment's own are shared out by the words' lengths."""
    words = [
        _Said(text, word.start_s, word.start_s if word.end_s is None else word.end_s, spaced, segment)
        for word, spaced in _with_spaces(segment, language)
        if (text := one_line(word.text))
    ]
    if _aligned(segment):
        return words
    ends = list(accumulate(len(word.text) for word in words))
    per_character_s = (segment.end_s - segment.start_s) / ends[-1] if words else 0.0
    return [
        _Said(
            word.text,
            segment.start_s + (end - len(word.text)) * per_character_s,
            segment.start_s + end * per_character_s,
            word.spaced,
            segment,
        )
        for word, end in zip(words, ends, strict=True)
    ]


def _with_spaces(segment: Segment, language: str | None) -> Iterator[tuple[Word, bool]]:
    """Each word and whether the text has a space before it; where it cannot be found, as the language has."""
    at = 0
    for word in words_of(segment, language):
        spaced = language not in (NO_SPACE_BETWEEN_WORDS if at else NO_SPACE_BETWEEN_SENTENCES)
        found = segment.text.find(word.text, at)
        between = segment.text[at:found]
        if found >= 0 and at > 0 and not between.strip():
            spaced = bool(between)
        at = found + len(word.text) if found >= 0 else at
        yield word, spaced


def _laid_out(words: Sequence[_Said], layout: SubtitleLayout) -> Iterator[_Lines]:
    """The lines of each cue: of a segment, or where lines are counted of all words that fit."""
    width = layout.max_line_width or NO_LIMIT
    most_lines = layout.max_line_count if layout.max_line_width else None
    lines: _Lines = []
    used = 0  # characters of the last line
    started_s = words[0].segment.start_s if words else 0.0  # the last word with times
    segment: Segment | None = None  # of the last word
    for word in words:
        if most_lines is None:
            full = ended = word.segment is not segment
        else:
            ended = word.start_s is not None and word.start_s - started_s > LONG_PAUSE_S
            full = ended or len(lines) >= most_lines
        length = word.spaced + len(word.text)
        if lines and used + length <= width and not ended:
            lines[-1].append(word)
            used += length
        else:
            if lines and full:
                yield lines
                lines = []
            lines.append([word])
            used = len(word.text)
        started_s = started_s if word.start_s is None else word.start_s
        segment = word.segment
    if lines:
        yield lines


def _span_ms(lines: _Lines) -> tuple[int, int]:
    """From the first word to the last; WebVTT wants the end after the start."""
    words = [word for line in lines for word in line]
    segment = words[0].segment
    starts = [word.start_s for word in words if word.start_s is not None] or [segment.start_s]
    ends = [word.end_s for word in words if word.end_s is not None] or [segment.end_s]
    start_ms = round(1000 * min(starts))
    return start_ms, max(round(1000 * max(ends)), start_ms + 1)
