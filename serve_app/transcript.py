"""What flows between the stages: source, audio, windows, words, segments, turns. Frozen, no I/O.

All times are seconds from the start of the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

SAMPLE_RATE_HZ = 16_000
LONG_S = 120.0  # from then on a file keeps a device busy for long enough to let others go first

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
class Source:
    """Where the audio comes from: a URL with fetch headers, or an open file."""

    url: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    file: BinaryIO | None = None
    max_audio_s: float | None = None  # where less than the server takes is enough


@dataclass(frozen=True, slots=True)
class Audio:
    """Decoded audio: mono 16 kHz int16, half the memory of float32 and what ffmpeg gives whisperx."""

    samples: Samples
    warnings: tuple[StageWarning, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)  # stage -> wall seconds
    checksum: int = 0  # CRC-32 of what a URL gave: whether it gives the same when it is fetched again
    whole: bool = True  # False: the beginning of a long file whose rest is still being decoded,
    expected_s: float = 0.0  # and how long the file will be, by what it says itself; 0: not known

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ

    @property
    def is_long(self) -> bool:
        """Whether what is short goes first where they meet on a device."""
        return not self.whole or self.duration_s > LONG_S


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of speech of at most the model's window length: the unit of work."""

    start_s: float
    end_s: float

    def cut(self, samples: Samples) -> Samples:
        """The window's samples, a view (whisperx's own rounding: int of start and end)."""
        return samples[int(self.start_s * SAMPLE_RATE_HZ) : int(self.end_s * SAMPLE_RATE_HZ)]


@dataclass(frozen=True, slots=True)
class Speech:
    """What voice activity detection found in one more part of a file: its windows, in order, maybe none."""

    windows: tuple[Window, ...]
    duration_s: float  # of the file, as far as it has been decoded
    # Of loading the audio, in the first part: this is how they reach the caller.
    warnings: tuple[StageWarning, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    checksum: int = 0
    expected_s: float = 0.0  # while the file is being decoded, what it says itself
    whole: bool = True  # False: more of the file is being decoded
    scan: Any = None  # where a search that breaks off now is to go on


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a request wants its windows decoded."""

    task: Task = "transcribe"
    initial_prompt: str | None = None
    hotwords: str | None = None
    temperature: float | None = None  # None is 0: beam search


@dataclass(frozen=True, slots=True)
class AsrRequest:
    """One window to recognise; `language` None asks for detection on this window."""

    features: npt.NDArray[np.float32]  # log-mel, (n_mels, 3000)
    language: str | None = None
    decoding: Decoding = Decoding()
    length_s: float = 30.0  # of the window, without what pads it


@dataclass(frozen=True, slots=True)
class WindowText:
    """What the recogniser heard in one window."""

    text: str
    language: str
    language_probability: float | None  # None when the caller named the language
    avg_logprob: float
    no_speech_prob: float
    compression_ratio: float
    tokens: tuple[int, ...] = ()
    token_ends: tuple[int, ...] = ()  # characters of `text` that are whole after each token; () = not known
    temperature: float = 0.0  # that this text was decoded at
    attempts: int = 1  # at so many temperatures was the window decoded
    silence: bool = False  # there was text, too unlikely for what sounds like silence: it was left out
    prompt_tokens_cut: int = 0  # from the start of `initial_prompt`


@dataclass(frozen=True, slots=True)
class AlignRequest:
    """One window's samples and what was heard in it.

    For whisperx's numbers, times have three digits and samples are cut at them: `for_window` does both.
    """

    samples: Samples  # of the window alone; empty where it starts after the end of the audio
    start_s: float
    end_s: float
    text: str
    language: str
    avg_logprob: float | None = None

    @classmethod
    def for_window(cls, samples: Samples, window: Window, text: WindowText) -> "AlignRequest":
        """The request for one window of a file's samples, rounded and cut as whisperx does."""
        rounded = Window(round(float(window.start_s), 3), round(float(window.end_s), 3))
        return cls(
            rounded.cut(samples), rounded.start_s, rounded.end_s, text.text, text.language, text.avg_logprob
        )


@dataclass(frozen=True, slots=True)
class Word:
    """One word; times are None where it could not be aligned."""

    text: str
    start_s: float | None = None
    end_s: float | None = None
    score: float | None = None
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One sentence after alignment, or one whole window where alignment was not possible."""

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()
    speaker: str | None = None
    avg_logprob: float | None = None
    window: Window | None = None  # that this segment is from
    heard: WindowText | None = None  # what the recogniser heard there


@dataclass(frozen=True, slots=True)
class Turn:
    """One speaker speaking."""

    start_s: float
    end_s: float
    speaker: str


@dataclass(frozen=True, slots=True)
class Diarization:
    """Who speaks when. `turns` may overlap; `exclusive_turns` never do (one speaker at a time)."""

    turns: tuple[Turn, ...]
    exclusive_turns: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class KnownSpeaker:
    """A name and a clip of the voice that has it."""

    name: str
    clip: Any  # Samples; on the way there a reference to them


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request is, with the segments that have become final since the last report.

    Segments come in the order of the file, without speakers: those need the whole file.
    """

    windows_done: int
    windows_found: int
    all_found: bool  # the whole file has been searched for speech
    segments: tuple[Segment, ...]


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
