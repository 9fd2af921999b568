"""The wire of OpenAI's audio API: what its answers and events look like. Pydantic only.

`warnings`, and `speaker` in verbose_json, are not OpenAI's: they are left out where there are none.
"""

from typing import Literal

from pydantic import BaseModel, Field

from serve_app.http.schemas import WarningOut


class WithWarnings(BaseModel):
    """What went less well than it should, if anything did."""

    warnings: list[WarningOut] | None = Field(None, description="Only where there are any; not OpenAI's.")


class DurationUsage(BaseModel):
    """Of an answer in one piece."""

    type: Literal["duration"] = "duration"
    seconds: float


class TokenUsage(BaseModel):
    """Of a stream: OpenAI has no other kind there. Whisper's own tokens, of audio and of text."""

    type: Literal["tokens"] = "tokens"
    input_tokens: int = Field(description="One for each 20 ms of audio.")
    output_tokens: int
    total_tokens: int


class Transcription(WithWarnings):
    """The answer with `response_format=json`."""

    text: str
    usage: DurationUsage


class WordItem(BaseModel):
    """One word; where it could not be aligned, with its segment's times."""

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
    tokens: list[int] = Field(description="The sentence's own; its window's where they cannot be told apart.")
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    speaker: str | None = Field(None, description="Only where speakers were asked for; not OpenAI's.")


class VerboseTranscription(WithWarnings):
    """The answer with `response_format=verbose_json`."""

    task: Literal["transcribe", "translate"]
    language: str = Field(description="English name; of a translation always `english`.")
    duration: float
    text: str
    words: list[WordItem] | None = None
    segments: list[SegmentItem] | None = None
    usage: DurationUsage


class DiarizedSegment(BaseModel):
    """One sentence of one speaker; in a stream an event of its own."""

    type: Literal["transcript.text.segment"] = "transcript.text.segment"
    id: str
    start: float
    end: float
    text: str
    speaker: str = Field(description="A known speaker's name, or A, B, C in order of appearance.")


class DiarizedTranscription(WithWarnings):
    """The answer with `response_format=diarized_json`."""

    task: Literal["transcribe"] = "transcribe"
    duration: float
    text: str
    segments: list[DiarizedSegment]
    usage: DurationUsage


class TextDelta(BaseModel):
    """More text, in a stream."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TextDone(WithWarnings):
    """All of the text: the last event of a stream."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: TokenUsage


class ModelItem(BaseModel):
    """A name that `model` can be. When the model was made is not known."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "whisperx-serve"
