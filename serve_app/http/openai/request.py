"""What a request to OpenAI's audio routes asks for: its form fields, checked and made into our options."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serve_app.errors import InvalidRequest
from serve_app.http.forms import FormField, collect_fields
from serve_app.http.model_names import ModelNames, about_model, with_defaults
from serve_app.options import Options, parse_options
from serve_app.options.conflicts import IN_WORDS, SPEAKER_OPTIONS, in_their_formats
from serve_app.options.fields import KNOWN_SPEAKERS, LISTS, MAX_PROMPT_CHARS
from serve_app.options.validation import conflict, items_of, validate_or_400
from serve_app.transcript import Task

OpenAIFormat = Literal["json", "text", "srt", "vtt", "verbose_json", "diarized_json"]
SHOW_SPEAKERS = ("diarized_json", "verbose_json", "srt", "vtt")
HAVE_EMBEDDINGS = ("diarized_json", "verbose_json")
ABLE = {"embeddings": HAVE_EMBEDDINGS, **dict.fromkeys(IN_WORDS, ("verbose_json",))}
CAN_BE_STREAMED = ("json", "text", "diarized_json")
HAVE_SEGMENTS = ("srt", "vtt", "diarized_json")  # with times, besides verbose_json

ARRAYS = ("timestamp_granularities", "include", "keywords", *LISTS)
WORDS = "timestamp_granularities[]=word with response_format=verbose_json"
_STRATEGY = re.compile(r'auto|server_vad|\{\s*"type"\s*:\s*"server_vad"\s*\}')


def _only(right: bool, why: str) -> AfterValidator:
    def check(value: bool) -> bool:
        if value is not right:
            raise ValueError(f"can only be {str(right).lower()}: {why}")
        return value

    return AfterValidator(check)


class Fields(BaseModel):
    """OpenAI's form fields, except `file`, and those of other Whisper servers that say what is so anyway."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="A model's name, or one that stands for it.")
    response_format: OpenAIFormat = Field("json", description="`diarized_json` has speakers.")
    prompt: str = Field("", description="Same as `initial_prompt`; only the end of a long one is read.")
    stream: bool = Field(False, description="Server-sent events; for json, text and diarized_json.")
    timestamp_granularities: Annotated[tuple[Literal["word", "segment"], ...], BeforeValidator(items_of)] = (
        Field(("segment",), description="With verbose_json: `segment`, `word`, or both.")
    )
    chunking_strategy: str = Field("auto", description="`auto`, or `server_vad` without parameters.")
    include: Annotated[tuple[Literal["logprobs"], ...], BeforeValidator(items_of)] = Field(
        (), description="`logprobs`, with json: same as that option."
    )
    keywords: tuple[str, ...] = Field((), description="Same as `hotwords`.")
    task: Task | None = Field(None, description="Only that of the route.")
    vad_filter: Annotated[bool, _only(True, "speech is always looked for before it is transcribed")] = Field(
        True, description="Only `true`."
    )
    without_timestamps: Annotated[bool, _only(True, "Whisper's own timestamps are not used")] = Field(
        True, description="Only `true`; times come from alignment."
    )
    condition_on_previous_text: Annotated[
        bool, _only(False, "windows of speech are transcribed side by side, without the text before them")
    ] = Field(False, description="Only `false`.")
    word_timestamps: bool | None = Field(
        None, description="Only what `timestamp_granularities` asks for, or does not."
    )

    @model_validator(mode="after")
    def _agree(self) -> Self:
        chosen = self.response_format
        if self.stream and chosen not in CAN_BE_STREAMED:
            raise conflict("stream", f"{chosen} cannot be streamed; {', '.join(CAN_BE_STREAMED)} can")
        granularities, has_words = set(self.timestamp_granularities), self.has_words()
        is_so = chosen == "verbose_json" or (chosen in HAVE_SEGMENTS and granularities == {"segment"})
        if "timestamp_granularities" in self.model_fields_set and not is_so:
            raise conflict("timestamp_granularities", "needs response_format=verbose_json")
        if self.word_timestamps and not has_words:
            is_possible = self.task == "transcribe"
            raise conflict("word_timestamps", f"ask for {WORDS}" if is_possible else "a translation has none")
        if self.word_timestamps is False and has_words:
            raise conflict("word_timestamps", "timestamp_granularities asks for words")
        if not _STRATEGY.fullmatch(self.chunking_strategy):
            ours = "vad_onset and vad_min_silence_s are this server's"
            raise conflict("chunking_strategy", f"must be auto, or server_vad without parameters; {ours}")
        if self.include and chosen != "json":
            raise conflict("include", "logprobs are in response_format=json only")
        if len(", ".join(self.keywords)) > MAX_PROMPT_CHARS:
            raise conflict("keywords", f"together they may have {MAX_PROMPT_CHARS} characters")
        return self

    def has_words(self) -> bool:
        """Whether words with times are asked for."""
        return self.response_format == "verbose_json" and "word" in self.timestamp_granularities

    def has_segments(self) -> bool:
        """Whether segments are: those of a stream come one by one, whatever its format."""
        is_verbose = self.response_format == "verbose_json" and "segment" in self.timestamp_granularities
        return is_verbose or self.stream or self.response_format in HAVE_SEGMENTS


