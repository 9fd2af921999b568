"""The demo's conversation: two synthesized voices take turns at the Gettysburg Address."""

from pathlib import Path

from benchmarks.truth import Recording, save
from tools.demo_models.recordings import join
from tools.demo_models.synthesis import Line, speak

WOMAN, MAN = "festival/cmu_us_slt_arctic_hts", "flite/rms"
# Every line is one breath; the seconds after it are the pause that follows. Turns alternate.
SCRIPT = [
    (WOMAN, "Four score and seven years ago,", 0.35),
    (WOMAN, "our fathers brought forth on this continent a new nation,", 0.55),
    (MAN, "conceived in liberty,", 0.4),
    (MAN, "and dedicated to the proposition that all men are created equal.", 0.75),
    (WOMAN, "Now we are engaged in a great civil war,", 0.5),
    (MAN, "testing whether that nation,", 0.4),
    (MAN, "or any nation so conceived and so dedicated,", 0.35),
    (MAN, "can long endure.", 0.75),
    (WOMAN, "We are met on a great battlefield of that war.", 0.7),
    (MAN, "We have come to dedicate a portion of that field,", 0.5),
    (WOMAN, "as a final resting place for those who here gave their lives,", 0.4),
    (WOMAN, "that that nation might live.", 0.7),
    (MAN, "It is altogether fitting and proper that we should do this.", 0.5),
]
RATE = 0.9  # of the voices' own speed: easier to follow, also for the recogniser
FIRST_WORD_S = 0.4
PEAK = 0.7


def write_conversation(programs: Path, folder: Path) -> None:
    """Writes gettysburg.mp3 and gettysburg.json (words and turns with their true times) into `folder`."""
    save(conversation(programs), folder / "gettysburg.mp3", bitrate="48k")


def conversation(programs: Path) -> Recording:
    spoken = {u.line.text: u for u in speak([Line(voice, text, RATE) for voice, text, _ in SCRIPT], programs)}
    utterances = [spoken[text] for _, text, _ in SCRIPT]
    pauses_s = [pause_s for _, _, pause_s in SCRIPT]
    return join("gettysburg", utterances, pauses_s, [PEAK] * len(SCRIPT), FIRST_WORD_S)
