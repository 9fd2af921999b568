"""Fake stages and fake models: plain functions whose answers can be computed from their input.

A fake "recording" is int16 samples whose value in each window says what is spoken there.
"""

import asyncio
import base64
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.audio import AudioInfo, Source
from serve_app.request.admission import WindowGate
from serve_app.request.calls import AlignCall, DetectCall, DiarizeCall, StageCall, Stages, TranscribeCall
from serve_app.stage_requests import AlignRequest, AsrRequest, Decoding, SpeechRequest, SpeechSearch
from serve_app.transcript import (
    SAMPLE_RATE_HZ,
    Character,
    Diarization,
    KnownSpeaker,
    Samples,
    Segment,
    SpeakerBounds,
    Speech,
    StageWarning,
    Token,
    Turn,
    Voices,
    Window,
    WindowText,
    Word,
)

WINDOW_S = 1.0


def data_url(clip: bytes) -> str:
    """A known speaker's reference."""
    return "data:audio/wav;base64," + base64.b64encode(clip).decode()


def recording(*spoken: int) -> Samples:
    """One second per number: 0 is silence, any other number is that word."""
    return np.repeat(np.array(spoken, np.int16), SAMPLE_RATE_HZ)


def window_text(number: int, language: str | None) -> WindowText:
    return WindowText(f" word{number}", language or "en", None if language else 0.9, -0.1, 0.0, 1.0)


def one_word_segment(start_s: float, end_s: float, text: str) -> Segment:
    said = text.strip()
    return Segment(start_s, end_s, said, (Word(said, start_s, end_s, 0.9),), avg_logprob=-0.1)


def with_chars(segment: Segment) -> Segment:
    """The segment, whose one word has characters of equal length."""
    (word,) = segment.words
    length_s = (segment.end_s - segment.start_s) / len(word.text)
    edges_s = [round(segment.start_s + length_s * n, 3) for n in range(len(word.text) + 1)]
    chars = zip(word.text, edges_s[:-1], edges_s[1:], strict=True)
    return replace(segment, words=(replace(word, chars=tuple(Character(*each, 0.9) for each in chars)),))


def windows_of(samples: Samples) -> tuple[Window, ...]:
    seconds = samples[::SAMPLE_RATE_HZ]
    return tuple(Window(float(t), float(t + 1)) for t, number in enumerate(seconds) if number)


def turns_of(samples: Samples) -> tuple[Turn, ...]:
    """Odd numbers are spoken by SPEAKER_01, even ones by SPEAKER_00."""
    seconds = samples[::SAMPLE_RATE_HZ]
    return tuple(
        Turn(float(t), float(t + 1), f"SPEAKER_0{number % 2}") for t, number in enumerate(seconds) if number
    )


def voices_of(turns: Sequence[Turn]) -> Voices | None:
    """A vector for each speaker, told apart by its second number; none for one whose name is 'Mute'."""
    speakers = sorted({turn.speaker for turn in turns})
    vectors = {name: None if name == "Mute" else (1.0, float(place)) for place, name in enumerate(speakers)}
    return Voices("fake", 2, vectors) if turns else None


def named_turns(samples: Samples, known: Sequence[KnownSpeaker]) -> tuple[Turn, ...]:
    """`turns_of`, where a clip of an odd number is the voice of SPEAKER_01."""
    names = {f"SPEAKER_0{int(speaker.clip[0]) % 2}": speaker.name for speaker in known}
    return tuple(replace(turn, speaker=names.get(turn.speaker, turn.speaker)) for turn in turns_of(samples))


@dataclass
class FakeAudio:
    """A recording in parts of a second; of one with channels apart, each is a row."""

    samples: Samples
    warnings: tuple[StageWarning, ...] = ()

    async def parts(self) -> AsyncGenerator[AudioInfo]:
        rows = np.atleast_2d(self.samples)
        seconds = rows.shape[1] // SAMPLE_RATE_HZ
        for second in range(seconds):
            is_last = second + 1 == seconds
            yield AudioInfo(
                float(second),
                second + 1.0,
                is_last,
                warnings=self.warnings if is_last else (),
                peaks=bytes([second]),
                channels=len(rows),
            )

    def of(self, call: StageCall) -> Samples:
        """The samples that the call is about."""
        return self.samples if call.channel is None else self.samples[call.channel]


