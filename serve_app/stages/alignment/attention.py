"""Word times from Whisper's own cross-attention: any language, no second model.

The decoder reads a window's tokens once more over the encoder's output that is there already, and a dynamic
programme finds the 20 ms frame where each token begins; both happen inside CTranslate2 (`Whisper.align`).
The method is openai/whisper's (whisper/timing.py) and faster-whisper's. Differences: windows of several
languages share a batch, each model's constant error is taken off, and words begin and end in sound.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from serve_app.stages.alignment.sentences import sentence_splitter
from serve_app.stages.alignment.sound import FRAMES_PER_S, MAX_FRAMES, Loudness, spoken_in_sound
from serve_app.stages.alignment.unspelled import SPOKEN
from serve_app.stages.alignment.words import LetterTime, assemble, word_ranges
from serve_app.transcript import Segment, Token, Window, WindowText, Word

FRAME_S = 0.02  # of the encoder
MAX_TOKENS = 440  # the decoder reads 448, and some stand before and after the text

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))  # these stand for themselves
_OTHERS = (byte for byte in range(0x100) if byte not in _PRINTABLE)
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(_OTHERS)}


def token_times(
    model: Any,
    encoded: Any,
    starts: Sequence[Sequence[int]],
    texts: Sequence[Sequence[int]],
    lengths_s: Sequence[float],
    decode: Callable[[Sequence[int]], str],
) -> list[tuple[Token, ...]]:
    """When each token of each window of a batch is spoken; of a very long text only its first MAX_TOKENS.

    `model` is CTranslate2's Whisper and `encoded` its encoder's output (batch, 1500, width). `starts` are the
    tokens from <|startoftranscript|> to the task, `texts` the tokens of the text. CTranslate2 takes one start
    for a whole call, so there is a call for each language.
    """
    found: list[tuple[Token, ...]] = [()] * len(texts)
    groups: dict[tuple[int, ...], list[int]] = {}
    for item, (start, text) in enumerate(zip(starts, texts, strict=True)):
        if text:
            groups.setdefault(tuple(start), []).append(item)
    texts = [text[:MAX_TOKENS] for text in texts]
    for start, items in groups.items():
        mels = [max(2, min(MAX_FRAMES, round(lengths_s[item] * FRAMES_PER_S))) for item in items]
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


def spelled(tokens: Sequence[Token], names: Iterable[str]) -> tuple[Token, ...]:
    """The tokens with their bytes. A name has a character of GPT-2's alphabet for each of its bytes."""
    return tuple(
        token._replace(utf8_bytes=tuple(_BYTES[letter] for letter in name))
        for token, name in zip(tokens, names, strict=False)  # a very long text has fewer tokens than names
    )


def _rows(encoded: Any, items: Sequence[int]) -> Any:
    import ctranslate2

    if encoded.device == "cuda":
        encoded = encoded.to_device(ctranslate2.Device.cpu)
    # numpy has no bfloat16; `align` converts to what the model computes in.
    whole = np.asarray(encoded.to(ctranslate2.DataType.float32))
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


def sentences(text: WindowText, window: Window, loud: Loudness, shift_s: float) -> tuple[Segment, ...]:
    """The sentences of a window whose tokens have times; all words have times.

    `shift_s` is by how much the model's attention is early.
    """
    spans = _letter_spans(text, window.end_s - window.start_s, shift_s)
    words = [[n for n in range(*each) if n in spans] for each in word_ranges(text.text, text.language)]
    words = [letters for letters in words if letters]
    edges_s = [(spans[letters[0]][0], spans[letters[-1]][1]) for letters in words]
    in_sound_s = spoken_in_sound(text.text, words, edges_s, loud)
    times = {}
    for letters, (start_s, end_s) in zip(words, in_sound_s, strict=True):
        at_s = np.minimum(window.start_s + np.linspace(start_s, end_s, len(letters) + 1), window.end_s)
        for place, (a_s, b_s) in zip(letters, pairwise(at_s.tolist()), strict=True):
            times[place] = LetterTime(round(a_s, 3), round(b_s, 3), round(spans[place][2], 3))
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