OTHER_SERVERS = (
    "task",
    "vad_filter",
    "without_timestamps",
    "condition_on_previous_text",
    "word_timestamps",
)
FIELDS_OF: Mapping[Task, Sequence[str]] = {
    "transcribe": tuple(Fields.model_fields),
    "translate": ("model", "response_format", "prompt", *OTHER_SERVERS),
}
OUR_FIELDS = Options.model_fields.keys() - Fields.model_fields.keys()


@dataclass(frozen=True, slots=True)
class ParsedForm:
    """A form sent to one of OpenAI's audio routes."""

    options: Options
    fields: Fields
    sent_as: Mapping[str, str]  # our option -> the field that it came from
    from_model: frozenset[str] = frozenset()  # the options that the model's name stands for

    def renamed(self, error: InvalidRequest) -> InvalidRequest:
        """The error with the name of the field that the client sent."""
        if error.param is None:
            return error
        sent = self.sent_as.get(error.param, error.param)
        message = error.message.replace(error.param, sent)
        return about_model(InvalidRequest(message, sent, error.code), self.fields.model, self.from_model)


def parse(
    sent: Sequence[FormField], task: Task, models: ModelNames, deployment: str | None = None
) -> ParsedForm:
    """Parses the fields of a form that asks one of `models` for this task.

    `deployment` is the one that the path names, if it does. Raises InvalidRequest naming the field that is
    wrong, and ModelNotFound.
    """
    given = collect_fields(sent, ARRAYS)
    strategy = given.pop("chunking_strategy[type]", None)  # as OpenAI's SDK sends an object in a form
    if strategy and given.setdefault("chunking_strategy", strategy) != strategy:
        raise conflict("chunking_strategy", "given in two ways; send it once")
    if deployment:
        given.setdefault("model", deployment)  # Azure's clients send one, too: it must stand for the same
    defaults = models.defaults(given["model"]) if "model" in given else {}
    chosen = models.option(given["model"]) if "model" in given else None
    if deployment and (models.defaults(deployment), models.option(deployment)) != (defaults, chosen):
        raise conflict("model", f"the path asks for {deployment}, which is another one; leave it out")
    form, from_model = with_defaults(defaults, given, partial(_read, task))
    return replace(form, options=form.options.model_copy(update={"model": chosen}), from_model=from_model)


def check_aliases(models: ModelNames) -> None:
    """Raises InvalidRequest naming the first option of an alias that no request could have."""
    for name in models.aliases:
        wrong, defaults = [], models.defaults(name)
        words = {"response_format": "verbose_json", "timestamp_granularities": "word"}
        for shown in (words, {"response_format": "srt"}, {"response_format": "json"}):
            try:
                _read("transcribe", {**shown, **defaults, "model": name})
                break
            except InvalidRequest as error:
                wrong.append(error)
        else:
            raise InvalidRequest(f"openai.aliases: {name}: {wrong[0].message}", wrong[0].param)


