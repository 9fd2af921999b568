"""The answers and events of OpenAI's audio API. Pydantic only.

`warnings`, and `speaker` in verbose_json, are not OpenAI's: they are left out where there are none.
"""

from typing import Literal

from pydantic import BaseModel, Field

from serve_app.http.schemas import WarningOut
from serve_app.transcript import Task


class DurationUsage(BaseModel):
    """The length of the audio."""

    type: Literal["duration"] = "duration"
    seconds: float


class Transcription(BaseModel):
    """The answer with `response_format=json`."""

    text: str
    usage: DurationUsage
    warnings: list[WarningOut] | None = Field(None, description="Only if there are any; not OpenAI's.")


class WordItem(BaseModel):
    """One word. If it could not be aligned, it has its segment's times."""

    word: str
    start: float
    end: float


class SegmentItem(BaseModel):
    """One sentence. Log-probability, compression and silence are those of its window of speech."""

    id: int
    seek: int = Field(description="Where the segment's window of speech starts, in hundredths of a second.")
    start: float
    end: float
    text: str
    tokens: list[int] = Field([], description="Always empty; here because OpenAI's client requires it.")
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    speaker: str | None = Field(None, description="Only if speakers were asked for; not OpenAI's.")


class VerboseTranscription(Transcription):
    """The answer with `response_format=verbose_json`."""

    task: Task
    language: str = Field(description="English name; `english` for every translation.")
    duration: float
    words: list[WordItem] | None = None
    segments: list[SegmentItem] | None = None


class DiarizedSegment(BaseModel):
    """One sentence of one speaker; in a stream it is an event."""

    type: Literal["transcript.text.segment"] = "transcript.text.segment"
    id: str
    start: float
    end: float
    text: str
    speaker: str = Field(description="A known speaker's name, or A, B, C in order of appearance.")


class DiarizedTranscription(Transcription):
    """The answer with `response_format=diarized_json`."""

    task: Literal["transcribe"] = "transcribe"
    duration: float
    segments: list[DiarizedSegment]


class TextDelta(BaseModel):
    """The next piece of text in a stream."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TextDone(BaseModel):
    """The whole text at the end of a stream. It has no usage: OpenAI's type takes only tokens here."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    warnings: list[WarningOut] | None = None
