"""A call with a speaker on each channel, of real recordings and with real weights: who said which word."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from decoding import decoded, stored
from sounds import encode
from telephone import words_of
from test_attention_models import recognizer_of

from serve_app.audio import AudioInfo, Source
from serve_app.options import Options
from serve_app.request.admission import WindowGate
from serve_app.request.calls import DetectCall, Stages, TranscribeCall
from serve_app.request.pipeline import transcribe
from serve_app.settings import SpeechSettings
from serve_app.stage_requests import AsrRequest, SpeechRequest
from serve_app.stages.audio.decode import decode
from serve_app.stages.speech.detector import load_silero_detector
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Speech, Transcript, WindowText

PEOPLE = SHARED / "people"
FIRST = ("librivox-0870.flac", "librivox-0880.wav", "librivox-0920.wav", "librivox-0930.wav")
SECOND = ("lucier.mp3",)


@dataclass
class Decoded:
    """All parts of a file."""

    found: list[tuple[AudioInfo, Samples]]

    async def parts(self) -> AsyncGenerator[AudioInfo]:
        for info, _ in self.found:
            yield info

    def of(self, channel: int | None) -> Samples:
        whole = np.concatenate([samples for _, samples in self.found], axis=-1)
        return whole if channel is None else whole[channel]


def stages_of(directory: Path) -> Stages:
    """The stages in this process, without a Diarizer and an Aligner."""
    recognizer = recognizer_of(directory)
    detector = load_silero_detector(SpeechSettings(method="silero"), 30.0)

    @asynccontextmanager
    async def load(source: Source) -> AsyncGenerator[Decoded]:
        assert source.file is not None
        decoding = decode(source.file, max_audio_s=600, timeout_s=60, selection=source.selection)
        yield Decoded([part async for part in decoding])

    async def detect(call: DetectCall) -> Speech:
        start_s = call.before.resume_s if call.before else 0.0
        begin, end = (round(at_s * SAMPLE_RATE_HZ) for at_s in (start_s, call.part.end_s))
        samples = call.audio.of(call.channel)[begin:end]
        scan = call.before.scan if call.before else None
        [found] = detector.find_speech([SpeechRequest(samples, start_s, call.part.is_last, scan)])
        assert isinstance(found, Speech)
        return found

    async def recognise(call: TranscribeCall) -> WindowText:
        features = recognizer.features(call.window.cut(call.audio.of(call.channel)))
        length_s = call.window.end_s - call.window.start_s
        request = AsrRequest(features, call.language, call.decoding, call.certain_at, length_s)
        [text] = await asyncio.to_thread(recognizer.transcribe, [request])
        assert isinstance(text, WindowText)
        return WindowText(
            text.text,
            text.language,
            None,
            text.avg_logprob,
            text.no_speech_prob,
            text.compression_ratio,
            sentences=recognizer.sentences(text, call.window, features),
        )

    gate = WindowGate(2)
    return Stages(load, detect, recognise, None, None, directory.name, gate, attention=True)


def recorded(name: str) -> Samples:
    return asyncio.run(decoded((PEOPLE / name).read_bytes(), max_audio_s=600)).samples


def said(names: tuple[str, ...]) -> list[str]:
    rows = [json.loads(line) for line in (PEOPLE / "manifest.jsonl").read_text().splitlines()]
    texts = {row["file"]: row["text"] for row in rows}
    return [word for name in names for word in words_of(texts[name])]


def call_of(*, pauses_s: float) -> bytes:
    """A call as telephone exchanges record it; both speak at once for most of what the first one says."""
    silence = np.zeros(round(pauses_s * SAMPLE_RATE_HZ), np.int16)
    first = np.concatenate([part for name in FIRST for part in (silence, recorded(name))])
    second = np.concatenate([recorded(name) for name in SECOND])
    both = np.zeros((max(len(first), len(second)), 2), np.int16)
    both[: len(first), 0], both[: len(second), 1] = first, second
    return encode(both, SAMPLE_RATE_HZ, ".wav", "-ar", "8000", "-c:a", "pcm_mulaw")


def words_by_speaker(transcript: Transcript) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for segment in transcript.segments:
        for word in segment.words:
            found.setdefault(word.speaker or "", []).extend(words_of(word.text))
    return found


@pytest.mark.skipif(not PEOPLE.exists(), reason="the folder ../shared/data with real recordings is not there")
def test_words_of_a_call_are_on_the_channel_of_their_speaker(tiny_en: Path) -> None:
    """All of them, though both speak at once: each word that only one of the two says is on that channel."""
    with stored(call_of(pauses_s=6.0)) as file:
        options = Options(channels="speakers", language="en")
        transcript = asyncio.run(transcribe(stages_of(tiny_en), Source(file=file), options))
    heard = words_by_speaker(transcript)
    assert heard.keys() == {"SPEAKER_00", "SPEAKER_01"}
    true = {"SPEAKER_00": said(FIRST), "SPEAKER_01": said(SECOND)}
    right = wrong = known = 0
    for speaker, words in heard.items():
        own, others = (Counter(true[each]) for each in (speaker, *({*true} - {speaker})))
        known += (Counter(words) & own).total()
        right += sum(word in own and word not in others for word in words)
        wrong += sum(word in others and word not in own for word in words)
    recognised = sum(map(len, heard.values()))
    print(
        f"\n{recognised} words recognised, {known} as they were said; of the {right + wrong} that only one "
        f"of both says, {right} are on the right channel: {right / (right + wrong):.1%}"
    )
    assert wrong == 0
    assert known > 0.85 * sum(map(len, true.values()))
    starts_s = [segment.start_s for segment in transcript.segments]
    assert starts_s == sorted(starts_s)
    changes = sum(a.speaker != b.speaker for a, b in pairwise(transcript.segments))
    assert changes > 2  # they are merged in time
