"""Speakers alone: the turns of a transcription without its text, and what becomes of failures."""

import asyncio
from typing import Any

import pytest
from fakes import FakeStages, data_url, recording
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.audio import Selection, Source
from serve_app.errors import InvalidRequest, Overloaded, UnusableAudio
from serve_app.formats.table import FORMATS
from serve_app.options import Options
from serve_app.request.pipeline import transcribe
from serve_app.request.without_text import diarize
from serve_app.transcript import Transcript, Voices

SOURCE = Source(url="http://example/x.mp3")
ADA = data_url(recording(1, 1).tobytes())  # a clip of the one who says odd numbers
BOB = data_url(recording(4, 4).tobytes())
KNOWN = {"known_speaker_names": ("Ada",), "known_speaker_references": (ADA,)}


def found(fake: FakeStages, **options: Any) -> Transcript:
    return asyncio.run(diarize(fake.stages(), SOURCE, Options(**options)))


def test_no_window_is_looked_for_or_transcribed() -> None:
    """The file is decoded and diarized, and that is all."""
    fake = FakeStages(recording(1, 2, 0, 3))
    answer = found(fake)
    assert fake.calls == {"load": 1, "diarize": 1}
    assert [(turn.start_s, turn.speaker) for turn in answer.turns] == [
        (0.0, "SPEAKER_01"),
        (1.0, "SPEAKER_00"),
        (3.0, "SPEAKER_01"),
    ]
    assert answer.exclusive_turns == answer.turns
    assert (answer.segments, answer.language, answer.duration_s, answer.voices) == ((), None, 4.0, None)
    assert {"diarization", "total"} <= set(answer.timings)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.booleans())
@settings(max_examples=40)
def test_the_turns_are_those_of_a_transcription(spoken: list[int], knows: bool) -> None:
    """The same RTTM as `/predict` has for the file, with and without a known speaker."""
    options = Options(response_format="rttm", **(KNOWN if knows else {}))
    write = FORMATS["rttm"].write
    assert write
    whole = asyncio.run(transcribe(FakeStages(recording(*spoken)).stages(), SOURCE, options))
    alone = asyncio.run(diarize(FakeStages(recording(*spoken)).stages(), SOURCE, options))
    assert write(alone, options.layout()) == write(whole, options.layout())
    assert alone.warnings == whole.warnings


def test_known_speakers_have_their_names_and_vectors() -> None:
    """One who is not heard is warned about."""
    names, clips = ("Ada", "Bob"), (ADA, BOB)
    answer = found(
        FakeStages(recording(1, 3)),
        embeddings=True,
        known_speaker_names=names,
        known_speaker_references=clips,
    )
    assert {turn.speaker for turn in answer.turns} == {"Ada"}
    assert answer.voices == Voices("fake", 2, {"Ada": (1.0, 0.0)})
    assert [warning.code for warning in answer.warnings] == ["known_speaker_not_found"]


def test_a_stretch_of_the_file_has_the_files_times_and_its_vectors() -> None:
    """Only that stretch is loaded, of the track that was named."""
    fake = FakeStages(recording(*[5] * 10, 1, 2, 3))
    answer = found(fake, start_s=10.0, end_s=12.0, track=1, embeddings=True)
    for turns in (answer.turns, answer.exclusive_turns):
        assert [(turn.start_s, turn.end_s) for turn in turns] == [(10.0, 11.0), (11.0, 12.0)]
    assert answer.voices
    assert answer.voices.vectors == {"SPEAKER_00": (1.0, 0.0), "SPEAKER_01": (1.0, 1.0)}
    assert fake.loaded[0].selection == Selection(10.0, 12.0, 1)


def test_silence_has_no_turns() -> None:
    """That is an answer, not an error; nor is there anything to warn about."""
    answer = found(FakeStages(recording(0, 0)), embeddings=True)
    assert (answer.turns, answer.voices, answer.warnings) == ((), None, ())


def test_without_a_diarizer_there_is_no_answer() -> None:
    """Before anything is loaded."""
    fake = FakeStages(recording(1))
    with pytest.raises(InvalidRequest, match="does not tell speakers apart") as caught:
        asyncio.run(diarize(fake.stages(diarizes=False), SOURCE, Options()))
    assert caught.value.code == "diarization_unavailable"
    assert not fake.calls


@pytest.mark.parametrize(
    ("stage", "error"), [("load", UnusableAudio("broken")), ("diarize", Overloaded("keeps failing"))]
)
def test_a_failure_is_raised_as_it_is(stage: str, error: Exception) -> None:
    """A transcription would go without speakers; here nothing else is wanted."""
    with pytest.raises(type(error), match=str(error)):
        found(FakeStages(recording(1, 2), fail={stage: error}))


def test_a_clip_that_cannot_be_used_is_named() -> None:
    """Its length is looked at before the Diarizer is asked."""
    fake = FakeStages(recording(1, 2))
    with pytest.raises(InvalidRequest, match=r"known_speaker_references\[0\]"):
        found(fake, **KNOWN | {"known_speaker_references": (data_url(recording(1).tobytes()),)})
    assert fake.calls["diarize"] == 0