def _read(task: Task, given: dict[str, Any]) -> ParsedForm:
    theirs = FIELDS_OF[task]
    if unknown := sorted(given.keys() - OUR_FIELDS - set(theirs)):
        raise conflict(
            unknown[0], f"unknown field; known are {', '.join(sorted({'file', *theirs, *OUR_FIELDS}))}"
        )
    sent = {name: given.pop(name) for name in theirs if name in given}
    fields = validate_or_400(Fields, {"task": task, **sent})
    if fields.task not in (None, task):
        raise conflict("task", f"this path is for task={task}")
    if fields.response_format not in _formats(task):
        raise conflict("response_format", f"translations are {', '.join(_formats(task))}")
    # The client did not send a task: a model that cannot translate is the wrong choice of model.
    sent_as = {"task": "model"} if task == "translate" else {}
    for name, option, value in (
        # Clients send all text so far; Whisper reads the end of it, as OpenAI documents.
        ("prompt", "initial_prompt", fields.prompt[-MAX_PROMPT_CHARS:]),
        ("keywords", "hotwords", ", ".join(filter(None, fields.keywords))),
        ("include", "logprobs", bool(fields.include)),
    ):
        if value and option in given:
            raise conflict(name, f"cannot be combined with {option}, which is the same")
        if value:
            given[option], sent_as[option] = value, name
    own_format = fields.response_format.removeprefix("verbose_").removeprefix("diarized_")
    own = {"task": task, "response_format": own_format, "word_timestamps": fields.has_words()}
    options = _our_options(given | own, fields.response_format)
    if options.max_segment_s and not fields.has_segments():
        is_verbose = fields.response_format == "verbose_json"
        instead = "timestamp_granularities[]=segment, too" if is_verbose else "srt, say"
        raise conflict("max_segment_s", f"no segments are shown; ask for {instead}")
    if options.logprobs and fields.response_format != "json":
        raise conflict("logprobs", "they are in response_format=json only")
    asking = _field_asking_for_speakers(fields.response_format, options)
    if options.channels == "speakers":
        return ParsedForm(options, fields, sent_as)  # the speakers are known without diarization
    if options.diarize is None:
        options = options.model_copy(update={"diarize": asking is not None})
        sent_as |= {"diarize": asking} if asking else {}
    if fields.response_format == "diarized_json" and not options.diarize:
        raise conflict("diarize", "diarized_json needs it to be true")
    return ParsedForm(options, fields, sent_as)


def _formats(task: Task, names: Sequence[str] = get_args(OpenAIFormat)) -> list[str]:
    """The formats among `names` that the task can answer in: a translation has no diarized_json."""
    return [name for name in names if task == "transcribe" or name != "diarized_json"]


def _our_options(given: dict[str, Any], chosen: OpenAIFormat) -> Options:
    """The options, or an InvalidRequest that calls formats and word times what OpenAI's clients call them."""
    try:
        return parse_options(given)
    except InvalidRequest as ours:
        able = ABLE.get(ours.param or "", ())
        error = in_their_formats(ours, f"response_format={chosen}", _formats(given["task"]), able)
        param = "timestamp_granularities" if error.param == "word_timestamps" else error.param
        raise InvalidRequest(error.message.replace("word_timestamps", WORDS), param, error.code) from None


def _field_asking_for_speakers(response_format: OpenAIFormat, options: Options) -> str | None:
    """The field that asks for speakers, if any: they cost as much as the rest, so they are never the default.

    Raises InvalidRequest for a field that the format cannot honour.
    """
    is_diarized = response_format == "diarized_json"
    asking = [name for name in SPEAKER_OPTIONS if getattr(options, name)]
    asking += ["channels"] if options.channels == "speakers" else []
    for name in asking:
        if name in KNOWN_SPEAKERS and not (is_diarized or options.diarize):
            diarized = "response_format=diarized_json, or " if options.task == "transcribe" else ""
            raise conflict(name, f"needs {diarized}diarize=true")
        able = _formats(options.task, ABLE.get(name, SHOW_SPEAKERS))
        if response_format not in able:
            what = "embeddings" if name == "embeddings" else "speakers"
            raise conflict(name, f"{response_format} shows no {what}; ask for {', '.join(able)}")
    return "response_format" if is_diarized else next(iter(asking), None)
