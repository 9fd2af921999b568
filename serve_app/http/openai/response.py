"""A transcript as OpenAI's audio API answers it."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from serve_app.formats.cue_words import words_by_start
from serve_app.http.answer_types import CharacterOut, Embeddings, LogprobOut
from serve_app.http.openai.request import ParsedForm
from serve_app.http.responses import (
    UNKNOWN,
    chars_out,
    embeddings_out,
    logprobs,
    speaker_names,
    warnings_out,
)
from serve_app.languages import LANGUAGES
from serve_app.options import Options
from serve_app.options.fields import MULTIPLE
from serve_app.request.language_vote import language_shares
from serve_app.transcript import StageWarning, Task, Transcript


class WordItem(TypedDict):
    """One word. If it could not be aligned, it has its segment's times."""

    word: str
    start: float
    end: float
    confidence: NotRequired[
        Annotated[float | None, Field(description="With the option `confidence`. Not OpenAI's.")]
    ]
    chars: NotRequired[
        Annotated[list[CharacterOut], Field(description="With `char_timestamps`. Not OpenAI's.")]
    ]


class SegmentItem(TypedDict):
    """One sentence. Log-probability, compression and silence are those of its window of speech."""

    id: int
    seek: Annotated[int, Field(description="Start of the window of speech, in hundredths of a second.")]
    start: float
    end: float
    text: str
    tokens: Annotated[list[int], Field(description="Always empty; OpenAI's client requires the list.")]
    temperature: Annotated[float, Field(description="At which the text was decoded.")]
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    speaker: NotRequired[Annotated[str, Field(description="Where speakers were asked for. Not OpenAI's.")]]
    language: NotRequired[Annotated[str, Field(description="With `language=multiple`. Not OpenAI's.")]]


class DiarizedSegment(TypedDict):
    """One sentence of one speaker; in a stream it is an event."""

    type: Literal["transcript.text.segment"]
    id: str
    start: float
    end: float
    text: str
    speaker: Annotated[str, Field(description="A known speaker's name, or A, B, C in order of appearance.")]


class LanguageOut(TypedDict):
    """A language that is spoken."""

    code: Annotated[str, Field(description="Whisper's code.")]


class Transcription(Embeddings):
    """In `json`, up to `warnings` alone; in `verbose_json`, words or segments or both, as asked for."""

    text: str
    usage: Annotated[
        dict[str, str | float],
        Field(
            description="`type`, which is `duration`, and `seconds`.",
            examples=[{"type": "duration", "seconds": 4.2}],
        ),
    ]
    languages: NotRequired[
        Annotated[list[LanguageOut], Field(description="In which text was found, most first; if any was.")]
    ]
    logprobs: NotRequired[Annotated[list[LogprobOut], Field(description="With `include[]=logprobs`.")]]
    warnings: NotRequired[Annotated[list[StageWarning], Field(description="If any. Not OpenAI's.")]]
    task: NotRequired[Task]
    language: NotRequired[Annotated[str, Field(description="English name; `english` for translations.")]]
    duration: NotRequired[Annotated[float, Field(description="Seconds of audio.")]]
    words: NotRequired[list[WordItem]]
    segments: NotRequired[list[SegmentItem] | list[DiarizedSegment]]


def answer(transcript: Transcript, form: ParsedForm, text: str) -> dict[str, Any]:
    """The answer in one of OpenAI's JSON formats. `text` is the whole text in one line."""
    duration_s = round(transcript.duration_s, 3)
    usage = {"type": "duration", "seconds": duration_s}
    whole: dict[str, Any] = {"text": text, "usage": usage, **extras(transcript, form)}
    if form.fields.response_format == "json":
        return whole
    whole |= {"task": form.options.task, "duration": duration_s}
    if form.fields.response_format == "diarized_json":
        return {**whole, "segments": diarized(transcript, form)}
    spoken = LANGUAGES.get(transcript.language or form.options.named_language() or "", UNKNOWN)
    whole["language"] = "english" if form.options.task == "translate" else spoken
    if "word" in form.fields.timestamp_granularities:
        whole["words"] = list(_words(transcript, form.options))
    if "segment" in form.fields.timestamp_granularities:
        whole["segments"] = list(verbose(transcript, form.options))
    return whole


def extras(transcript: Transcript, form: ParsedForm) -> dict[str, Any]:
    """The fields `languages`, `logprobs`, embeddings and `warnings`, where there are any."""
    is_diarized = form.fields.response_format == "diarized_json"
    names = speaker_names(transcript, form.options) if is_diarized else None
    found = {
        "languages": [LanguageOut(code=code) for code in language_shares(transcript.segments)],
        "logprobs": logprobs(transcript) if form.options.logprobs else [],
        **embeddings_out(transcript, form.options, names),
        "warnings": warnings_out(transcript),
    }
    asked = ("speaker_embeddings", "embedding_model")
    return {name: value for name, value in found.items() if value or name in asked}


def diarized(transcript: Transcript, form: ParsedForm) -> list[DiarizedSegment]:
    names = speaker_names(transcript, form.options)
    return [
        DiarizedSegment(
            type="transcript.text.segment",
            id=f"seg_{number:03d}",
            start=round(segment.start_s, 3),
            end=round(segment.end_s, 3),
            text=segment.text,
            speaker=names[segment.speaker],
        )
        for number, segment in enumerate(transcript.segments, start=1)
    ]


def verbose(transcript: Transcript, options: Options) -> Iterator[SegmentItem]:
    """The segments with the statistics of their windows."""
    for number, segment in enumerate(transcript.segments):
        source, window = segment.source_text, segment.window
        assert source is not None
        assert window is not None
        item = SegmentItem(
            id=number,
            seek=round(window.start_s * 100),
            start=round(segment.start_s, 3),
            end=round(segment.end_s, 3),
            text=segment.text,
            tokens=[],
            temperature=source.temperature,
            avg_logprob=zero_if_nan(source.avg_logprob),
            compression_ratio=zero_if_nan(source.compression_ratio),
            no_speech_prob=zero_if_nan(source.no_speech_prob),
        )
        if segment.speaker is not None:
            item["speaker"] = segment.speaker
        if options.language == MULTIPLE:
            item["language"] = source.language
        yield item


def _words(transcript: Transcript, options: Options) -> Iterator[WordItem]:
    """All words, also those of segments that were not aligned. A word without times has its segment's."""
    for segment, word in words_by_start(transcript):
        start_s = segment.start_s if word.start_s is None else word.start_s
        end_s = segment.end_s if word.end_s is None else word.end_s
        item = WordItem(word=word.text, start=round(start_s, 3), end=round(end_s, 3))
        if options.confidence:
            item["confidence"] = word.confidence
        if options.char_timestamps:
            item["chars"] = chars_out(word.chars)
        yield item


def zero_if_nan(value: float) -> float:
    return value if math.isfinite(value) else 0.0  # JSON has no NaN, and OpenAI's clients allow no null here
