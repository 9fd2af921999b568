"""Times of a stretch as times of the file that it was cut from.

Stages count seconds from where the stretch begins; a caller knows nothing of that. Times that are moved are
rounded to the millisecond, as those of words are.
"""

from dataclasses import replace
from typing import overload

from serve_app.transcript import Diarization, Segment, Turn, Window, Word


def moved_window(window: Window, by_s: float) -> Window:
    """The window, so much later."""
    return Window(_later(window.start_s, by_s), _later(window.end_s, by_s)) if by_s else window


def moved_segment(segment: Segment, by_s: float) -> Segment:
    """The segment and its words, so much later."""
    if not by_s:
        return segment
    words = tuple(_moved(word, by_s) for word in segment.words)
    start_s, end_s = _later(segment.start_s, by_s), _later(segment.end_s, by_s)
    return replace(segment, start_s=start_s, end_s=end_s, words=words)


def moved_turns(diarization: Diarization, by_s: float) -> Diarization:
    """All turns, so much later."""
    if not by_s:
        return diarization

    def moved(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
        return tuple(
            replace(turn, start_s=_later(turn.start_s, by_s), end_s=_later(turn.end_s, by_s))
            for turn in turns
        )

    exclusive = moved(diarization.exclusive_turns)
    return replace(diarization, turns=moved(diarization.turns), exclusive_turns=exclusive)


def _moved(word: Word, by_s: float) -> Word:
    chars = tuple(
        char._replace(start_s=_later(char.start_s, by_s), end_s=_later(char.end_s, by_s))
        for char in word.chars
    )
    return replace(word, start_s=_later(word.start_s, by_s), end_s=_later(word.end_s, by_s), chars=chars)


@overload
def _later(at_s: float, by_s: float) -> float: ...
@overload
def _later(at_s: None, by_s: float) -> None: ...
def _later(at_s: float | None, by_s: float) -> float | None:
    return None if at_s is None else round(at_s + by_s, 3)
