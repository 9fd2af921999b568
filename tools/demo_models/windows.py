"""Training windows, cut the way whisperx's speech detection cuts recordings."""

import random
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tools.demo_models.corpus import Corpus, StoredUtterance
from tools.demo_models.synthesis import SAMPLE_RATE

PAUSE_S = (0.15, 1.1)
STOP_AFTER_S = 0.25  # a pause this long is heard as the end of a sentence
SPEED_SPREAD = 0.06  # standard deviation of the resampling factor: other pitch, other vocal tract
CUT_IN_SENTENCE = 0.45
NOISY = 0.4
NOISE_DECIBELS = (8, 40)  # below the speech
# What the detector leaves before the first and after the last word of its windows (measured; negative: it cuts in).
TIGHT_EDGE_S, LOOSE_EDGE_S = (-0.04, 0.1), (0.1, 0.6)
LOOSE_EDGE = 0.2
SHORTEST_SLICE_WORDS = 2


@dataclass(frozen=True)
class PlacedWord:
    word: str
    start: float  # seconds from the window's first sample
    end: float


@dataclass
class Window:
    """Some seconds of speech with its words, and with the pauses that end its sentences."""

    samples: NDArray[np.float32]
    words: list[PlacedWord] = field(default_factory=list)
    stops: dict[int, tuple[float, float]] = field(default_factory=dict)  # words before it -> the pause's start and end

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def compose_window(corpus: Corpus, rng: random.Random, longest: float) -> Window:
    """One window of at most `longest` seconds: sentences of several voices, some cut off at its edges."""
    room, at = longest, 0.0
    parts: list[NDArray[np.float32]] = []
    window = Window(np.zeros(0, np.float32))
    loudness = 10 ** rng.uniform(-1.0, 0)
    while True:
        utterance = corpus[rng.randrange(len(corpus))]
        factor = min(1.16, max(0.86, rng.gauss(1, SPEED_SPREAD)))
        first, last = 0, len(utterance.words)
        whole_s = len(utterance.samples) / SAMPLE_RATE / factor
        if (whole_s > room or not window.words) and rng.random() < CUT_IN_SENTENCE:
            first, last = _cut(utterance, rng, room * factor, from_start=bool(window.words))
        elif whole_s > room:
            if window.words:
                break
            continue
        if last - first < min(SHORTEST_SLICE_WORDS, len(utterance.words)):
            if window.words:
                break
            continue
        samples, words = _slice(utterance, first, last, factor, rng, edge=not window.words)
        samples *= loudness * 10 ** rng.uniform(-0.35, 0) / max(1e-3, float(np.abs(samples).max()))
        window.words += [PlacedWord(w.word, w.start + at, w.end + at) for w in words]
        pause = rng.uniform(*PAUSE_S)
        end = at + len(samples) / SAMPLE_RATE
        parts += [samples, np.zeros(int(pause * SAMPLE_RATE), np.float32)]
        if last == len(utterance.words) and pause > STOP_AFTER_S:
            window.stops[len(window.words)] = (end, end + pause)
        at = end + len(parts[-1]) / SAMPLE_RATE
        room = longest - at
        if last < len(utterance.words) or room < 0.4:
            break
    samples = np.concatenate(parts[:-1])  # the detector ends a window with its speech
    tail = rng.uniform(*LOOSE_EDGE_S) if rng.random() < LOOSE_EDGE else 0.0
    window.samples = np.concatenate([samples, np.zeros(int(tail * SAMPLE_RATE), np.float32)])[: int(longest * SAMPLE_RATE)]
    if rng.random() < NOISY:
        window.samples += _noise(len(window.samples), rng) * _level(samples) * 10 ** (-rng.uniform(*NOISE_DECIBELS) / 20)
    return window


def _cut(utterance: StoredUtterance, rng: random.Random, room: float, from_start: bool) -> tuple[int, int]:
    """A run of words (first, last + 1) of at most `room` seconds."""
    words = utterance.words
    first = 0 if from_start or rng.random() < 0.5 else rng.randrange(len(words))
    last = first
    while last < len(words) and words[last].end - words[first].start < room - 0.1:
        last += 1
    if last == len(words) and rng.random() < 0.3:
        last = rng.randint(first + 1, last)
    return first, last


def _slice(
    utterance: StoredUtterance, first: int, last: int, factor: float, rng: random.Random, edge: bool
) -> tuple[NDArray[np.float32], list[PlacedWord]]:
    """The samples of some words, `factor` times as fast, and the words' times in them."""
    words = utterance.words[first:last]
    begin = words[0].start - _edge(rng) if edge or first else 0.0
    length_s = len(utterance.samples) / SAMPLE_RATE
    end = words[-1].end + max(-0.04, min(rng.gauss(0.02, 0.03), 0.08)) if last < len(utterance.words) else length_s
    lead = max(0.0, -begin) if not first else 0.0
    begin = max(0.0, begin)
    if first:  # not into the word before
        begin = max(begin, words[0].start - 0.05)
    source = utterance.samples[int(begin * SAMPLE_RATE) : int(end * SAMPLE_RATE)].astype(np.float32)
    positions = np.arange(int(len(source) / factor)) * factor
    samples = np.interp(positions, np.arange(len(source)), source).astype(np.float32)
    samples = np.concatenate([np.zeros(int(lead * SAMPLE_RATE), np.float32), samples])
    shift = lambda time: max(0.0, (time - begin) / factor + lead)  # noqa: E731
    return samples, [PlacedWord(w.word, shift(w.start), shift(w.end)) for w in words]


def _edge(rng: random.Random) -> float:
    return rng.uniform(*(LOOSE_EDGE_S if rng.random() < LOOSE_EDGE else TIGHT_EDGE_S))


def _level(samples: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(samples**2)) + 1e-6)


_NOISE_S = 40


def _make_noises() -> list[NDArray[np.float32]]:
    """White, brownish and speech-shaped noise of unit loudness."""
    white = np.random.default_rng(0).standard_normal(_NOISE_S * SAMPLE_RATE).astype(np.float32)
    noises = [white]
    for memory in (0.5, 0.9, 0.97):
        from scipy.signal import lfilter

        coloured = lfilter([1], [1, -memory], white).astype(np.float32)
        noises.append(coloured / coloured.std())
    return noises


_NOISES = _make_noises()


def _noise(count: int, rng: random.Random) -> NDArray[np.float32]:
    noise = rng.choice(_NOISES)
    first = rng.randrange(len(noise) - count)
    return noise[first : first + count]
