"""Sounds that tests make themselves: tones, silence, noise, and any container around them."""

import io
import subprocess
import tempfile
import wave
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.int16]

# Arguments of `encode`: a picture of 2 s with the sound, or without it.
VIDEO = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=2")
ONLY_VIDEO = (*VIDEO, "-map", "1:v")


def tone(
    duration_s: float, *, frequency_hz: float = 440.0, sample_rate_hz: int = 16_000, amplitude: float = 0.3
) -> Samples:
    """A sine, mono."""
    time_s = np.arange(int(duration_s * sample_rate_hz)) / sample_rate_hz
    return np.asarray(np.sin(2 * np.pi * frequency_hz * time_s) * amplitude * 32767, dtype=np.int16)


def silence(duration_s: float, *, sample_rate_hz: int = 16_000) -> Samples:
    """Zeros, mono."""
    return np.zeros(int(duration_s * sample_rate_hz), dtype=np.int16)


def noise(
    duration_s: float, *, sample_rate_hz: int = 16_000, amplitude: float = 0.3, seed: int = 0
) -> Samples:
    """White noise, mono; the same for the same seed."""
    values = np.random.default_rng(seed).uniform(-amplitude, amplitude, int(duration_s * sample_rate_hz))
    return np.asarray(values * 32767, dtype=np.int16)


def wav(samples: Samples, sample_rate_hz: int = 16_000) -> bytes:
    """A WAV file; `samples` of shape (n,) or (n, channels)."""
    target = io.BytesIO()
    with wave.open(target, "wb") as writer:
        writer.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        writer.setsampwidth(2)
        writer.setframerate(sample_rate_hz)
        writer.writeframes(samples.astype("<i2").tobytes())
    return target.getvalue()


def encode(samples: Samples, sample_rate_hz: int, suffix: str, *args: str) -> bytes:
    """`samples` in the container that `suffix` names (".mp3", ".m4a", ".webm" ...).

    `args` are further arguments of ffmpeg, for example `*VIDEO` or `"-movflags", "+faststart"`
    (without it an MP4 has its index at the end).
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.wav"), Path(folder, f"target{suffix}")
        source.write_bytes(wav(samples, sample_rate_hz))
        ffmpeg("-i", str(source), *args, str(target))
        return target.read_bytes()


def ffmpeg(*args: str) -> None:
    """Runs the ffmpeg of the wheel; a failure is an exception with its message."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-y", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
