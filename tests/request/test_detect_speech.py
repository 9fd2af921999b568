"""Speech alone: which stretches are found, and that nothing else is done."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from fakes import FakeStages, recording
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio import Selection, Source
from serve_app.errors import Overloaded, UnusableAudio
from serve_app.options import Options
from serve_app.request.without_text import DetectedSpeech, append_or_join, detect_speech
from serve_app.transcript import Window

SOURCE = Source(url="http://example/x.mp3")


def found(fake: FakeStages, **options: Any) -> DetectedSpeech:
    return asyncio.run(detect_speech(fake.stages(), SOURCE, Options(**options)))


def test_speech_is_found_in_the_whole_file_and_nothing_is_recognised() -> None:
    """What touches is one stretch: the detector cuts long speech where no pause is."""
    fake = FakeStages(recording(0, 1, 2, 0, 3))
    assert found(fake).segments == (Window(1.0, 3.0), Window(4.0, 5.0))
    assert fake.calls == {"load": 1, "speech": 5}


def test_what_of_the_file_is_wanted_and_how_speech_is_found_is_passed_on() -> None:
    """Times are those of the whole file, as everywhere."""
    fake = FakeStages(recording(*[1] * 10, 0, 1, 2))
    answer = found(fake, start_s=10.0, end_s=12.0, track=1, vad_onset=0.7, vad_min_silence_s=2.0)
    assert answer.segments == (Window(11.0, 12.0),)
    assert fake.loaded[0].selection == Selection(10.0, 12.0, 1)
    assert {(search.onset, search.min_silence_s) for search in fake.searches} == {(0.7, 2.0)}


def test_silence_has_no_speech() -> None:
    """An empty answer, not an error."""
    assert found(FakeStages(recording(0, 0))) == DetectedSpeech((), ())


@pytest.mark.parametrize(
    ("stage", "error"), [("load", UnusableAudio("broken")), ("speech", Overloaded("keeps failing"))]
)
def test_errors_are_raised_as_they_are(stage: str, error: Exception) -> None:
    """The caller gets the sentence."""
    with pytest.raises(type(error), match=str(error)):
        found(FakeStages(recording(1, 2), fail={stage: error}))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=12))
def test_joined_stretches_cover_the_same_time_with_a_pause_between_any_two(
    spans: list[tuple[int, int]],
) -> None:
    """Nothing is lost and nothing is added, however the detector has cut."""
    segments: list[Window] = []
    for start, length in sorted(spans):
        append_or_join(segments, Window(float(start), float(start + length)))
    covered = {moment for start, length in spans for moment in range(start, start + length)}
    assert {m for s in segments for m in range(int(s.start_s), int(s.end_s))} == covered
    assert all(a.end_s < b.start_s for a, b in pairwise(segments))
