"""What a caller can choose for one request. The same names over HTTP, in forms and in Python."""

import unicodedata
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from serve_app.errors import InvalidRequest
from serve_app.formats.subtitles import SubtitleLayout
from serve_app.languages import LANGUAGES

Model = TypeVar("Model", bound=BaseModel)

SpeakerCount = Annotated[int, Field(ge=1, le=50)]

MAX_PROMPT_CHARS = 4000  # Whisper keeps 223 tokens, some 1000 letters of English
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]
MOST_KNOWN_SPEAKERS = 4  # as OpenAI's API
SPEAKER_OPTIONS = (
    *("diarize", "num_speakers", "min_speakers", "max_speakers", "split_at_speaker_change"),
    *("known_speaker_names", "known_speaker_references"),
)
_LONGEST_NAME = 64  # characters
_NOT_IN_A_NAME = {"Cc", "Cs", "Zl", "Zp"}  # control characters and line ends, as Unicode calls them

LineWidth = Annotated[int, Field(ge=1, le=1000)]
LineCount = Annotated[int, Field(ge=1, le=100)]

ResponseFormat = Literal["json", "text", "srt", "vtt", "tsv", "rttm", "words"]


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
    known_speaker_names: tuple[str, ...] = Field(
        (),
        max_length=MOST_KNOWN_SPEAKERS,
        description="Names of up to 4 speakers whose voices are in `known_speaker_references`.",
    )
    known_speaker_references: tuple[str, ...] = Field(
        (),
        max_length=MOST_KNOWN_SPEAKERS,
        validate_default=True,  # names without any are an error
        description="For each name, in that order, 2 to 10 s of the voice alone as a data: URL with base64.",
    )
    response_format: ResponseFormat = Field(
        "json",
        description="`srt` and `vtt` are subtitles, `tsv` has times in ms, `rttm` who speaks when, "
        "`words` is JSON with a flat list of words.",
    )
    word_timestamps: bool = Field(
        False, description="Add `words` with times, scores and speakers to each segment in `json`."
    )
    max_line_width: LineWidth | None = Field(
        None, description="Longest line in characters, without the speaker; in `srt` and `vtt` only."
    )
    max_line_count: LineCount | None = Field(
        None, description="Most lines of a cue; needs `max_line_width`. Cues then cross segments."
    )
    highlight_words: bool = Field(
        False, description="A cue for each word, underlined in it; in `srt` and `vtt` only."
    )
    initial_prompt: Prompt | None = Field(
        None,
        description="Text in the style to write in, with its names and spellings, given to every window. Of "
        "a long one Whisper reads the end: 223 tokens, less those of `hotwords`; a warning says so.",
    )
    hotwords: Prompt | None = Field(
        None, description="Words to expect, given to every window; at most 223 tokens."
    )
    temperature: float | None = Field(
        None,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Above 0, sample at this temperature, in hundredths. 0 or empty = beam search, and again "
        "and hotter where its text repeats itself or is unlikely.",
    )
    split_at_speaker_change: bool | None = Field(
        None,
        description="Split a sentence where another speaker goes on; empty = yes, where words have times.",
    )

    @field_validator("language", mode="before")
    @classmethod
    def _known_language(cls, value: object) -> object:
        if value is None or value == "":
            return None
        if isinstance(value, str) and value.lower() in LANGUAGES:
            return value.lower()
        raise ValueError("must be a language code that Whisper knows, such as en, de or zh")

    @field_validator("initial_prompt", "hotwords")
    @classmethod
    def _blank_is_none(cls, value: str | None) -> str | None:
        return value if value and value.strip() else None

    @field_validator("temperature")
    @classmethod
    def _hundredths(cls, value: float | None) -> float | None:
        # Few different ones, so that requests share batches; and none that overflows float16.
        return None if value is None else round(value, 2)

    @field_validator("known_speaker_names")
    @classmethod
    def _fit_for_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not name or name != name.strip() or len(name) > _LONGEST_NAME:
                raise ValueError(f"a name has 1 to {_LONGEST_NAME} characters and no space at its ends")
            if any(unicodedata.category(character) in _NOT_IN_A_NAME for character in name):
                raise ValueError("a name is one line without control characters")
        if len(set(names)) < len(names):
            raise ValueError("each speaker needs a name of its own")
        return names

    @field_validator("known_speaker_references")
    @classmethod
    def _one_for_each_name(cls, references: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        names = info.data.get("known_speaker_names", references)  # wrong names are an error of their own
        if len(references) != len(names):
            raise ValueError(
                f"give one reference for each name in known_speaker_names: there are {len(references)} for "
                f"{len(names)}"
            )
        if "" in references:
            raise ValueError(f"number {references.index('')}, counted from 0, is empty")
        if references and info.data.get("diarize") is False:
            raise ValueError("known speakers need diarize to be true")
        return references

    @field_validator("split_at_speaker_change")
    @classmethod
    def _has_words_and_speakers(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        if value and info.data.get("diarize") is False:
            raise ValueError("needs diarize to be true")
        if value and info.data.get("task") == "translate":
            raise ValueError("cannot be combined with task=translate: only spoken words have times")
        return value

    @field_validator("response_format")
    @classmethod
    def _format_can_be(cls, value: str, info: ValidationInfo) -> str:
        if value == "words" and info.data.get("task") == "translate":
            raise ValueError("words cannot be combined with task=translate: the words are not spoken")
        if value == "rttm" and info.data.get("diarize") is False:
            raise ValueError("rttm says who speaks when, so diarize must not be false")
        return value

    @field_validator("word_timestamps")
    @classmethod
    def _words_have_a_place(cls, value: bool, info: ValidationInfo) -> bool:
        if value and (chosen := info.data.get("response_format")) not in (None, "json", "words"):
            raise ValueError(f"response_format={chosen} has no words with times; use json or words")
        return value

    @field_validator("max_line_width", "max_line_count", "highlight_words")
    @classmethod
    def _format_has_lines(cls, value: int | bool | None, info: ValidationInfo) -> int | bool | None:
        if value:
            if (chosen := info.data.get("response_format")) not in (None, "srt", "vtt"):
                raise ValueError(f"response_format={chosen} has no subtitle lines; use srt or vtt")
            if info.data.get("task") == "translate":
                raise ValueError("needs the times of words, and with task=translate the words are not spoken")
            if info.field_name == "max_line_count" and info.data.get("max_line_width", 0) is None:
                raise ValueError("needs max_line_width")
        return value

    @model_validator(mode="after")
    def _format_shows_speakers(self) -> "Options":
        useless = {"tsv": SPEAKER_OPTIONS, "rttm": ("split_at_speaker_change",)}.get(self.response_format, ())
        for name in useless:
            if getattr(self, name):
                why = "tsv has no speakers" if self.response_format == "tsv" else "rttm has no sentences"
                raise InvalidRequest(f"{name}: {why}; leave it out or ask for another format.", name)
        return self

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

    def layout(self) -> SubtitleLayout:
        """How subtitles are to be laid out."""
        return SubtitleLayout(self.max_line_width, self.max_line_count, self.highlight_words)


def parse_options(fields: dict[str, Any]) -> Options:
    """Form fields or keyword arguments, or InvalidRequest naming the one that is wrong."""
    return checked(Options, fields)


def checked(model: type[Model], fields: dict[str, Any]) -> Model:
    """The fields as this model, or InvalidRequest naming the field that is wrong."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        param = str(first["loc"][0]) if name else None
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            message = f"unknown option; known are {', '.join(sorted(model.model_fields))}"
        raise InvalidRequest(f"{name}: {message}." if name else f"{message}.", param) from None
