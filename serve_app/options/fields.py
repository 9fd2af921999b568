"""The options themselves, each with its type, its default and the description that callers read."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from serve_app.audio import Encoding
from serve_app.formats.cue_words import one_line
from serve_app.formats.table import FormatName
from serve_app.options.validation import items_of, known_language
from serve_app.settings.types import Probability
from serve_app.transcript import Task

MAX_PROMPT_CHARS = 4000  # Whisper keeps 223 tokens, about 1000 letters of English
MAX_NAME_CHARS = 64
MULTIPLE = "multiple"  # a language for each window
KNOWN_SPEAKERS = ("known_speaker_names", "known_speaker_references")
LISTS = ("languages", *KNOWN_SPEAKERS)
MAX_FILE_S = 1e9  # 30 years

SpeakerCount = Annotated[int, Field(ge=1, le=50)]
KnownSpeakers = Annotated[  # at most 4, as in OpenAI's API
    tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=4)
]
Prompt = Annotated[
    Annotated[str, Field(max_length=MAX_PROMPT_CHARS)] | None,
    AfterValidator(lambda text: text if text and text.strip() else None),
]
# A few distinct temperatures let requests share batches, and none is so small that float16 overflows.
_InHundredths = AfterValidator(lambda value: round(value, 2))
Temperature = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False), _InHundredths]


def _few_attempts(step: float) -> float:
    if 0 < step < 0.1:
        raise ValueError("must be 0 or at least 0.1, as each attempt costs as much as the first")
    return step


TemperatureInc = Annotated[
    float, Field(ge=0, le=1, allow_inf_nan=False), AfterValidator(_few_attempts), _InHundredths
]


def _known_languages(values: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(known_language(value) for value in items_of(values)))


Languages = Annotated[tuple[str, ...], BeforeValidator(_known_languages)]


class OptionFields(BaseModel):
    """What a caller can choose for one request, each option by itself."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Annotated[str | None, AfterValidator(lambda name: name or None)] = Field(
        None, description="One of the server's models, by its name. Empty: the one that is configured."
    )
    language: str | None = Field(
        None,
        description="Code, locale or name. Empty or `auto`: it is detected. `multiple`: for each window.",
    )
    languages: Languages = Field((), description="The only languages that are spoken, if known.")
    task: Task = Field("transcribe", description="`translate` gives English text, without word times.")
    channels: Literal["mix", "speakers"] = Field(
        "mix", description="`speakers`: each of 2 to 8 channels is one speaker, transcribed by itself."
    )
    start_s: Annotated[float, Field(ge=0, le=MAX_FILE_S, allow_inf_nan=False)] | None = Field(
        None, description="Where to begin in the file, in seconds; all times stay those of the file."
    )
    end_s: Annotated[float, Field(gt=0, le=MAX_FILE_S, allow_inf_nan=False)] | None = Field(
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
    embeddings: bool = Field(False, description="Add each speaker's voice as a vector to `json`.")
    response_format: FormatName = Field(
        "json", description="`tsv` has times in ms, `rttm` who speaks when, `words` a flat list of words."
    )
    word_timestamps: bool = Field(False, description="Add `words` with times and scores to `json`.")
    confidence: bool = Field(False, description="Add the recogniser's `confidence` to each of the words.")
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
    beam_size: Annotated[int, Field(ge=1, le=20)] | None = Field(
        None, description="Beam width of the search. 1: greedy. Empty: as configured."
    )
    suppress_numerals: bool = Field(
        False, description="Write numbers as words: no digits, and none of the signs % $ £ €."
    )
    split_at_speaker_change: bool | None = Field(
        None, description="Split a sentence where the speaker changes. Empty: yes, if words have times."
    )

    vad_onset: Probability | None = Field(
        None, description="Speech starts above this probability. Empty: as configured."
    )
    vad_offset: Probability | None = Field(
        None, description="Speech ends below this probability. Empty: as configured."
    )
    vad_min_silence_s: Annotated[float, Field(ge=0, le=30, allow_inf_nan=False)] | None = Field(
        None, description="Shorter silences do not end a stretch of speech. Empty: pyannote 0, silero 0.1."
    )
    max_segment_s: Annotated[float, Field(ge=1, le=3600, allow_inf_nan=False)] | None = Field(
        None, description="Longest segment, but for a longer word; sentences are split at pauses and commas."
    )
    align: bool = Field(True, description="false: no word times, which is faster; segments are windows.")
    char_timestamps: bool = Field(
        False, description="Add `chars` with times and scores to words, where wav2vec2 aligns them."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """Many clients send all of their fields, and null for those that nobody has filled in."""
        if not isinstance(given, dict):
            return given
        return {
            name: value for name, value in given.items() if value is not None or name not in cls.model_fields
        }

    @field_validator("language", mode="before")
    @classmethod
    def _is_known_language(cls, value: object) -> object:
        if value is None or (isinstance(value, str) and value.strip().lower() in ("", "auto")):
            return None
        if isinstance(value, str) and value.strip().lower() == MULTIPLE:
            return MULTIPLE
        return known_language(value, f"; or auto, to detect it, or {MULTIPLE}, to detect that of each window")

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

    def wants_words(self) -> bool:
        """Whether words are to have times; translated ones were never spoken."""
        return self.align and self.task == "transcribe"
