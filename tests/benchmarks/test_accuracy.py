"""The synthetic recordings, and how words with the wrong speaker are counted in them."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import count_errors, speaker_errors
from benchmarks.truth import (
    Recording,
    TrueTurn,
    TrueWord,
    load,
    save,
    sentences,
    with_noise,
    without_pauses,
)

WORDS = (
    TrueWord("four", 1.0, 1.2, True, "ann"),
    TrueWord("score", 1.3, 1.6, True, "ann"),
    TrueWord("of", 3.0, 3.1, False, "bob"),
    TrueWord("years", 3.2, 3.6, True, "bob"),
)
TURNS = (TrueTurn(1.0, 2.0, "ann"), TrueTurn(3.0, 4.0, "bob"))
RECORDING = Recording("short", np.zeros(5 * 16_000, np.int16), WORDS, TURNS)


def segments(*words: tuple[str, float | None]) -> list[dict[str, object]]:
    return [{"words": [{"word": word, "start": start_s} for word, start_s in words]}]


def test_a_word_in_a_segment_of_somebody_else_has_the_wrong_speaker() -> None:
    """Labels are free but one to one; without a speaker a word is wrong."""
    ann, bob = segments(("four", 1.0), ("core", 1.3)), segments(("of", 3.0), ("years", 3.2))
    split = [{**ann[0], "speaker": "S1"}, {**bob[0], "speaker": "S0"}]
    whole = [{**segments(("four", 1.0), ("core", 1.3), ("of", 3.0), ("years", 3.2))[0], "speaker": "S1"}]
    assert speaker_errors(RECORDING, split) == (0, 4)
    assert speaker_errors(RECORDING, whole) == (2, 4)
    assert speaker_errors(RECORDING, [split[0], bob[0]]) == (2, 4)
    assert speaker_errors(RECORDING, ann + bob) == (4, 4)
    assert speaker_errors(RECORDING, []) == (0, 0)
    assert count_errors(RECORDING, "4 score oh of years.") == 1


def test_a_recording_survives_its_file(tmp_path: Path) -> None:
    """Truth to the millisecond, sound within what the codec loses, and the sentences of its turns."""
    time_s = np.arange(5 * 16_000) / 16_000
    tone = (np.sin(2 * np.pi * 440 * time_s) * 8000).astype(np.int16)
    save(Recording("tone", tone, WORDS, TURNS), tmp_path / "tone.opus")
    back = load(tmp_path / "tone.opus")
    assert (back.words, back.turns, back.name) == (WORDS, TURNS, "tone")
    assert len(back.samples) == len(tone)
    assert np.corrcoef(back.samples, tone)[0, 1] > 0.99
    assert sentences(tmp_path / "tone.json") == ["four score", "of years"]


def test_noise_has_the_level_asked_for() -> None:
    """20 dB below the speech is a hundredth of its power; the same seed gives the same noise."""
    tone = (np.sin(np.arange(16_000)) * 8000).astype(np.int16)
    recording = Recording("tone", tone, (), ())
    noise = with_noise(recording, 20, 1).samples.astype(float) - tone
    assert np.mean(noise**2) == pytest.approx(np.mean(tone.astype(float) ** 2) / 100, rel=0.05)
    assert np.array_equal(with_noise(recording, 20, 1).samples, with_noise(recording, 20, 1).samples)


def test_pauses_are_cut_and_times_move_with_the_sound() -> None:
    """Half a second stays between the turns, and each word is where it was in its sound."""
    samples = np.arange(5 * 16_000, dtype=np.int32).astype(np.int16)
    hasty = without_pauses(Recording("short", samples, WORDS, TURNS), 0.5)
    assert hasty.duration_s == 4.5
    assert [turn.start_s for turn in hasty.turns] == pytest.approx([1.0, 2.5])
    assert [word.start_s for word in hasty.words] == pytest.approx([1.0, 1.3, 2.5, 2.7])
    before, after = round(3.2 * 16_000), round(2.7 * 16_000)
    assert np.array_equal(hasty.samples[after : after + 800], samples[before : before + 800])
