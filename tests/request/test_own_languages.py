"""`language: multiple`: each window is written in the language that is heard in it."""

import asyncio
from typing import Any

import pytest
from fakes import FakeStages, recording
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.audio import Source
from serve_app.options import Options
from serve_app.request.language_vote import language_shares
from serve_app.request.pipeline import transcribe
from serve_app.transcript import Transcript

SOURCE = Source(url="http://example/x.mp3")


def run(fake: FakeStages, **options: Any) -> Transcript:
    return asyncio.run(transcribe(fake.stages(), SOURCE, Options(language="multiple", **options)))


def languages_of(transcript: Transcript) -> list[str | None]:
    return [each.source_text.language if each.source_text else None for each in transcript.segments]


def test_no_vote_overrides_a_window() -> None:
    """However uncertain it is, in a file of another language; every window is decoded once."""
    heard = {0.0: "en", 1.0: "de", 2.0: "en", 3.0: "en", 4.0: "fr"}
    fake = FakeStages(recording(1, 2, 3, 4, 5), languages=heard, certainties={1.0: 0.5})
    transcript = run(fake)
    assert languages_of(transcript) == ["en", "de", "en", "en", "fr"]
    assert transcript.language == "en"
    assert language_shares(transcript.segments) == {"en": 0.6, "de": 0.2, "fr": 0.2}
    assert fake.calls["asr"] == 5
    assert {decoding.own_languages for decoding in fake.decodings} == {True}
    assert transcript.warnings == ()


def test_a_language_that_is_a_guess_is_warned_of() -> None:
    """A short window may sound like many; no other window corrects it here."""
    fake = FakeStages(recording(1, 2), languages={0.0: "en", 1.0: "nn"}, certainties={1.0: 0.3})
    [warning] = run(fake).warnings
    assert (warning.code, "1 window (1.0-2.0 s)" in warning.message) == ("language_uncertain", True)
    assert "Name those spoken with `languages`" in warning.message
    [warning] = run(fake, languages=["en", "nn"]).warnings
    assert (warning.code, "Name those" in warning.message) == ("language_uncertain", False)


def test_only_allowed_languages_are_taken() -> None:
    """Of several that are allowed, each window has its likeliest."""
    fake = FakeStages(recording(1, 2), languages={0.0: "de", 1.0: "nl"}, certainties={1.0: 0.9})
    transcript = run(fake, languages=["en", "de"])
    assert languages_of(transcript) == ["de", "en"]


def test_a_translation_is_from_each_windows_own_language() -> None:
    """The text is English, and the languages told are those that are spoken."""
    fake = FakeStages(recording(1, 2, 3), languages={0.0: "de", 1.0: "de", 2.0: "fr"})
    transcript = run(fake, task="translate")
    assert languages_of(transcript) == ["de", "de", "fr"]
    assert transcript.language == "de"


def test_silence_has_no_language() -> None:
    """None is invented."""
    assert run(FakeStages(recording(0, 0))).language is None


@given(st.lists(st.tuples(st.sampled_from(["de", "en", "fr"]), st.floats(0.01, 1)), min_size=1, max_size=7))
@settings(max_examples=40)
def test_the_transcripts_language_is_that_of_most_speech(heard: list[tuple[str, float]]) -> None:
    """Whatever the windows are and however certain; the shares are of all speech."""
    fake = FakeStages(recording(*range(1, len(heard) + 1)))
    fake.languages = {float(second): language for second, (language, _) in enumerate(heard)}
    fake.certainties = {float(second): certainty for second, (_, certainty) in enumerate(heard)}
    transcript = run(fake, diarize=False)
    codes = [code for code, _ in heard]
    assert languages_of(transcript) == codes
    shares = language_shares(transcript.segments)
    assert shares == pytest.approx({code: codes.count(code) / len(codes) for code in codes})
    assert transcript.language == next(iter(shares))
    assert [*shares.values()] == sorted(shares.values(), reverse=True)
