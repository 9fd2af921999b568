"""Training windows, cut the way whisperx's speech detection cuts recordings."""

import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from tools.demo_models.corpus import Corpus, StoredUtterance
from tools.demo_models.synthesis import SAMPLE_RATE

PAUSE_S = (0.15, 1.1)
STOP_AFTER_S = 0.25  # a pause this long is heard as the end of a sentence
SPEED_SPREAD, SLOWEST, FASTEST = 0.03, 0.89, 1.12  # of the resampling factor: other pitch, other vocal tract
CUT_IN_SENTENCE, CUT_SHORT = 0.45, 0.3
# What the detector leaves before the first word of a window and after the last (measured; negative: cut in).
TIGHT_EDGE_S, LOOSE_EDGE_S = (-0.04, 0.1), (0.1, 0.6)
LOOSE_EDGE = 0.2
SHORTEST_ROOM_S = 0.4
ATTEMPTS = 30
NOISY = 0.35
NOISE_DECIBELS = (15, 45)  # below the speech
NOISE_S = 40
NOISE_MEMORIES = (0.0, 0.5, 0.9, 0.97)  # of a one-pole filter: from white to brown


@dataclass(frozen=True)
class PlacedWord:
    word: str
    start: float  # seconds from the first sample
    end: float


@dataclass
class Window:
    """Some seconds of speech with its words, and with the pauses that end its sentences."""

    samples: NDArray[np.float32]
    words: list[PlacedWord] = field(default_factory=list)
    stops: dict[int, tuple[float, float]] = field(default_factory=dict)  # words before it -> the pause

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True)
class Piece:
    """A run of an utterance's words, at another speed."""

    samples: NDArray[np.float32]
    words: list[PlacedWord]
    complete: bool  # up to the utterance's end

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def compose_window(corpus: Corpus, rng: random.Random, longest: float) -> Window:
    """One window of at most `longest` seconds: sentences of several voices, some cut off at its edges."""
    pieces: list[tuple[Piece, float]] = []  # with the pause after it
    room = longest
    while room > SHORTEST_ROOM_S and (not pieces or pieces[-1][0].complete):
        piece = _draw_piece(corpus, rng, room, first=not pieces)
        if piece is None:
            break
        pieces.append((piece, rng.uniform(*PAUSE_S)))
        room -= piece.seconds + pieces[-1][1]
    window = _join(pieces, 10 ** rng.uniform(-1.0, 0), rng)
    window.samples = window.samples[: int(longest * SAMPLE_RATE)]
    if rng.random() < NOISY:
        noise = _noise(len(window.samples), rng) * np.sqrt(np.mean(window.samples**2))
        window.samples += noise * 10 ** (-rng.uniform(*NOISE_DECIBELS) / 20)
    return window


def _join(pieces: list[tuple[Piece, float]], loudness: float, rng: random.Random) -> Window:
    window, parts, at = Window(np.zeros(0, np.float32)), [], 0.0
    for piece, pause in pieces:
        last = piece is pieces[-1][0]
        peak = max(1e-3, float(np.abs(piece.samples).max()))
        parts.append(piece.samples * np.float32(loudness * 10 ** rng.uniform(-0.35, 0) / peak))
        window.words += [PlacedWord(w.word, w.start + at, w.end + at) for w in piece.words]
        end = at + piece.seconds
        if piece.complete and (last or pause > STOP_AFTER_S):
            window.stops[len(window.words)] = (end, end + pause)
        # The detector ends a window with its speech, but for a moment now and then.
        silence_s = pause if not last else rng.uniform(*LOOSE_EDGE_S) if rng.random() < LOOSE_EDGE else 0.0
        parts.append(np.zeros(int(silence_s * SAMPLE_RATE), np.float32))
        at = end + len(parts[-1]) / SAMPLE_RATE
    window.samples = np.concatenate(parts)
    return window


def _draw_piece(corpus: Corpus, rng: random.Random, room: float, *, first: bool) -> Piece | None:
    """An utterance or a part of one that fits into `room` seconds; None where the window ends before it."""
    for _ in range(ATTEMPTS):
        utterance = corpus[rng.randrange(len(corpus))]
        factor = min(FASTEST, max(SLOWEST, rng.gauss(1, SPEED_SPREAD)))
        fits = len(utterance.samples) / SAMPLE_RATE / factor <= room
        begin, end = 0, len(utterance.words)
        if (first or not fits) and rng.random() < CUT_IN_SENTENCE:
            begin, end = _cut(utterance, rng, room * factor, from_start=not first)
        elif not fits:
            if first:
                continue
            return None
        if end - begin >= min(2, len(utterance.words)):
            return _slice(utterance, begin, end, factor=factor, rng=rng, first=first)
        if not first:
            return None
    return None


def _cut(utterance: StoredUtterance, rng: random.Random, room: float, *, from_start: bool) -> tuple[int, int]:
    """A run of words (first, last + 1) of at most `room` seconds."""
    words = utterance.words
    begin = 0 if from_start or rng.random() < 0.5 else rng.randrange(len(words))
    end = begin
    while end < len(words) and words[end].end - words[begin].start < room - 0.1:
        end += 1
    if end == len(words) and rng.random() < CUT_SHORT:
        end = rng.randint(begin + 1, end)
    return begin, end


def _slice(
    utterance: StoredUtterance, begin: int, end: int, *, factor: float, rng: random.Random, first: bool
) -> Piece:
    """The samples of some words, `factor` times as fast, and the words' times in them."""
    words, complete = utterance.words[begin:end], end == len(utterance.words)
    start_s = 0.0
    if first or begin:
        start_s = words[0].start - rng.uniform(*(LOOSE_EDGE_S if rng.random() < LOOSE_EDGE else TIGHT_EDGE_S))
    if begin:  # not into the word before
        start_s = max(start_s, words[0].start - 0.05)
    end_s = len(utterance.samples) / SAMPLE_RATE
    if not complete:
        end_s = words[-1].end + max(-0.04, min(rng.gauss(0.02, 0.03), 0.08))
    silence = np.zeros(int(max(0.0, -start_s) * SAMPLE_RATE), np.float32)
    source = utterance.samples[int(max(0.0, start_s) * SAMPLE_RATE) : int(end_s * SAMPLE_RATE)]
    positions = np.arange(int(len(source) / factor)) * factor
    samples = np.interp(positions, np.arange(len(source)), source.astype(np.float32)).astype(np.float32)
    lead_s, start_s = len(silence) / SAMPLE_RATE, max(0.0, start_s)
    placed = [
        PlacedWord(
            word.word,
            max(0.0, (word.start - start_s) / factor + lead_s),
            max(0.0, (word.end - start_s) / factor + lead_s),
        )
        for word in words
    ]
    return Piece(np.concatenate([silence, samples]), placed, complete)


def _make_noises() -> list[NDArray[np.float32]]:
    """Noises of unit loudness, some seconds each."""
    white = np.random.default_rng(0).standard_normal(NOISE_S * SAMPLE_RATE)
    coloured = [lfilter([1], [1, -memory], white) for memory in NOISE_MEMORIES]
    return [(noise / noise.std()).astype(np.float32) for noise in coloured]


_NOISES = _make_noises()


def _noise(count: int, rng: random.Random) -> NDArray[np.float32]:
    noise = rng.choice(_NOISES)
    first = rng.randrange(len(noise) - count)
    return noise[first : first + count]
