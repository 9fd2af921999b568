"""What a request to OpenAI's audio routes asks for: its form fields, checked and made into our options."""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from serve_app.errors import InvalidRequest, ModelNotFound
from serve_app.http.form_fields import OPTION_ARRAYS, gathered
from serve_app.http.form_fields import Field as FormField
from serve_app.options import MAX_PROMPT_CHARS, SPEAKER_OPTIONS, Options, checked, parse_options
from serve_app.transcript import Task

ALIAS = "whisper-1"  # what clients ask for that know only OpenAI's models

Format = Literal["json", "text", "srt", "vtt", "verbose_json", "diarized_json"]
SHOWS_SPEAKERS = ("diarized_json", "verbose_json", "srt", "vtt")
STREAMED = ("json", "text", "diarized_json")

KNOWN_SPEAKERS = ("known_speaker_names", "known_speaker_references")
ARRAYS = ("timestamp_granularities", "include", "keywords", *OPTION_ARRAYS)
NOT_HERE = {
    "task": "the route says it: /v1/audio/transcriptions or /v1/audio/translations",
    "word_timestamps": "ask for timestamp_granularities[]=word with response_format=verbose_json",
}


class TranslationFields(BaseModel):
    """The fields of `POST /v1/audio/translations` that are OpenAI's, beside `file`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="The configured model's name, or `whisper-1`.")
    response_format: Format = Field("json", description="What the answer looks like.")
    prompt: str | None = Field(None, description="As `initial_prompt`; of a longer one the end is read.")

    @field_validator("response_format")
    @classmethod
    def _of_translations(cls, value: Format) -> Format:
        if value == "diarized_json" and cls is TranslationFields:
            raise ValueError("translations are json, text, srt, vtt or verbose_json")
        return value


class TranscriptionFields(TranslationFields):
    """The fields of `POST /v1/audio/transcriptions` that are OpenAI's, beside `file`."""

    stream: bool = Field(
        False, description="Server-sent events; with the formats json, text and diarized_json."
    )
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = Field(
        (), description="With verbose_json: `segment` (when empty), `word`, or both."
    )
    chunking_strategy: str | dict[str, str] = Field(
        "auto", description="`auto`; or `server_vad` without parameters, which is the same."
    )
    include: tuple[str, ...] = Field((), description="Must be empty.")
    keywords: tuple[str, ...] = Field((), description="As `hotwords`.")

    @field_validator("stream")
    @classmethod
    def _of_text(cls, value: bool, info: ValidationInfo) -> bool:
        if value and (wanted := info.data.get("response_format")) not in (*STREAMED, None):
            raise ValueError(f"{wanted} cannot be streamed; {', '.join(STREAMED)} can")
        return value

    @field_validator("timestamp_granularities")
    @classmethod
    def _in_verbose_json(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if value and info.data.get("response_format") not in ("verbose_json", None):
            raise ValueError("needs response_format=verbose_json")
        return value

    @field_validator("chunking_strategy", mode="before")
    @classmethod
    def _ours(cls, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("{"):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                value = None
        if value not in ("auto", {"type": "auto"}, {"type": "server_vad"}):
            raise ValueError(
                "must be auto, or server_vad without parameters: what counts as speech is set for the whole "
                "server"
            )
        return value

    @field_validator("include")
    @classmethod
    def _nothing(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:
            raise ValueError("logprobs cannot be given: the recogniser has none per token")
        return value

    @field_validator("keywords")
    @classmethod
    def _short(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(", ".join(value)) > MAX_PROMPT_CHARS:
            raise ValueError(f"together they may have {MAX_PROMPT_CHARS} characters")
        return value


@dataclass(frozen=True, slots=True)
class Ask:
    """A request to one of OpenAI's audio routes."""

    options: Options
    response_format: Format = "json"
    stream: bool = False
    words: bool = False  # in verbose_json
    segments: bool = True  # in verbose_json
    sent_as: dict[str, str] = field(default_factory=dict)  # options under other names: ours -> OpenAI's

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """An error of ours that names what the client sent."""
        sent = self.sent_as.get(error.param or "")
        if error.param is None or sent is None:
            return error
        return InvalidRequest(error.message.replace(error.param, sent), sent, error.code)


def parse(fields: Sequence[FormField], task: Task, models: Collection[str]) -> Ask:
    """The fields of a form that asks one of `models` for this task.

    Raises InvalidRequest, which names the field that is wrong, and ModelNotFound.
    """
    kind = TranscriptionFields if task == "transcribe" else TranslationFields
    given = _with_object(gathered(fields, ARRAYS))
    for name, instead in NOT_HERE.items():
        if name in given:
            raise InvalidRequest(f"{name}: {instead}.", name)
    own_names = Options.model_fields.keys() - kind.model_fields.keys() - NOT_HERE.keys()
    ours = {name: given.pop(name) for name in sorted(own_names & given.keys())}
    if unknown := sorted(given.keys() - kind.model_fields.keys()):
        known = sorted({"file", *kind.model_fields, *own_names})
        raise InvalidRequest(f"{unknown[0]}: unknown field; known are {', '.join(known)}.", unknown[0])
    theirs = checked(kind, given)
    if theirs.model not in models:
        raise unknown_model(theirs.model, models)
    sent_as = {}
    # Clients send all that was said so far; Whisper reads the end of it, as OpenAI says.
    same = [("prompt", "initial_prompt", theirs.prompt and theirs.prompt[-MAX_PROMPT_CHARS:])]
    if isinstance(theirs, TranscriptionFields):
        same.append(("keywords", "hotwords", ", ".join(filter(None, theirs.keywords))))
    for name, own_name, value in same:
        if value and own_name in ours:
            raise InvalidRequest(f"{name}: cannot be combined with {own_name}, which is the same.", name)
        if value:
            ours[own_name], sent_as[own_name] = value, name
    if task == "translate":
        sent_as["task"] = "model"  # the route says the task; a model that cannot do it is what was chosen
    own_format = theirs.response_format.removeprefix("verbose_").removeprefix("diarized_")
    options = parse_options({**ours, "task": task, "response_format": own_format})
    wish = _wish_for_speakers(theirs.response_format, options)
    if options.diarize is None:
        options = options.model_copy(update={"diarize": wish is not None})
        sent_as |= {"diarize": wish} if wish else {}
    if theirs.response_format == "diarized_json" and options.diarize is False:
        raise InvalidRequest("diarize: diarized_json needs it to be true.", "diarize")
    ask = Ask(options, theirs.response_format, sent_as=sent_as)
    if not isinstance(theirs, TranscriptionFields):
        return ask
    wanted = theirs.timestamp_granularities or ("segment",)
    return replace(ask, stream=theirs.stream, words="word" in wanted, segments="segment" in wanted)


def unknown_model(name: str, models: Collection[str]) -> ModelNotFound:
    return ModelNotFound(
        f"The model {name!r} does not exist here; there are {' and '.join(models)}.", "model"
    )


def _with_object(given: dict[str, Any]) -> dict[str, Any]:
    """`chunking_strategy[type]=…`, which is how OpenAI's SDK sends an object in a form, as that object."""
    first, last = "chunking_strategy[", "]"
    inside = [name for name in given if name.startswith(first) and name.endswith(last)]
    if inside:
        given["chunking_strategy"] = {name[len(first) : -len(last)]: given.pop(name) for name in inside}
    return given


def _wish_for_speakers(response_format: Format, options: Options) -> str | None:
    """The field that asks for speakers: they cost as much as the rest, so nobody has them who does not ask.

    Raises InvalidRequest for one that the format cannot honour.
    """
    asked = [name for name in SPEAKER_OPTIONS if getattr(options, name)]
    diarized = response_format == "diarized_json"
    for name in asked:
        if response_format not in SHOWS_SPEAKERS:
            formats = ", ".join(SHOWS_SPEAKERS)
            raise InvalidRequest(f"{name}: {response_format} shows no speakers; ask for {formats}.", name)
        if name in KNOWN_SPEAKERS and not (diarized or options.diarize):
            raise InvalidRequest(f"{name}: needs response_format=diarized_json, or diarize=true.", name)
    return "response_format" if diarized else next(iter(asked), None)
