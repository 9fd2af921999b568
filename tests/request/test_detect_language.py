"""The language of a file alone: which windows vote, what is not done, and what it costs."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeAudio, FakeStages, recording
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.audio import Selection, Source
from serve_app.errors import InvalidRequest, UnusableAudio
from serve_app.options import Options
from serve_app.request.pipeline import transcribe
from serve_app.request.without_text import DetectedLanguage, detect_language
from serve_app.stage_requests import SpeechSearch

SOURCE = Source(url="http://example/x.mp3")


def detect(fake: FakeStages) -> DetectedLanguage:
    return asyncio.run(detect_language(fake.stages(), SOURCE, Options()))


def test_windows_of_speech_vote_not_the_beginning() -> None:
    """Music and titles at the start have no say: whisper-asr-webservice listens to the first 30 s alone."""
    fake = FakeStages(recording(*[0] * 40, 1, 2, 3), languages={40.0: "de", 41.0: "de", 42.0: "en"})
    found = detect(fake)
    assert found.code == "de"
    assert found.confidence == pytest.approx(2 / 3 * 0.8)


def test_it_is_one_of_the_languages_that_it_may_be() -> None:
    """However likely another one is."""
    fake = FakeStages(recording(1, 2, 3), languages={0.0: "nl", 1.0: "de", 2.0: "nl"})
    found = asyncio.run(detect_language(fake.stages(), SOURCE, Options(languages=("de", "en"))))
    assert found.code == "de"
    assert found.confidence == pytest.approx((0.1 + 0.8 + 0.1) / 3)


def test_nothing_is_recognised_aligned_or_diarized() -> None:
    """A language costs an encoder's pass for each voter, and no text."""
    fake = FakeStages(recording(1, 2, 0, 3))
    assert detect(fake).code == "en"
    assert fake.calls == {"load": 1, "speech": 4, "language": 3}


def test_the_rest_of_the_file_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour's film is decoded and searched only until four windows are found."""
    fake, read = FakeStages(recording(1, 0, 2, 3, 4, *[5] * 100)), list[float]()
    parts = FakeAudio.parts

    async def counted(audio: FakeAudio) -> Any:
        async for part in parts(audio):
            read.append(part.end_s)
            yield part

    monkeypatch.setattr(FakeAudio, "parts", counted)
    assert detect(fake).code == "en"
    assert fake.calls["language"] == 4
    assert read[-1] == 5.0


def test_a_stretch_of_a_file_has_its_own_language() -> None:
    """The loader is told which; speech is found as it is for a transcription."""
    fake, read = FakeStages(recording(*range(1, 9))), list[Source]()
    stages = fake.stages()

    def load(source: Source) -> Any:
        read.append(source)
        return stages.load(source)

    asked = Options(start_s=3, end_s=9, track=1, vad_onset=0.9)
    asyncio.run(detect_language(replace(stages, load=load), SOURCE, asked))
    assert [source.selection for source in read] == [Selection(3.0, 9.0, 1, False)]
    assert set(fake.searches) == {SpeechSearch(0.9)}


def test_without_speech_there_is_no_language() -> None:
    """None is invented, and no model of language is asked."""
    fake = FakeStages(recording(0, 0))
    assert detect(fake) == DetectedLanguage(None, 0.0)
    assert fake.calls["language"] == 0


@pytest.mark.parametrize(
    ("stage", "error"), [("load", UnusableAudio("broken")), ("language", InvalidRequest("English-only"))]
)
def test_errors_are_raised_as_they_are(stage: str, error: Exception) -> None:
    """The caller gets the sentence, not a group of errors."""
    with pytest.raises(type(error), match=str(error)):
        detect(FakeStages(recording(1, 2), fail={stage: error}))


voice = st.tuples(st.sampled_from(["de", "en", "fr"]), st.floats(0.1, 0.89))


@given(st.lists(voice, min_size=1, max_size=6))
@settings(max_examples=40)
def test_a_transcription_would_take_the_same_language(heard: list[tuple[str, float]]) -> None:
    """What is detected alone is what a request without `language` is transcribed in."""
    fake = FakeStages(recording(*range(1, len(heard) + 1)))
    fake.languages = {float(second): language for second, (language, _) in enumerate(heard)}
    fake.certainties = {float(second): certainty for second, (_, certainty) in enumerate(heard)}
    transcript = asyncio.run(transcribe(fake.stages(), SOURCE, Options(diarize=False)))
    assert detect(fake).code == transcript.language
