"""What a caller can choose for one request. The same names over HTTP, in forms and in Python."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from serve_app.audio import TELEPHONE_RATES_HZ, Encoding, RawAudio, Selection, Source
from serve_app.formats.cue_words import one_line
from serve_app.formats.subtitles import SubtitleLayout
from serve_app.formats.table import FORMATS, Format, FormatName
from serve_app.settings.types import Probability
from serve_app.transcript import Decoding, SpeakerBounds, SpeechSearch, Task
from serve_app.validation import conflict, items_of, known_language, validate_or_400

MAX_PROMPT_CHARS = 4000  # Whisper keeps 223 tokens, about 1000 letters of English
MAX_NAME_CHARS = 64
ROUNDING_S = 0.001  # by which a segment is longer than its window at most
KNOWN_SPEAKERS = ("known_speaker_names", "known_speaker_references")
LISTS = ("languages", *KNOWN_SPEAKERS)
MULTIPLE = "multiple"  # a language for each window
SPEAKER_COUNTS = ("num_speakers", "min_speakers", "max_speakers")
SPEAKER_OPTIONS = ("diarize", *SPEAKER_COUNTS, *KNOWN_SPEAKERS, "embeddings", "split_at_speaker_change")
LINE_OPTIONS = ("max_line_width", "max_line_count", "highlight_words")

# Options, what they ask a format to show, and whether it can.
_SHOWN: tuple[tuple[Sequence[str], str, Callable[[Format], bool]], ...] = (
    (SPEAKER_OPTIONS, "speakers", lambda form: form.has_speakers),
    (LINE_OPTIONS, "subtitle lines", lambda form: form.has_lines),
    (("word_timestamps", "confidence", "char_timestamps"), "words with times", lambda form: form.has_words),
    (("max_segment_s",), "segments", lambda form: form.has_segments),
    (("logprobs",), "log-probabilities of tokens", lambda form: form.name == "json"),
    (("embeddings",), "embeddings of speakers", lambda form: form.name == "json"),
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


def _known_languages(values: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(known_language(value) for value in items_of(values)))


Languages = Annotated[tuple[str, ...], BeforeValidator(_known_languages)]


class Options(BaseModel):
    """What a caller can choose for one request."""

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

    @model_validator(mode="after")
    def _agree_on_languages(self) -> Self:
        if self.languages and self.language not in (None, MULTIPLE):
            raise conflict("languages", "cannot be combined with language, which is the only one then")
        if len(self.languages) == 1 and self.language == MULTIPLE:
            raise conflict("languages", f"one language is not {MULTIPLE}; give several, or none")
        return self

    @model_validator(mode="after")
    def _agree(self) -> Self:
        """Refuses options that contradict each other, so that none is accepted and ignored."""
        chosen = FORMATS[self.response_format]
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
        if not self.wants_words():
            needing = ("response_format",) if chosen.needs_words else ()
            needing = (*needing, "word_timestamps", "char_timestamps", "split_at_speaker_change")
            without = "task=translate" if self.task == "translate" else "align=false"
            self._refuse((*needing, *LINE_OPTIONS), f"needs word times, which {without} does not give")
        for options, what, can_show in _SHOWN:
            if not can_show(chosen):
                others = ", ".join(other.name for other in FORMATS.values() if can_show(other))
                self._refuse(options, f"response_format={chosen.name} has no {what}; use one of {others}")
        if self.temperature:
            self._refuse(("beam_size",), "at a temperature above 0 text is sampled, not searched for")
        if chosen.needs_speakers:
            self._refuse(("split_at_speaker_change",), f"{chosen.name} has no sentences to split")
        if self.max_line_width is None:
            self._refuse(("max_line_count",), "needs max_line_width")
        if self.min_speakers or self.max_speakers:
            self._refuse(("num_speakers",), "cannot be combined with min_speakers or max_speakers")
        if self.min_speakers and self.max_speakers and self.min_speakers > self.max_speakers:
            raise conflict("min_speakers", "must not be above max_speakers")
        return self

    @model_validator(mode="after")
    def _agree_on_segments(self) -> Self:
        if self.vad_onset and self.vad_offset and self.vad_offset > self.vad_onset:
            raise conflict("vad_offset", "must not be above vad_onset")
        if self.max_line_count:
            self._refuse(("max_segment_s",), "cannot be combined with max_line_count, which joins segments")
        if not (self.word_timestamps or FORMATS[self.response_format].needs_words):
            needing = "word_timestamps, or timestamp_granularities[]=word in OpenAI's verbose_json"
            self._refuse(("confidence", "char_timestamps"), f"needs {needing}: it is shown in words")
        return self

    def _check_audio(self) -> None:
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise conflict("end_s", "must be after start_s")
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
            logprobs=self.logprobs or self.confidence,  # a word's confidence is made of its tokens'
            beam_size=self.beam_size,
            suppress_numerals=self.suppress_numerals,
            own_languages=self.language == MULTIPLE,
        )

    def wants_words(self) -> bool:
        """Whether words are to have times; translated ones were never spoken."""
        return self.align and self.task == "transcribe"

    def speech_search(self, *, has_words: bool) -> SpeechSearch:
        """How speech is found. Without words that a long segment can be split at, windows are as short."""
        window_s = None if has_words or self.max_segment_s is None else self.max_segment_s - ROUNDING_S
        return SpeechSearch(self.vad_onset, self.vad_offset, self.vad_min_silence_s, window_s)

    def named_language(self) -> str | None:
        """The language, where there is one only that it may be."""
        only = self.languages[0] if len(self.languages) == 1 else self.language
        return None if only == MULTIPLE else only

    @property
    def tells_languages(self) -> bool:
        """Whether the answer has the languages found, and that of each segment: they were asked about."""
        return bool(self.languages) or self.language == MULTIPLE

    def speaker_bounds(self) -> SpeakerBounds:
        """How many speakers the caller expects."""
        return SpeakerBounds(self.num_speakers, self.min_speakers, self.max_speakers)


def parse_options(fields: dict[str, Any]) -> Options:
    """Form fields or keyword arguments as options. Raises InvalidRequest naming the one that is wrong."""
    return validate_or_400(Options, fields)
