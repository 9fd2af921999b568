"""Speech from text with the times of its words, by flite, espeak-ng and festival."""

import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from tools.demo_models.vocabulary import words_of

SAMPLE_RATE = 16_000
BATCH = 500  # lines for one run of an engine
SOURCES = Path(__file__).parent
LIBRARIES = {
    "flite_words": [
        *(f"flite_cmu_us_{v}" for v in ("slt", "rms", "awb", "kal16")),
        "flite_usenglish",
        "flite_cmulex",
        "flite",
        "m",
    ],
    "espeak_words": ["espeak-ng"],
}
ESPEAK_RATE = 155  # words a minute
ESPEAK_MIDDLE = 50  # of espeak's pitch and of its range, 0..99
FESTIVAL_PITCH_HZ, FESTIVAL_SPREAD_HZ = 105, 14  # as its American voices set them
QUIET = 0.008  # of an utterance's peak: less is silence
LEAD_S, TAIL_S = 0.02, 0.03  # of silence kept around an utterance


@dataclass(frozen=True)
class Line:
    """Something to say; rate, pitch and liveliness are factors of the voice's own."""

    voice: str  # "flite/slt", "espeak/en-us+f3", "festival/kal_diphone"
    text: str
    rate: float = 1.0
    pitch: float = 1.0
    liveliness: float = 1.0

    @property
    def engine(self) -> str:
        return self.voice.partition("/")[0]

    @property
    def speaker(self) -> str:
        return self.voice.partition("/")[2]


@dataclass(frozen=True)
class SpokenWord:
    word: str
    start: float  # seconds from the first sample
    end: float
    exact: bool = True  # False where the engine gave one time for several words
    phones: tuple[str, ...] = ()  # only flite tells


@dataclass(frozen=True)
class Utterance:
    line: Line
    samples: NDArray[np.int16]  # (samples,) at 16 kHz
    words: tuple[SpokenWord, ...]

    @property
    def seconds(self) -> float:
        return len(self.samples) / SAMPLE_RATE


def build_programs(folder: Path) -> None:
    """Compile the two C programs into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, libraries in LIBRARIES.items():
        target = folder / name
        if not target.exists():
            flags = [f"-l{library}" for library in libraries]
            subprocess.run(["cc", "-O2", str(SOURCES / f"{name}.c"), "-o", str(target), *flags], check=True)


def speak(lines: Sequence[Line], programs: Path) -> Iterator[Utterance]:
    """Say the lines, engine by engine; a line whose words cannot be timed is left out."""
    engines = {"flite": _run_flite, "espeak": _run_espeak, "festival": _run_festival}
    for engine, run in engines.items():
        chosen = [line for line in lines if line.engine == engine]
        for first in range(0, len(chosen), BATCH):
            for line, samples, words in run(chosen[first : first + BATCH], programs):
                utterance = _finish(line, samples, words)
                if utterance is not None:
                    yield utterance


Raw = tuple[Line, NDArray[np.int16], list[SpokenWord]]


def _run_flite(lines: Sequence[Line], programs: Path) -> Iterator[Raw]:
    orders = [f"{line.speaker}\t{1 / line.rate:.3f}\t{line.pitch:.3f}\t{line.text}\n" for line in lines]
    for line, (samples, _, words) in zip(lines, _run_program(programs / "flite_words", orders), strict=True):
        fields = [word.split(" ") for word in words.split(";") if word]
        yield (
            line,
            samples,
            [
                SpokenWord(word, float(start), float(end), True, tuple(phones.split("-")))
                for word, start, end, phones in fields
            ],
        )


def _run_espeak(lines: Sequence[Line], programs: Path) -> Iterator[Raw]:
    orders = [
        f"{line.speaker}\t{ESPEAK_RATE * line.rate:.0f}\t{ESPEAK_MIDDLE * line.pitch:.0f}"
        f"\t{ESPEAK_MIDDLE * line.liveliness:.0f}\t{line.text}\n"
        for line in lines
    ]
    for line, (samples, rate, events) in zip(
        lines, _run_program(programs / "espeak_words", orders), strict=True
    ):
        starts: dict[int, float] = {}
        for event in filter(None, events.split(";")):
            character, start_ms = event.split(" ")
            starts.setdefault(int(character), int(start_ms) / 1000)
        heard = resample(samples, rate)
        yield line, heard, _words_from_starts(line.text, starts, len(heard) / SAMPLE_RATE)


def _words_from_starts(text: str, starts: dict[int, float], end: float) -> list[SpokenWord]:
    """Give every word its time; espeak speaks some pairs ("of the") as one, which is split by letters."""
    groups: list[tuple[float, list[str]]] = []  # start, and the words that begin there
    position = 0
    for word in words_of(text):
        position = text.lower().index(word, position)
        if position + 1 in starts:
            groups.append((starts[position + 1], [word]))
        elif groups:
            groups[-1][1].append(word)
        else:
            return []
        position += len(word)
    timed = []
    for (at, words), (group_end, _) in itertools.pairwise([*groups, (end, [])]):
        per_letter = (group_end - at) / sum(len(word) + 1 for word in words)
        start = at
        for word in words:
            word_end = start + per_letter * (len(word) + 1)
            timed.append(SpokenWord(word, start, word_end, exact=len(words) == 1))
            start = word_end
    return timed


def _run_program(program: Path, orders: Sequence[str]) -> Iterator[tuple[NDArray[np.int16], int, str]]:
    """Samples, their rate and the words' column, for each order."""
    with tempfile.TemporaryDirectory() as folder:
        raw, index = Path(folder, "speech.raw"), Path(folder, "speech.tsv")
        subprocess.run([program, raw, index], input="".join(orders), text=True, check=True)
        pcm = np.fromfile(raw, np.int16)
        for row in index.read_text().splitlines():
            first, count, rate, _, _, words = row.split("\t")
            yield pcm[int(first) : int(first) + int(count)], int(rate), words


