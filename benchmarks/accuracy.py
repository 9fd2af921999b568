"""How right an answer is: word errors, word times and speaker turns against a recording's truth."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jiwer
import numpy as np
from scipy.optimize import linear_sum_assignment

from benchmarks.truth import Recording, TrueTurn

COLLAR_S = 0.25  # pyannote.metrics' collar: this much in all around each boundary of the truth is not scored

# Numbers that other models write in digits; the recordings' words are spelled out.
_DIGITS = {
    "0": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six", "7": "seven",
    "8": "eight", "9": "nine", "10": "ten", "11": "eleven", "12": "twelve", "20": "twenty", "30": "thirty",
    "50": "fifty", "100": "hundred", "1000": "thousand",
}  # fmt: skip


def tokens_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation, known numbers spelled out."""
    return [_DIGITS.get(token, token) for token in re.findall(r"[a-z']+|\d+", text.lower().replace(",", ""))]


@dataclass
class Score:
    """Counts that add up over recordings. Times are in seconds, errors by the voice that spoke the word."""

    errors: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)
    start_errors_s: list[float] = field(default_factory=list)
    diarization_errors_s: float = 0.0
    spoken_s: float = 0.0
    wrong_speakers: int = 0  # words in a segment of somebody else
    wrong_speakers_unsplit: int = 0  # the same without splitting sentences
    attributed: int = 0  # words that were recognised, rightly or as another word

    @property
    def wrong_speaker(self) -> float:
        return self.wrong_speakers / self.attributed if self.attributed else float("nan")

    @property
    def wrong_speaker_unsplit(self) -> float:
        return self.wrong_speakers_unsplit / self.attributed if self.attributed else float("nan")

    @property
    def wer(self) -> float:
        return self.errors.total() / max(1, self.words.total())

    @property
    def der(self) -> float:
        return self.diarization_errors_s / self.spoken_s if self.spoken_s else float("nan")

    def start_ms(self, percentile: float) -> float:
        if not self.start_errors_s:
            return float("nan")
        return 1000 * float(np.percentile(self.start_errors_s, percentile))


def total(scores: Iterable[Score]) -> Score:
    """The scores of several recordings as one."""
    whole = Score()
    for score in scores:
        whole.errors += score.errors
        whole.words += score.words
        whole.start_errors_s += score.start_errors_s
        whole.diarization_errors_s += score.diarization_errors_s
        whole.spoken_s += score.spoken_s
        whole.wrong_speakers += score.wrong_speakers
        whole.wrong_speakers_unsplit += score.wrong_speakers_unsplit
        whole.attributed += score.attributed
    return whole


def score(
    recording: Recording,
    segments: Sequence[dict[str, Any]],
    turns: Sequence[TrueTurn],
    unsplit: Sequence[dict[str, Any]] | None = None,
) -> Score:
    """Compares segments with words, as whisperx and `/predict` give them, and speaker turns.

    A word's start counts where the word was recognised and the synthesizer knows its time. `unsplit` are
    the segments before sentences of two speakers were split; None where nothing was.
    """
    said = [(token, word.get("start")) for segment in segments for token, word in _tokens(segment)]
    found = Score(words=Counter(word.speaker for word in recording.words))
    for chunk in _alignment(recording, [token for token, _ in said]):
        true_words = recording.words[chunk.ref_start_idx : chunk.ref_end_idx]
        if chunk.type == "equal":
            heard = said[chunk.hyp_start_idx : chunk.hyp_end_idx]
            found.start_errors_s += [
                abs(start_s - true.start_s)
                for true, (_, start_s) in zip(true_words, heard, strict=True)
                if true.exact and start_s is not None
            ]
        elif chunk.type == "insert":  # an error of the voice that spoke last
            speaker = recording.words[max(0, chunk.ref_start_idx - 1)].speaker
            found.errors[speaker] += chunk.hyp_end_idx - chunk.hyp_start_idx
        else:
            found.errors.update(word.speaker for word in true_words)
    found.diarization_errors_s, found.spoken_s = diarization_errors(
        recording.turns, turns, recording.duration_s
    )
    found.wrong_speakers, found.attributed = speaker_errors(recording, segments)
    found.wrong_speakers_unsplit, _ = speaker_errors(recording, segments if unsplit is None else unsplit)
    return found


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


def diarization_errors(
    truth: Sequence[TrueTurn], turns: Sequence[TrueTurn], duration_s: float, collar_s: float = COLLAR_S
) -> tuple[float, float]:
    """Seconds wrong (missed, false alarm, confused) and spoken, by pyannote.metrics, overlap counted."""
    from pyannote.core import Annotation, Segment, Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    def annotation(spans: Sequence[TrueTurn]) -> Annotation:
        made = Annotation()
        for number, turn in enumerate(spans):
            made[Segment(turn.start_s, turn.end_s), number] = turn.speaker
        return made

    parts = DiarizationErrorRate(collar=collar_s)(
        annotation(truth), annotation(turns), uem=Timeline([Segment(0, duration_s)]), detailed=True
    )
    return parts["missed detection"] + parts["false alarm"] + parts["confusion"], parts["total"]
