"""How `make eval` asks a system and adds up what it answers."""

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.evaluate import measure, summary
from benchmarks.people import Recording, TimedWord, Turn
from benchmarks.systems import Answer

SILENCE = np.zeros(16_000, np.int16)
SPOKEN = Recording(
    "spoken",
    "read",
    SILENCE + np.int16(1),
    "en",
    "one cat sat here",
    words=(TimedWord("cat", 0.2, 0.4),),
    turns=(Turn(0.0, 1.0, "ann"),),
)
RUSSIAN = Recording("russian", "foreign", SILENCE + np.int16(2), "ru", "на его месте был я")
TRAP = Recording("trap-silence", "trap", SILENCE, None, "")
CAT = {"word": "cat", "start": 0.25, "end": 0.4}
ANSWERS = {
    0: Answer([{"text": "Thank you."}], "en"),
    1: Answer([{"text": "one cat sat", "words": [CAT]}], "en"),
    2: Answer([{"text": "на его месте был он"}], "uk"),
}


class Listener:
    """Knows three recordings by their first sample, and hears one speaker for half of each."""

    def answer(self, samples: NDArray[np.int16]) -> Answer:
        return ANSWERS[int(samples[0])]

    def turns(self, samples: NDArray[np.int16]) -> tuple[Turn, ...]:
        return (Turn(0.0, 0.5, "x"),)

    def cpu_s(self) -> dict[str, float]:
        return {"all": 1.0}


def test_the_summary_has_people_and_traps_apart() -> None:
    """Rates over the words of people, times and turns where they are known, invented words of traps."""
    result = measure("service", Listener(), [SPOKEN, RUSSIAN, TRAP], diarizes=True)
    found = summary([result])
    assert found["wer_real"] == pytest.approx(2 / 9)  # one lost, one wrong
    assert found["word_start_median_ms"] == found["word_start_p95_ms"] == pytest.approx(50)
    assert found["word_start_spontaneous_p95_ms"] is None
    assert (found["der_sample"], found["der_meetings"]) == (None, 0.5)
    assert found["languages_right"] == 0.5
    assert (found["invented_words"], found["lost_words"]) == (2, 0)
    assert found["wer_real_whisperx"] is found["lost_words_whisperx"] is None


def test_whisperx_is_beside_the_service() -> None:
    """Its figures have keys of their own, and no diarizer gives no error rate."""
    recordings = [SPOKEN, RUSSIAN, TRAP]
    results = [measure(name, Listener(), recordings) for name in ("service", "silero", "whisperx")]
    found = summary(results)
    assert found["wer_real_whisperx"] == found["wer_real"]
    assert (found["invented_words_whisperx"], found["lost_words_whisperx"]) == (2, 0)
    assert found["der_meetings"] is None
