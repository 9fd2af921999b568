"""Recordings with their truth: who says which word when. Written by tools/demo_models, read by `make eval`.

A recording is NAME.opus next to NAME.json: `words` ([word, start_s, end_s, exact, speaker]) and `turns`
([start_s, end_s, speaker]). The speakers are synthesizer voices and the times are the synthesizers' own.
"""

import asyncio
import json
import subprocess
from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from itertools import pairwise
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from benchmarks.decoding import decode_whole

SAMPLE_RATE_HZ = 16_000
OPUS_BITRATE = "24k"
LONGEST_S = 3600


@dataclass(frozen=True)
class TrueWord:
    word: str
    start_s: float
    end_s: float
    exact: bool  # False where the synthesizer gave one time for several words
    speaker: str


@dataclass(frozen=True)
class TrueTurn:
    start_s: float
    end_s: float
    speaker: str


@dataclass(frozen=True)
class Recording:
    name: str
    samples: NDArray[np.int16]  # (samples,) mono, 16 kHz
    words: tuple[TrueWord, ...]
    turns: tuple[TrueTurn, ...]

    @property
    def text(self) -> str:
        return " ".join(word.word for word in self.words)

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ


def load(path: Path) -> Recording:
    """The recording at `path` (.opus or any audio), its truth in the .json next to it."""
    truth = json.loads(path.with_suffix(".json").read_text())
    with path.open("rb") as file:
        _, samples = asyncio.run(decode_whole(file, max_audio_s=LONGEST_S, timeout_s=60))
    words = tuple(TrueWord(*word) for word in truth["words"])
    return Recording(path.stem, samples, words, tuple(TrueTurn(*turn) for turn in truth["turns"]))


def load_folder(folder: Path) -> list[Recording]:
    """The recordings of a folder, by name."""
    return [load(path) for path in sorted(folder.glob("*.opus"))]


def sentences(truth: Path) -> list[str]:
    """What is said in each turn of a recording's .json."""
    read = json.loads(truth.read_text())
    return [
        " ".join(word for word, at_s, *_ in read["words"] if start_s - 0.01 <= at_s < end_s)
        for start_s, end_s, _ in read["turns"]
    ]


def save(recording: Recording, path: Path, bitrate: str = OPUS_BITRATE) -> None:
    """Writes `path` (.opus, .mp3) and the truth next to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source = ["-f", "s16le", "-ar", str(SAMPLE_RATE_HZ), "-ac", "1", "-i", "pipe:0"]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-y",
        *source,
        "-b:a",
        bitrate,
        str(path),
    ]
    subprocess.run(command, input=recording.samples.astype("<i2").tobytes(), check=True)
    truth = {"words": _rows(recording.words), "turns": _rows(recording.turns)}
    path.with_suffix(".json").write_text(json.dumps(truth, separators=(",", ":")) + "\n")


def _rows(entries: Iterable[TrueWord] | Iterable[TrueTurn]) -> list[list[object]]:
    return [[round(v, 3) if isinstance(v, float) else v for v in astuple(entry)] for entry in entries]


def without_pauses(recording: Recording, pause_s: float) -> Recording:
    """The recording with no more than `pause_s` between two turns, so that sentences run into each other."""
    cuts = [  # seconds that go
        (before.end_s + pause_s, after.start_s)
        for before, after in pairwise(recording.turns)
        if after.start_s - before.end_s > pause_s
    ]

    def moved(at_s: float) -> float:
        return at_s - sum(min(at_s, to_s) - from_s for from_s, to_s in cuts if from_s < at_s)

    kept = np.ones(len(recording.samples), bool)
    for from_s, to_s in cuts:
        kept[round(from_s * SAMPLE_RATE_HZ) : round(to_s * SAMPLE_RATE_HZ)] = False
    words = (replace(w, start_s=moved(w.start_s), end_s=moved(w.end_s)) for w in recording.words)
    turns = (replace(t, start_s=moved(t.start_s), end_s=moved(t.end_s)) for t in recording.turns)
    name = f"{recording.name}-without-pauses"
    return Recording(name, recording.samples[kept], tuple(words), tuple(turns))


def with_noise(recording: Recording, decibels: float, seed: int) -> Recording:
    """The recording with white noise `decibels` below its mean power."""
    loudness = float(np.sqrt(np.mean(recording.samples.astype(np.float64) ** 2)))
    noise = np.random.default_rng(seed).standard_normal(len(recording.samples)) * loudness
    noisy = np.clip(recording.samples + noise * 10 ** (-decibels / 20), -32768, 32767).astype(np.int16)
    return Recording(f"{recording.name}-noisy", noisy, recording.words, recording.turns)
