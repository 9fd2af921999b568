"""The routes that give who speaks when, or where speech is, and no text. Their paths are speaches' own."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.audio import Source
from serve_app.errors import ModelNotFound
from serve_app.formats.table import FORMATS
from serve_app.http.answer_types import Embeddings, described_answers
from serve_app.http.errors import ERRORS_AT_ONCE, OTHER_ERRORS, described_errors
from serve_app.http.forms import collect_fields, described_body
from serve_app.http.model_names import ModelNames, with_defaults
from serve_app.http.responses import (
    embeddings_out,
    text_response,
    timings_out,
    warnings_out,
    with_warnings,
)
from serve_app.http.uploads import PredictRequest, received
from serve_app.options import Options, parse_options
from serve_app.options.conflicts import SPEAKER_COUNTS
from serve_app.options.fields import KNOWN_SPEAKERS, LISTS
from serve_app.options.validation import conflict
from serve_app.request.without_text import DetectedSpeech
from serve_app.transcript import StageWarning, Transcript, Turn

# The options that mean something where there is no text.
AUDIO_OPTIONS = ("start_s", "end_s", "track", "encoding", "sample_rate", "channel_count")
DIARIZATION_OPTIONS = (*AUDIO_OPTIONS, *SPEAKER_COUNTS, *KNOWN_SPEAKERS, "embeddings", "response_format")
SPEECH_OPTIONS = (*AUDIO_OPTIONS, "vad_onset", "vad_offset", "vad_min_silence_s")
LANGUAGE_OPTIONS = (*SPEECH_OPTIONS, "languages")
HAVE_TURNS = ("json", "rttm")
SOURCE_FIELDS = PredictRequest.model_fields.keys() - Options.model_fields.keys()


@dataclass(frozen=True, slots=True)
class WithoutText:
    """What answers these requests; both raise TranscriptionError."""

    diarize: Callable[[Source, Options], Awaitable[Transcript]]
    detect_speech: Callable[[Source, Options], Awaitable[DetectedSpeech]]


class Body(PredictRequest):
    """A JSON body; which of its options the route has is checked later, as for a form."""

    model_config = ConfigDict(extra="allow")

    model: str = Field("", description="May be left out. Else a name that OpenAI's routes take, too.")

    def asked(self) -> dict[str, Any]:
        """The fields that were sent, but for the audio's."""
        return {name: getattr(self, name) for name in self.model_fields_set - SOURCE_FIELDS}


class TurnOut(TypedDict):
    """One speaker speaking. Times are seconds."""

    start: float
    end: float
    speaker: str


class SpeakersAnswer(Embeddings):
    """The answer in `json`."""

    segments: Annotated[list[TurnOut], Field(description="Who speaks when; several may speak at once.")]
    exclusive_segments: Annotated[list[TurnOut], Field(description="The same with one speaker at a time.")]
    duration: Annotated[float, Field(description="Seconds of audio.")]
    warnings: Annotated[list[StageWarning], Field(description="Empty when there are none.")]
    timings: Annotated[dict[str, float], Field(description="Wall seconds per stage.")]


class SpeechOut(TypedDict):
    """Speech without a pause. Times are milliseconds."""

    start: int
    end: int


def without_text_routes(
    run: WithoutText, models: ModelNames, max_bytes: int, max_json_bytes: int
) -> APIRouter:
    """The routes, for requests that name one of these models or none."""
    router = APIRouter(tags=["Voices"], responses=OTHER_ERRORS)
    form = partial(collect_fields, arrays=LISTS)
    answers = described_answers(SpeakersAnswer, ("text/plain",), *ERRORS_AT_ONCE, ModelNotFound)
    answers[200]["description"] = "The turns in the `response_format` asked for."

    def options_of(names: Sequence[str], given: dict[str, Any]) -> Options:
        defaults = models.defaults(given.pop("model", "") or models.own)
        options, _ = with_defaults(defaults, given, partial(parse_some, names))
        return options

    @router.post(
        "/v1/audio/diarization",
        openapi_extra=_described(DIARIZATION_OPTIONS),
        responses=answers,
    )
    async def diarization(request: Request) -> Response:
        """Finds who speaks when in one file, which is uploaded or fetched from a URL, without its text."""
        async with received(request, max_bytes, form, max_json_bytes, Body) as (source, given):
            options = options_of(DIARIZATION_OPTIONS, given)
            found = await run.diarize(source, options)
        shown = await asyncio.to_thread(speakers_answer, found, options)
        if isinstance(shown, str):
            return text_response(shown, FORMATS[options.response_format].media_type, found)
        return JSONResponse(shown)

    @router.post(
        "/v1/audio/speech/timestamps",
        openapi_extra=_described(SPEECH_OPTIONS),
        response_model=list[SpeechOut],
        responses=described_errors(*ERRORS_AT_ONCE, ModelNotFound),
    )
    async def timestamps(request: Request) -> Response:
        """Finds the speech in one file, which is uploaded or fetched from a URL, without its text.

        Warnings are in the header `X-Warnings`.
        """
        async with received(request, max_bytes, form, max_json_bytes, Body) as (source, given):
            found = await run.detect_speech(source, options_of(SPEECH_OPTIONS, given))
        return with_warnings(JSONResponse(speech_answer(found)), found.warnings)

    return router


def parse_some(names: Sequence[str], given: Mapping[str, Any], more: Sequence[str] = ("model",)) -> Options:
    """The options `names` of a request without a text; the error for any other lists `more` fields, too."""
    if unknown := sorted(given.keys() - set(names)):
        raise conflict(unknown[0], f"unknown option; this request has only {', '.join((*more, *names))}")
    if given.get("response_format") not in (None, *HAVE_TURNS):
        raise conflict("response_format", f"without text it can be {' or '.join(HAVE_TURNS)}")
    return parse_options({**given})


def speakers_answer(found: Transcript, options: Options) -> dict[str, Any] | str:
    """Who speaks when: JSON-ready, or text for rttm."""
    if write := FORMATS[options.response_format].write:
        return write(found, options.layout())
    return {
        "segments": [_turn_out(turn) for turn in found.turns],
        "exclusive_segments": [_turn_out(turn) for turn in found.exclusive_turns],
        **embeddings_out(found, options),
        "duration": round(found.duration_s, 3),
        "warnings": warnings_out(found),
        "timings": timings_out(found),
    }


def speech_answer(found: DetectedSpeech) -> list[SpeechOut]:
    """Where speech is, JSON-ready."""
    return [
        SpeechOut(start=round(1000 * each.start_s), end=round(1000 * each.end_s)) for each in found.segments
    ]


def _turn_out(turn: Turn) -> TurnOut:
    return TurnOut(start=round(turn.start_s, 3), end=round(turn.end_s, 3), speaker=turn.speaker)


def _described(names: Sequence[str]) -> dict[str, Any]:
    known = Body.model_json_schema()["properties"]
    described = described_body({name: known[name] for name in ("model", *names)}, json_model=Body)
    schema = described["requestBody"]["content"]["application/json"]["schema"]
    taken = {*SOURCE_FIELDS, "model", *names}
    schema["properties"] = {name: field for name, field in known.items() if name in taken}
    return described
