"""Transcripts as answers: the JSON of our own API, the formats that are text, and streams of events."""

import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from itertools import product
from string import ascii_uppercase
from typing import Any

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_app.audio import MAX_SPEAKER_CHANNELS
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
from serve_app.languages import NO_SPACE_BETWEEN_SENTENCES
from serve_app.options import Options
from serve_app.request.language_vote import language_shares
from serve_app.request.recognition import speaker_of
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
KEEP_ALIVE_S = 15.0  # proxies cut a silent connection after 30 to 60
_LETTERS = [*ascii_uppercase, *map("".join, product(ascii_uppercase, repeat=2))]  # A to Z, AA to ZZ


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
    """The tokens of the text, in order. A token of probability 0 has -9999, as OpenAI's."""
    return [
        LogprobOut(
            token=bytes(token.utf8_bytes).decode(errors="replace"),
            logprob=math.log(token.score) if token.score > 0 else IMPOSSIBLE,
            bytes=list(token.utf8_bytes),
        )
        for token in transcript.tokens
    ]


def speaker_names(transcript: Transcript, options: Options) -> dict[str | None, str]:
    """Known speakers keep their names; others are A, B, C as they appear, unless a known one is called so.

    Speakers of turns without a text come last. Channels that are speakers are A, B, C by their numbers.
    """
    if options.channels == "speakers":
        letters_by_channel = zip(range(MAX_SPEAKER_CHANNELS), _LETTERS, strict=False)
        return {None: UNKNOWN, **{speaker_of(number): letter for number, letter in letters_by_channel}}
    known = options.known_speaker_names
    speakers = [*(segment.speaker for segment in transcript.segments), *speakers_of(transcript.turns)]
    others = dict.fromkeys(speaker for speaker in speakers if speaker not in (None, *known))
    letters = (name for name in _LETTERS if name not in known)
    return {None: UNKNOWN, **{name: name for name in known}, **dict(zip(others, letters, strict=False))}


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


class EventStream(StreamingResponse):
    """Sends `first` and then `rest`, ends when its client leaves, and closes `held` in any case.

    Starlette's StreamingResponse alone would not do: if a client leaves while an event is sent, its generator
    stays open, and so does the run. FastAPI's events send status 200 before a bad file can be refused.
    """

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None], held: AsyncExitStack) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the latter is for nginx
        super().__init__(_chained(first, rest), headers=headers, media_type="text/event-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._held:
            # From 2.4 on, `send` has to fail once the client has left. Serve's does not, so this one listens.
            await super().__call__({**scope, "asgi": {"spec_version": "2.3"}}, receive, send)


async def _chained(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    yield first
    async for event in rest:
        yield event
