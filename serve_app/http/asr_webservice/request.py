"""What a request to whisper-asr-webservice's routes asks for: its URL and form, made into our options.

Their options are in the URL, unlike other routes'. Clients add query names of their own and of other
servers, so unknown ones are left alone; those that this server knows are honoured or refused, as everywhere.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from serve_app.errors import InvalidRequest
from serve_app.http.forms import FormField, collect_fields
from serve_app.http.model_names import ModelNames, about_model, with_defaults
from serve_app.http.other_apis import renaming
from serve_app.http.without_text import LANGUAGE_OPTIONS, parse_some
from serve_app.options import Options, parse_options
from serve_app.options.conflicts import SPEAKER_COUNTS, in_their_formats
from serve_app.options.fields import LISTS
from serve_app.options.validation import conflict, validate_or_400

Output = Literal["txt", "text", "vtt", "srt", "tsv", "json"]
NO_SPEAKERS_IN = "tsv"

Encode = Annotated[
    bool, Field(description="`false`: 16-bit samples, 16 kHz, mono, without a header; WAV is taken too.")
]


class AsrFields(BaseModel):
    """What whisper-asr-webservice and servers like it have, and our options have not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encode: Encode = True
    output: Output = Field("txt", description="The format of the answer; `text` is `txt`.")
    vad_filter: bool | None = Field(
        None, description="Speech is always detected first; `false` is taken with a warning."
    )
    word_timestamps: bool = Field(False, description="Add `words` to `json`; other outputs show none.")
    diarize: bool | None = Field(None, description="Label speakers, in all outputs but `tsv`. Empty: no.")
    enable_diarization: bool | None = Field(None, description="The same as `diarize`.")
    return_speaker_embeddings: bool = Field(False, description="Same as `embeddings`.")
    vad_parameters: str = Field("", description="Must be empty: there are `vad_onset` and others.")
    model: str = Field("", description="A model, or a name that stands for one. Empty: the configured one.")


class LanguageFields(BaseModel):
    """What /detect-language has besides some of our options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    encode: Encode = True
    model: str = Field("", description="A model, or a name that stands for one. Empty: the configured one.")


@dataclass(frozen=True, slots=True)
class LanguageAsked:
    """What a request to /detect-language asks for."""

    options: Options
    fields: LanguageFields


@dataclass(frozen=True, slots=True)
class AsrAsked:
    """What a request to /asr asks for."""

    options: Options
    fields: AsrFields
    from_model: frozenset[str] = frozenset()  # the options that the model's name stands for

    def explained(self, error: InvalidRequest) -> InvalidRequest:
        """The error, about the model where it is about what that stands for."""
        return about_model(error, self.fields.model, self.from_model)


def parse_asr(query: Sequence[FormField], models: ModelNames, form: Sequence[FormField]) -> AsrAsked:
    """Parses the query, with the form's text fields, in which some clients send options too.

    Raises InvalidRequest naming the field that is wrong, and ModelNotFound.
    """
    sent = _known([*query, *form])
    if "response_format" in sent:
        raise conflict("response_format", "is called output here")
    sent.setdefault("model", models.own)
    asked, from_model = with_defaults(models.defaults(sent["model"]), sent, _read)
    options = asked.options.model_copy(update={"model": models.option(sent["model"])})
    return replace(asked, options=options, from_model=from_model)


def _read(given: Mapping[str, Any]) -> AsrAsked:
    theirs = {name: given[name] for name in AsrFields.model_fields if name in given}
    ours = {name: value for name, value in given.items() if name not in theirs}
    fields = validate_or_400(AsrFields, theirs)
    if fields.vad_parameters:
        raise conflict("vad_parameters", "send vad_onset, vad_offset and vad_min_silence_s instead")
    wanted = {fields.diarize, fields.enable_diarization} - {None}
    if len(wanted) > 1:
        raise conflict("enable_diarization", "contradicts diarize, which is the same")
    _check_samples(ours, encode=fields.encode)
    if True in wanted and fields.output == NO_SPEAKERS_IN:
        raise conflict("diarize", f"{NO_SPEAKERS_IN} shows no speakers; ask for txt, srt, vtt or json")
    if False in wanted:  # Speakr sends its bounds all the same, when there is nothing for them to bound
        ours = {name: value for name, value in ours.items() if name not in SPEAKER_COUNTS}
    # A transcription's words always have times, whether the output shows them or not; a translation's never.
    needs_words = fields.word_timestamps and (fields.output == "json" or ours.get("task") == "translate")
    if fields.return_speaker_embeddings:
        ours["embeddings"] = True
    own = {
        "diarize": True in wanted,
        "response_format": "text" if fields.output == "txt" else fields.output,
        "word_timestamps": needs_words,
    }
    sent_as = {"embeddings": "return_speaker_embeddings"} if fields.return_speaker_embeddings else {}
    try:
        with renaming(sent_as):
            options = parse_options(ours | own)
    except InvalidRequest as error:
        raise in_their_formats(error, f"output={fields.output}", get_args(Output)) from None
    if fields.word_timestamps and not options.wants_words():
        raise conflict("word_timestamps", "needs align to be true")
    return AsrAsked(options, fields)


def parse_language(
    query: Sequence[FormField], models: ModelNames, form: Sequence[FormField]
) -> LanguageAsked:
    """Parses the query of /detect-language, with the form's text fields.

    Raises InvalidRequest naming the field that is wrong, and ModelNotFound.
    """
    ours = _known([*query, *form])
    theirs = {name: ours.pop(name) for name in LanguageFields.model_fields if name in ours}
    fields = validate_or_400(LanguageFields, theirs)
    _check_samples(ours, encode=fields.encode)
    model = fields.model or models.own
    read = partial(parse_some, LANGUAGE_OPTIONS, more=tuple(LanguageFields.model_fields))
    options, _ = with_defaults(models.defaults(model), ours, read)
    return LanguageAsked(options.model_copy(update={"model": models.option(model)}), fields)


def _check_samples(ours: Collection[str], *, encode: bool) -> None:
    if not encode and "encoding" in ours:
        raise conflict("encoding", "cannot be combined with encode=false, which is s16le, 16000 Hz, mono")


def _known(sent: Sequence[FormField]) -> dict[str, Any]:
    names = AsrFields.model_fields.keys() | Options.model_fields.keys()
    fields = [(name, value) for name, value in sent if name.partition("[")[0] in names]
    return collect_fields(fields, LISTS)
