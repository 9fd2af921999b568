"""The demo's conversation: two synthesized voices take turns at the Gettysburg Address."""

import json
import subprocess
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np

from tools.demo_models.recordings import Recording, TrueTurn, TrueWord
from tools.demo_models.synthesis import SAMPLE_RATE, Line, speak
from tools.demo_models.vocabulary import words_of

WOMAN, MAN = "flite/slt", "flite/awb"
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
SPEAKERS = {WOMAN: "woman", MAN: "man"}


def write_conversation(programs: Path, out: Path) -> None:
    """Write gettysburg.mp3 and gettysburg.json (text, words and turns with their true times) into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    spoken = {u.line.text: u for u in speak([Line(voice, text, RATE) for voice, text, _ in SCRIPT], programs)}
    parts = [np.zeros(int(FIRST_WORD_S * SAMPLE_RATE), np.float32)]
    at, words = FIRST_WORD_S, []
    turns: list[dict[str, Any]] = []
    for voice, text, pause in SCRIPT:
        utterance, speaker = spoken[text], SPEAKERS[voice]
        for word in utterance.words:
            words.append(
                {
                    "word": word.word,
                    "start": round(at + word.start, 3),
                    "end": round(at + word.end, 3),
                    "speaker": speaker,
                }
            )
        end = at + utterance.seconds
        if turns and turns[-1]["speaker"] == speaker:
            turns[-1]["end"] = round(end, 3)
            turns[-1]["text"] += " " + text
        else:
            turns.append({"speaker": speaker, "start": round(at, 3), "end": round(end, 3), "text": text})
        silence = np.zeros(int(pause * SAMPLE_RATE), np.float32)
        peak = np.abs(utterance.samples.astype(np.float32)).max()
        parts += [0.7 * utterance.samples / peak, silence]
        at = end + len(silence) / SAMPLE_RATE
    samples = np.concatenate(parts)
    encode_mp3(samples, out / "gettysburg.mp3")
    text = " ".join(turn["text"] for turn in turns)
    assert words_of(text) == [word["word"] for word in words]
    truth = {"seconds": round(len(samples) / SAMPLE_RATE, 3), "text": text, "turns": turns, "words": words}
    (out / "gettysburg.json").write_text(json.dumps(truth, indent=1) + "\n")


def encode_mp3(samples: np.ndarray, target: Path) -> None:
    """Write (samples,) in -1..1 at 16 kHz as a mono MP3."""
    pcm = (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()
    source = ["-f", "s16le", "-ar", str(SAMPLE_RATE), "-ac", "1", "-i", "pipe:0"]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-y",
        *source,
        "-b:a",
        "48k",
        str(target),
    ]
    subprocess.run(command, input=pcm, check=True)


def conversation_recording(folder: Path) -> Recording:
    """The conversation as it sounds after MP3, with its truth."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-i", str(folder / "gettysburg.mp3")]
    pcm = subprocess.run(
        [*command, "-f", "s16le", "-ar", str(SAMPLE_RATE), "-"], capture_output=True, check=True
    ).stdout
    truth = json.loads((folder / "gettysburg.json").read_text())
    words = tuple(TrueWord(w["word"], w["start"], w["end"], True, w["speaker"]) for w in truth["words"])
    turns = tuple(TrueTurn(t["start"], t["end"], t["speaker"]) for t in truth["turns"])
    return Recording(
        "conversation", np.frombuffer(pcm, "<i2").astype(np.float32) / np.float32(32767), words, turns
    )
