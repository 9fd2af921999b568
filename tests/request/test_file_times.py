"""Times of a stretch become those of its file."""

from serve_app.request.file_times import moved_segment, moved_turns, moved_window
from serve_app.transcript import Diarization, Segment, Turn, Window, Word


def test_all_times_are_of_the_file_and_round() -> None:
    """To the millisecond, where a sum of floats has more digits."""
    assert 33.337 + 0.1 != 33.437
    assert moved_window(Window(0.1, 0.2), 33.337) == Window(33.437, 33.537)
    turn = Turn(0.1, 0.2, "A")
    moved = (Turn(33.437, 33.537, "A"),)
    assert moved_turns(Diarization((turn,), (turn,)), 33.337) == Diarization(moved, moved)
    word = Word("a", 0.1, None, 0.9)
    assert moved_segment(Segment(0.1, 0.2, "a", (word,)), 33.337) == Segment(
        33.437, 33.537, "a", (Word("a", 33.437, None, 0.9),)
    )
