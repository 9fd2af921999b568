"""The JSON of our own answers, as their readers see it in the documentation."""

from collections.abc import Iterable
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.errors import TranscriptionError
from serve_app.http.errors import described_errors
from serve_app.transcript import StageWarning


class CharacterOut(TypedDict):
    """One character. Times, in seconds, and the score are null where it is not spoken, as of a comma."""

    char: str
    start: float | None
    end: float | None
    score: float | None


class WordOut(TypedDict):
    """One word. Times are seconds; they and the score, 0 to 1, are null where the word was not aligned."""

    word: str
    start: float | None
    end: float | None
    score: float | None
    speaker: str | None
    confidence: NotRequired[
        Annotated[float | None, Field(description="The recogniser's probability; only with `confidence`.")]
    ]
    chars: NotRequired[Annotated[list[CharacterOut], Field(description="Only with `char_timestamps`.")]]


class SegmentOut(TypedDict):
    """One sentence. Times are seconds; `speaker` is null where speakers were not asked for or not found."""

    start: float
    end: float
    text: str
    speaker: str | None
    language: NotRequired[
        Annotated[str | None, Field(description="Only with `language: multiple` or `languages`.")]
    ]
    words: NotRequired[Annotated[list[WordOut], Field(description="Only with `word_timestamps`.")]]


class LanguageShare(TypedDict):
    """A language that text was found in."""

    code: Annotated[str, Field(description="Whisper's code.")]
    share: Annotated[float, Field(description="Of the seconds that have text, 0 to 1.")]


class About(TypedDict):
    language: Annotated[str | None, Field(description="Whisper's code; null when there was no speech.")]
    languages: NotRequired[
        Annotated[
            list[LanguageShare],
            Field(description="Most first; only with `language: multiple` or `languages`."),
        ]
    ]
    duration: Annotated[float, Field(description="Seconds of audio.")]
    model: Annotated[str, Field(description="The Whisper model that was used.")]
    warnings: Annotated[list[StageWarning], Field(description="Empty when there are none.")]
    timings: Annotated[dict[str, float], Field(description="Wall seconds per stage; stages overlap.")]


class LogprobOut(TypedDict):
    """One token of the recogniser's text."""

    token: Annotated[str, Field(description="Its text; a part of a character is shown as U+FFFD.")]
    logprob: float
    bytes: list[int]


class EmbeddingModel(TypedDict):
    """The network that made the vectors. Those of another one do not compare with them."""

    name: str
    dimension: int


class Embeddings(TypedDict):
    """Only with `embeddings`."""

    speaker_embeddings: NotRequired[
        Annotated[
            dict[str, list[float] | None],
            Field(description="Speakers and their vectors; null, with a warning, where there is none."),
        ]
    ]
    embedding_model: NotRequired[
        Annotated[
            EmbeddingModel | None,
            Field(description="The network that made the vectors; null where there is no speaker."),
        ]
    ]


class PredictResponse(About, Embeddings):
    """The answer of `POST /predict`: the segments, in order; times in seconds."""

    model_output: list[SegmentOut]
    logprobs: NotRequired[Annotated[list[LogprobOut], Field(description="Only with `logprobs`.")]]


class WordsResponse(About):
    """The answer with `response_format` words: those of all segments, in order; times in seconds."""

    words: list[WordOut]


def described_answers(
    model: Any, media_types: Iterable[str], *known: type[TranscriptionError]
) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of transcripts in JSON and in formats that are text, and of these errors."""
    text = {"schema": {"type": "string"}}
    warnings = {"description": "In text formats: what JSON has as `warnings`, as ASCII JSON.", **text}
    return {
        200: {
            "model": model,
            "description": "The transcript in the `response_format` asked for.",
            "content": {media_type.partition(";")[0]: text for media_type in media_types},
            "headers": {"X-Warnings": warnings},
        },
        **described_errors(*known),
    }
