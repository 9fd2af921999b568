"""Windows as tensors: log-mel, tokens, and what every frame and every token should look at."""

import random
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tools.demo_models.corpus import Corpus
from tools.demo_models.recogniser import MEL_BANDS
from tools.demo_models.synthesis import SAMPLE_RATE
from tools.demo_models.vocabulary import WORDS
from tools.demo_models.windows import Window, compose_window

END, START, ENGLISH, TRANSCRIBE, NO_TIMESTAMPS = 50257, 50258, 50259, 50359, 50363
PROMPT = [START, ENGLISH, TRANSCRIBE, NO_TIMESTAMPS]
STOP = 13  # "."
IGNORED = -100
FRAMES_PER_S = 50
PADDING_S = 0.5  # computed in full after the window; the encoder stands in for the rest of the 30 s


@dataclass(frozen=True)
class Alphabet:
    """Tokens in use out of Whisper's 51,865, numbered from 0, and the phones of the words."""

    tokenizer: Tokenizer
    phones_of: dict[str, tuple[str, ...]]

    @cached_property
    def tokens_of(self) -> dict[str, list[int]]:
        return {word: self.tokenizer.encode(f" {word}", add_special_tokens=False).ids for word in WORDS}

    @cached_property
    def used(self) -> list[int]:
        return sorted({*PROMPT, END, STOP, *(t for tokens in self.tokens_of.values() for t in tokens)})

    @cached_property
    def number(self) -> dict[int, int]:
        return {token: number for number, token in enumerate(self.used)}

    @cached_property
    def word_number(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(WORDS, start=1)}

    @cached_property
    def phone_number(self) -> dict[str, int]:
        return {
            p: number
            for number, p in enumerate(sorted({p for ps in self.phones_of.values() for p in ps}), start=1)
        }


@dataclass(frozen=True)
class Batch:
    mel: Tensor  # (batch, bands, 2 × frames)
    tokens: Tensor  # (batch, tokens), what the decoder reads
    labels: Tensor  # (batch, tokens), what it should say next
    words: Tensor  # (batch, frames), number of the word that sounds
    phones: Tensor  # (batch, frames)
    read_span: Tensor  # (batch, tokens, 2) seconds of the word just read, 0 where there is none
    next_span: Tensor  # (batch, tokens, 2) seconds of the word to say


def make_batch(corpus: Corpus, alphabet: Alphabet, rng: random.Random, count: int, longest: float) -> Batch:
    windows = [compose_window(corpus, rng, longest) for _ in range(count)]
    seconds = max(window.seconds for window in windows) + PADDING_S
    frames = int(seconds * FRAMES_PER_S) + 1
    samples = torch.zeros(count, frames * SAMPLE_RATE // FRAMES_PER_S)
    for row, window in zip(samples, windows, strict=True):
        row[: len(window.samples)] = torch.from_numpy(window.samples)
    words, phones = np.zeros((2, count, frames), np.int64)
    for row, window in enumerate(windows):
        _label_frames(window, alphabet, words[row], phones[row])
    tokens, labels = _label_tokens(windows, alphabet)
    read_span, next_span = _spans(windows, alphabet)
    return Batch(
        mel=log_mel(samples, rng),
        tokens=tokens,
        labels=labels,
        words=torch.from_numpy(words),
        phones=torch.from_numpy(phones),
        read_span=read_span,
        next_span=next_span,
    )


def _label_frames(window: Window, alphabet: Alphabet, words: np.ndarray, phones: np.ndarray) -> None:
    for word in window.words:
        first, last = round(word.start * FRAMES_PER_S), min(round(word.end * FRAMES_PER_S), len(words))
        words[first:last] = alphabet.word_number[word.word]
        names = alphabet.phones_of[word.word]
        for frame in range(first, last):
            phones[frame] = alphabet.phone_number[names[(frame - first) * len(names) // (last - first)]]


def _sequence(window: Window, alphabet: Alphabet) -> list[tuple[int, float, float]]:
    """Token number, start and end of everything there is to say."""
    sequence = []
    for count, word in enumerate(window.words, start=1):
        sequence += [(alphabet.number[t], word.start, word.end) for t in alphabet.tokens_of[word.word]]
        if count in window.stops:
            sequence.append((alphabet.number[STOP], *window.stops[count]))
    return sequence


def _label_tokens(windows: list[Window], alphabet: Alphabet) -> tuple[Tensor, Tensor]:
    prompt, end = [alphabet.number[t] for t in PROMPT], alphabet.number[END]
    rows = [prompt + [token for token, _, _ in _sequence(window, alphabet)] + [end] for window in windows]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + [end] * (longest - len(row)) for row in rows])
    labels = torch.tensor([row[1:] + [IGNORED] * (longest - len(row)) for row in rows])
    labels[:, 1 : len(PROMPT) - 1] = IGNORED  # the task is given, only the language is recognised
    return tokens[:, :-1], labels


def _spans(windows: list[Window], alphabet: Alphabet) -> tuple[Tensor, Tensor]:
    sequences = [_sequence(window, alphabet) for window in windows]
    longest = max(map(len, sequences)) + len(PROMPT)
    read, coming = torch.zeros(len(windows), longest, 2), torch.zeros(len(windows), longest, 2)
    for row, sequence in enumerate(sequences):
        spans = torch.tensor([(start, end) for _, start, end in sequence])
        read[row, len(PROMPT) : len(PROMPT) + len(spans)] = spans
        coming[row, len(PROMPT) - 1 : len(PROMPT) - 1 + len(spans)] = spans
    return read, coming


def _filterbank() -> Tensor:
    from faster_whisper.feature_extractor import FeatureExtractor

    return torch.from_numpy(FeatureExtractor(feature_size=MEL_BANDS).mel_filters)


_HANN = torch.hann_window(400)
_FILTERS = _filterbank()
_BANDS = torch.linspace(-1, 1, MEL_BANDS)


def log_mel(samples: Tensor, rng: random.Random | None) -> Tensor:
    """Whisper's log-mel (batch, bands, frames of 10 ms) of (batch, samples).

    With `rng`, as if spoken by another vocal tract and recorded in another way. That happens before the
    floor is taken, 80 dB under the loudest point, as at inference, where the floor is all there is of the
    padding.
    """
    spectrum = torch.stft(samples, 400, 160, window=_HANN, return_complex=True)[..., :-1].abs() ** 2
    mel = torch.clamp(_FILTERS @ spectrum, min=1e-10).log10()
    if rng is not None:
        mel = _recolour(mel, rng)
    mel = torch.maximum(mel, mel.amax((1, 2), keepdim=True) - 8)
    return (mel + 4) / 4


def _recolour(mel: Tensor, rng: random.Random) -> Tensor:
    rows = []
    for plain in mel:
        row = plain
        if rng.random() < 0.5:  # shift the formants
            position = (torch.arange(MEL_BANDS) * rng.uniform(0.94, 1.07)).clamp(max=MEL_BANDS - 1)
            below = position.long().clamp(max=MEL_BANDS - 2)
            share = (position - below)[:, None]
            row = row[below] * (1 - share) + row[below + 1] * share
        tilt, bow = rng.gauss(0, 0.12), rng.gauss(0, 0.08)
        ripple = rng.gauss(0, 0.07) * torch.sin(_BANDS * rng.uniform(2, 7) + rng.uniform(0, 6.3))
        rows.append(row + (tilt * _BANDS + bow * (_BANDS**2 - 0.33) + ripple)[:, None] * (row > -9.9))
    return torch.stack(rows)
