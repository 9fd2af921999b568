"""`python -m benchmarks.sizing` writes the tables on GPUs into docs/operations.md.

Every figure is computed; none is measured. The page explains the arithmetic, which is that of the simulated
T4 in benchmarks/simulated.py and of `whisperx-serve doctor`.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.simulated import ALIGN, DETECT, DETECT_STEP_S, DIARIZE, DIARIZE_STEP_S, TOKENS_PER_S, WINDOW_S
from serve_app.cli.doctor.gpu_memory import (
    ALIGNER_GB,
    DETECTOR_GB,
    DIARIZER_GB,
    LARGE_ALIGNER_GB,
    recognizer_gb,
)

FILE = Path(__file__).parents[1] / "docs" / "operations.md"

USED_FLOPS, USED_BANDWIDTH = 0.4, 0.75  # assumed parts of what a card has
ATTAINED = 0.35  # assumed part of the computed speed, while a card is busy
USED = 0.5  # assumed part of the hours in which it is
POSITIONS = 1500  # of a window in the encoder
VOCABULARY = 51_865


@dataclass(frozen=True)
class Whisper:
    """OpenAI's dimensions."""

    encoder_layers: int
    decoder_layers: int
    width: int

    @property
    def encoder_flop(self) -> float:
        """For a window, with the cross-attention's keys and values, which are computed once."""
        layer = 24 * self.width**2 * POSITIONS + 4 * POSITIONS**2 * self.width
        convolutions = 2 * 3 * self.width * POSITIONS * (2 * 80 + self.width)
        keys_and_values = self.decoder_layers * 4 * self.width**2 * POSITIONS
        return self.encoder_layers * layer + convolutions + keys_and_values

    def step_bytes(self, windows: int) -> float:
        """What a decoding step reads: int8 weights once, float16 keys and values for each window."""
        weights = self.decoder_layers * 14 * self.width**2 + VOCABULARY * self.width
        return weights + windows * 2 * 2 * self.decoder_layers * POSITIONS * self.width


@dataclass(frozen=True)
class Card:
    """A card by NVIDIA's datasheet: float16 on tensor cores, without sparsity."""

    memory_gb: float  # that the driver leaves
    tflops: float
    bandwidth_gb: float  # a second
    batch: int

    def shares(self) -> dict[str, float]:
        """The least `gpu_share` of each stage, in steps of 0.05, for large-v2 in int8 and a large Aligner."""
        needs_gb = {
            "asr": recognizer_gb("large-v2", "int8", self.batch),
            "alignment": LARGE_ALIGNER_GB,
            "diarization": DIARIZER_GB,
            "speech": DETECTOR_GB,
        }
        return {stage: math.ceil(20 * gb / self.memory_gb) / 20 for stage, gb in needs_gb.items()}

    def recognizer_speed(self, model: Whisper) -> float:
        """Seconds of audio a second, with full batches of full windows."""
        steps_s = TOKENS_PER_S * WINDOW_S * model.step_bytes(self.batch)
        steps_s /= self.bandwidth_gb * 1e9 * USED_BANDWIDTH
        encoder_s = self.batch * model.encoder_flop / (self.tflops * 1e12 * USED_FLOPS)
        return self.batch * WINDOW_S / (steps_s + encoder_s)

    def speed(self, model: Whisper) -> float:
        """The same with all stages on the card, one after the other."""
        others = ALIGN + DIARIZE / DIARIZE_STEP_S + DETECT / DETECT_STEP_S
        return 1 / (1 / self.recognizer_speed(model) + others * CARDS["T4"].tflops / self.tflops)


MODELS = {
    "small": Whisper(12, 12, 768),
    "medium": Whisper(24, 24, 1024),
    "large-v2": Whisper(32, 32, 1280),
    "large-v3": Whisper(32, 32, 1280),
    "large-v3-turbo": Whisper(32, 4, 1280),
}
CARDS = {
    "T4": Card(15.6, 65, 320, 16),
    "L4": Card(23.6, 121, 300, 32),
    "A10": Card(23.6, 125, 600, 32),
    "A100": Card(84.9, 312, 2039, 64),
    "H100": Card(84.9, 989, 3350, 64),
    "H200": Card(149, 989, 4800, 64),
}
DOLLARS_AN_HOUR = {  # by provider; the page has the sources
    "Hugging Face": {"T4": 0.50, "L4": 0.80, "A100": 2.50},
    "Baseten": {"T4": 60 * 0.01052, "L4": 60 * 0.01414, "A100": 60 * 0.06667},
}


def tables() -> dict[str, str]:
    """Each table by its name."""
    memory = []
    for batch in sorted({card.batch for card in CARDS.values()}):
        names = ", ".join(name for name, card in CARDS.items() if card.batch == batch)
        kinds = [[recognizer_gb(model, kind, batch) for kind in ("float16", "int8")] for model in MODELS]
        others = [f"{ALIGNER_GB}; {LARGE_ALIGNER_GB}", DIARIZER_GB, DETECTOR_GB]
        memory.append([names, batch, *(f"{half:.1f} / {int8:.1f}" for half, int8 in kinds), *others])
    shares = []
    for name, card in CARDS.items():
        known = [f"{card.memory_gb:g} GB", f"{card.tflops:g}", f"{card.bandwidth_gb:,}", card.batch]
        shares.append([name, *known, *card.shares().values()])
    both = ("large-v2", "large-v3-turbo")
    speed = [
        [name, *(two_digits(card.recognizer_speed(model)) for model in MODELS.values())]
        + [two_digits(card.speed(MODELS[model])) for model in both]
        for name, card in CARDS.items()
    ]
    cost = [
        [name, where, f"{price:.2f}"]
        + [f"{price / (ATTAINED * USED * CARDS[name].speed(MODELS[model])):.3f}" for model in both]
        for where, prices in DOLLARS_AN_HOUR.items()
        for name, price in prices.items()
    ]
    planned = f"{ATTAINED} attained, {USED} used"
    known_titles = ["usable memory", "TFLOP/s", "GB/s", "windows a batch"]
    stages = ["Aligner: base; large", "Diarizer", "SpeechDetector"]
    return {
        "memory": table(["card", "windows a batch", *MODELS, *stages], memory),
        "shares": table(["card", *known_titles, "Transcriber", "Aligner", *stages[1:]], shares),
        "speed": table(["card", *MODELS, *(f"all stages, {model}" for model in both)], speed),
        "cost": table(
            ["card", "from", "$ an hour", *(f"$ an audio hour, {model}: {planned}" for model in both)], cost
        ),
    }


def two_digits(value: float) -> str:
    return f"{float(f'{value:.2g}'):,.0f}"


def table(titles: list[str], rows: Sequence[Sequence[object]]) -> str:
    lines: list[Sequence[object]] = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def written(page: str) -> str:
    """The page with each table below its comment."""
    for name, text in tables().items():
        found = rf"(<!-- make docs: {name} -->\n)(\|.*\n)*"
        page = re.sub(found, rf"\1{text}\n", page)
    return page


if __name__ == "__main__":
    FILE.write_text(written(FILE.read_text()))
