"""Words that are wrong or have the wrong speaker in the synthetic recordings."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jiwer
import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.truth import Recording

# Numbers that other models write in digits; the recordings' words are spelled out.
_DIGITS = {
    "0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven",
    "8": "eight", "9": "nine", "10": "ten", "11": "eleven", "12": "twelve", "20": "twenty", "30": "thirty",
    "50": "fifty", "100": "hundred", "1000": "thousand",
}  # fmt: skip


def tokens_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation, known numbers spelled out."""
    return [_DIGITS.get(token, token) for token in re.findall(r"[a-z']+|\d+", text.lower().replace(",", ""))]


def speaker_errors(recording: Recording, segments: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Words in a segment of another speaker than the one who says them, and words that were recognised.

    Speakers are matched to voices so that there are fewest errors. Inserted words do not count.
    """
    said = [(token, segment.get("speaker")) for segment in segments for token, _ in _tokens(segment)]
    pairs = [
        (true.speaker, speaker)
        for chunk in _alignment(recording, [token for token, _ in said])
        if chunk.type in ("equal", "substitute") and said
        for true, (_, speaker) in zip(
            recording.words[chunk.ref_start_idx : chunk.ref_end_idx],
            said[chunk.hyp_start_idx : chunk.hyp_end_idx],
            strict=True,
        )
    ]
    counts = Counter(pairs)
    voices = sorted({voice for voice, _ in pairs})
    speakers = sorted({speaker for _, speaker in pairs if speaker is not None})
    table = np.array([[counts[voice, speaker] for speaker in speakers] for voice in voices])
    right = table[linear_sum_assignment(table, maximize=True)].sum() if speakers else 0
    return len(pairs) - int(right), len(pairs)


def _tokens(segment: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    words = segment.get("words") or [{"word": segment["text"]}]  # not aligned: words without times
    return [(token, word) for word in words for token in tokens_of(word["word"])]


def count_errors(recording: Recording, text: str) -> int:
    """Words of `text` that are wrong, missing or too many."""
    counts = jiwer.process_words(recording.text, " ".join(tokens_of(text)) or "-")
    return int(counts.substitutions + counts.deletions + counts.insertions)


def _alignment(recording: Recording, tokens: Sequence[str]) -> Any:
    return jiwer.process_words(recording.text, " ".join(tokens) or "-").alignments[0]
