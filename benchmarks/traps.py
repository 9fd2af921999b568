"""Recordings in which recognisers invent words or lose them, made from real ones and a fixed seed.

Each has the text that is said in it: none where nobody speaks. Laughter cannot be made; it is a trap where
the recordings have some.
"""

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from benchmarks.people import Recording
from serve_app.transcript import SAMPLE_RATE_HZ

Sound = NDArray[np.float64]  # (samples,) in [-1, 1), 16 kHz

GROUP = "trap"
SEED = 22
NOBODY_S = 30.0
NOISE_DBFS = -30.0
QUIET_DBFS = -48.0
ROOM_DBFS = -75.0  # what is heard in a pause: digital silence would give it away
PAUSE_S = 60.0
LANGUAGE_PAUSE_S = 16.0  # with READ before it, more than a window: each language has windows of its own
OVERLAP_S = 2.0
CLIPPING_DB = 24.0
WHISPER_BANDS = 20
TELEPHONE_HZ = (300.0, 3400.0)

# What the traps are made from. Where the recordings lack one, its traps are left out.
READ = ("librispeech-1995-1837-0001", "librivox-0870")  # two voices, 16 s
FOREIGN = "mls-es-13697"  # 15 s of Spanish
DIGITS = "vosk-test"
DIGITS_TEXT = "one zero zero zero one nine zero two one zero zero one eight zero three"
LAUGHTER = "laugh"  # in a name; such recordings have no speech


def make(recordings: Iterable[Recording]) -> tuple[list[Recording], list[str]]:
    """The traps, and the names of those that cannot be made from these recordings."""
    known = {recording.name: recording for recording in recordings}
    makers: dict[str, Callable[[], tuple[Sound, str]]] = {
        "silence": lambda: (np.zeros(_samples(NOBODY_S)), ""),
        "white-noise": lambda: (_noise(NOBODY_S, NOISE_DBFS), ""),
        "tones": lambda: (tones(), ""),
        "laughter": lambda: _laughter(known),
        "60-s-pause": lambda: _joined(known, READ, PAUSE_S),
        "two-languages": lambda: _two_languages(known),
        "overlapped": lambda: _overlapped(known),
        "digits": lambda: (_sound(known[DIGITS]), DIGITS_TEXT),
        "whispered": lambda: _changed(known, whispered),
        "quiet": lambda: _changed(known, lambda sound: at_level(sound, QUIET_DBFS)),
        "clipped": lambda: _changed(known, lambda sound: sound * 10 ** (CLIPPING_DB / 20)),
        "telephone": lambda: _changed(known, telephone),
    }
    made, missing = [], []
    for name, maker in makers.items():
        try:
            sound, text = maker()
        except KeyError:
            missing.append(name)
        else:
            made.append(Recording(f"{GROUP}-{name}", GROUP, _int16(sound), None, text))
    return made, missing


def whispered(sound: Sound) -> Sound:
    """The sound with its voice replaced by noise, band by band (a noise vocoder), at the same level."""
    length, hop = 512, 128
    window = np.hanning(length)
    spectrum = _spectrum(sound, window, hop)
    noise = _spectrum(np.random.default_rng(SEED).standard_normal(len(sound)), window, hop)
    edges = np.geomspace(2, length // 2 + 1, WHISPER_BANDS + 1).round().astype(int)
    vocoded = np.zeros_like(noise)
    for low, high in pairwise(edges):
        band = slice(low, max(high, low + 1))
        gain = _power(spectrum[:, band]) / np.maximum(_power(noise[:, band]), 1e-9)
        vocoded[:, band] = noise[:, band] * gain
    return at_level(_from_spectrum(vocoded, window, hop, len(sound)), level_dbfs(sound))


def telephone(sound: Sound) -> Sound:
    """The sound as a telephone of 8 kHz carries it: 300 to 3400 Hz, 8-bit mu-law."""
    spectrum = np.fft.rfft(sound)
    heard_hz = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE_HZ)
    spectrum[(heard_hz < TELEPHONE_HZ[0]) | (heard_hz > TELEPHONE_HZ[1])] = 0
    narrow = np.clip(np.fft.irfft(spectrum, len(sound)), -1, 1)
    compressed = np.round(np.log1p(255 * np.abs(narrow)) / np.log(256) * 127) / 127
    expanded: Sound = np.sign(narrow) * np.expm1(compressed * np.log(256)) / 255
    return expanded


