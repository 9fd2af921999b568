"""whisper-asr-webservice's routes, for Bazarr, Speakr and others that are written for it.

Their options are in the URL, which is so nowhere else. Clients add query names of their own and of other
servers, so unknown ones are left alone; those that are known are honoured or refused, as everywhere.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, NotRequired
from urllib.parse import quote

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.errors import InvalidRequest, ModelNotFound
from serve_app.formats.table import FORMATS
from serve_app.http.forms import Field as FormField
from serve_app.http.forms import collect_fields, described_body, described_query
from serve_app.http.openai.request import ALIAS, unknown_model
from serve_app.http.openai.response import UNKNOWN, text_pieces
from serve_app.http.responses import (
    ERRORS_AT_ONCE,
    OTHER_ERRORS,
    described_answers,
    described_errors,
    segment_out,
    text_response,
)
from serve_app.http.uploads import received
from serve_app.languages import LANGUAGES
from serve_app.options import KNOWN_SPEAKERS, Options, conflict, parse_options, validate_or_400
from serve_app.raw_audio import RawAudio
from serve_app.request.detect_language import DetectedLanguage
from serve_app.request.progress import Transcribe
from serve_app.transcript import Source, StageWarning, Transcript

PART = "audio_file"
ENGINE = "whisperx"
NO_LANGUAGE = "und"  # undetermined, in ISO 639-2; Bazarr knows it
MAX_NAME_CHARS = 200
NO_SPEAKERS_IN = "tsv"
BOUNDS = ("min_speakers", "max_speakers", "num_speakers")

# `false` is the default there, and many clients send it as an example has it; there too, the engine whisperx
# detects speech all the same.
ALWAYS_FILTERED = StageWarning(
    "speech", "vad_filter_always", "vad_filter=false has no effect: speech is always detected first."
)

DetectLanguage = Callable[[Source], Awaitable[DetectedLanguage]]
Encode = Annotated[
    bool, Field(description="`false`: 16-bit samples, 16 kHz, mono, without a header; WAV is taken too.")
]


class AsrFields(BaseModel):
    """What whisper-asr-webservice and servers like it have, and our options have not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encode: Encode = True
    output: Literal["txt", "text", "vtt", "srt", "tsv", "json"] = Field(
        "txt", description="The format of the answer; `text` is `txt`."
    )
    vad_filter: bool | None = Field(
        None, description="Speech is always detected first; `false` is taken with a warning."
    )
    word_timestamps: bool = Field(False, description="Add `words` to `json`; other outputs show none.")
    diarize: bool | None = Field(None, description="Label speakers, in all outputs but `tsv`. Empty: no.")
    enable_diarization: bool | None = Field(None, description="The same as `diarize`.")
    return_speaker_embeddings: bool = Field(False, description="Must be false: there are none.")
    model: str = Field(ALIAS, description="The configured model's name, or `whisper-1`.")


class LanguageFields(BaseModel):
    """What /detect-language has."""

    encode: Encode = True


class AsrSegment(TypedDict):
    """One sentence. Times are seconds."""

    start: float
    end: float
    text: str
    speaker: NotRequired[Annotated[str | None, Field(description="Only with `diarize`.")]]
    words: NotRequired[Annotated[list[dict[str, Any]], Field(description="Only with `word_timestamps`.")]]


class AsrAnswer(TypedDict):
    """The answer with `output=json`, which comes as `text/plain`."""

    text: str
    segments: list[AsrSegment]
    language: Annotated[str | None, Field(description="Whisper's code; null when there was no speech.")]


class LanguageAnswer(TypedDict):
    """The language for which the first windows of speech have voted."""

    detected_language: Annotated[str, Field(description="English name; `unknown` when there was no speech.")]
    language_code: Annotated[str, Field(description="Whisper's code; `und` when there was no speech.")]
    confidence: Annotated[float, Field(description="Its mean probability over these windows.")]


@dataclass(frozen=True, slots=True)
class AsrAsked:
    """What a request to /asr asks for."""

    options: Options
    fields: AsrFields


