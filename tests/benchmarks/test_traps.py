"""The traps of `make eval`."""

import numpy as np
import pytest
from sounds import tone

from benchmarks import traps
from benchmarks.people import Recording
from benchmarks.scoring import tokens_of
from benchmarks.traps import DIGITS, FOREIGN, READ, level_dbfs, make, telephone, whispered
from serve_app.transcript import SAMPLE_RATE_HZ

SOUND = tone(3.0)
PEOPLE = [
    *(Recording(name, "read", SOUND, "en", f"words {name}") for name in READ),
    Recording(FOREIGN, "foreign", SOUND, "es", "palabras"),
    Recording(DIGITS, "other", SOUND, "en"),
    Recording("somebody-laughs", "other", SOUND),
]
NOBODY = {"trap-silence", "trap-white-noise", "trap-tones", "trap-laughter"}


def test_every_trap_has_the_text_that_is_said_in_it() -> None:
    """None where nobody speaks, both texts where two are joined; nothing is left out of a full set."""
    made, missing = make(PEOPLE)
    assert missing == []
    texts = {trap.name: trap.text for trap in made}
    assert {name for name, text in texts.items() if text == ""} == NOBODY
    assert texts["trap-60-s-pause"] == texts["trap-overlapped"] == f"words {READ[0]} words {READ[1]}"
    assert texts["trap-two-languages"] == " ".join(f"words {name}" for name in READ) + " palabras"
    assert texts["trap-quiet"] == f"words {READ[0]}"
    assert len(tokens_of(texts["trap-digits"] or "", "en")) == 15


def test_traps_are_the_same_every_time() -> None:
    """Noise comes from a fixed seed."""
    first, second = make(PEOPLE)[0], make(PEOPLE)[0]
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.samples, other.samples)


def test_traps_that_need_more_recordings_are_named() -> None:
    """With pyannote's sample alone those of one speaker are made from it."""
    made, missing = make([Recording("sample", "telephone", SOUND, "en", "hello")])
    assert missing == ["laughter", "60-s-pause", "two-languages", "overlapped", "digits"]
    assert {trap.text for trap in made} == {"", "hello"}


def test_joined_traps_are_as_long_as_their_parts() -> None:
    """The pause lies between the two voices; the second one begins before the first has ended."""
    durations_s = {trap.name: trap.duration_s for trap in make(PEOPLE)[0]}
    assert durations_s["trap-60-s-pause"] == pytest.approx(3 + 60 + 3)
    assert durations_s["trap-overlapped"] == pytest.approx(3 + 3 - traps.OVERLAP_S)


def test_levels_are_what_the_names_say() -> None:
    """Quiet is -48 dBFS; clipped sound stands at the limits for most of the time."""
    samples = {trap.name: trap.samples for trap in make(PEOPLE)[0]}
    assert level_dbfs(samples["trap-quiet"] / 32768) == pytest.approx(traps.QUIET_DBFS, abs=0.1)
    assert np.mean(np.abs(samples["trap-clipped"].astype(int)) >= 32767) > 0.5
    assert not samples["trap-silence"].any()


def test_a_telephone_carries_only_its_band() -> None:
    """A tone of 1 kHz passes, one of 5 kHz does not."""
    time_s = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    low, high = (0.5 * np.sin(2 * np.pi * hz * time_s) for hz in (1000, 5000))
    assert level_dbfs(telephone(low)) == pytest.approx(level_dbfs(low), abs=0.2)
    assert level_dbfs(telephone(high)) < -60


def test_a_whisper_has_the_loudness_of_the_voice_but_not_its_pitch() -> None:
    """A second of tone and one of silence keep their places; the tone's line spreads over its band."""
    time_s = np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    voice = np.concatenate([0.5 * np.sin(2 * np.pi * 1000 * time_s), np.zeros(SAMPLE_RATE_HZ)])
    whisper = whispered(voice)
    assert len(whisper) == len(voice)
    assert level_dbfs(whisper) == pytest.approx(level_dbfs(voice))
    assert level_dbfs(whisper[-8000:]) < level_dbfs(whisper[:8000]) - 40

    def peak(sound: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        power = np.abs(np.fft.rfft(sound[:SAMPLE_RATE_HZ])) ** 2
        return float(power.max() / power.sum())

    assert peak(voice) > 0.9
    assert peak(whisper) < 0.2
