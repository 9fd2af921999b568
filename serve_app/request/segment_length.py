"""Splits segments that are longer than a request wants: between words, best at a pause or before a clause."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from serve_app.formats.cue_words import times_by_length, word_starts, words_of
from serve_app.formats.subtitles import COMMA
from serve_app.languages import NO_SPACE_BETWEEN_WORDS
from serve_app.transcript import Segment, Word

# A word's end is often the next one's start, whatever was between them, so a pause is what is left from one
# start to the next after the time that so many characters take.
CHARACTER_S = 0.08
# What a cut costs, in segments: where there is no pause, with one of so long half of that, and so on.
CUT, HALVING_PAUSE_S = 1.0, 0.2
AFTER_COMMA = 0.3  # of it


@dataclass(frozen=True, slots=True)
class _Unit:
    """A word with times, and those without that follow it."""

    start_s: float
    end_s: float
    text: str  # as it stands in the segment, with the space behind it
    words: tuple[Word, ...]  # none where the times are only estimated


def shortened(segments: Sequence[Segment], longest_s: float) -> tuple[Segment, ...]:
    """The segments, split where they are longer; a single word that is longer stays.

    Where a segment has no words, its time is divided by the lengths of those in its text.
    """
    return tuple(part for segment in segments for part in _parts(segment, longest_s))


def _parts(segment: Segment, longest_s: float) -> list[Segment]:
    if segment.end_s - segment.start_s <= longest_s:
        return [segment]
    parts = []
    for units in _split(_units(segment), longest_s):
        text = "".join(unit.text for unit in units).strip()
        start_s, end_s = _span_s(units)
        words = tuple(word for unit in units for word in unit.words)
        parts.append(replace(segment, start_s=start_s, end_s=end_s, text=text, words=words))
    return parts or [segment]


def _units(segment: Segment) -> list[_Unit]:
    """The words of a segment, or those of its text, with the text between them."""
    spoken = words_of(segment, None)
    spans = [(word.start_s, word.end_s) for word in spoken]
    if all(None in span for span in spans):
        spans = [*times_by_length(segment, spoken)]
    units: list[_Unit] = []
    before: tuple[str, tuple[Word, ...]] = ("", ())  # words without times, before the first that has some
    for word, (start_s, end_s), text in zip(spoken, spans, _with_spaces(segment, spoken), strict=True):
        words = (word,) if segment.words else ()
        if start_s is not None and end_s is not None:
            units.append(_Unit(start_s, max(start_s, end_s), before[0] + text, before[1] + words))
            before = ("", ())
        elif units:
            units[-1] = replace(units[-1], text=units[-1].text + text, words=units[-1].words + words)
        else:
            before = (before[0] + text, before[1] + words)
    return units


def _with_spaces(segment: Segment, words: Sequence[Word]) -> list[str]:
    """Each word with what is behind it in the text; with a space, by language, where the text has it not."""
    starts = word_starts(segment.text, words)
    if -1 in starts:
        language = segment.source_text.language if segment.source_text else None
        return [f"{each.text}{'' if language in NO_SPACE_BETWEEN_WORDS else ' '}" for each in words]
    edges = [0, *starts[1:], len(segment.text)]
    return [segment.text[first:last] for first, last in pairwise(edges)] if words else []


def _split(units: Sequence[_Unit], longest_s: float) -> list[Sequence[_Unit]]:
    """The units in few parts, about equally long, with the least costly cuts."""
    # For each number of units from the first: the least cost, and where the last part begins.
    best = [(0.0, 0)] + [(float("inf"), 0)] * len(units)
    for begin in range(len(units)):
        start_s, end_s = units[begin].start_s, units[begin].end_s
        for end in range(begin, len(units)):
            start_s, end_s = min(start_s, units[end].start_s), max(end_s, units[end].end_s)
            if end > begin and end_s - start_s > longest_s:
                break
            unused = max(0.0, 1 - (end_s - start_s) / longest_s)
            cut = _cut_cost(units[end], units[end + 1]) if end + 1 < len(units) else 0.0
            best[end + 1] = min(best[end + 1], (best[begin][0] + 1 + unused**2 + cut, begin))
    parts, end = list[Sequence[_Unit]](), len(units)
    while end:
        parts.append(units[best[end][1] : end])
        end = best[end][1]
    return parts[::-1]


def _cut_cost(before: _Unit, after: _Unit) -> float:
    pause_s = max(0.0, after.start_s - before.start_s - CHARACTER_S * len(before.text))
    cost = CUT / (1 + pause_s / HALVING_PAUSE_S)
    return cost * AFTER_COMMA if COMMA.search(before.text.strip()) else cost


def _span_s(units: Sequence[_Unit]) -> tuple[float, float]:
    return min(unit.start_s for unit in units), max(unit.end_s for unit in units)
