"""The wire of our own API: the JSON body of a request, and what an answer looks like. Pydantic only."""

import math
from typing import Any

from pydantic import BaseModel, Field, model_validator

from serve_app.formats.subtitles import words_of
from serve_app.formats.text import rendered
from serve_app.options import Options, checked
from serve_app.transcript import Progress, Segment, Transcript, Word


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
    """The answer of `POST /predict`: the segments, in order; times in seconds."""

    model_output: list[SegmentOut]
    language: str | None = Field(description="Null when there was no speech.")
    duration: float
    model: str
    warnings: list[WarningOut]
    timings: dict[str, float] = Field(description="Wall seconds per stage; stages overlap.")


class WordsResponse(BaseModel):
    """The answer with `response_format` words: those of all segments, in order; times in seconds."""

    words: list[WordOut]
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
    return checked(PredictRequest, fields)


def answer(transcript: Transcript, options: Options) -> dict[str, Any] | str:
    """What the caller asked for: JSON-ready data for json and words, else text.

    Words stand in segments only where asked for. In `words` a segment that was not aligned has its words too,
    with null times: nothing that was said is missing.
    """
    if options.response_format not in ("json", "words"):
        return rendered(transcript, options.response_format, options.layout())
    common: dict[str, Any] = {
        "language": transcript.language,
        "duration": round(transcript.duration_s, 3),
        "model": transcript.model,
        "warnings": warnings_out(transcript),
        "timings": {stage: round(seconds, 3) for stage, seconds in transcript.timings.items()},
    }
    response: BaseModel
    if options.response_format == "words":
        words = [word for segment in transcript.segments for word in words_of(segment, transcript.language)]
        response = WordsResponse(words=[_word_out(word) for word in words], **common)
    else:
        segments = [_segment_out(segment, words=options.word_timestamps) for segment in transcript.segments]
        response = PredictResponse(model_output=segments, **common)
    return response.model_dump(exclude_unset=True)


def warnings_out(transcript: Transcript) -> list[WarningOut]:
    """The warnings as they are answered."""
    return [
        WarningOut(stage=warning.stage, code=warning.code, message=warning.message)
        for warning in transcript.warnings
    ]


def progress_response(progress: Progress, options: Options) -> dict[str, Any]:
    """A report on a running request as JSON-ready data."""
    words = options.word_timestamps or options.response_format == "words"
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
