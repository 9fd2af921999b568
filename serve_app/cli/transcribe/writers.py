"""Writes a transcript in whisperx's file formats, exactly as whisperx's writers do. Pure.

The service's own srt and vtt differ: they are easier to read as subtitles (docs/formats.md).
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]  # in whisperx's form
Words = list[dict[str, Any]]

UNSPACED = ("ja", "zh")
LONG_PAUSE_S = 3.0
DEFAULT_LINE_CHARS = 1000


@dataclass(frozen=True, slots=True)
class Layout:
    """How subtitles are laid out; whisperx's options of the same names."""

    max_line_width: int | None = None
    max_line_count: int | None = None
    highlight_words: bool = False


def whisperx_result(answer: dict[str, Any]) -> Result:
    """An answer of `/predict` in whisperx's form: unknown values are left out instead of null.

    A segment that could not be aligned has its words without times: whisperx would write nothing of it.
    """
    language = answer["language"] or "en"
    segments = [_segment(each, language) for each in answer["model_output"]]
    words = [word for segment in segments for word in segment.get("words", ())]
    has_words = any("words" in segment for segment in segments)
    voices = {name: answer[name] for name in ("speaker_embeddings",) if name in answer}
    return {
        "segments": segments,
        **({"word_segments": words} if has_words else {}),
        "language": language,
        **voices,
    }


def _segment(segment: dict[str, Any], language: str) -> dict[str, Any]:
    names = ["start", "end", "text", "language"]
    shown = {name: segment[name] for name in names if name in segment}
    if "words" in segment:
        texts = [segment["text"].strip()] if language in UNSPACED else segment["text"].split()
        shown["words"] = [_known(word) for word in segment["words"]] or [{"word": text} for text in texts]
        chars = [_known(char) for word in shown["words"] for char in word.pop("chars", ())]
        shown |= {"chars": chars} if chars else {}
    return shown | ({"speaker": segment["speaker"]} if segment["speaker"] else {})


def _known(word: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in word.items() if value is not None}


def txt(result: Result, _: Layout) -> str:
    """A line for each segment."""
    return "".join(f"{_prefix(each)}{each['text'].strip()}\n" for each in result["segments"])


def tsv(result: Result, _: Layout) -> str:
    """Times in milliseconds."""
    rows = [
        f"{round(1000 * each['start'])}\t{round(1000 * each['end'])}\t{_in_a_cell(each)}\n"
        for each in result["segments"]
    ]
    return "".join(["start\tend\ttext\n", *rows])


def aud(result: Result, _: Layout) -> str:
    """Labels for Audacity."""
    return "".join(
        f"{each['start']}\t{each['end']}\t"
        f"{'[[' + each['speaker'] + ']]' if 'speaker' in each else ''}{_in_a_cell(each)}\n"
        for each in result["segments"]
    )


def as_json(result: Result, _: Layout) -> str:
    """The whole result."""
    return json.dumps(result, ensure_ascii=False)


def srt(result: Result, layout: Layout) -> str:
    """SubRip subtitles."""
    cues = enumerate(_cues(result, layout, lambda s: _clock(s, ",", has_hours=True)), start=1)
    return "".join(f"{number}\n{start} --> {end}\n{text}\n\n" for number, (start, end, text) in cues)


def vtt(result: Result, layout: Layout) -> str:
    """WebVTT subtitles."""
    cues = _cues(result, layout, lambda s: _clock(s, ".", has_hours=False))
    return "".join(["WEBVTT\n\n", *(f"{start} --> {end}\n{text}\n\n" for start, end, text in cues)])


WRITERS: dict[str, Callable[[Result, Layout], str]] = {
    "srt": srt,
    "vtt": vtt,
    "txt": txt,
    "tsv": tsv,
    "json": as_json,
    "aud": aud,
}
ALL = ("srt", "vtt", "txt", "tsv", "json")  # what whisperx calls `all`


def _cues(result: Result, layout: Layout, clock: Callable[[float], str]) -> Iterator[tuple[str, str, str]]:
    segments = result["segments"]
    if not segments or "words" not in segments[0]:
        for each in segments:
            text = _prefix(each) + each["text"].strip().replace("-->", "->")
            yield clock(each["start"]), clock(each["end"]), text
        return
    between = "" if result["language"] in UNSPACED else " "
    for words, segment in _subtitles(segments, layout):
        timed = [word for word in words if "start" in word]
        start = clock(min((word["start"] for word in timed), default=segment["start"]))
        end = clock(max((word["end"] for word in timed), default=segment["end"]))
        texts = [word["word"] for word in words]
        if not (layout.highlight_words and timed):
            yield start, end, _prefix(segment) + between.join(texts)
            continue
        for number, word in enumerate(words):
            if "start" not in word:
                continue
            word_start, word_end = clock(word["start"]), clock(word["end"])
            if start != word_start:
                yield start, word_start, _prefix(segment) + between.join(texts)
            shown = [*texts]
            shown[number] = re.sub(r"^(\s*)(.*)$", r"\1<u>\2</u>", texts[number])
            yield word_start, word_end, _prefix(segment) + " ".join(shown)
            start = word_end


def _subtitles(segments: Words, layout: Layout) -> Iterator[tuple[Words, dict[str, Any]]]:
    """The words of each subtitle, with line ends in them, and the segment of its first word."""
    width = layout.max_line_width or DEFAULT_LINE_CHARS
    keeps_segments = layout.max_line_count is None or layout.max_line_width is None
    subtitle: Words = []
    of: dict[str, Any] = {}
    used, lines, last_s = 0, 1, segments[0]["start"]
    for segment in segments:
        for number, original in enumerate(segment["words"]):
            word = {**original}
            is_late = not keeps_segments and "start" in word and word["start"] - last_s > LONG_PAUSE_S
            is_next = keeps_segments and number == 0 and bool(subtitle)
            if used > 0 and used + len(word["word"]) <= width and not is_late and not is_next:
                used += len(word["word"])
            else:
                word["word"] = word["word"].strip()
                is_full = layout.max_line_count is not None and (is_late or lines >= layout.max_line_count)
                if (subtitle and is_full) or is_next:
                    yield subtitle, of
                    subtitle, lines = [], 1
                elif used > 0:
                    lines += 1
                    word["word"] = "\n" + word["word"]
                used = len(word["word"].strip())
            if not subtitle:
                of = segment
            subtitle.append(word)
            last_s = word.get("start", last_s)
    if subtitle:
        yield subtitle, of


def _prefix(segment: dict[str, Any]) -> str:
    return f"[{segment['speaker']}]: " if "speaker" in segment else ""


def _in_a_cell(segment: dict[str, Any]) -> str:
    text: str = segment["text"].strip()
    return text.replace("\t", " ")


def _clock(seconds: float, point: str, *, has_hours: bool) -> str:
    minutes, ms = divmod(round(seconds * 1000.0), 60_000)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{f'{hours:02d}:' if has_hours or hours else ''}{minutes:02d}:{ms // 1000:02d}{point}{ms % 1000:03d}"
    )
