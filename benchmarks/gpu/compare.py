"""How far two answers to the same input are from each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from serve_app.transcript import Diarization, Segment, Window, Word

FRAME_S = 0.02  # of Whisper's encoder and of wav2vec2


def relative_error(found: ArrayLike, expected: ArrayLike) -> float:
    """The root mean square of the difference, over that of what is expected."""
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))


@dataclass(frozen=True)
class Words:
    """How many words there are, how many are others or missing, and how many are over a frame away."""

    expected: int = 0
    changed: int = 0
    moved: int = 0
    furthest_s: float = 0.0

    def __add__(self, other: "Words") -> "Words":
        return Words(
            self.expected + other.expected,
            self.changed + other.changed,
            self.moved + other.moved,
            max(self.furthest_s, other.furthest_s),
        )

    @property
    def changed_percent(self) -> float:
        return 100 * self.changed / max(1, self.expected)

    @property
    def moved_percent(self) -> float:
        return 100 * self.moved / max(1, self.expected)


def words_of(segments: Sequence[Segment]) -> list[Word]:
    return [word for segment in segments for word in segment.words]


def compare_words(found: Sequence[Word], expected: Sequence[Word]) -> Words:
    """The words of one window, matched by their text."""
    matcher = SequenceMatcher(None, [w.text for w in expected], [w.text for w in found], autojunk=False)
    pairs = [
        (expected[block.a + n], found[block.b + n])
        for block in matcher.get_matching_blocks()
        for n in range(block.size)
    ]
    apart_s = [_apart_s(one, other) for one, other in pairs]
    return Words(
        expected=len(expected),
        changed=max(len(expected), len(found)) - len(pairs),
        moved=sum(seconds > FRAME_S + 1e-6 for seconds in apart_s),
        furthest_s=max(apart_s, default=0.0),
    )


def _apart_s(one: Word, other: Word) -> float:
    """0 for two words without times, infinity where only one has them."""
    if one.start_s is None or other.start_s is None or one.end_s is None or other.end_s is None:
        return 0.0 if one.start_s is other.start_s else float("inf")
    return max(abs(one.start_s - other.start_s), abs(one.end_s - other.end_s))


def window_edges_apart_s(found: Sequence[Window], expected: Sequence[Window]) -> float:
    """The furthest that a window's start or end has moved; infinity where there are more or fewer."""
    if len(found) != len(expected):
        return float("inf")
    edges = zip(found, expected, strict=True)
    return max((max(abs(a.start_s - b.start_s), abs(a.end_s - b.end_s)) for a, b in edges), default=0.0)


def speakers_differ_percent(found: Diarization, expected: Diarization) -> float:
    """pyannote's diarization error rate, in percent, taking `expected` for the truth."""
    from pyannote.core import Timeline
    from pyannote.metrics.diarization import DiarizationErrorRate

    if not expected.turns:
        return 0.0 if not found.turns else 100.0
    truth, answer = _annotation(expected), _annotation(found)
    scored = truth.get_timeline().extent() | answer.get_timeline().extent()
    return 100 * float(DiarizationErrorRate()(truth, answer, uem=Timeline([scored])))


def _annotation(diarization: Diarization) -> Any:
    from pyannote.core import Annotation
    from pyannote.core import Segment as Span

    annotation = Annotation()
    for number, turn in enumerate(diarization.turns):
        annotation[Span(turn.start_s, turn.end_s), number] = turn.speaker
    return annotation
