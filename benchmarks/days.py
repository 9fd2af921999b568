"""The load of a day, and what a Transcriber on a simulated T4 can do: for the benchmarks of autoscaling."""

import math

from benchmarks.simulated import WINDOW_S, asr_s

NIGHT, NOON = 0.3, 4.2  # load, in Transcribers with full batches


def load(at_s: float, day_s: float) -> float:
    """In Transcribers with full batches: from night over noon to night."""
    return NIGHT + (NOON - NIGHT) * (1 - math.cos(2 * math.pi * at_s / day_s)) / 2


def capacity(batch: int, slower: float = 1.0) -> float:
    """Audio seconds that a Transcriber does in a second with full batches, so many times slower than a T4."""
    return batch * WINDOW_S / (slower * asr_s([WINDOW_S] * batch))
