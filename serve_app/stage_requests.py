"""What the stages' models are asked, frozen, without I/O: one object for each stretch of sound."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.transcript import Samples, Task, Window, WindowText


@dataclass(frozen=True, slots=True)
class SpeechSearch:
    """How a request wants speech found; None is as configured."""

    onset: float | None = None
    offset: float | None = None
    min_silence_s: float | None = None
    window_s: float | None = None  # at most the configured one


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """A stretch of a file to search for speech, from where the search before it says that it must begin."""

    samples: Samples  # from `start_s` on
    start_s: float  # in the file, a multiple of 1 / SAMPLE_RATE_HZ
    is_last: bool  # the file ends with these samples
    scan: Any = None  # what the search before left, None at the start of the file
    search: SpeechSearch = SpeechSearch()


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a request wants its windows decoded."""

    task: Task = "transcribe"
    initial_prompt: str | None = None
    hotwords: str | None = None
    temperature: float | None = None  # None is 0: beam search
    temperature_inc: float | None = None  # to the next attempt at a bad text; None: the server's own attempts
    languages: tuple[str, ...] = ()  # those that a language is chosen from; none: all
    logprobs: bool = False  # the text is to keep its tokens
    beam_size: int | None = None  # None: the server's
    suppress_numerals: bool = False  # numbers are written as words
    own_languages: bool = False  # each window is to have its own language, which a model must be able to tell


@dataclass(frozen=True, slots=True)
class AsrRequest:
    """One window to recognise; `language` None asks for detection on this window."""

    features: npt.NDArray[np.float32]  # log-mel, (n_mels, 3000)
    language: str | None = None
    decoding: Decoding = Decoding()
    certain_at: float | None = None  # a detected language at least this probable replaces `language`
    times_until_s: float = 0.0  # the window's length where its tokens are wanted, else 0
    only_language: bool = False  # the language is detected, and nothing recognised


@dataclass(frozen=True, slots=True)
class AlignRequest:
    """One window's samples and text. As in whisperx, times have three digits and samples are cut at them."""

    samples: Samples  # of the window alone; empty where it starts after the end of the audio
    start_s: float
    end_s: float
    text: str
    language: str
    avg_logprob: float | None = None
    has_chars: bool = False  # words are to have the times of their characters

    @classmethod
    def for_window(
        cls, samples: Samples, window: Window, text: WindowText, samples_start_s: float = 0.0
    ) -> "AlignRequest":
        """The request for one window of samples that begin at `samples_start_s` in the file."""
        rounded = Window(round(float(window.start_s), 3), round(float(window.end_s), 3))
        cut = rounded.cut(samples, samples_start_s)
        return cls(cut, rounded.start_s, rounded.end_s, text.text, text.language, text.avg_logprob)