def asr_routes(
    transcribe: Transcribe, detect_language: DetectLanguage, model: str, max_bytes: int
) -> APIRouter:
    """The routes; each has a second path, for clients whose address of the server ends with a slash."""
    router = APIRouter(tags=["whisper-asr-webservice"], responses=OTHER_ERRORS)
    models = (model, ALIAS)

    @router.post("//asr", include_in_schema=False)
    @router.post("/asr", **_described_asr())
    async def asr(request: Request) -> Response:
        """Transcribes an uploaded file; the options are in the URL.

        Query names that are not listed are ignored. The body of an error is empty, because Bazarr would keep
        it as the subtitles: `X-Error-Code` and `X-Error-Message` say what is wrong. `POST //asr` is the same.
        """
        parse = partial(parse_asr, request.query_params.multi_items(), models)
        async with received(request, max_bytes, parse, part=PART) as (source, asked):
            transcript = await transcribe(_as_said(source, encode=asked.fields.encode), asked.options)
        if asked.fields.vad_filter is False:
            transcript = replace(transcript, warnings=(*transcript.warnings, ALWAYS_FILTERED))
        return await asyncio.to_thread(_response, transcript, asked, source.name)

    errors = described_errors(*ERRORS_AT_ONCE)
    described = described_body({}, part=PART) | {"parameters": described_query(LanguageFields)}

    @router.post("//detect-language", include_in_schema=False)
    @router.post("/detect-language", responses=errors, openapi_extra=described)
    async def language(request: Request) -> LanguageAnswer:
        """Detects the language of an uploaded file by its first windows of speech, without transcribing it.

        Query names that are not listed are ignored. `POST //detect-language` is the same.
        """
        parse = partial(_parse_language, request.query_params.multi_items())
        async with received(request, max_bytes, parse, part=PART) as (source, asked):
            return language_answer(await detect_language(_as_said(source, encode=asked.encode)))

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


def parse_asr(query: Sequence[FormField], models: Collection[str], form: Sequence[FormField]) -> AsrAsked:
    """Parses the query, with the form's text fields, in which some clients send options too."""
    given = _known(AsrFields.model_fields.keys() | Options.model_fields.keys(), [*query, *form])
    theirs = {name: given.pop(name) for name in AsrFields.model_fields if name in given}
    fields = validate_or_400(AsrFields, theirs)
    if "response_format" in given:
        raise conflict("response_format", "is called output here")
    if fields.return_speaker_embeddings:
        raise conflict("return_speaker_embeddings", "this server gives none; leave it out, or send false")
    if fields.model not in models:
        raise unknown_model(fields.model, models)
    wanted = {fields.diarize, fields.enable_diarization} - {None}
    if len(wanted) > 1:
        raise conflict("enable_diarization", "contradicts diarize, which is the same")
    if True in wanted and fields.output == NO_SPEAKERS_IN:
        raise conflict("diarize", f"{NO_SPEAKERS_IN} shows no speakers; ask for txt, srt, vtt or json")
    if False in wanted:  # Speakr sends its bounds all the same, when there is nothing for them to bound
        given = {name: value for name, value in given.items() if name not in BOUNDS}
    # A transcription's words always have times, whether the output shows them or not; a translation's never.
    needs_words = fields.word_timestamps and (fields.output == "json" or given.get("task") == "translate")
    own = {
        "diarize": True in wanted,
        "response_format": "text" if fields.output == "txt" else fields.output,
        "word_timestamps": needs_words,
    }
    try:
        return AsrAsked(parse_options(given | own), fields)
    except InvalidRequest as error:
        message = error.message.replace("response_format=", "output=")
        raise InvalidRequest(message, error.param, error.code) from None


def _parse_language(query: Sequence[FormField], form: Sequence[FormField]) -> LanguageFields:
    return validate_or_400(LanguageFields, _known(LanguageFields.model_fields, [*query, *form]))


def _known(names: Collection[str], sent: Sequence[FormField]) -> dict[str, Any]:
    fields = [(name, value) for name, value in sent if name.partition("[")[0] in names]
    return collect_fields(fields, KNOWN_SPEAKERS)


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
        out: Any = segment_out(segment, words=options.word_timestamps)
        for each in () if options.diarize else (out, *out.get("words", ())):
            del each["speaker"]
        segments.append(out)
    text = "".join(text_pieces(transcript.segments, options.task, is_first=True))
    return AsrAnswer(text=text, segments=segments, language=transcript.language)


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
