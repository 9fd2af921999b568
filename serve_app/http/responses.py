"""Answers: the JSON of our own API, the formats that are text, and errors, which all routes answer alike."""

import json
import logging
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, NotRequired

from pydantic import Field
from starlette.responses import JSONResponse, Response
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app import errors
from serve_app.errors import TranscriptionError
from serve_app.formats.cue_words import words_of
from serve_app.formats.table import FORMATS
from serve_app.http.other_apis import shaped
from serve_app.options import Options
from serve_app.transcript import Progress, Segment, StageWarning, Transcript, Word

logger = logging.getLogger("ray.serve")

MAX_HEADER_CHARS = 1000

_HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},  # else the client could go on sending
    415: {"Accept-Encoding": "identity"},  # RFC 7694
    504: {"x-should-retry": "false"},  # else the `openai` package sends it twice more
}


class WordOut(TypedDict):
    """One word. Times are seconds; they and the score, 0 to 1, are null where the word was not aligned."""

    word: str
    start: float | None
    end: float | None
    score: float | None
    speaker: str | None


class SegmentOut(TypedDict):
    """One sentence. Times are seconds; `speaker` is null where speakers were not asked for or not found."""

    start: float
    end: float
    text: str
    speaker: str | None
    words: NotRequired[Annotated[list[WordOut], Field(description="Only with `word_timestamps`.")]]


class _About(TypedDict):
    language: Annotated[str | None, Field(description="Whisper's code; null when there was no speech.")]
    duration: Annotated[float, Field(description="Seconds of audio.")]
    model: Annotated[str, Field(description="The Whisper model that was used.")]
    warnings: Annotated[list[StageWarning], Field(description="Empty when there are none.")]
    timings: Annotated[dict[str, float], Field(description="Wall seconds per stage; stages overlap.")]


class PredictResponse(_About):
    """The answer of `POST /predict`: the segments, in order; times in seconds."""

    model_output: list[SegmentOut]


class WordsResponse(_About):
    """The answer with `response_format` words: those of all segments, in order; times in seconds."""

    words: list[WordOut]


class ErrorResponse(TypedDict):
    """The body of every answer that is not 2xx."""

    error: Annotated[dict[str, str | None], Field(description="`message`, `type`, `param`, `code`.")]


OTHER_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"model": ErrorResponse, "description": "Any other error."}
}

# What a request that transcribes at once may be answered.
ERRORS_AT_ONCE = (
    errors.InvalidRequest,
    errors.Unauthorized,
    errors.NoApiKeys,
    errors.UploadTooSlow,
    errors.PayloadTooLarge,
    errors.EncodedBody,
    errors.UnusableAudio,
    errors.EmptyAudio,
    errors.NoAudioStream,
    errors.EncryptedAudio,
    errors.AudioTooLong,
    errors.AudioTooCostly,
    errors.SourceUnavailable,
    errors.RateLimited,
    errors.ModelCrashed,
    errors.Overloaded,
    errors.ModelUnavailable,
    errors.DeadlineExceeded,
)


def described_answers(
    model: Any, media_types: Iterable[str], *known: type[TranscriptionError]
) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of transcripts in JSON and in formats that are text, and of these errors."""
    text = {"schema": {"type": "string"}}
    warnings = {"description": "In text formats: what JSON has as `warnings`, as ASCII JSON.", **text}
    return {
        200: {
            "model": model,
            "description": "The transcript in the `response_format` asked for.",
            "content": {media_type.partition(";")[0]: text for media_type in media_types},
            "headers": {"X-Warnings": warnings},
        },
        **described_errors(*known),
    }


def described_errors(*known: type[TranscriptionError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of answers with these errors: for each status the codes and what they mean."""
    meanings: dict[int, dict[str, str]] = {}
    for each in known:
        meanings.setdefault(each.status, {})[each.code] = f"`{each.code}`: {each.__doc__}"
    return {
        status: {"model": ErrorResponse, "description": "\n\n".join(of_codes.values())}
        for status, of_codes in meanings.items()
    }


