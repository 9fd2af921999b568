"""The words of a segment as they are shown: with times, and with what stands between them."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from operator import itemgetter
from typing import TypeVar

import regex
from icu4py.breakers import LineBreaker

from serve_app.languages import NO_SPACE_BETWEEN_SENTENCES, NO_SPACE_BETWEEN_WORDS
from serve_app.sentence_ends import sentence_ends
from serve_app.transcript import Segment, Transcript, Word

# Line ends of any kind, other control characters and lone surrogates, which none of the formats can hold.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_WORD = re.compile(r"(?:\S|[\xa0\u2007\u202f])+")  # a space that does not break is in it, as in 10 000
# A character as a reader sees it, with its marks and with what is stacked below it: no line begins inside.
_CHARACTER = regex.compile(r"(?!\s)\X\p{M}*")
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class CueWord:
    """A word to lay out; times are None where it could not be aligned."""

    text: str
    start_s: float | None
    end_s: float | None
    has_space: bool  # before it, unless it begins a line
    segment: Segment
    begins_sentence: bool = False  # by the full stop, of another script than Latin, of the word before it
    can_begin_line: bool = (
        True  # by UAX 14; Thai, Lao, Khmer and Burmese words are those of ICU's dictionaries
    )


def one_line(text: str) -> str:
    """The text on one line: spaces replace line ends and other control characters."""
    return _CONTROL.sub(" ", text).strip()


def words_of(segment: Segment, language: str | None) -> tuple[Word, ...]:
    """The segment's words. If it was not aligned, its text is split into words without times and scores."""
    if segment.words:
        return segment.words
    language = segment.source_text.language if segment.source_text else language
    is_spaced = language not in NO_SPACE_BETWEEN_WORDS
    texts = _WORD.findall(segment.text) if is_spaced else _CHARACTER.findall(segment.text)
    return tuple(Word(text, speaker=segment.speaker) for text in texts)


def word_starts(text: str, words: Iterable[Word]) -> list[int]:
    """Where each word begins in the text, one after the other; -1 where it is not found."""
    starts, end = list[int](), 0
    for word in words:
        starts.append(text.find(word.text, end))
        if starts[-1] >= 0:
            end = starts[-1] + len(word.text)
    return starts


def times_by_length(segment: Segment, words: Iterable[Word | CueWord]) -> list[tuple[float, float]]:
    """Times for these words: the segment's time, shared out by their lengths."""
    ends = list(accumulate(len(word.text) for word in words))
    length_s = segment.end_s - segment.start_s
    return list(pairwise(segment.start_s + length_s / ends[-1] * end for end in (0, *ends)))


def by_start(runs: Iterable[Iterable[_Item]], start: Callable[[_Item], float]) -> list[_Item]:
    """The items of all runs by their starts: two people may speak at once, in a run each.

    Those of one run keep their order: one without a start of its own is given that of what it is part of.
    """
    found: list[tuple[float, _Item]] = []
    for run in runs:
        at = float("-inf")
        for item in run:
            at = max(at, start(item))
            found.append((at, item))
    return [item for _, item in sorted(found, key=itemgetter(0))]


def words_by_start(transcript: Transcript) -> list[tuple[Segment, Word]]:
    """All words by their starts, each with its segment."""
    return by_start(
        ([(each, word) for word in words_of(each, transcript.language)] for each in transcript.segments),
        lambda spoken: spoken[0].start_s if spoken[1].start_s is None else spoken[1].start_s,
    )


def is_aligned(segment: Segment) -> bool:
    return any(word.start_s is not None for word in segment.words)


def words_to_show(segment: Segment, language: str | None) -> list[CueWord]:
    """The words that have text. If none has times, the segment's time is divided by their lengths.

    A word has a space before it if the segment's text has one, or where it is not found there, by language.
    """
    language = segment.source_text.language if segment.source_text else language
    spoken, words, at = words_of(segment, language), list[CueWord](), 0
    for word, found in zip(spoken, word_starts(segment.text, spoken), strict=True):
        has_space = language not in (NO_SPACE_BETWEEN_WORDS if at else NO_SPACE_BETWEEN_SENTENCES)
        between = segment.text[at:found]
        if found >= 0 and at > 0 and not between.strip():
            has_space = bool(between)
        at = found + len(word.text) if found >= 0 else at
        if text := one_line(word.text):
            end_s = word.start_s if word.end_s is None else word.end_s
            words.append(CueWord(text, word.start_s, end_s, has_space, segment))
    words = _with_breaks(words)
    if is_aligned(segment) or not words:
        return words
    return [
        replace(word, start_s=start_s, end_s=end_s)
        for word, (start_s, end_s) in zip(words, times_by_length(segment, words), strict=True)
    ]


def _with_breaks(words: Sequence[CueWord]) -> list[CueWord]:
    text, starts = "", []
    for word in words:
        text += " " if word.has_space and text else ""
        starts.append(len(text))
        text += word.text
    sentences = {following for _, following in sentence_ends(text)}
    lines = {0, *accumulate(len(part) for part in LineBreaker(text, "root"))}
    return [
        replace(word, begins_sentence=start in sentences, can_begin_line=start in lines)
        for word, start in zip(words, starts, strict=True)
    ]
