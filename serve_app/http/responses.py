"""Transcripts as answers: the JSON of our own API, and the formats that are text."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from starlette.responses import JSONResponse, Response

from serve_app.errors import TranscriptionError
from serve_app.formats.cue_words import words_by_start
from serve_app.formats.table import FORMATS
from serve_app.http.answer_types import (
    CharacterOut,
    EmbeddingModel,
    Embeddings,
    LanguageShare,
    LogprobOut,
    SegmentOut,
    WordOut,
)
from serve_app.http.errors import described_errors
from serve_app.languages import NO_SPACE_BETWEEN_SENTENCES
from serve_app.options import Options
from serve_app.request.language_vote import language_shares
from serve_app.transcript import (
    Character,
    Progress,
    Segment,
    StageWarning,
    Task,
    Transcript,
    Word,
    speakers_of,
)

IMPOSSIBLE = -9999.0
UNKNOWN = "unknown"  # where an API requires a speaker or a language and there is none


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


def answer(transcript: Transcript, options: Options) -> dict[str, Any] | str:
    """The answer to a request: JSON-ready data for json and words, else text.

    With `words`, a segment that was not aligned has its words too, with null times, so that nothing that was
    said is missing.
    """
    if write := FORMATS[options.response_format].write:
        return write(transcript, options.layout())
    shown: dict[str, Any] = {}
    if options.response_format == "words":
        shown["words"] = [_word_out(word, options) for _, word in words_by_start(transcript)]
    else:
        shown["model_output"] = [
            segment_out(each, options, words=options.word_timestamps) for each in transcript.segments
        ]
    if options.logprobs:
        shown["logprobs"] = logprobs(transcript)
    if options.tells_languages:
        shown["languages"] = languages_out(transcript)
    return shown | {
        **embeddings_out(transcript, options),
        "language": transcript.language,
        "duration": round(transcript.duration_s, 3),
        "model": transcript.model,
        "warnings": warnings_out(transcript),
        "timings": timings_out(transcript),
    }


def timings_out(transcript: Transcript) -> dict[str, float]:
    """Seconds per stage."""
    return {stage: round(seconds, 3) for stage, seconds in transcript.timings.items()}


def embeddings_out(
    transcript: Transcript, options: Options, names: Mapping[str | None, str] | None = None
) -> Embeddings:
    """The vectors of those who speak, where they were asked for; `names` has other names than the labels."""
    if not options.embeddings:
        return {}
    voices, names = transcript.voices, names or {}
    vectors = voices.vectors if voices else {}
    shown = {
        names.get(speaker, speaker): list(vector) if (vector := vectors.get(speaker)) else None
        for speaker in speakers_of(transcript.turns)
    }
    model = EmbeddingModel(name=voices.model, dimension=voices.dimension) if voices else None
    return {"speaker_embeddings": shown, "embedding_model": model}


def text_pieces(segments: Iterable[Segment], task: Task, *, is_first: bool) -> Iterator[str]:
    """The text of each segment, after a space where its language has one between sentences."""
    for segment in segments:
        source = segment.source_text
        language = source.language if source and task == "transcribe" else "en"
        yield segment.text if is_first or language in NO_SPACE_BETWEEN_SENTENCES else f" {segment.text}"
        is_first = False


def logprobs(transcript: Transcript) -> list[LogprobOut]:
    """The tokens of the text, in order. Of a token that cannot be, OpenAI says -9999."""
    return [
        LogprobOut(
            token=bytes(token.utf8_bytes).decode(errors="replace"),
            logprob=math.log(token.score) if token.score > 0 else IMPOSSIBLE,
            bytes=list(token.utf8_bytes),
        )
        for token in transcript.tokens
    ]


def languages_out(transcript: Transcript) -> list[LanguageShare]:
    """The languages that were heard, the one of most speech first."""
    shares = language_shares(transcript.segments)
    return [LanguageShare(code=code, share=round(share, 3)) for code, share in shares.items()]


def warnings_out(transcript: Transcript) -> list[dict[str, str]]:
    """The transcript's warnings, JSON-ready."""
    return [asdict(warning) for warning in transcript.warnings]


def progress_response(progress: Progress, options: Options) -> dict[str, Any]:
    """A report on a running request, JSON-ready."""
    words = options.word_timestamps or options.response_format == "words"
    return {
        "windows_done": progress.windows_done,
        "windows_found": progress.windows_found,
        "all_found": progress.all_found,
        "segments": [segment_out(segment, options, words=words) for segment in progress.segments],
    }


def transcript_response(transcript: Transcript, options: Options) -> Response:
    """The answer to a request as a response. This can take seconds for many words: call it in a thread."""
    body = answer(transcript, options)
    if isinstance(body, str):
        return text_response(body, FORMATS[options.response_format].media_type, transcript)
    return JSONResponse(body)


def text_response(text: str, media_type: str, transcript: Transcript) -> Response:
    """A response in a text format. Those have no place for warnings, which are in the header X-Warnings."""
    return with_warnings(Response(text, media_type=media_type), transcript.warnings)


def with_warnings(response: Response, warnings: Sequence[StageWarning]) -> Response:
    """The response with the header X-Warnings, if there are any."""
    if warnings:
        shown = [asdict(warning) for warning in warnings]
        response.headers["X-Warnings"] = json.dumps(shown)  # ASCII, as a header must be
    return response


def segment_out(segment: Segment, options: Options, *, words: bool) -> SegmentOut:
    """One segment, JSON-ready."""
    start_s, end_s = round(segment.start_s, 3), round(segment.end_s, 3)
    out = SegmentOut(start=start_s, end=end_s, text=segment.text, speaker=segment.speaker)
    if options.tells_languages:
        out["language"] = segment.source_text.language if segment.source_text else None
    if words:
        out["words"] = [_word_out(word, options) for word in segment.words]
    return out


def chars_out(chars: Iterable[Character]) -> list[CharacterOut]:
    """The characters of a word, JSON-ready."""
    return [
        CharacterOut(char=each.text, start=each.start_s, end=each.end_s, score=none_if_nan(each.score))
        for each in chars
    ]


def _word_out(word: Word, options: Options) -> WordOut:
    score = none_if_nan(word.score)
    out = WordOut(word=word.text, start=word.start_s, end=word.end_s, score=score, speaker=word.speaker)
    if options.confidence:
        out["confidence"] = word.confidence
    if options.char_timestamps:
        out["chars"] = chars_out(word.chars)
    return out


def none_if_nan(score: float | None) -> float | None:
    return score if math.isfinite(score or 0.0) else None  # JSON has no NaN
