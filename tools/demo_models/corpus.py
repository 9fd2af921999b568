"""The training speech: sampled sentences in many voices, in shards that can grow while training runs."""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tools.demo_models.synthesis import Line, Utterance, speak
from tools.demo_models.vocabulary import WORDS, sample_sentence
from tools.demo_models.voices import sample_line

# Speech has short answers and long breaths: short sentences alone taught nothing about the long ones.
SENTENCE_WORDS = [(1, 3), (4, 10), (9, 24)]
SHARE_OF_LENGTHS = [0.15, 0.5, 0.35]
COMMA_AFTER_WORD = 0.07


@dataclass(frozen=True)
class StoredWord:
    word: str
    start: float  # seconds from the utterance's first sample
    end: float
    exact: bool


@dataclass(frozen=True)
class StoredUtterance:
    voice: str
    words: tuple[StoredWord, ...]
    samples: NDArray[np.int16]


def sample_text(rng: random.Random) -> str:
    """A sentence with commas here and there, where an engine takes a short pause."""
    words = sample_sentence(rng, rng.randint(*rng.choices(SENTENCE_WORDS, SHARE_OF_LENGTHS)[0])).split()
    return " ".join(w + "," * (rng.random() < COMMA_AFTER_WORD) for w in words[:-1]) + f" {words[-1]}"


def write_shard(folder: Path, utterance_count: int, seed: int, programs: Path) -> None:
    """Synthesize one shard; it appears in `folder` when it is complete."""
    rng = random.Random(seed)
    lines = [sample_line(rng, sample_text(rng).strip()) for _ in range(utterance_count)]
    store(folder / f"shard-{seed:04d}", speak(lines, programs))


def store(shard: Path, utterances: Iterable[Utterance]) -> None:
    shard.parent.mkdir(parents=True, exist_ok=True)
    index, first = [], 0
    with open(f"{shard}.i16", "wb") as audio:
        for u in utterances:
            audio.write(u.samples.tobytes())
            words = [[w.word, round(w.start, 3), round(w.end, 3), w.exact] for w in u.words]
            index.append({"voice": u.line.voice, "first": first, "count": len(u.samples), "words": words})
            first += len(u.samples)
    Path(f"{shard}.json").write_text(json.dumps(index))


class Corpus:
    """All complete shards of a folder, in memory once for all processes (the files are mapped)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shards: dict[Path, NDArray[np.int16]] = {}
        self._index: list[tuple[NDArray[np.int16], dict[str, Any]]] = []
        self.refresh()

    def __len__(self) -> int:
        return len(self._index)

    def refresh(self) -> None:
        """Take in shards that have been completed since."""
        for path in sorted(self._folder.glob("shard-*.json")):
            if path not in self._shards:
                self._shards[path] = np.memmap(path.with_suffix(".i16"), np.int16, "r")
                self._index += [(self._shards[path], entry) for entry in json.loads(path.read_text())]

    def __getitem__(self, number: int) -> StoredUtterance:
        audio, entry = self._index[number]
        samples = audio[entry["first"] : entry["first"] + entry["count"]]
        return StoredUtterance(entry["voice"], tuple(StoredWord(*word) for word in entry["words"]), samples)

    def texts(self) -> set[str]:
        """Every sentence, so that an evaluation can avoid them."""
        return {" ".join(word[0] for word in entry["words"]) for _, entry in self._index}


def pronounce(programs: Path) -> dict[str, tuple[str, ...]]:
    """The phones of every word of the vocabulary, as flite says it."""
    spoken = speak([Line("flite/slt", f"{word} one") for word in WORDS], programs)
    return {utterance.words[0].word: utterance.words[0].phones for utterance in spoken}