@dataclass
class FakeStages:
    """Coroutines for `pipeline.Stages` over one recording, with what was called."""

    samples: Samples
    calls: Counter[str] = field(default_factory=Counter)
    languages: dict[float, str] = field(default_factory=dict)  # window start -> language heard there
    certainties: dict[float, float] = field(default_factory=dict)  # window start -> its probability
    fail: dict[str, Exception] = field(default_factory=dict)  # stage -> the error that it raises
    transcribed_in: list[tuple[float, str | None]] = field(default_factory=list)
    loaded: list[Source] = field(default_factory=list)
    decodings: list[Decoding] = field(default_factory=list)
    searches: list[SpeechSearch] = field(default_factory=list)
    most_in_flight: int = 0
    decode_warnings: tuple[StageWarning, ...] = ()
    _in_flight: int = 0

    def stages(self, *, diarizes: bool = True, windows_in_flight: int = 64) -> Stages:
        return Stages(
            load=self._load,
            detect=self._detect,
            transcribe=self._transcribe,
            align=self._align,
            diarize=self._diarize if diarizes else None,
            model="fake",
            window_gate=WindowGate(windows_in_flight),
        )

    def _called(self, stage: str) -> None:
        self.calls[stage] += 1
        if stage in self.fail:
            raise self.fail[stage]

    @asynccontextmanager
    async def _load(self, source: Source) -> AsyncIterator[FakeAudio]:
        self._called("load")
        self.loaded.append(source)
        whole = np.frombuffer(source.file.read(), np.int16) if source.file else self.samples
        begin, end = source.selection.start_s, source.selection.start_s + source.selection.length_s
        cut = slice(int(begin * SAMPLE_RATE_HZ), None if end == math.inf else int(end * SAMPLE_RATE_HZ))
        yield FakeAudio(whole[..., cut], self.decode_warnings)

    async def _detect(self, call: DetectCall) -> Speech:
        self._called("speech")
        self.searches.append(call.search)
        end_s = call.part.end_s
        windows = (w for w in windows_of(call.audio.of(call)) if call.part.start_s <= w.start_s < end_s)
        found = tuple(windows)
        return Speech(found, None, end_s, found)

    async def _transcribe(self, call: TranscribeCall) -> WindowText:
        self._called("language" if call.only_language else "asr")
        window, language = call.window, call.language
        self.transcribed_in.append((window.start_s, language))
        self.decodings.append(call.decoding)
        self._in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._in_flight)
        await asyncio.sleep(0)
        self._in_flight -= 1
        own, certainty = self.languages.get(window.start_s), self.certainties.get(window.start_s, 0.8)
        if (allowed := call.decoding.languages) and own not in allowed:
            own, certainty = allowed[0], 0.1
        if call.certain_at is not None and own and certainty >= call.certain_at:
            language = None
        heard = language or own
        text = window_text(int(window.cut(call.audio.of(call))[0]), heard)
        if call.only_language:
            text = replace(text, text="")
        if call.word_times:
            told = one_word_segment(window.start_s + 0.1, window.end_s, text.text)
            text = replace(text, sentences=(told,))
        if language is None:
            heard = heard or "en"
            text = replace(
                text, language=heard, language_probability=certainty, languages=((heard, certainty),)
            )
        # One token of each letter, the later ones less likely.
        letters = enumerate(text.text, start=1) if call.decoding.logprobs else ()
        tokens = (Token(0.0, 0.0, 1 / place, place, (*letter.encode(),)) for place, letter in letters)
        return replace(text, tokens=tuple(tokens))

    async def _align(self, call: AlignCall) -> tuple[Segment, ...]:
        self._called("align")
        segment = one_word_segment(call.window.start_s, call.window.end_s, call.text.text)
        return (with_chars(segment) if call.has_chars else segment,)

    async def _diarize(self, call: DiarizeCall) -> Diarization:
        self._called("diarize")
        known = tuple(replace(speaker, clip=speaker.clip.samples) for speaker in call.known)
        turns = named_turns(call.audio.samples, known)
        return Diarization(turns, turns, voices_of(turns))


@dataclass
class FakeRecognizer:
    """Hears the number in each window, on a device that ends no batch while the file `gate` exists.

    With a number in that file, only the batch that has it is held.
    """

    gate: Path

    def features(self, samples: Samples) -> npt.NDArray[np.float32]:
        return samples[:1].astype(np.float32)

    def batch_key(self, request: AsrRequest) -> Decoding:
        return request.decoding

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[Any]:
        numbers = [int(request.features[0]) for request in requests]
        while self._is_held(numbers):
            time.sleep(0.01)
        return [self.text(request) for request in requests]

    def text(self, request: AsrRequest) -> WindowText:
        return window_text(int(request.features[0]), request.language)

    def _is_held(self, numbers: list[int]) -> bool:
        try:
            held = self.gate.read_text()
        except FileNotFoundError:
            return False
        return not held or int(held) in numbers


class Reference:
    """A reference to a ready value, or to an error."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __await__(self) -> Generator[Any, None, Any]:
        if isinstance(self._value, Exception):
            raise self._value
        return self._value
        yield  # makes this a generator


class References:
    """Stands in for Ray's generator of references, over another generator."""

    def __init__(self, given: AsyncGenerator[Any, None]) -> None:
        self._given = given

    async def __anext__(self) -> Any:
        return await anext(self._given)

    def _get_next_ref_n(self, number: int) -> "list[References]":
        return [self] * number

    def _on_ready(self, done: Callable[[Any], None]) -> Callable[[], None]:
        done(None)
        return lambda: None


class FakeSpeechModel:
    """Finds a window in each second that is no silence; `scan` is the end of what was searched."""

    def find_speech(self, requests: Sequence[SpeechRequest]) -> list[Any]:
        return [self.find(request) for request in requests]

    def find(self, request: SpeechRequest) -> Speech:
        found = [
            (w.start_s + request.start_s, w.end_s + request.start_s) for w in windows_of(request.samples)
        ]
        end_s = request.start_s + len(request.samples) / SAMPLE_RATE_HZ
        new = tuple(Window(*times_s) for times_s in found if times_s[0] >= (request.scan or 0.0))
        return Speech(new, end_s, end_s, new)


class FakeAligner:
    def align(self, requests: Sequence[AlignRequest]) -> list[Any]:
        return [(one_word_segment(request.start_s, request.end_s, request.text),) for request in requests]


class FakeDiarizer:
    def diarize(
        self, samples: Samples, *, bounds: SpeakerBounds, known: tuple[KnownSpeaker, ...] = ()
    ) -> Diarization:
        turns = named_turns(samples, known)
        return Diarization(turns, turns, voices_of(turns))
