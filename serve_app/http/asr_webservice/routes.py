"""whisper-asr-webservice's routes, for Bazarr, Speakr and others that are written for it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, NotRequired
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.audio import RawAudio, Source
from serve_app.errors import InvalidRequest, ModelNotFound
from serve_app.formats.table import FORMATS
from serve_app.http.answer_types import Embeddings, LanguageShare, LogprobOut, described_answers
from serve_app.http.asr_webservice.request import (
    AsrAsked,
    AsrFields,
    LanguageFields,
    parse_asr,
    parse_language,
)
from serve_app.http.errors import ERRORS_AT_ONCE, OTHER_ERRORS, described_errors
from serve_app.http.forms import described_body, described_query
from serve_app.http.model_names import ModelNames
from serve_app.http.responses import (
    UNKNOWN,
    embeddings_out,
    languages_out,
    logprobs,
    segment_out,
    text_pieces,
    text_response,
)
from serve_app.http.uploads import received
from serve_app.http.without_text import LANGUAGE_OPTIONS
from serve_app.languages import LANGUAGES
from serve_app.options import Options
from serve_app.request.progress import Transcribe
from serve_app.request.without_text import DetectedLanguage
from serve_app.transcript import StageWarning, Transcript

PART = "audio_file"
ENGINE = "whisperx"
NO_LANGUAGE = "und"  # undetermined, in ISO 639-2; Bazarr knows it
MAX_NAME_CHARS = 200

# `false` is the default there, and many clients send it as an example has it; there too, the engine whisperx
# detects speech all the same.
ALWAYS_FILTERED = StageWarning(
    "speech", "vad_filter_always", "vad_filter=false has no effect: speech is always detected first."
)

DetectLanguage = Callable[[Source, Options], Awaitable[DetectedLanguage]]


class AsrSegment(TypedDict):
    """One sentence. Times are seconds."""

    start: float
    end: float
    text: str
    speaker: NotRequired[
        Annotated[str | None, Field(description="Only with `diarize`, or `channels` as speakers.")]
    ]
    words: NotRequired[Annotated[list[dict[str, Any]], Field(description="Only with `word_timestamps`.")]]
    language: NotRequired[
        Annotated[str | None, Field(description="Only with `language=multiple` or `languages`.")]
    ]


class AsrAnswer(Embeddings):
    """The answer with `output=json`, which comes as `text/plain`."""

    text: str
    segments: list[AsrSegment]
    logprobs: NotRequired[Annotated[list[LogprobOut], Field(description="Only with `logprobs`.")]]
    language: Annotated[str | None, Field(description="Whisper's code; null when there was no speech.")]
    languages: NotRequired[
        Annotated[list[LanguageShare], Field(description="Only with `language=multiple` or `languages`.")]
    ]


class LanguageAnswer(TypedDict):
    """The language for which the first windows of speech have voted."""

    detected_language: Annotated[str, Field(description="English name; `unknown` when there was no speech.")]
    language_code: Annotated[str, Field(description="Whisper's code; `und` when there was no speech.")]
    confidence: Annotated[float, Field(description="Its mean probability over these windows.")]


def asr_routes(
    transcribe: Transcribe, detect_language: DetectLanguage, models: ModelNames, max_bytes: int
) -> APIRouter:
    """The routes; each has a second path, for clients whose address of the server ends with a slash."""
    router = APIRouter(tags=["whisper-asr-webservice"], responses=OTHER_ERRORS)

    @router.post("//asr", include_in_schema=False)
    @router.post("/asr", **_described_asr())
    async def asr(request: Request) -> Response:
        """Transcribes an uploaded file; the options are in the URL.

        Query names that are not listed are ignored. The body of an error is empty, because Bazarr would keep
        it as the subtitles: `X-Error-Code` and `X-Error-Message` say what is wrong. `POST //asr` is the same.
        """
        parse = partial(parse_asr, request.query_params.multi_items(), models)
        async with received(request, max_bytes, parse, part=PART) as (source, asked):
            try:
                transcript = await transcribe(_as_said(source, encode=asked.fields.encode), asked.options)
            except InvalidRequest as error:
                raise asked.explained(error) from None
        if asked.fields.vad_filter is False:
            transcript = replace(transcript, warnings=(*transcript.warnings, ALWAYS_FILTERED))
        return await asyncio.to_thread(_response, transcript, asked, source.name)

    errors = described_errors(*ERRORS_AT_ONCE, ModelNotFound)
    query = [*described_query(LanguageFields), *described_query(Options, LANGUAGE_OPTIONS)]
    described = described_body({}, part=PART) | {"parameters": query}

    @router.post("//detect-language", include_in_schema=False)
    @router.post("/detect-language", responses=errors, openapi_extra=described)
    async def language(request: Request) -> LanguageAnswer:
        """Detects the language of an uploaded file by its first windows of speech, without transcribing it.

        With `languages` it is one of those. Other options of `/asr` are refused, and names that this server
        does not know are ignored. `POST //detect-language` is the same.
        """
        parse = partial(parse_language, request.query_params.multi_items(), models)
        async with received(request, max_bytes, parse, part=PART) as (source, asked):
            file = _as_said(source, encode=asked.fields.encode)
            return language_answer(await detect_language(file, asked.options))

    return router


def language_answer(found: DetectedLanguage) -> LanguageAnswer:
    """A detected language, JSON-ready."""
    return LanguageAnswer(
        detected_language=LANGUAGES.get(found.code or "", UNKNOWN),
        language_code=found.code or NO_LANGUAGE,
        confidence=round(found.confidence, 4),
    )


def _as_said(source: Source, *, encode: bool) -> Source:
    """The file, or without `encode` samples, unless it shows that it is WAV all the same."""
    assert source.file is not None
    head = source.file.read(12)
    source.file.seek(0)
    is_wav = head[:4] == b"RIFF" and head[8:] == b"WAVE"
    return source if encode or is_wav else replace(source, raw=RawAudio())


def _response(transcript: Transcript, asked: AsrAsked, name: str) -> Response:
    output, write = asked.fields.output, FORMATS[asked.options.response_format].write
    body = write(transcript, asked.options.layout()) if write else json.dumps(_answer(transcript, asked))
    response = text_response(body, "text/plain", transcript)
    file_name = quote(f"{name[:MAX_NAME_CHARS] or PART}.{output}", safe="")
    response.headers["Asr-Engine"] = ENGINE
    response.headers["Content-Disposition"] = f'attachment; filename="{file_name}"'
    return response


def _answer(transcript: Transcript, asked: AsrAsked) -> AsrAnswer:
    options, segments = asked.options, list[Any]()
    for segment in transcript.segments:
        out: Any = segment_out(segment, options, words=options.word_timestamps)
        for each in () if options.diarize or options.channels == "speakers" else (out, *out.get("words", ())):
            del each["speaker"]
        segments.append(out)
    text = "".join(text_pieces(transcript.segments, options.task, is_first=True))
    answer = AsrAnswer(text=text, segments=segments, language=transcript.language)
    if options.logprobs:
        answer["logprobs"] = logprobs(transcript)
    if options.tells_languages:
        answer["languages"] = languages_out(transcript)
    return {**answer, **embeddings_out(transcript, options)}


def _described_asr() -> dict[str, Any]:
    theirs = described_query(AsrFields)
    names = [
        name for name in Options.model_fields if name not in (*AsrFields.model_fields, "response_format")
    ]
    query = {"parameters": [*theirs, *described_query(Options, names)]}
    return {
        "responses": described_answers(AsrAnswer, ("text/plain",), *ERRORS_AT_ONCE, ModelNotFound),
        "openapi_extra": described_body({}, part=PART) | query,
    }