def tones() -> Sound:
    """Thirty seconds that sound like music: three-note chords of plucked strings with a slow melody above."""
    random = np.random.default_rng(SEED)
    sound = np.zeros(_samples(NOBODY_S))
    for number in range(int(NOBODY_S / 0.5)):
        begin = _samples(number * 0.5)
        root_hz = 110 * 2 ** ((0, 5, 7, 3)[number // 8 % 4] / 12)
        notes_hz = [root_hz * 4 * 2 ** (random.choice((0, 2, 4, 7, 9)) / 12)]
        notes_hz += [root_hz * step for step in (1, 1.26, 1.5)] if number % 4 == 0 else []
        for note_hz in notes_hz:
            time_s = np.arange(min(_samples(2.0), len(sound) - begin)) / SAMPLE_RATE_HZ
            for harmonic in range(1, 6):
                wave = np.sin(2 * np.pi * note_hz * harmonic * time_s)
                sound[begin : begin + len(time_s)] += wave / harmonic * np.exp(-time_s * (1 + harmonic))
    return at_level(sound, -20.0)


def level_dbfs(sound: Sound) -> float:
    """The mean power, in decibels below a full-scale square wave."""
    return 10 * float(np.log10(np.mean(sound**2) + 1e-12))


def at_level(sound: Sound, dbfs: float) -> Sound:
    scaled: Sound = sound * 10 ** ((dbfs - level_dbfs(sound)) / 20)
    return scaled


def _changed(known: Mapping[str, Recording], change: Callable[[Sound], Sound]) -> tuple[Sound, str]:
    source = known[READ[0]] if READ[0] in known else known["sample"]
    return change(_sound(source)), _text(source)


def _joined(known: Mapping[str, Recording], names: Iterable[str], pause_s: float) -> tuple[Sound, str]:
    """The recordings one after the other."""
    parts = list[Sound]()
    chosen = [known[name] for name in names]
    for recording in chosen:
        parts += [_sound(recording), _noise(pause_s, ROOM_DBFS)]
    return np.concatenate(parts[:-1]), " ".join(_text(recording) for recording in chosen)


def _two_languages(known: Mapping[str, Recording]) -> tuple[Sound, str]:
    english, text = _joined(known, READ, 0.5)
    foreign = known[FOREIGN]
    sound = np.concatenate([english, _noise(LANGUAGE_PAUSE_S, ROOM_DBFS), _sound(foreign)])
    return sound, f"{text} {_text(foreign)}"


def _overlapped(known: Mapping[str, Recording]) -> tuple[Sound, str]:
    """The second voice begins before the first has ended."""
    first, second = (_sound(known[name]) for name in READ)
    begin = len(first) - _samples(OVERLAP_S)
    sound = np.zeros(begin + len(second))
    sound[: len(first)] += first
    sound[begin:] += at_level(second, level_dbfs(first))
    return sound, f"{_text(known[READ[0]])} {_text(known[READ[1]])}"


def _laughter(known: Mapping[str, Recording]) -> tuple[Sound, str]:
    names = [name for name in known if LAUGHTER in name]
    if not names:
        raise KeyError(LAUGHTER)
    return np.concatenate([_sound(known[name]) for name in names]), ""


def _text(recording: Recording) -> str:
    assert recording.text is not None
    return recording.text


def _noise(duration_s: float, dbfs: float) -> Sound:
    return at_level(np.random.default_rng(SEED).standard_normal(_samples(duration_s)), dbfs)


def _sound(recording: Recording) -> Sound:
    return recording.samples / 32768


def _int16(sound: Sound) -> NDArray[np.int16]:
    return np.clip(np.round(sound * 32768), -32768, 32767).astype(np.int16)


def _samples(duration_s: float) -> int:
    return round(duration_s * SAMPLE_RATE_HZ)


def _spectrum(sound: Sound, window: Sound, hop: int) -> NDArray[np.complex128]:
    padded = np.pad(sound, (len(window), len(window)))
    frames = np.lib.stride_tricks.sliding_window_view(padded, len(window))[::hop]
    return np.fft.rfft(frames * window)


def _from_spectrum(spectrum: NDArray[np.complex128], window: Sound, hop: int, length: int) -> Sound:
    frames = np.fft.irfft(spectrum, len(window)) * window
    sound = np.zeros(length + 3 * len(window))
    for number, frame in enumerate(frames):
        sound[number * hop : number * hop + len(window)] += frame
    return sound[len(window) : len(window) + length]


def _power(band: NDArray[np.complex128]) -> Sound:
    """The root of each frame's power in a band, smoothed over some 30 ms."""
    power = np.mean(np.abs(band) ** 2, axis=1)
    smooth = np.convolve(power, np.ones(3) / 3, mode="same")
    root: Sound = np.sqrt(smooth)[:, np.newaxis]
    return root
