"""The wire: what a request may say and what an answer looks like. Pydantic models only.

Option names are the same over HTTP, multipart and Python handles.
"""

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from serve_app.errors import InvalidRequest
from serve_app.languages import LANGUAGES
from serve_app.transcript import Progress, Segment, Transcript, Word

Model = TypeVar("Model", bound=BaseModel)

SpeakerCount = Annotated[int, Field(ge=1, le=50)]


class Options(BaseModel):
    """What a caller can choose for one request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    language: str | None = Field(None, description="ISO code such as `en`; empty = detected.")
    task: Literal["transcribe", "translate"] = Field(
        "transcribe", description="`translate` gives English text with segment times, without word alignment."
    )
    diarize: bool | None = Field(
        None, description="Label speakers; empty = yes where the server has a diarization model."
    )
    num_speakers: SpeakerCount | None = Field(None, description="Exact number of speakers, if known.")
    min_speakers: SpeakerCount | None = Field(None, description="At least this many speakers.")
    max_speakers: SpeakerCount | None = Field(None, description="At most this many speakers.")
    word_timestamps: bool = Field(False, description="Add `words` with times, scores and speakers.")

    @field_validator("language", mode="before")
    @classmethod
    def _known_language(cls, value: object) -> object:
        if value is None or value == "":
            return None
        if isinstance(value, str) and value.lower() in LANGUAGES:
            return value.lower()
        raise ValueError("must be a language code that Whisper knows, such as en, de or zh")

    @model_validator(mode="after")
    def _agree(self) -> "Options":
        bounds = (self.num_speakers, self.min_speakers, self.max_speakers)
        if self.diarize is False and any(bound is not None for bound in bounds):
            raise ValueError("speaker counts need diarize to be true")
        if self.num_speakers is not None and (self.min_speakers, self.max_speakers) != (None, None):
            raise ValueError("num_speakers cannot be combined with min_speakers or max_speakers")
        if self.min_speakers and self.max_speakers and self.min_speakers > self.max_speakers:
            raise ValueError("min_speakers must not be above max_speakers")
        if self.word_timestamps and self.task == "translate":
            raise ValueError(
                "word_timestamps cannot be combined with task=translate: the words are not spoken"
            )
        return self


class PredictRequest(Options):
    """The JSON body of `POST /predict`; exactly one of `audio_file` and `audio_b64`."""

    audio_file: str | None = Field(None, description="http or https URL of the audio or video.")
    audio_b64: str | None = Field(None, description="The file itself, base64.")
    headers: dict[str, str] = Field(
        default_factory=dict, description="HTTP headers for fetching `audio_file`, such as Authorization."
    )

    @model_validator(mode="after")
    def _one_source(self) -> "PredictRequest":
        if (self.audio_file is None) == (self.audio_b64 is None):
            raise ValueError(
                "give either audio_file (a URL) or audio_b64 (the file), or upload a multipart file"
            )
        if self.headers and self.audio_file is None:
            raise ValueError("headers are for fetching audio_file")
        return self

    def options(self) -> Options:
        return Options.model_validate(self.model_dump(include=set(Options.model_fields)))


class WordOut(BaseModel):
    """One word. Times and score are null where the word could not be aligned."""

    word: str
    start: float | None
    end: float | None
    score: float | None
    speaker: str | None


class SegmentOut(BaseModel):
    """One sentence. `speaker` is null when speakers were not asked for or not found."""

    start: float
    end: float
    text: str
    speaker: str | None
    words: list[WordOut] | None = Field(None, description="Only with `word_timestamps`.")


class WarningOut(BaseModel):
    """Something that went less well than it should, and in which stage."""

    stage: str
    code: str
    message: str


class PredictResponse(BaseModel):
    """The answer of `POST /predict`; times in seconds."""

    model_output: list[SegmentOut]
    language: str | None = Field(description="Null when there was no speech.")
    duration: float
    model: str
    warnings: list[WarningOut]
    timings: dict[str, float] = Field(description="Wall seconds per stage; stages overlap.")


class ErrorBody(BaseModel):
    """What every error answer holds."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorResponse(BaseModel):
    """The body of every answer that is not 2xx."""

    error: ErrorBody


def parse_predict(fields: dict[str, Any]) -> PredictRequest:
    """A JSON body, or InvalidRequest naming the field that is wrong."""
    return _checked(PredictRequest, fields)


def parse_options(fields: dict[str, Any]) -> Options:
    """Form fields or keyword arguments, or InvalidRequest naming the one that is wrong."""
    return _checked(Options, fields)


def _checked(model: type[Model], fields: dict[str, Any]) -> Model:
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"]) or None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown option; known are {', '.join(sorted(model.model_fields))}"
        raise InvalidRequest(f"{name}: {message}." if name else f"{message}.", name) from None


def predict_response(transcript: Transcript, *, words: bool) -> dict[str, Any]:
    """The answer as JSON-ready data; `words` are left out unless asked for."""
    response = PredictResponse(
        model_output=[_segment_out(segment, words=words) for segment in transcript.segments],
        language=transcript.language,
        duration=round(transcript.duration_s, 3),
        model=transcript.model,
        warnings=[
            WarningOut(stage=warning.stage, code=warning.code, message=warning.message)
            for warning in transcript.warnings
        ],
        timings={stage: round(seconds, 3) for stage, seconds in transcript.timings.items()},
    )
    return response.model_dump(exclude_unset=True)


def progress_response(progress: Progress, *, words: bool) -> dict[str, Any]:
    """A report on a running request as JSON-ready data."""
    segments = [_segment_out(s, words=words).model_dump(exclude_unset=True) for s in progress.segments]
    return {
        "windows_done": progress.windows_done,
        "windows_found": progress.windows_found,
        "all_found": progress.all_found,
        "segments": segments,
    }


def _segment_out(segment: Segment, *, words: bool) -> SegmentOut:
    times = {"start": round(segment.start_s, 3), "end": round(segment.end_s, 3)}
    said = {"text": segment.text, "speaker": segment.speaker}
    if words:
        return SegmentOut(**times, **said, words=[_word_out(word) for word in segment.words])
    return SegmentOut(**times, **said)


def _word_out(word: Word) -> WordOut:
    return WordOut(
        word=word.text,
        start=word.start_s,
        end=word.end_s,
        score=word.score if word.score is not None and math.isfinite(word.score) else None,  # JSON has no NaN
        speaker=word.speaker,
    )
