"""What a request to AssemblyAI's transcript API asks for, as one of our jobs."""

from typing import Annotated, Any, Literal, NotRequired

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.audio import Source
from serve_app.errors import InvalidRequest
from serve_app.http.other_apis import renaming
from serve_app.jobs.service import Submission
from serve_app.options import Options, parse_options
from serve_app.options.fields import MAX_FILE_S, SpeakerCount
from serve_app.options.validation import conflict, validate_or_400

_ALWAYS_ON = ("punctuate", "format_text")
MAX_FILE_MS = int(MAX_FILE_S * 1000)


class TranscriptRequest(BaseModel):
    """The body of `POST /v2/transcript`: those of AssemblyAI's fields that can be honoured here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    audio_url: str = Field(description="http or https URL of the audio or video.")
    language_code: str = Field("", description="Code, locale or name. Empty: English, as at AssemblyAI.")
    language_detection: bool = Field(False, description="Detect the language.")
    speaker_labels: bool = Field(False, description="Label speakers.")
    speakers_expected: SpeakerCount | None = Field(None, description="Exact number of speakers, if known.")
    multichannel: bool = Field(False, description="Each of 2 to 8 channels is one speaker.")
    audio_start_from: Annotated[int, Field(ge=0, le=MAX_FILE_MS)] = Field(
        0, description="Where to begin, in milliseconds."
    )
    audio_end_at: Annotated[int, Field(gt=0, le=MAX_FILE_MS)] | None = Field(
        None, description="Where to end, the same."
    )
    keyterms_prompt: tuple[str, ...] = Field((), description="Words and names to expect.")
    word_boost: tuple[str, ...] = Field((), description="The older name of `keyterms_prompt`.")
    boost_param: Literal["default"] = Field("default", description="There is one weight only.")
    webhook_url: str | None = Field(None, description="https URL to call when the transcript is there.")
    punctuate: Literal[True] = Field(True, description="Whisper always does.")
    format_text: Literal[True] = Field(True, description="Whisper always does.")
    speech_model: str = Field("best", description="`best`, the configured model, or one of the others here.")
    speech_models: tuple[str, ...] = Field((), description="Same as `speech_model`.")


class AssemblyWord(TypedDict):
    """One word. Times are milliseconds; the confidence is 0 where the word was not aligned."""

    text: str
    start: int
    end: int
    confidence: float
    speaker: str | None


class AssemblyUtterance(AssemblyWord):
    """What one speaker says until another one does."""

    words: list[AssemblyWord]


class AssemblyTranscript(TypedDict):
    """A transcript. All from `text` on is null until it is completed."""

    id: str
    status: Literal["queued", "processing", "completed", "error"]
    audio_url: Annotated[str, Field(description="Without its query.")]
    language_code: Annotated[str | None, Field(description="As asked for, else as heard.")]
    language_detection: bool
    speaker_labels: bool
    speakers_expected: int | None
    punctuate: bool
    format_text: bool
    webhook_url: str | None
    webhook_status_code: Annotated[int | None, Field(description="Of the last try.")]
    webhook_auth: bool
    text: str | None
    words: list[AssemblyWord] | None
    multichannel: NotRequired[Annotated[bool, Field(description="Where asked for, as the next two.")]]
    audio_start_from: NotRequired[Annotated[int, Field(description="Milliseconds.")]]
    audio_end_at: NotRequired[Annotated[int, Field(description="Milliseconds.")]]
    utterances: Annotated[
        list[AssemblyUtterance] | None, Field(description="Only with `speaker_labels` or `multichannel`.")
    ]
    confidence: Annotated[float | None, Field(description="The mean of the words'.")]
    audio_duration: Annotated[int | None, Field(description="Seconds.")]
    speech_model_used: str | None
    error: Annotated[str | None, Field(description="Why there is no transcript.")]


THEIR_NAMES = {  # of our fields
    "model": "speech_model",
    "audio_file": "audio_url",
    "diarize": "speaker_labels",
    "language": "language_code",
    "num_speakers": "speakers_expected",
    "hotwords": "keyterms_prompt",
    "channels": "multichannel",
    "channels=speakers": "multichannel",
    "start_s": "audio_start_from",
    "end_s": "audio_end_at",
}


def submission(body: dict[str, Any]) -> Submission:
    """The job. Raises InvalidRequest naming the field that is wrong."""
    for name in _ALWAYS_ON:
        if body.get(name) is False:
            raise InvalidRequest(f"{name}: Whisper always does this; it cannot be switched off here.", name)
    # Clients send many fields with values that ask for nothing: false, null, 0, "", [], {}. Of our options,
    # which are refused here, false and 0 may ask for something: `align=false` does.
    ours = Options.model_fields.keys() - TranscriptRequest.model_fields.keys()
    given = {name: value for name, value in body.items() if value or (name in ours and value == 0)}
    if unknown := sorted(given.keys() - TranscriptRequest.model_fields.keys()):
        raise InvalidRequest(f"{unknown[0]}: not supported here; leave it out.", unknown[0])
    asked = validate_or_400(TranscriptRequest, given)
    # `best` is the configured model. Names of AssemblyAI's own models are refused where the job is submitted:
    # taking them would claim that those were used.
    models = {asked.speech_model, *asked.speech_models} - {"best"}
    if len(models) > 1:
        raise conflict("speech_models", "name one model")
    if asked.language_code and asked.language_detection:
        raise conflict("language_detection", "cannot be combined with language_code")
    if asked.keyterms_prompt and asked.word_boost:
        raise conflict("word_boost", "cannot be combined with keyterms_prompt, which is the same")
    if asked.speakers_expected and not asked.speaker_labels:
        raise conflict("speakers_expected", "needs speaker_labels to be true")
    # AssemblyAI's default is English, and a request should mean the same here.
    language = None if asked.language_detection else asked.language_code or "en"
    with renaming(THEIR_NAMES):
        options = parse_options(
            {
                "model": next(iter(models), None),
                "language": language,
                "diarize": asked.speaker_labels,
                "channels": "speakers" if asked.multichannel else "mix",
                "start_s": asked.audio_start_from / 1000 or None,
                "end_s": asked.audio_end_at and asked.audio_end_at / 1000,
                "num_speakers": asked.speakers_expected,
                "hotwords": ", ".join(asked.keyterms_prompt or asked.word_boost) or None,
                "word_timestamps": True,
            }
        )
    return Submission(
        source=Source(url=asked.audio_url),
        options=options,
        webhook_url=asked.webhook_url,
        webhook_style="assemblyai",
        echo={"language_code": asked.language_code} if asked.language_code else {},
    )