def answer(transcript: Transcript, options: Options) -> dict[str, Any] | str:
    """The answer to a request: JSON-ready data for json and words, else text.

    With `words`, a segment that was not aligned has its words too, with null times, so that nothing that was
    said is missing.
    """
    if write := FORMATS[options.response_format].write:
        return write(transcript, options.layout())
    segments = transcript.segments
    shown: dict[str, Any] = {}
    if options.response_format == "words":
        words = [word for segment in segments for word in words_of(segment, transcript.language)]
        shown["words"] = [_word_out(word) for word in words]
    else:
        shown["model_output"] = [segment_out(each, words=options.word_timestamps) for each in segments]
    return shown | {
        "language": transcript.language,
        "duration": round(transcript.duration_s, 3),
        "model": transcript.model,
        "warnings": warnings_out(transcript),
        "timings": {stage: round(seconds, 3) for stage, seconds in transcript.timings.items()},
    }


def warnings_out(transcript: Transcript) -> list[dict[str, str]]:
    """The transcript's warnings, JSON-ready."""
    return [asdict(warning) for warning in transcript.warnings]


def progress_response(progress: Progress, options: Options) -> dict[str, Any]:
    """A report on a running request, JSON-ready."""
    words = options.word_timestamps or options.response_format == "words"
    return {
        "windows_done": progress.windows_done,
        "windows_found": progress.windows_found,
        "all_found": progress.all_found,
        "segments": [segment_out(segment, words=words) for segment in progress.segments],
    }


def transcript_response(transcript: Transcript, options: Options) -> Response:
    """The answer to a request as a response. This can take seconds for many words: call it in a thread."""
    body = answer(transcript, options)
    if isinstance(body, str):
        return text_response(body, FORMATS[options.response_format].media_type, transcript)
    return JSONResponse(body)


def text_response(text: str, media_type: str, transcript: Transcript) -> Response:
    """A response in a text format. Those have no place for warnings, which are in the header X-Warnings."""
    response = Response(text, media_type=media_type)
    if warnings := warnings_out(transcript):
        response.headers["X-Warnings"] = json.dumps(warnings)  # ASCII, as a header must be
    return response


def error_body(error: Exception) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`. An unexpected error is logged; its text is not sent."""
    if not isinstance(error, TranscriptionError):
        logger.error("request failed", exc_info=error)
        error = TranscriptionError("The server failed; the operator's log has the details.")
    body = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": body}


def error_response(error: Exception, path: str = "") -> Response:
    """The response for an error, in the shape of this path's API, with Retry-After where that can help."""
    known = error if isinstance(error, TranscriptionError) else TranscriptionError("")
    headers = _HEADERS.get(known.status, {})
    if known.retry_after_s is not None:
        headers = {**headers, "Retry-After": str(known.retry_after_s)}
    return shaped_response(path, known.status, error_body(error), headers)


def shaped_response(path: str, status: int, body: dict[str, Any], headers: Mapping[str, str]) -> Response:
    """An error in the shape of this path's API. Where that is no text at all, headers say what it is."""
    shape = shaped(path, status, body)
    if shape is not None:
        return JSONResponse(shape, status, headers)
    message = re.sub("[^ -~]", "?", body["error"]["message"])[:MAX_HEADER_CHARS]
    told = {"X-Error-Code": body["error"]["code"], "X-Error-Message": message}
    return Response(status_code=status, headers={**headers, **told})


def segment_out(segment: Segment, *, words: bool) -> SegmentOut:
    """One segment, JSON-ready."""
    start_s, end_s = round(segment.start_s, 3), round(segment.end_s, 3)
    out = SegmentOut(start=start_s, end=end_s, text=segment.text, speaker=segment.speaker)
    if words:
        out["words"] = [_word_out(word) for word in segment.words]
    return out


def _word_out(word: Word) -> WordOut:
    score = word.score if math.isfinite(word.score or 0.0) else None  # JSON has no NaN
    return WordOut(word=word.text, start=word.start_s, end=word.end_s, score=score, speaker=word.speaker)
