"""What a caller can choose for one request. The same names over HTTP, in forms and in Python."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from serve_app.audio import TELEPHONE_RATES_HZ, Encoding, RawAudio, Selection, Source
from serve_app.formats.cue_words import one_line
from serve_app.formats.subtitles import SubtitleLayout
from serve_app.formats.table import FORMATS, Format, FormatName
from serve_app.transcript import Decoding, SpeakerBounds, Task
from serve_app.validation import conflict, items_of, known_language, validate_or_400

MAX_PROMPT_CHARS = 4000  # Whisper keeps 223 tokens, about 1000 letters of English
MAX_NAME_CHARS = 64
MIN_STRETCH_S = 0.01
KNOWN_SPEAKERS = ("known_speaker_names", "known_speaker_references")
LISTS = ("languages", *KNOWN_SPEAKERS)
SPEAKER_COUNTS = ("num_speakers", "min_speakers", "max_speakers")
SPEAKER_OPTIONS = ("diarize", *SPEAKER_COUNTS, *KNOWN_SPEAKERS, "split_at_speaker_change")
LINE_OPTIONS = ("max_line_width", "max_line_count", "highlight_words")

# Options, what they ask a format to show, and whether it can.
_SHOWN: tuple[tuple[Sequence[str], str, Callable[[Format], bool]], ...] = (
    (SPEAKER_OPTIONS, "speakers", lambda form: form.has_speakers),
    (LINE_OPTIONS, "subtitle lines", lambda form: form.has_lines),
    (("word_timestamps",), "words with times", lambda form: form.has_words),
    (("logprobs",), "log-probabilities of tokens", lambda form: form.name == "json"),
)

SpeakerCount = Annotated[int, Field(ge=1, le=50)]
KnownSpeakers = Annotated[  # at most 4, as in OpenAI's API
    tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=4)
]
Prompt = Annotated[
    Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None,
    AfterValidator(lambda text: text if text and text.strip() else None),
]
# A few distinct temperatures let requests share batches, and none is so small that float16 overflows.
Temperature = Annotated[
    float, Field(ge=0, le=1, allow_inf_nan=False), AfterValidator(lambda value: round(value, 2))
]


def _few_attempts(step: float) -> float:
    if 0 < step < 0.1:
        raise ValueError("must be 0 or at least 0.1, as each attempt costs as much as the first")
    return step


TemperatureInc = Annotated[Temperature, AfterValidator(_few_attempts)]


class Options(BaseModel):
    """What a caller can choose for one request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    language: str | None = Field(None, description="Code, locale or name. Empty or `auto`: it is detected.")
    languages: tuple[str, ...] = Field((), description="The only languages that are spoken, if known.")
    task: Task = Field("transcribe", description="`translate` gives English text, without word times.")
    channels: Literal["mix", "speakers"] = Field(
        "mix", description="`speakers`: each of 2 to 8 channels is one speaker, transcribed by itself."
    )
    start_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = Field(
        None, description="Where to begin in the file, in seconds; all times stay those of the file."
    )
    end_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = Field(
        None, description="Where to end in the file, in seconds."
    )
    track: Annotated[int, Field(ge=0, lt=1000)] | None = Field(
        None, description="Which sound track, from 0. Empty: the one that players play."
    )
    encoding: Encoding | None = Field(
        None, description="Of samples without a header: what they are; needs `sample_rate`."
    )
    sample_rate: Annotated[int, Field(ge=1000, le=384_000)] | None = Field(
        None, description="Of samples without a header, in Hz."
    )
    channel_count: Annotated[int, Field(ge=1, le=64)] | None = Field(
        None, description="Of samples without a header: channels, interleaved. Empty: 1."
    )
    diarize: bool | None = Field(None, description="Label speakers. Empty: yes, if the server can.")
    num_speakers: SpeakerCount | None = Field(None, description="Exact number of speakers, if known.")
    min_speakers: SpeakerCount | None = Field(None, description="At least this many speakers.")
    max_speakers: SpeakerCount | None = Field(None, description="At most this many speakers.")
    known_speaker_names: KnownSpeakers = Field((), description="Names of up to 4 speakers to recognise.")
    known_speaker_references: KnownSpeakers = Field(
        (), description="For each name, in order, a data: URL with base64: 2 to 10 s of that voice alone."
    )
    response_format: FormatName = Field(
        "json", description="`tsv` has times in ms, `rttm` who speaks when, `words` a flat list of words."
    )
    word_timestamps: bool = Field(False, description="Add `words` with times and scores to `json`.")
    logprobs: bool = Field(False, description="Add `logprobs`, those of all tokens of the text, to `json`.")
    max_line_width: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Longest line in characters, without the speaker; only in `srt` and `vtt`."
    )
    max_line_count: Annotated[int, Field(ge=1, le=100)] | None = Field(
        None,
        description="Most lines of a cue, which ends with a sentence if that fits; needs `max_line_width`.",
    )
    highlight_words: bool = Field(False, description="Subtitles: a cue per word, which is underlined.")
    initial_prompt: Prompt = Field(
        None, description="Text whose style and spellings to follow; the last 223 tokens, with `hotwords`."
    )
    hotwords: Prompt = Field(None, description="Words to expect in every window; at most 223 tokens.")
    temperature: Temperature | None = Field(
        None, description="Above 0: sample at it, in hundredths. Else: beam search; bad text is retried."
    )
    temperature_inc: TemperatureInc | None = Field(
        None, description="Bad text is retried at so much more, up to 1. 0: never. Empty: as configured."
    )
    split_at_speaker_change: bool | None = Field(
        None, description="Split a sentence where the speaker changes. Empty: yes, if words have times."
    )

    @field_validator("language", mode="before")
    @classmethod
    def _is_known_language(cls, value: object) -> object:
        if value is None or (isinstance(value, str) and value.strip().lower() in ("", "auto")):
            return None
        return known_language(value, "; or auto, to detect it")

    @field_validator("languages", mode="before")
    @classmethod
    def _are_known_languages(cls, values: object) -> object:
        return tuple(dict.fromkeys(known_language(value) for value in items_of(values)))

    @field_validator("known_speaker_names")
    @classmethod
    def _are_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if len(name) > MAX_NAME_CHARS or name != one_line(name):
                raise ValueError(
                    f"a name is one line of 1 to {MAX_NAME_CHARS} characters, without outer spaces"
                )
        if len(set(names)) < len(names):
            raise ValueError("each speaker needs a different name")
        return names

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuses options that contradict each other, so that none is accepted and ignored."""
        chosen = FORMATS[self.response_format]
        if self.languages and self.language:
            raise conflict("languages", "cannot be combined with language, which is the only one then")
        if len(self.known_speaker_references) != (count := len(self.known_speaker_names)):
            raise conflict("known_speaker_references", f"give one for each of the {count} names")
        self._check_audio()
        if self.channels == "speakers":
            self._refuse(SPEAKER_OPTIONS, "cannot be combined with channels=speakers, which has the speakers")
            if not chosen.has_speakers:
                raise conflict("channels", f"response_format={chosen.name} has no speakers; ask for another")
        elif self.diarize is False:
            needing = ("response_format",) if chosen.needs_speakers else ()
            self._refuse((*needing, *SPEAKER_OPTIONS), "needs diarize to be true")
        if self.task == "translate":
            needing = ("response_format",) if chosen.needs_words else ()
            needing = (*needing, "word_timestamps", "split_at_speaker_change", *LINE_OPTIONS)
            self._refuse(needing, "needs word times, which task=translate does not give")
        for options, what, can_show in _SHOWN:
            if not can_show(chosen):
                others = ", ".join(other.name for other in FORMATS.values() if can_show(other))
                self._refuse(options, f"response_format={chosen.name} has no {what}; use one of {others}")
        if chosen.needs_speakers:
            self._refuse(("split_at_speaker_change",), f"{chosen.name} has no sentences to split")
        if self.max_line_width is None:
            self._refuse(("max_line_count",), "needs max_line_width")
        if self.min_speakers or self.max_speakers:
            self._refuse(("num_speakers",), "cannot be combined with min_speakers or max_speakers")
        if self.min_speakers and self.max_speakers and self.min_speakers > self.max_speakers:
            raise conflict("min_speakers", "must not be above max_speakers")
        return self

    def _check_audio(self) -> None:
        if self.end_s is not None and round(self.end_s - (self.start_s or 0.0), 6) < MIN_STRETCH_S:
            raise conflict("end_s", f"must be after start_s, by at least {MIN_STRETCH_S} s")
        if self.encoding is None:
            self._refuse(
                ("sample_rate", "channel_count"), "is for samples without a header: name the encoding"
            )
        elif rate_hz := TELEPHONE_RATES_HZ.get(self.encoding):
            if self.sample_rate not in (None, rate_hz):
                raise conflict("sample_rate", f"{self.encoding} has {rate_hz}")
            if self.channel_count not in (None, 1):
                raise conflict("channel_count", f"{self.encoding} has 1")
        elif self.sample_rate is None:
            raise conflict("encoding", "needs sample_rate: samples do not say how fast they are")

    def _refuse(self, names: Sequence[str], why: str) -> None:
        """Raises the error of the first of these options that asks for something."""
        for name in names:
            if getattr(self, name):
                raise conflict(name, why)

    def reading(self, source: Source) -> Source:
        """The source, with what of it is wanted and how its bytes are to be read."""
        selection = Selection(self.start_s or 0.0, self.end_s, self.track, self.channels == "speakers")
        raw = source.raw
        if self.encoding:
            raw = RawAudio(self.encoding, self.sample_rate or 0, self.channel_count or 1)
        return replace(source, selection=selection, raw=raw)

    def layout(self) -> SubtitleLayout:
        """How subtitles are laid out."""
        return SubtitleLayout(self.max_line_width, self.max_line_count, self.highlight_words)

    def decoding(self) -> Decoding:
        """How windows are decoded."""
        return Decoding(
            self.task,
            self.initial_prompt,
            self.hotwords,
            self.temperature,
            self.temperature_inc,
            self.languages,
            self.logprobs,
        )

    def named_language(self) -> str | None:
        """The language, where there is one only that it may be."""
        return self.languages[0] if len(self.languages) == 1 else self.language

    def speaker_bounds(self) -> SpeakerBounds:
        """How many speakers the caller expects."""
        return SpeakerBounds(self.num_speakers, self.min_speakers, self.max_speakers)


def parse_options(fields: dict[str, Any]) -> Options:
    """Form fields or keyword arguments as options. Raises InvalidRequest naming the one that is wrong."""
    return validate_or_400(Options, fields)
