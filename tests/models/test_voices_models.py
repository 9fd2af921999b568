"""Speakers alone, speech alone and the language alone on real weights and real recordings."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED
from fakes import FakeAudio, FakeStages, data_url
from scipy.spatial.distance import cosine
from sounds import noise, tone, wav

from benchmarks.decoding import decode_whole
from serve_app.audio import AudioInfo, Source
from serve_app.formats.table import FORMATS
from serve_app.options import Options
from serve_app.request.calls import DetectCall, DiarizeCall, Stages, TranscribeCall
from serve_app.request.pipeline import transcribe
from serve_app.request.without_text import detect_language, detect_speech, diarize
from serve_app.settings import AsrSettings, SpeechSettings
from serve_app.stage_requests import AsrRequest, SpeechRequest
from serve_app.stages.asr.recognizer import load_recognizer
from serve_app.stages.diarization.diarizer import PyannoteDiarizer, load_pyannote
from serve_app.stages.speech.detector import SpeechDetector, load_pyannote_detector
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, Samples, Speech, WindowText

PEOPLE = SHARED / "people"
PART_S = 10
SOURCE = Source(url="http://example/x.mp3")
MUSIC_S = 40

pytestmark = [
    # clustering takes the mean of no embeddings where nobody speaks alone for long.
    pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning"),
    pytest.mark.filterwarnings(r"ignore:\s*The detected number of speakers:UserWarning"),
]
needs_people = pytest.mark.skipif(not PEOPLE.exists(), reason="the folder ../shared/data is not there")


@pytest.fixture(scope="module")
def diarizer(campplus: Path) -> PyannoteDiarizer:
    return load_pyannote(str(campplus), device="cpu", token=None)


@pytest.fixture(scope="module")
def detector() -> SpeechDetector:
    return load_pyannote_detector(SpeechSettings(), 30.0)


class Recorded(FakeAudio):
    """Real samples in parts."""

    async def parts(self) -> AsyncGenerator[AudioInfo]:
        end_s = len(self.samples) / SAMPLE_RATE_HZ
        for start_s in np.arange(0.0, end_s, PART_S):
            until_s = min(float(start_s) + PART_S, end_s)
            yield AudioInfo(float(start_s), until_s, until_s == end_s)


@dataclass
class RealStages(FakeStages):
    """Stages in which speech, speakers and language are those of real models; texts are invented."""

    detector: SpeechDetector | None = None
    diarizer: PyannoteDiarizer | None = None
    recognizer: object = None

    @asynccontextmanager
    async def _load(self, source: Source) -> AsyncIterator[Recorded]:
        header_bytes = 44  # of the clips, which are WAV
        yield Recorded(
            np.frombuffer(source.file.read()[header_bytes:], np.int16) if source.file else self.samples
        )

    async def _detect(self, call: DetectCall) -> Speech:
        assert self.detector
        start_s = call.before.resume_s if call.before else 0.0
        cut = slice(round(start_s * SAMPLE_RATE_HZ), round(call.part.end_s * SAMPLE_RATE_HZ))
        scan = call.before.scan if call.before else None
        request = SpeechRequest(call.audio.samples[cut], start_s, call.part.is_last, scan)
        [found] = self.detector.find_speech([request])
        assert isinstance(found, Speech)
        return found

    async def _transcribe(self, call: TranscribeCall) -> WindowText:
        if not call.only_language:
            return await super()._transcribe(call)
        model = self.recognizer
        features = model.features(call.window.cut(call.audio.samples))  # type: ignore[attr-defined]
        [text] = model.transcribe([AsrRequest(features, only_language=True)])  # type: ignore[attr-defined]
        assert isinstance(text, WindowText)
        return text

    async def _diarize(self, call: DiarizeCall) -> Diarization:
        assert self.diarizer
        known = [replace(speaker, clip=speaker.clip.samples) for speaker in call.known]
        return self.diarizer.diarize(call.audio.samples, bounds=call.bounds, known=known)


def decoded(name: str) -> Samples:
    with (PEOPLE / name).open("rb") as file:
        return asyncio.run(decode_whole(file, max_audio_s=600, timeout_s=60))[1]


def test_speakers_alone_are_those_of_a_transcription(
    sample: Samples, detector: SpeechDetector, diarizer: PyannoteDiarizer
) -> None:
    """Twelve seconds of two people: the same RTTM, turn by turn, and one who is known keeps the vector."""
    talk = sample[6 * SAMPLE_RATE_HZ : 18 * SAMPLE_RATE_HZ]
    stages: Stages = RealStages(talk, detector=detector, diarizer=diarizer).stages()
    write = FORMATS["rttm"].write
    assert write
    rttm = Options(response_format="rttm")
    whole = asyncio.run(transcribe(stages, SOURCE, rttm))
    alone = asyncio.run(diarize(stages, SOURCE, Options(embeddings=True)))
    assert write(alone, rttm.layout()) == write(whole, rttm.layout())
    assert alone.voices
    assert (alone.voices.model, alone.voices.dimension) == ("campplus", 192)
    assert (
        alone.voices.vectors.keys() == {turn.speaker for turn in alone.turns} == {"SPEAKER_00", "SPEAKER_01"}
    )

    turn = max(alone.exclusive_turns, key=lambda turn: turn.end_s - turn.start_s)
    clip = talk[round(turn.start_s * SAMPLE_RATE_HZ) : round(turn.end_s * SAMPLE_RATE_HZ)]
    url = data_url(wav(clip))
    known = Options(embeddings=True, known_speaker_names=("Ada",), known_speaker_references=(url,))
    named = asyncio.run(diarize(stages, SOURCE, known))
    assert named.voices
    assert named.voices.vectors["Ada"] == alone.voices.vectors[turn.speaker]
    assert len(named.voices.vectors) == 2


@needs_people
def test_one_speaker_in_two_files_is_nearer_than_two_speakers(diarizer: PyannoteDiarizer) -> None:
    """What embeddings are for: each of the files has one of three people, and says nothing of the others."""
    files = {
        "speechbrain-spk1": ("speechbrain-spk1_snt2.wav", "speechbrain-spk1_snt3.wav"),
        "speechbrain-spk2": ("speechbrain-spk2_snt2.wav", "speechbrain-spk2_snt3.wav"),
        "emur-msajc": ("emur-msajc010.wav", "emur-msajc022.wav"),
    }
    heard: list[tuple[str, tuple[float, ...]]] = []
    for person, names in files.items():
        for name in names:
            voices = diarizer.diarize(decoded(name)).voices
            assert voices
            [vector] = voices.vectors.values()
            assert vector
            heard.append((person, vector))
    apart: dict[bool, list[float]] = {True: [], False: []}
    for (one, first), (other, second) in combinations(heard, 2):
        apart[one == other].append(float(cosine(first, second)))
    assert max(apart[True]) < 0.5
    assert min(apart[False]) > 0.8


def music(duration_s: float) -> Samples:
    """Chords that change twice a second, with noise over them."""
    notes = np.random.default_rng(0).choice([220.0, 261.6, 329.6, 392.0, 440.0, 523.3], (2 * MUSIC_S, 3))
    chords = [sum(tone(0.5, frequency_hz=hz, amplitude=0.08).astype(int) for hz in chord) for chord in notes]
    played = np.concatenate(chords)[: int(duration_s * SAMPLE_RATE_HZ)]
    return np.asarray(played + noise(duration_s, amplitude=0.02)[: len(played)], np.int16)


@needs_people
def test_music_before_the_speech_does_not_decide(detector: SpeechDetector, base: Path) -> None:
    """Forty seconds of it: more than a model would listen to that looks at the first 30 s alone."""
    german = decoded("aeneas-de.mp3")[: 20 * SAMPLE_RATE_HZ]
    recognizer = load_recognizer(str(base), device="cpu", threads=2, settings=AsrSettings())
    real = RealStages(np.concatenate([music(MUSIC_S), german]), detector=detector, recognizer=recognizer)
    speech = asyncio.run(detect_speech(real.stages(), SOURCE, Options()))
    assert speech.segments
    assert MUSIC_S - 0.5 < speech.segments[0].start_s < MUSIC_S + 5
    assert all(a.end_s < b.start_s for a, b in pairwise(speech.segments))
    found = asyncio.run(detect_language(real.stages(), SOURCE, Options()))
    assert (found.code, found.confidence > 0.6) == ("de", True)
