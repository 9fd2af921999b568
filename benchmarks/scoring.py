"""How right an answer about real people is: words, word times, speaker turns."""

import re
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import cache
from typing import Any

import jiwer
import numpy as np

from benchmarks.people import TimedWord, Turn

WITHOUT_SPACES = {"zh", "yue", "ja"}  # counted by character


@dataclass(frozen=True)
class WordErrors:
    """Counts that add up over recordings; in languages without spaces, of characters."""

    words: int = 0  # of the reference
    lost: int = 0
    invented: int = 0
    wrong: int = 0  # another word instead

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def rate(self) -> float | None:
        """The word error rate; None where nothing was to be heard."""
        return (self.lost + self.invented + self.wrong) / self.words if self.words else None


def word_errors(reference: str, said: str, language: str | None) -> WordErrors:
    """jiwer's counts over normalised words."""
    true_tokens, tokens = tokens_of(reference, language), tokens_of(said, language)
    if not true_tokens:  # jiwer refuses an empty reference
        return WordErrors(invented=len(tokens))
    counts = jiwer.process_words(" ".join(true_tokens), " ".join(tokens))
    return WordErrors(len(true_tokens), counts.deletions, counts.insertions, counts.substitutions)


def tokens_of(text: str, language: str | None) -> list[str]:
    """The words as Whisper's normalisers write them, numbers digit by digit; characters for zh and ja.

    Digit by digit, so that "one two three" (which the normaliser makes 123) equals "1, 2, 3" (one 2 3).
    """
    normal = _normalizer(is_english=language == "en")(text)
    if language in WITHOUT_SPACES:
        return [character for character in normal if not character.isspace()]
    if language == "en":
        normal = re.sub(r"\bone\b", "1", normal)
    return re.sub(r"(\d)", r" \1 ", normal).split()


@cache
def _normalizer(*, is_english: bool) -> Any:
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    # Whisper's table of British spellings is not part of the package: "colour" is not "color" here.
    return EnglishTextNormalizer({}) if is_english else BasicTextNormalizer()


@dataclass(frozen=True)
class TimeErrors:
    """Distances from the true times, in milliseconds, of words that were recognised."""

    start_ms: tuple[float, ...] = ()
    end_ms: tuple[float, ...] = ()

    def __add__(self, other: "TimeErrors") -> "TimeErrors":
        return TimeErrors(self.start_ms + other.start_ms, self.end_ms + other.end_ms)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """None where there is no value."""
    return float(np.percentile(values, percent)) if values else None


def time_errors(true_words: Sequence[TimedWord], segments: Sequence[dict[str, Any]]) -> TimeErrors:
    """Compares words that are the same in both; a word without a time counts in `untimed_words` only."""
    said = [(_bare(word["word"]), word) for segment in segments for word in segment.get("words", ())]
    said = [(token, word) for token, word in said if token]
    if not said:
        return TimeErrors()
    reference = " ".join(_bare(word.text) for word in true_words)
    starts, ends = list[float](), list[float]()
    for chunk in jiwer.process_words(reference, " ".join(token for token, _ in said)).alignments[0]:
        if chunk.type != "equal":
            continue
        pairs = zip(
            true_words[chunk.ref_start_idx : chunk.ref_end_idx],
            said[chunk.hyp_start_idx : chunk.hyp_end_idx],
            strict=True,
        )
        for true, (_, word) in pairs:
            if word.get("start") is not None and word.get("end") is not None:
                starts.append(1000 * abs(word["start"] - true.start_s))
                ends.append(1000 * abs(word["end"] - true.end_s))
    return TimeErrors(tuple(starts), tuple(ends))


def _bare(word: str) -> str:
    """The word in lower case, without punctuation and spaces, so that it stays one word."""
    return re.sub(r"[^\w']", "", word.lower())


def untimed_words(segments: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Words without a start and an end, and all words. Segments without `words` have none with a time."""
    words = [
        word
        for segment in segments
        for word in segment.get("words") or [{"word": word} for word in segment["text"].split()]
    ]
    return sum(word.get("start") is None or word.get("end") is None for word in words), len(words)


def diarization_errors(
    truth: Sequence[Turn], turns: Sequence[Turn], duration_s: float, collar_s: float = 0.0
) -> tuple[float, float]:
    """Seconds wrong (missed, false alarm, confused) and spoken, by pyannote.metrics, overlap counted."""
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(spans: Sequence[Turn]) -> Annotation:
        made = Annotation()
        for number, turn in enumerate(spans):
            made[Segment(turn.start_s, turn.end_s), number] = turn.speaker
        return made

    parts = DiarizationErrorRate(collar=collar_s)(
        annotation(truth), annotation(turns), uem=Timeline([Segment(0, duration_s)]), detailed=True
    )
    return parts["missed detection"] + parts["false alarm"] + parts["confusion"], parts["total"]
