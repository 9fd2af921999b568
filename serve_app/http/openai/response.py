"""A transcript as OpenAI's audio API answers it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import count, groupby, product
from string import ascii_uppercase
from typing import Any

from pydantic import BaseModel

from serve_app.formats.subtitles import words_of
from serve_app.http.openai.request import Ask
from serve_app.http.openai.schemas import (
    DiarizedSegment,
    DiarizedTranscription,
    DurationUsage,
    SegmentItem,
    TokenUsage,
    Transcription,
    VerboseTranscription,
    WordItem,
)
from serve_app.http.schemas import warnings_out
from serve_app.languages import LANGUAGES, NO_SPACE_BETWEEN_SENTENCES
from serve_app.stages.asr.token_ends import tokens_between
from serve_app.transcript import Segment, Task, Transcript, WindowText

AUDIO_TOKENS_PER_S = 50  # of Whisper's encoder

NO_SPEAKER = "unknown"  # where OpenAI wants a name and there is none
NO_LANGUAGE = "unknown"  # where nobody spoke and the caller named none


def json_ready(item: BaseModel) -> dict[str, Any]:
    """Without what OpenAI's answers do not have either when there is none of it."""
    return item.model_dump(exclude_none=True)


def text_pieces(segments: Iterable[Segment], task: Task, *, first: bool) -> Iterator[str]:
    """The text of each segment with what stands between it and the one before, unless it is the first."""
    for segment in segments:
        written = segment.heard.language if segment.heard and task == "transcribe" else "en"
        yield segment.text if first or written in NO_SPACE_BETWEEN_SENTENCES else f" {segment.text}"
        first = False


def answer(transcript: Transcript, ask: Ask, text: str) -> dict[str, Any]:
    """The answer in one of OpenAI's formats that are JSON; `text` is all of it, in one line."""
    duration_s = round(transcript.duration_s, 3)
    common = {
        "text": text,
        "usage": DurationUsage(seconds=duration_s),
        "warnings": warnings_out(transcript) or None,
    }
    if ask.response_format == "diarized_json":
        return json_ready(
            DiarizedTranscription(**common, duration=duration_s, segments=diarized(transcript, ask))
        )
    if ask.response_format == "verbose_json":
        return json_ready(
            VerboseTranscription(
                **common,
                task=ask.options.task,
                language=_language(transcript, ask),
                duration=duration_s,
                words=[
                    word for segment in transcript.segments for word in _words(segment, transcript.language)
                ]
                if ask.words
                else None,
                segments=verbose(transcript, ask) if ask.segments else None,
            )
        )
    return json_ready(Transcription(**common))


def token_usage(transcript: Transcript) -> TokenUsage:
    """Whisper's tokens: one of audio for each 20 ms, and those of the text."""
    heard = {id(segment.heard): segment.heard for segment in transcript.segments if segment.heard}
    audio = math.ceil(transcript.duration_s * AUDIO_TOKENS_PER_S)
    text = sum(len(window.tokens) for window in heard.values())
    return TokenUsage(input_tokens=audio, output_tokens=text, total_tokens=audio + text)


def diarized(transcript: Transcript, ask: Ask) -> list[DiarizedSegment]:
    """The segments; speakers that are not known are A, B, C in the order in which they first speak."""
    names = speaker_names(transcript.segments, ask.options.known_speaker_names)
    return [
        DiarizedSegment(
            id=f"seg_{number:03d}",
            start=round(segment.start_s, 3),
            end=round(segment.end_s, 3),
            text=segment.text,
            speaker=names[segment.speaker],
        )
        for number, segment in enumerate(transcript.segments, start=1)
    ]


def speaker_names(segments: Sequence[Segment], known: Sequence[str]) -> dict[str | None, str]:
    """What each speaker is called. A letter that is the name of a known one stands for nobody else."""
    letters = (name for name in _letters() if name not in known)
    names: dict[str | None, str] = {None: NO_SPEAKER, **{name: name for name in known}}
    for segment in segments:
        if segment.speaker not in names:
            names[segment.speaker] = next(letters)
    return names


def verbose(transcript: Transcript, ask: Ask) -> list[SegmentItem]:
    """The segments with the statistics of the windows that they are from."""
    items = []
    tokens = own_tokens(transcript.segments)
    for number, segment in enumerate(transcript.segments):
        heard, window = segment.heard, segment.window
        assert heard is not None
        assert window is not None
        items.append(
            SegmentItem(
                id=number,
                seek=round(window.start_s * 100),
                start=round(segment.start_s, 3),
                end=round(segment.end_s, 3),
                text=segment.text,
                tokens=list(tokens[number]),
                temperature=heard.temperature,
                avg_logprob=_number(heard.avg_logprob),
                compression_ratio=_number(heard.compression_ratio),
                no_speech_prob=_number(heard.no_speech_prob),
                speaker=segment.speaker if ask.options.diarize is not False else None,
            )
        )
    return items


def own_tokens(segments: Iterable[Segment]) -> list[tuple[int, ...]]:
    """The tokens that each segment was made from: together they are those of its window.

    A token that reaches over the end of a sentence is the sentence's in which it starts. All of a window's
    where a segment's text is not to be found in the window's.
    """
    found: list[tuple[int, ...]] = []
    for _, group in groupby(segments, key=lambda segment: id(segment.heard)):
        of_window = list(group)
        heard = of_window[0].heard
        ends = _ends_in(heard, of_window) if heard else None
        if heard is None or ends is None:
            found += [heard.tokens if heard else () for _ in of_window]
            continue
        begins = [0, *ends[:-1]]
        found += [
            tokens_between(heard.tokens, heard.token_ends, first, end)
            for first, end in zip(begins, ends, strict=True)
        ]
    return found


def _ends_in(heard: WindowText, segments: Sequence[Segment]) -> list[int] | None:
    """Where each segment's text ends in its window's; None where that, or the tokens' ends, are not known."""
    if len(heard.token_ends) != len(heard.tokens):
        return None
    ends, position = [], 0
    for segment in segments:
        first = heard.text.find(segment.text, position)
        if first < 0:
            return None
        position = first + len(segment.text)
        ends.append(position)
    return [*ends[:-1], len(heard.text) + 1]  # what follows the last sentence is part of it


def _words(segment: Segment, language: str | None) -> Iterator[WordItem]:
    """Also those of a segment that was not aligned. A word without times has its segment's."""
    for word in words_of(segment, language):
        start_s = segment.start_s if word.start_s is None else word.start_s
        end_s = segment.end_s if word.end_s is None else word.end_s
        yield WordItem(word=word.text, start=round(start_s, 3), end=round(end_s, 3))


def _language(transcript: Transcript, ask: Ask) -> str:
    if ask.options.task == "translate":
        return "english"
    return LANGUAGES.get(transcript.language or ask.options.language or "", NO_LANGUAGE)


def _number(value: float) -> float:
    return value if math.isfinite(value) else 0.0  # JSON has no NaN, and OpenAI's clients no null here


def _letters() -> Iterator[str]:
    """A to Z, AA to ZZ, and so on."""
    for length in count(1):
        yield from ("".join(letters) for letters in product(ascii_uppercase, repeat=length))
