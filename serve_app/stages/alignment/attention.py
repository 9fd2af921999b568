"""Word times from Whisper's own cross-attention: any language, no second model.

The decoder reads a window's tokens once more over the encoder's output that is there already, and a dynamic
programme finds the 20 ms frame where each token begins; both happen inside CTranslate2 (`Whisper.align`).
The method is openai/whisper's (whisper/timing.py) and faster-whisper's. Differences: windows of several
languages share a batch, each model's constant error is taken off, and words begin and end in sound.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from serve_app.stages.alignment.sentences import sentence_splitter
from serve_app.stages.alignment.words import LetterTime, assemble, word_ranges
from serve_app.transcript import Segment, Token, Window, WindowText, Word

FRAME_S = 0.02  # of the encoder
MEL_FRAMES_PER_S = 100
MAX_MEL_FRAMES = 3000
MAX_TOKENS = 440  # the decoder reads 448, and some stand before and after the text

# Tuned on three half-minute recordings of spontaneous speech (MFA's examples), tested on others.
QUIET = 0.2  # of the way from a window's quiet tenth to its loud tenth
MIN_PAUSE_FRAMES = 40  # of 10 ms: no word has such a pause inside
MIN_WORD_FRAMES = 4

SPOKEN = regex.compile(r"[^\p{P}\p{Z}\s]")  # tokens of punctuation lie over pauses

Loudness = npt.NDArray[np.float32]  # of each 10 ms of a window


def token_times(
    model: Any,
    encoded: Any,
    starts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    lengths_s: Sequence[float],
    decode: Callable[[Sequence[int]], str],
) -> list[tuple[Token, ...]]:
    """When each token of each window of a batch is spoken; nothing for a window with too many tokens.

    `model` is CTranslate2's Whisper and `encoded` its encoder's output (batch, 1500, width). `starts` are the
    tokens from <|startoftranscript|> to the task, `texts` the tokens of the text. CTranslate2 takes one start
    for a whole call, so there is a call for each language.
    """
    found: list[tuple[Token, ...]] = [()] * len(texts)
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, (start, text) in enumerate(zip(starts, texts, strict=True)):
        if 0 < len(text) <= MAX_TOKENS:
            groups.setdefault(tuple(start), []).append(item)
    for start, items in groups.items():
        mels = [max(2, min(MAX_MEL_FRAMES, round(lengths_s[item] * MEL_FRAMES_PER_S))) for item in items]
        part = encoded if len(items) == len(texts) else _rows(encoded, items)
        results = model.align(part, list(start), [list(texts[item]) for item in items], mels)
        for item, n_mels, result in zip(items, mels, results, strict=True):
            edges_s = [frame * FRAME_S for frame in _frames(result.alignments, len(texts[item]), n_mels // 2)]
            text_ends = characters_complete(texts[item], decode)
            found[item] = tuple(
                Token(*each)
                for each in zip(
                    edges_s[:-1], edges_s[1:], map(float, result.text_token_probs), text_ends, strict=True
                )
            )
    return found


def characters_complete(tokens: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[int]:
    """How many characters are complete after each token; some characters have several tokens."""
    return [len(decode(tokens[:count]).rstrip("\ufffd")) for count in range(1, len(tokens) + 1)]


def _rows(encoded: Any, items: Sequence[int]) -> Any:
    import ctranslate2

    whole = np.asarray(encoded.to_device(ctranslate2.Device.cpu) if encoded.device == "cuda" else encoded)
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(whole[items]))


def _frames(path: Sequence[tuple[int, int]], n_tokens: int, n_frames: int) -> list[int]:
    """The frame where each token begins, and where the last one ends, from a path of (token, frame) pairs.

    A token that the path skips begins with the next one.
    """
    first: dict[int, int] = {}
    for token, frame in path:
        first.setdefault(token, frame)
    frames = [first.get(n_tokens, n_frames)]
    for token in reversed(range(n_tokens)):
        frames.append(min(first.get(token, frames[-1]), frames[-1]))
    return frames[::-1]


def loudness(features: npt.NDArray[np.float32], length_s: float) -> Loudness:
    """The loudness of each 10 ms of a window, from its log-mels (n_mels, 3000): their mean over 50 ms."""
    n_frames = max(1, min(MAX_MEL_FRAMES, round(length_s * MEL_FRAMES_PER_S)))
    mean = features[:, :n_frames].mean(axis=0)
    return np.convolve(np.pad(mean, 2, "edge"), np.full(5, 0.2), "valid").astype(np.float32)


def sentences(text: WindowText, window: Window, loud: Loudness, shift_s: float) -> tuple[Segment, ...]:
    """The sentences of a window whose tokens have times; all words have times.

    `shift_s` is by how much the model's attention is early.
    """
    spans = _letter_spans(text, window.end_s - window.start_s, shift_s)
    _move_edges_into_sound(word_ranges(text.text, text.language), spans, loud)
    times = {
        place: LetterTime(
            round(window.start_s + start_s, 3), round(window.start_s + end_s, 3), round(score, 3)
        )
        for place, (start_s, end_s, score) in spans.items()
    }
    split = sentence_splitter(text.language)(text.text)
    found = assemble(text.text, text.language, times, split, text.avg_logprob)
    return tuple(replace(segment, words=tuple(_timed(segment))) for segment in found)


def _timed(segment: Segment) -> Iterator[Word]:
    """The words; those of a sentence in which nothing is heard, as of a lone dash, have its times."""
    for word in segment.words:
        is_timed = word.start_s is not None
        yield word if is_timed else replace(word, start_s=segment.start_s, end_s=segment.end_s)


Spans = dict[int, tuple[float, float, float]]  # place in the text -> start and end in the window, score


def _letter_spans(text: WindowText, length_s: float, shift_s: float) -> Spans:
    """When each character that is heard is spoken; the characters of a token share its time evenly."""
    spans: Spans = {}
    complete, begun_s = 0, None  # characters so far; when the token began that begins the next one
    for token in text.tokens:
        begun_s = token.start_s if begun_s is None else begun_s
        if token.text_end <= complete:
            continue
        letters = [place for place in range(complete, token.text_end) if SPOKEN.match(text.text[place])]
        times_s = np.clip(np.linspace(begun_s, token.end_s, len(letters) + 1) + shift_s, 0.0, length_s)
        for place, (start_s, end_s) in zip(letters, pairwise(times_s.tolist()), strict=True):
            spans[place] = start_s, end_s, token.score
        complete, begun_s = token.text_end, None
    return spans


def _move_edges_into_sound(words: Sequence[tuple[int, int]], spans: Spans, loud: Loudness) -> None:
    """Moves the start and the end of each word out of the silence beside it, its characters with them."""
    quiet, noisy = np.percentile(loud, [10, 90])
    is_quiet = loud < quiet + QUIET * (noisy - quiet)
    for begin, end in words:
        letters = [place for place in range(begin, end) if place in spans]
        if not letters:
            continue
        start_s, end_s = spans[letters[0]][0], spans[letters[-1]][1]
        first = round(start_s * MEL_FRAMES_PER_S)
        last = min(round(end_s * MEL_FRAMES_PER_S), len(loud)) - 1
        if last - first < MIN_WORD_FRAMES:
            continue
        first, last = _without_pause(is_quiet[first : last + 1], first, last)
        while first < last + 1 - MIN_WORD_FRAMES and is_quiet[first]:
            first += 1
        while last > first - 1 + MIN_WORD_FRAMES and is_quiet[last]:
            last -= 1
        scale = (last + 1 - first) / MEL_FRAMES_PER_S / (end_s - start_s)
        for place in letters:
            a_s, b_s, score = spans[place]
            offset_s = first / MEL_FRAMES_PER_S - start_s * scale
            spans[place] = a_s * scale + offset_s, b_s * scale + offset_s, score


def _without_pause(is_quiet: npt.NDArray[np.bool_], first: int, last: int) -> tuple[int, int]:
    """The frames of a word after its longest pause, or before it where they are more than twice as many.

    Attention turns to a word as soon as the one before it has ended, so a pause mostly stands at its start.
    """
    changes = np.flatnonzero(np.diff(np.concatenate([[False], is_quiet, [False]]).astype(np.int8)))
    pauses = list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))
    begin, end = max(pauses, key=lambda pause: pause[1] - pause[0], default=(0, 0))
    if end - begin < MIN_PAUSE_FRAMES:
        return first, last
    before, after = begin, len(is_quiet) - end
    if before > 2 * after and before >= MIN_WORD_FRAMES:
        return first, first + begin - 1
    return min(first + end, last), last
