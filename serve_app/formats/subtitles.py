"""The cues of a transcript: which words stand together, on which lines, from when to when.

Options are those of whisperx's command line (`--max_line_width`, `--max_line_count`, `--highlight_words`).
Its writer, however, exceeds the width by the spaces, mixes speakers in a cue, drops segments without words,
misplaces spaces and line breaks in Chinese and Japanese, and writes cues that end before they start. Where
lines are counted it fills cues completely, so that they end in mid-sentence; here they end with a sentence
if it fits, else at a pause or a comma, as subtitle guidelines (BBC, Netflix) want it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

import regex

from serve_app.formats.cue_words import CueWord, by_start, is_aligned, words_to_show
from serve_app.transcript import Segment, Transcript

# Between the starts of two words, where lines are counted:
LONG_PAUSE_S = 3.0  # ends a cue
PAUSE_S = 1.0  # ends one after a sentence, and is a good place to cut a sentence that does not fit
DEFAULT_LINE_CHARS = 1000  # as in whisperx

_QUOTES = r"[\"'”’»)\]」』]*$"
_SENTENCE_END = re.compile(rf"[!?…]{_QUOTES}")
_FULL_STOP = re.compile(rf"[.!?…]{_QUOTES}")
COMMA = re.compile(rf"[,;:،؛、，；：､၊፣፤፥՝៖–—]{_QUOTES}")
# Of scripts whose words ICU finds by a dictionary, which does not know all of them.
_IN_DICTIONARY = regex.compile(r"\p{LB=SA}\X*")


@dataclass(frozen=True)
class SubtitleLayout:
    """How subtitles are laid out; whisperx's options of the same names."""

    max_line_width: int | None = None  # characters in a line, without the speaker's prefix
    max_line_count: int | None = None  # lines in a cue, which then holds sentences that fit
    highlight_words: bool = False  # one cue per word, which is underlined in it
    names_speakers: bool = True
    speakers_overlap: bool = False  # each has a channel: cues are then by their starts


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown from `start_ms` until `end_ms`. `text` has a newline between its lines."""

    start_ms: int
    end_ms: int
    text: str
    speaker: str | None


_Lines = list[list[CueWord]]  # of one cue


def cues(transcript: Transcript, layout: SubtitleLayout, escaped: Callable[[str], str] = str) -> list[Cue]:
    """The cues in order. `escaped` is applied to every word, not to the `<u>` around a highlighted one."""

    def sharing(segment: Segment) -> tuple[str | None, int]:  # equal for neighbours that share cues
        return segment.speaker, 0 if layout.max_line_count and is_aligned(segment) else id(segment)

    def cues_of(run: Iterable[Segment], speaker: str | None) -> Iterator[Cue]:
        words = [word for segment in run for word in words_to_show(segment, transcript.language)]
        for lines in _laid_out(words, layout):
            shown = [word for line in lines for word in line]
            start_ms, end_ms = _span_ms(shown)
            timed = [word for word in shown if word.start_s is not None]
            if not (layout.highlight_words and timed and is_aligned(timed[0].segment)):
                yield Cue(start_ms, end_ms, _text(lines, escaped), speaker)
                continue
            for word in timed:
                word_start_ms, word_end_ms = _span_ms([word])
                if word_start_ms > start_ms:
                    yield Cue(start_ms, word_start_ms, _text(lines, escaped), speaker)
                yield Cue(word_start_ms, word_end_ms, _text(lines, escaped, word), speaker)
                start_ms = word_end_ms

    runs = (
        cues_of(run, speaker if layout.names_speakers else None)
        for (speaker, _), run in groupby(transcript.segments, sharing)
    )
    return (
        by_start(runs, lambda cue: cue.start_ms)
        if layout.speakers_overlap
        else list(chain.from_iterable(runs))
    )


def _text(lines: _Lines, escaped: Callable[[str], str], underlined: CueWord | None = None) -> str:
    def shown(word: CueWord, line: list[CueWord]) -> str:
        text = f"<u>{escaped(word.text)}</u>" if word is underlined else escaped(word.text)
        return f" {text}" if word.has_space and word is not line[0] else text

    return "\n".join("".join(shown(word, line) for word in line) for line in lines)


def _laid_out(words: Sequence[CueWord], layout: SubtitleLayout) -> Iterator[_Lines]:
    """The lines of each cue: all of them, or if lines are counted, sentences as they fit.

    A cue then ends with a sentence; short ones without a pause between them share one.
    """
    width = layout.max_line_width or DEFAULT_LINE_CHARS
    if layout.max_line_count is None:
        if words:
            yield _lines(words, width)
        return
    cue: _Lines = []
    for sentence in _sentences(words):
        parts = _parts(sentence, width, layout.max_line_count)
        joined = _lines(sentence, width, cue)
        fits = len(parts) == 1 and len(joined) <= layout.max_line_count
        if cue and fits and _pause_s(cue[-1][-1], sentence[0]) <= PAUSE_S:
            cue = joined
            continue
        yield from [cue] * bool(cue) + [_lines(part, width) for part in parts[:-1]]
        cue = _lines(parts[-1], width)
    if cue:
        yield cue


def _lines(words: Sequence[CueWord], width: int, begun: _Lines | None = None) -> _Lines:
    """Each line holds as many units as fit; one that is too long has a line of its own."""
    lines = [*begun[:-1], [*begun[-1]]] if begun else []
    used = _length(lines[-1]) if lines else 0
    for unit in _units(words, width):
        used += unit[0].has_space + _length(unit)
        if lines and used <= width:
            lines[-1] += unit
        else:
            lines.append([*unit])
            used = _length(unit)
    return lines


def _length(words: Sequence[CueWord]) -> int:
    return sum(word.has_space + len(word.text) for word in words) - words[0].has_space


def _units(words: Sequence[CueWord], width: int) -> Iterator[list[CueWord]]:
    """Words that stay on one line, as do the digits of a number in Chinese, where every letter is a word."""
    unit: list[CueWord] = []
    for word in [*words, None]:
        if unit and (word is None or word.can_begin_line):
            is_cut = _length(unit) > width and all(_IN_DICTIONARY.match(each.text) for each in unit)
            yield from [[each] for each in unit] if is_cut else [unit]
            unit = []
        if word:
            unit.append(word)


def _pause_s(before: CueWord, after: CueWord) -> float:
    """From start to start, since a word's end is often the next one's start, whatever was between them."""
    return 0.0 if before.start_s is None or after.start_s is None else after.start_s - before.start_s


def _sentences(words: Sequence[CueWord]) -> Iterator[list[CueWord]]:
    """Segments, which end where their text says or a window does, and what is between two long pauses.

    A full stop within an aligned segment is an abbreviation's; all other segments hold many sentences.
    """
    sentence: list[CueWord] = []
    timed = words[0] if words else None  # the last word with times
    for word in words:
        if sentence and timed and word.can_begin_line:
            before = sentence[-1]
            end = _SENTENCE_END if is_aligned(before.segment) else _FULL_STOP
            is_long_pause = _pause_s(timed, word) > LONG_PAUSE_S
            is_end = word.begins_sentence or (word.has_space and end.search(before.text))
            if word.segment is not before.segment or is_end or is_long_pause:
                yield sentence
                sentence = []
        sentence.append(word)
        timed = timed if word.start_s is None else word
    if sentence:
        yield sentence


def _parts(sentence: list[CueWord], width: int, max_lines: int) -> list[list[CueWord]]:
    """The sentence cut into cues: few, about equally full, and cut at a pause or a comma if there is one."""
    units = list(_units(sentence, width))
    lengths = [_length(unit) for unit in units]
    # For each number of units from the first: the least cost, and where the last cue begins.
    best = [(0.0, 0)] + [(float("inf"), 0)] * len(units)
    for begin in range(len(units)):
        lines, used, total = 1, 0, 0
        for end in range(begin, len(units)):
            length = (end > begin and units[end][0].has_space) + lengths[end]
            used, total = used + length, total + length
            if end > begin and used > width:
                lines, used = lines + 1, lengths[end]
            if end > begin and lines > max_lines:
                break
            unused = max(0.0, 1 - total / (width * max_lines))
            cut = _cut_cost(units[end][-1], units[end + 1][0]) if end + 1 < len(units) else 0.0
            best[end + 1] = min(best[end + 1], (best[begin][0] + 1 + unused**2 + cut, begin))
    parts, end = [], len(units)
    while end:
        begin = best[end][1]
        parts.append([word for unit in units[begin:end] for word in unit])
        end = begin
    return parts[::-1]


def _cut_cost(before: CueWord, after: CueWord) -> float:
    """What a cut between two words of a sentence costs, in cues."""
    if _pause_s(before, after) > PAUSE_S:
        return 0.2
    return 0.5 if COMMA.search(before.text) else 1.5


def _span_ms(words: Sequence[CueWord]) -> tuple[int, int]:
    """From the first word to the last; WebVTT requires the end to be after the start."""
    start_s = min((w.start_s for w in words if w.start_s is not None), default=words[0].segment.start_s)
    end_s = max((w.end_s for w in words if w.end_s is not None), default=words[0].segment.end_s)
    return round(1000 * start_s), max(round(1000 * end_s), round(1000 * start_s) + 1)
