"""The answers of OpenAI's audio API, for its documentation and for type checks.

`warnings`, and `speaker` in verbose_json, are not OpenAI's: they are left out where there are none.
"""

from typing import (
    Annotated,
    Literal,
    NotRequired,  # pydantic needs this one before Python 3.12
)

from pydantic import Field
from typing_extensions import TypedDict

from serve_app.transcript import StageWarning, Task


class DurationUsage(TypedDict):
    """The length of the audio."""

    type: Literal["duration"]
    seconds: float


class Transcription(TypedDict):
    """The answer with `response_format=json`."""

    text: str
    usage: DurationUsage
    warnings: NotRequired[list[StageWarning]]


class WordItem(TypedDict):
    """One word. If it could not be aligned, it has its segment's times."""

    word: str
    start: float
    end: float


class SegmentItem(TypedDict):
    """One sentence. Log-probability, compression and silence are those of its window of speech."""

    id: int
    seek: Annotated[int, Field(description="Start of the window of speech, in hundredths of a second.")]
    start: float
    end: float
    text: str
    tokens: Annotated[list[int], Field(description="Always empty; OpenAI's client requires the list.")]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    speaker: NotRequired[str]


class VerboseTranscription(Transcription):
    """The answer with `response_format=verbose_json`."""

    task: Task
    language: Annotated[str, Field(description="English name; `english` for every translation.")]
    duration: float
    words: NotRequired[list[WordItem]]
    segments: NotRequired[list[SegmentItem]]


class DiarizedSegment(TypedDict):
    """One sentence of one speaker; in a stream it is an event."""

    type: Literal["transcript.text.segment"]
    id: str
    start: float
    end: float
    text: str
    speaker: Annotated[str, Field(description="A known speaker's name, or A, B, C in order of appearance.")]


class DiarizedTranscription(Transcription):
    """The answer with `response_format=diarized_json`."""

    task: Literal["transcribe"]
    duration: float
    segments: list[DiarizedSegment]