def _run_festival(lines: Sequence[Line], _programs: Path) -> Iterator[Raw]:
    with tempfile.TemporaryDirectory() as folder:
        script = []
        for number, line in enumerate(lines):
            script.append(
                f"(voice_{line.speaker}) (Parameter.set 'Duration_Stretch {1 / line.rate:.3f})\n"
                f"{_festival_pitch(line)}"
                f'(set! u (Utterance Text "{line.text}")) (utt.synth u) (utt.wave.resample u {SAMPLE_RATE})\n'
                f'(utt.save.wave u "{folder}/{number}.raw" \'raw) (format t "line {number}\\n")\n'
                '(mapcar (lambda (w) (format t "%s %f %f\\n" (item.name w) (item.feat w \'word_start)'
                " (item.feat w 'word_end))) (utt.relation.items u 'Word))\n"
            )
        Path(folder, "say.scm").write_text("".join(script))
        told = subprocess.run(
            [shutil.which("festival") or "festival", "-b", f"{folder}/say.scm"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        for part in told.split("line ")[1:]:
            number, *rows = part.strip().splitlines()
            words = [
                SpokenWord(w.lower(), float(start), float(end)) for w, start, end in map(str.split, rows)
            ]
            yield lines[int(number)], _unwrap(np.fromfile(f"{folder}/{number}.raw", np.int16)), words


def _festival_pitch(line: Line) -> str:
    """Scheme that moves the pitch; a diphone voice has one, an HTS voice brings its own contour."""
    if not line.speaker.endswith("_diphone"):
        return ""
    mean, spread = FESTIVAL_PITCH_HZ * line.pitch, FESTIVAL_SPREAD_HZ * line.liveliness
    return (
        f"(set! int_lr_params '((target_f0_mean {mean:.0f}) (target_f0_std {spread:.0f})"
        " (model_f0_mean 170) (model_f0_std 34)))\n"
    )


def _unwrap(samples: NDArray[np.int16]) -> NDArray[np.int16]:
    """Undo festival's overflows: ked's peaks do not fit into 16 bits and come out as clicks."""
    whole = np.unwrap(samples.astype(np.int64), period=2**16)
    return np.round(whole * min(1.0, 32767 / max(1, np.abs(whole).max()))).astype(np.int16)


def resample(samples: NDArray[np.int16], rate: int) -> NDArray[np.int16]:
    """The samples at 16 kHz."""
    if rate == SAMPLE_RATE:
        return samples
    common = int(np.gcd(rate, SAMPLE_RATE))
    louder = resample_poly(samples.astype(np.float32), SAMPLE_RATE // common, rate // common)
    return np.clip(np.round(louder), -32768, 32767).astype(np.int16)


def _finish(line: Line, samples: NDArray[np.int16], words: list[SpokenWord]) -> Utterance | None:
    """Cut the silence off both ends, and end every word where its sound ends."""
    if [word.word for word in words] != words_of(line.text):
        return None
    hop = SAMPLE_RATE // 100
    loudness = np.abs(samples[: len(samples) // hop * hop].astype(np.int32)).reshape(-1, hop).max(axis=1)
    sounding = np.flatnonzero(loudness > max(60, QUIET * loudness.max()))
    if not len(sounding):
        return None
    sound_start, sound_end = float(sounding[0]) / 100, (float(sounding[-1]) + 1) / 100
    first, last = max(0.0, sound_start - LEAD_S), min(len(samples) / SAMPLE_RATE, sound_end + TAIL_S)
    timed = []
    for word in words:
        start = max(word.start, sound_start)
        inside = sounding[(sounding >= start * 100) & (sounding < word.end * 100)]
        end = min(word.end, (float(inside[-1]) + 1) / 100) if len(inside) else word.end
        timed.append(
            SpokenWord(word.word, start - first, max(end, start + 0.02) - first, word.exact, word.phones)
        )
    return Utterance(line, samples[int(first * SAMPLE_RATE) : int(last * SAMPLE_RATE)].copy(), tuple(timed))
