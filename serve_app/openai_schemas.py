"""The wire of OpenAI's audio API: its answers, made from a transcript. Pydantic only."""

import math
from collections.abc import Iterable, Iterator, Sequence
from string import ascii_uppercase
from typing import Any, Literal

from pydantic import BaseModel, Field

from serve_app.languages import LANGUAGES
from serve_app.openai_request import Ask
from serve_app.schemas import WarningOut
from serve_app.stages.forced_alignment import LANGUAGES_WITHOUT_SPACES
from serve_app.stages.token_ends import tokens_between
from serve_app.transcript import Segment, Task, Transcript, WindowText

AUDIO_TOKENS_PER_S = 50  # of Whisper's encoder

NO_SPEAKER = "unknown"  # where OpenAI wants a name and there is none


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


class Transcription(BaseModel):
    """The answer with `response_format=json`."""

    text: str
    usage: DurationUsage
    warnings: list[WarningOut] | None = Field(None, description="Only where there are any; not OpenAI's.")


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
    tokens: list[int] = Field(
        description="The sentence's own; its window's where they cannot be told apart."
    )
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    speaker: str | None = Field(None, description="Only where speakers were asked for; not OpenAI's.")


class VerboseTranscription(BaseModel):
    """The answer with `response_format=verbose_json`."""

    task: Literal["transcribe", "translate"]
    language: str = Field(description="English name; of a translation always `english`.")
    duration: float
    text: str
    words: list[WordItem] | None = None
    segments: list[SegmentItem] | None = None
    usage: DurationUsage
    warnings: list[WarningOut] | None = Field(None, description="Only where there are any; not OpenAI's.")


class DiarizedSegment(BaseModel):
    """One sentence of one speaker; in a stream an event of its own."""

    type: Literal["transcript.text.segment"] = "transcript.text.segment"
    id: str
    start: float
    end: float
    text: str
    speaker: str = Field(description="A known speaker's name, or A, B, C in order of appearance.")


class DiarizedTranscription(BaseModel):
    """The answer with `response_format=diarized_json`."""

    task: Literal["transcribe"] = "transcribe"
    duration: float
    text: str
    segments: list[DiarizedSegment]
    usage: DurationUsage
    warnings: list[WarningOut] | None = Field(None, description="Only where there are any; not OpenAI's.")


class TextDelta(BaseModel):
    """More text, in a stream."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str


class TextDone(BaseModel):
    """All of the text: the last event of a stream."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: TokenUsage
    warnings: list[WarningOut] | None = Field(None, description="Only where there are any; not OpenAI's.")


class ModelItem(BaseModel):
    """A name that `model` can be. When the model was made is not known."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "whisperx-serve"


def pieces(segments: Iterable[Segment], task: Task, *, first: bool = True) -> Iterator[str]:
    """The text of each segment with what goes between it and the one before; joined, they are the text."""
    for segment in segments:
        written = segment.heard.language if segment.heard and task == "transcribe" else "en"
        gap = "" if first or written in LANGUAGES_WITHOUT_SPACES else " "
        first = False
        yield gap + segment.text


def text_of(transcript: Transcript, ask: Ask) -> str:
    """All of the text in one line."""
    return "".join(pieces(transcript.segments, ask.options.task))
