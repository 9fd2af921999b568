"""What flows between the stages, frozen, without I/O. All times are seconds from the start of the file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

SAMPLE_RATE_HZ = 16_000
Task = Literal["transcribe", "translate"]
Segments = Sequence[tuple[float, float]]  # start and end of speech, in seconds, in order
Samples = npt.NDArray[np.int16]  # mono, 16 kHz; read-only once it has crossed a replica


@dataclass(frozen=True, slots=True)
class StageWarning:
    """Something the caller should know although the request went through."""

    stage: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of speech of at most the model's window length: the unit of work."""

    start_s: float
    end_s: float

    def cut(self, samples: Samples, samples_start_s: float = 0.0) -> Samples:
        """The window's samples, a view; `samples` begin at `samples_start_s` in the file.

        Rounded as whisperx does it: int of start and end.
        """
        offset = round(samples_start_s * SAMPLE_RATE_HZ)
        return samples[
            int(self.start_s * SAMPLE_RATE_HZ) - offset : int(self.end_s * SAMPLE_RATE_HZ) - offset
        ]


@dataclass(frozen=True, slots=True)
class Speech:
    """The windows of speech that a search has completed, in order, and what the next search needs."""

    windows: tuple[Window, ...]
    scan: Any  # can be pickled; opaque to all but the detector
    resume_s: float  # the next search must be given the samples from here on
    segments: tuple[Window, ...] = ()  # of speech, without the pauses that windows have inside


class Token(NamedTuple):
    """When one token of a window's text is spoken, in seconds from the window's start."""

    start_s: float
    end_s: float
    score: float  # its probability
    text_end: int  # characters of the text that are complete after it
    utf8_bytes: tuple[int, ...] = ()  # its bytes: a character may have several tokens


@dataclass(frozen=True, slots=True)
class WindowText:
    """What the recogniser heard in one window."""

    text: str
    language: str
    language_probability: float | None  # None when the caller named the language
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    temperature: float = 0.0  # at which this text was decoded
    attempts: int = 1  # how often the window was decoded, each time at a higher temperature
    is_repetitive: bool = False  # the text repeats itself still, after all attempts
    was_silence: bool = False  # unlikely text over what sounds like silence was left out
    is_over_silence: bool = False  # the text was kept, although there sounds to be no speech
    prompt_tokens_cut: int = 0  # from the start of `initial_prompt`
    languages: tuple[tuple[str, float], ...] = ()  # detected: the probable ones, likeliest first
    tokens: tuple[Token, ...] = ()  # where they or their times were wanted
    sentences: tuple["Segment", ...] = ()  # with their words, where times were wanted


class Character(NamedTuple):
    """One character of a word; the rest is None where it has no time."""

    text: str
    start_s: float | None = None
    end_s: float | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Word:
    """One word; times are None where it could not be aligned."""

    text: str
    start_s: float | None = None
    end_s: float | None = None
    score: float | None = None
    speaker: str | None = None
    confidence: float | None = None  # the recogniser's probability, where it was wanted
    chars: tuple[Character, ...] = ()  # where they were wanted, and a wav2vec2 model aligned the word


@dataclass(frozen=True, slots=True)
class Segment:
    """One sentence after alignment, or one whole window where alignment was not possible."""

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()
    speaker: str | None = None
    avg_logprob: float | None = None
    window: Window | None = None  # the window that this segment is from
    source_text: WindowText | None = None  # what the recogniser heard in that window


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker speaking."""

    start_s: float
    end_s: float
    speaker: str


def speakers_of(turns: Sequence[Turn]) -> list[str]:
    """Those who speak in these turns, in the order of their names."""
    return sorted({turn.speaker for turn in turns})


@dataclass(frozen=True, slots=True)
class Voices:
    """What one embedding network has made of each speaker's voice; vectors of another one do not compare."""

    model: str
    dimension: int
    vectors: Mapping[str, tuple[float, ...] | None]  # speaker -> vector; None: nothing said was long enough


@dataclass(frozen=True, slots=True)
class Diarization:
    """Who speaks when. `turns` may overlap; `exclusive_turns` never do (one speaker at a time)."""

    turns: tuple[Turn, ...]
    exclusive_turns: tuple[Turn, ...]
    voices: Voices | None = None  # None: nobody speaks, or the model makes no vectors


@dataclass(frozen=True, slots=True)
class SpeakerBounds:
    """How many speakers a caller expects; None where it does not say."""

    num_speakers: int | None = None
    min_speakers: int | None = None
    max_speakers: int | None = None


@dataclass(frozen=True, slots=True)
class KnownSpeaker:
    """A name and a clip of the voice that has it."""

    name: str
    clip: Any  # Samples; on the way there a reference to them


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is, with the segments that have become final since the last report.

    Segments come in the order of the file. Speakers, unless channels are speakers, need the whole file.
    """

    windows_done: int
    windows_found: int
    all_found: bool  # the whole file has been searched for speech
    segments: tuple[Segment, ...]
    stage: Literal["recognition", "diarization"] = "recognition"  # at last only the speakers are waited for


@dataclass(frozen=True, slots=True)
class Transcript:
    """The result of one request."""

    segments: tuple[Segment, ...]
    language: str | None  # None when there was no speech to detect it from
    duration_s: float
    model: str
    turns: tuple[Turn, ...] = ()
    warnings: tuple[StageWarning, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)  # stage -> wall seconds
    peaks: str = ""  # of the waveform, as base64
    voices: Voices | None = None  # where embeddings were asked for
    exclusive_turns: tuple[Turn, ...] = ()  # where speakers alone were asked for
    tokens: tuple[Token, ...] = ()  # of all windows, where log-probabilities were asked for
