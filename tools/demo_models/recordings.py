"""Recordings to measure on: sentences one after the other, with the true words and turns."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tools.demo_models.synthesis import SAMPLE_RATE, Line, Utterance, speak
from tools.demo_models.vocabulary import sample_sentence

PAUSE_S = (0.35, 1.0)
SENTENCE_WORDS = (4, 16)


@dataclass(frozen=True)
class TrueWord:
    word: str
    start: float
    end: float
    exact: bool
    speaker: str


@dataclass(frozen=True)
class TrueTurn:
    start: float
    end: float
    speaker: str


@dataclass(frozen=True)
class Recording:
    name: str
    samples: NDArray[np.float32]  # (samples,) at 16 kHz, -1..1
    words: tuple[TrueWord, ...]
    turns: tuple[TrueTurn, ...]

    @property
    def text(self) -> str:
        return " ".join(word.word for word in self.words)


def join(name: str, utterances: list[Utterance], rng: random.Random) -> Recording:
    """The utterances one after the other at somewhat different levels."""
    parts, words, turns, at = [np.zeros(SAMPLE_RATE // 2, np.float32)], [], [], 0.5
    for utterance in utterances:
        speaker = utterance.line.voice
        words += [TrueWord(w.word, at + w.start, at + w.end, w.exact, speaker) for w in utterance.words]
        turns.append(TrueTurn(at, at + utterance.seconds, speaker))
        pause = int(rng.uniform(*PAUSE_S) * SAMPLE_RATE)
        level = rng.uniform(0.35, 0.7) / np.abs(utterance.samples.astype(np.float32)).max()
        parts += [utterance.samples * np.float32(level), np.zeros(pause, np.float32)]
        at += (len(utterance.samples) + pause) / SAMPLE_RATE
    return Recording(name, np.concatenate(parts), tuple(words), tuple(turns))


def sample_recording(
    name: str, voices: tuple[str, ...], seconds: float, rng: random.Random, *, programs: Path, known: set[str]
) -> Recording:
    """About `seconds` of fresh sentences, two by each voice in turn; none of them is in `known`."""
    lines: list[Line] = []
    while len(lines) < seconds / 3:
        text = sample_sentence(rng, rng.randint(*SENTENCE_WORDS))
        if text not in known:
            lines.append(Line(voices[len(lines) // 2 % len(voices)], text, rng.uniform(0.9, 1.1)))
    spoken = {utterance.line: utterance for utterance in speak(lines, programs)}
    chosen, total = [], 0.0
    for line in lines:
        if line in spoken and total < seconds:
            chosen.append(spoken[line])
            total += spoken[line].seconds + sum(PAUSE_S) / 2
    return join(name, chosen, rng)


def with_noise(recording: Recording, decibels: float, rng: np.random.Generator) -> Recording:
    """The recording with white noise `decibels` below its speech."""
    loud = np.sqrt(np.mean(recording.samples**2))
    noise = rng.standard_normal(len(recording.samples)).astype(np.float32) * loud * 10 ** (-decibels / 20)
    return Recording(recording.name + "-noisy", recording.samples + noise, recording.words, recording.turns)


def save(recording: Recording, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{recording.name}.npy", np.round(recording.samples * 32767).astype(np.int16))
    truth = {"words": [asdict(w) for w in recording.words], "turns": [asdict(t) for t in recording.turns]}
    (folder / f"{recording.name}.json").write_text(json.dumps(truth))


def load(folder: Path) -> list[Recording]:
    """The recordings saved in `folder`, by name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        truth = json.loads(path.read_text())
        samples = np.load(path.with_suffix(".npy")).astype(np.float32) / 32767
        words, turns = (TrueWord(**w) for w in truth["words"]), (TrueTurn(**t) for t in truth["turns"])
        found.append(Recording(path.stem, samples, tuple(words), tuple(turns)))
    return found
