"""What a request to OpenAI's audio routes asks for: its form fields, checked and made into our options."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from serve_app.errors import InvalidRequest, ModelNotFound
from serve_app.http.forms import Field as FormField
from serve_app.http.forms import collect_fields
from serve_app.options import (
    KNOWN_SPEAKERS,
    MAX_PROMPT_CHARS,
    SPEAKER_OPTIONS,
    Options,
    conflict,
    parse_options,
    validate_or_400,
)
from serve_app.transcript import Task

ALIAS = "whisper-1"  # for clients that know only OpenAI's models

OpenAIFormat = Literal["json", "text", "srt", "vtt", "verbose_json", "diarized_json"]
SHOW_SPEAKERS = ("diarized_json", "verbose_json", "srt", "vtt")
CAN_BE_STREAMED = ("json", "text", "diarized_json")

ARRAYS = ("timestamp_granularities", "include", "keywords", *KNOWN_SPEAKERS)
_STRATEGY = re.compile(r'auto|server_vad|\{\s*"type"\s*:\s*"server_vad"\s*\}')


class Fields(BaseModel):
    """OpenAI's form fields, except `file`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="The configured model's name, or `whisper-1`.")
    response_format: OpenAIFormat = Field("json", description="`diarized_json` has speakers.")
    prompt: str = Field("", description="Same as `initial_prompt`; only the end of a long one is read.")
    stream: bool = Field(False, description="Server-sent events; for json, text and diarized_json.")
    timestamp_granularities: tuple[Literal["word", "segment"], ...] = Field(
        ("segment",), description="With verbose_json: `segment`, `word`, or both."
    )
    chunking_strategy: str = Field("auto", description="`auto`, or `server_vad` without parameters.")
    include: tuple[str, ...] = Field((), description="Must be empty: `logprobs` are not available.")
    keywords: tuple[str, ...] = Field((), description="Same as `hotwords`.")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        chosen = self.response_format
        if self.stream and chosen not in CAN_BE_STREAMED:
            raise conflict("stream", f"{chosen} cannot be streamed; {', '.join(CAN_BE_STREAMED)} can")
        if "timestamp_granularities" in self.model_fields_set and chosen != "verbose_json":
            raise conflict("timestamp_granularities", "needs response_format=verbose_json")
        if not _STRATEGY.fullmatch(self.chunking_strategy):
            raise conflict("chunking_strategy", "must be auto, or server_vad without parameters")
        if self.include:
            raise conflict("include", "logprobs are not available: the recogniser gives none per token")
        if len(", ".join(self.keywords)) > MAX_PROMPT_CHARS:
            raise conflict("keywords", f"together they may have {MAX_PROMPT_CHARS} characters")
        return self


FIELDS_OF: Mapping[Task, Sequence[str]] = {
    "transcribe": tuple(Fields.model_fields),
    "translate": ("model", "response_format", "prompt"),
}
OUR_FIELDS = Options.model_fields.keys() - Fields.model_fields.keys() - {"task", "word_timestamps"}


@dataclass(frozen=True, slots=True)
class ParsedForm:
    """A form sent to one of OpenAI's audio routes."""

    options: Options
    fields: Fields
    sent_as: Mapping[str, str]  # our option -> the field that it came from

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """The error with the name of the field that the client sent."""
        if error.param is None or error.param not in self.sent_as:
            return error
        sent = self.sent_as[error.param]
        return InvalidRequest(error.message.replace(error.param, sent), sent, error.code)


def parse(sent: Sequence[FormField], task: Task, models: Collection[str]) -> ParsedForm:
    """Parses the fields of a form that asks one of `models` for this task.

    Raises InvalidRequest naming the field that is wrong, and ModelNotFound.
    """
    given = collect_fields(sent, ARRAYS)
    strategy = given.pop("chunking_strategy[type]", None)  # as OpenAI's SDK sends an object in a form
    if strategy and given.setdefault("chunking_strategy", strategy) != strategy:
        raise conflict("chunking_strategy", "given in two ways; send it once")
    theirs = FIELDS_OF[task]
    if unknown := sorted(given.keys() - OUR_FIELDS - set(theirs)):
        raise conflict(
            unknown[0], f"unknown field; known are {', '.join(sorted({'file', *theirs, *OUR_FIELDS}))}"
        )
    fields = validate_or_400(Fields, {name: given.pop(name) for name in theirs if name in given})
    if fields.model not in models:
        raise unknown_model(fields.model, models)
    if task == "translate" and fields.response_format == "diarized_json":
        raise conflict("response_format", "translations are json, text, srt, vtt or verbose_json")
    # The client did not send a task: a model that cannot translate is the wrong choice of model.
    sent_as = {"task": "model"} if task == "translate" else {}
    for name, option, value in (
        # Clients send all text so far; Whisper reads the end of it, as OpenAI documents.
        ("prompt", "initial_prompt", fields.prompt[-MAX_PROMPT_CHARS:]),
        ("keywords", "hotwords", ", ".join(filter(None, fields.keywords))),
    ):
        if value and option in given:
            raise conflict(name, f"cannot be combined with {option}, which is the same")
        if value:
            given[option], sent_as[option] = value, name
    own_format = fields.response_format.removeprefix("verbose_").removeprefix("diarized_")
    options = parse_options({**given, "task": task, "response_format": own_format})
    asking = _field_asking_for_speakers(fields.response_format, options)
    if options.diarize is None:
        options = options.model_copy(update={"diarize": asking is not None})
        sent_as |= {"diarize": asking} if asking else {}
    if fields.response_format == "diarized_json" and not options.diarize:
        raise conflict("diarize", "diarized_json needs it to be true")
    return ParsedForm(options, fields, sent_as)


def unknown_model(name: str, models: Collection[str]) -> ModelNotFound:
    return ModelNotFound(f"There is no model {name!r} here; use {' or '.join(models)}.", "model")


def _field_asking_for_speakers(response_format: OpenAIFormat, options: Options) -> str | None:
    """The field that asks for speakers, if any: they cost as much as the rest, so they are never the default.

    Raises InvalidRequest for a field that the format cannot honour.
    """
    is_diarized = response_format == "diarized_json"
    asking = [name for name in SPEAKER_OPTIONS if getattr(options, name)]
    for name in asking:
        if response_format not in SHOW_SPEAKERS:
            raise conflict(name, f"{response_format} shows no speakers; ask for {', '.join(SHOW_SPEAKERS)}")
        if name in KNOWN_SPEAKERS and not (is_diarized or options.diarize):
            raise conflict(name, "needs response_format=diarized_json, or diarize=true")
    return "response_format" if is_diarized else next(iter(asking), None)
