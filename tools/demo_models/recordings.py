"""Recordings to choose and to measure by: fresh sentences in several voices, with their truth."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.truth import Recording, TrueTurn, TrueWord, save
from tools.demo_models.synthesis import SAMPLE_RATE, Line, Utterance, speak
from tools.demo_models.vocabulary import sample_sentence

PAUSE_S = (0.35, 1.0)
SENTENCE_WORDS = (4, 16)
FIRST_WORD_S = 0.5
PEAK = (0.35, 0.7)  # of full scale
SENTENCES_PER_TURN = 2
CHOICE_SEED, EVALUATION_SEED = 101, 303

SEEN = [
    ("flite/slt", "flite/rms"), ("flite/awb", "espeak/en-us+f1"), ("espeak/en-us", "flite/slt"),
    ("espeak/en-gb-x-rp", "espeak/en-us+Annie"), ("flite/rms", "espeak/en-gb-scotland+f3"),
    ("festival/ked_diphone", "espeak/en-us+f2"),
]  # fmt: skip
UNSEEN = [
    ("espeak/en-us+m5", "espeak/en-us+f5"),
    ("flite/kal16", "espeak/en-us+victor"),
    ("festival/kal_diphone", "espeak/en-us+f5"),
]
THREE = [
    ("flite/slt", "flite/awb", "espeak/en-us+f2"),
    ("flite/rms", "espeak/en-gb-x-rp", "espeak/en-us+Annie"),
]
# Folder of the evaluation set -> the voices of its recordings, and their length in seconds.
EVALUATION = {
    "seen": (SEEN, 60),
    "unseen": (UNSEEN, 60),
    "three-speakers": (THREE, 60),
    "half-minute": ([("flite/slt", "flite/awb"), ("espeak/en-us+m5", "espeak/en-us+f5")], 30),
    "ten-minutes": ([("flite/awb", "espeak/en-us+f1")], 600),
}


def write_evaluation_set(folder: Path, programs: Path) -> None:
    """Writes what `make eval` measures by. Done once: the files are part of the project."""
    rng = random.Random(EVALUATION_SEED)
    for name, (groups, seconds) in EVALUATION.items():
        for voices in groups:
            recording = sample_recording(voices, seconds, rng, programs)
            save(recording, folder / name / f"{recording.name}.opus")


def choice_recordings(programs: Path) -> list[Recording]:
    """What a checkpoint is chosen by: other sentences, in seen voices only."""
    rng = random.Random(CHOICE_SEED)
    return [sample_recording(voices, 60, rng, programs) for voices in SEEN]


def sample_recording(
    voices: tuple[str, ...], seconds: float, rng: random.Random, programs: Path
) -> Recording:
    """About `seconds` of fresh sentences, two by each voice in turn."""
    lines = [
        Line(voice, sample_sentence(rng, rng.randint(*SENTENCE_WORDS)), rng.uniform(0.9, 1.1))
        for voice in itertools.islice(_turns(voices), int(seconds / 2))
    ]
    spoken = {utterance.line: utterance for utterance in speak(lines, programs)}
    chosen, total_s = [], 0.0
    for line in lines:
        if line in spoken and total_s < seconds:
            chosen.append(spoken[line])
            total_s += spoken[line].seconds + sum(PAUSE_S) / 2
    pauses = [rng.uniform(*PAUSE_S) for _ in chosen]
    peaks = [rng.uniform(*PEAK) for _ in chosen]
    name = "-".join(voice.partition("/")[2].replace("+", "-") for voice in voices)
    return join(name, chosen, pauses, peaks, FIRST_WORD_S)


def _turns(voices: tuple[str, ...]) -> itertools.chain[str]:
    return itertools.chain.from_iterable([voice] * SENTENCES_PER_TURN for voice in itertools.cycle(voices))


def join(
    name: str,
    utterances: Sequence[Utterance],
    pauses_s: Sequence[float],
    peaks: Sequence[float],
    first_word_s: float,
) -> Recording:
    """The utterances one after the other, each followed by its pause and with its peak of full scale.

    Neighbouring utterances of one speaker are one turn each: a pause belongs to nobody.
    """
    parts, words, turns, at_s = [np.zeros(int(first_word_s * SAMPLE_RATE), np.float32)], [], [], first_word_s
    for utterance, pause_s, peak in zip(utterances, pauses_s, peaks, strict=True):
        speaker = utterance.line.voice
        words += [TrueWord(w.word, at_s + w.start, at_s + w.end, w.exact, speaker) for w in utterance.words]
        turns.append(TrueTurn(at_s, at_s + utterance.seconds, speaker))
        samples = utterance.samples.astype(np.float32)
        silence = np.zeros(int(pause_s * SAMPLE_RATE), np.float32)
        parts += [samples * np.float32(peak / np.abs(samples).max()), silence]
        at_s += (len(samples) + len(silence)) / SAMPLE_RATE
    pcm = np.round(np.concatenate(parts) * 32767).astype(np.int16)
    return Recording(name, pcm, tuple(words), tuple(turns))
