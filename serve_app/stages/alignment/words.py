"""Times of letters to words and sentences, whichever method found them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import regex

from serve_app.languages import LANGUAGES_WITHOUT_SPACES, NO_SPACE_BETWEEN_WORDS
from serve_app.transcript import Character, Segment, Word

_CHARACTER = regex.compile(r"\X", regex.DOTALL)


class LetterTime(NamedTuple):
    """When a character is spoken, in seconds from the start of the file, and its mean probability."""

    start_s: float
    end_s: float
    score: float


def fill_nearest(values: Sequence[float | None]) -> list[float | None]:
    """Replaces None by the nearest known value, the earlier one if two are equally near; all None stays None.

    This equals whisperx's `interpolate_nans(method="nearest")` (pandas and scipy).
    """
    known = [i for i, value in enumerate(values) if value is not None]
    if len(known) in (0, len(values)):
        return list(values)
    return [values[min(known, key=lambda k: (abs(k - i), k))] for i in range(len(values))]


def word_ranges(text: str, language: str) -> list[tuple[int, int]]:
    """The (first, end) positions of every word with its leading space; together they cover the text.

    Where no spaces are written every character is a word, with the marks that belong to it.
    """
    if language in NO_SPACE_BETWEEN_WORDS:
        return [found.span() for found in _CHARACTER.finditer(text)]
    ends = [i + 1 for i in range(len(text)) if i + 1 == len(text) or text[i + 1] == " "]
    return list(zip([0, *ends], ends, strict=False))


def characters(text: str, positions: Iterable[int], times: Mapping[int, LetterTime]) -> tuple[Character, ...]:
    """The characters at these positions, with the times of those that have some."""
    return tuple(Character(text[i], *times.get(i, ())) for i in positions if not text[i].isspace())


def _word(text: str, positions: range, times: Mapping[int, LetterTime], *, has_chars: bool) -> Word | None:
    """The word at these positions, with None for unknown times and score; None for white space."""
    name = text[positions.start : positions.stop].strip() if positions else ""
    if not name:
        return None
    printed = [i for i in positions if text[i] != " "]
    found = [times[i] for i in printed if i in times]
    chars = characters(text, positions, times) if has_chars else ()
    if not found:
        return Word(name, chars=chars)
    # pandas sums with missing values as zeros; numpy's order of summing depends on their places
    total = np.sum([times[i].score if i in times else 0.0 for i in printed])
    score = float(np.round(total / len(found), 3))
    return Word(name, min(f.start_s for f in found), max(f.end_s for f in found), score, chars=chars)


def assemble(
    text: str,
    language: str,
    times: Mapping[int, LetterTime],
    sentences: Sequence[tuple[int, int]],
    avg_logprob: float | None,
    *,
    has_chars: bool = False,
) -> tuple[Segment, ...]:
    """One segment per sentence, in order of time; sentences with equal times become one segment.

    `times` are those of the characters, which words have with `has_chars`; `sentences` are (first, end)
    positions in `text`.
    """
    starts: list[float | None] = []
    ends: list[float | None] = []
    spoken: list[tuple[Word, ...]] = []
    ranges = word_ranges(text, language)
    next_begins = [begin for begin, _ in sentences[1:]] + [len(text)]
    for (begin, end), next_begin in zip(sentences, next_begins, strict=False):
        stop = min(end + 1, next_begin)  # whisperx counts the space after the sentence
        starts.append(min((times[i].start_s for i in range(begin, stop) if i in times), default=None))
        ends.append(
            max((times[i].end_s for i in range(begin, stop) if i in times and text[i] != " "), default=None)
        )
        inside = (range(max(first, begin), min(last, stop)) for first, last in ranges)
        found = [word for place in inside if (word := _word(text, place, times, has_chars=has_chars))]
        filled = fill_nearest([w.start_s for w in found]), fill_nearest([w.end_s for w in found])
        spoken.append(tuple(replace(w, start_s=s, end_s=e) for w, s, e in zip(found, *filled, strict=True)))
    joint = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    segments: dict[tuple[float, float], Segment] = {}
    for (begin, end), start_s, end_s, words in zip(
        sentences, fill_nearest(starts), fill_nearest(ends), spoken, strict=True
    ):
        if start_s is None or end_s is None:
            continue
        segment = Segment(start_s, end_s, text[begin:end], words, avg_logprob=avg_logprob)
        if same := segments.get((start_s, end_s)):
            segment = replace(same, text=f"{same.text}{joint}{segment.text}", words=same.words + words)
        segments[start_s, end_s] = segment
    return tuple(segments[key] for key in sorted(segments))
