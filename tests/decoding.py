"""Whole files decoded from their bytes, for the tests of the decoder."""

import tempfile
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from sounds import Samples

from benchmarks.decoding import decode_whole
from serve_app.audio import WHOLE, RawAudio, Selection
from serve_app.transcript import SAMPLE_RATE_HZ, StageWarning


def stored(content: bytes) -> BinaryIO:
    """The bytes as a file on disk, without a name."""
    file = tempfile.TemporaryFile()  # noqa: SIM115  (the caller closes it)
    file.write(content)
    return file


@dataclass
class Decoded:
    """A whole file, decoded."""

    samples: Samples
    warnings: tuple[StageWarning, ...]

    @property
    def duration_s(self) -> float:
        return len(self.samples) / SAMPLE_RATE_HZ

    @property
    def codes(self) -> list[str]:
        return [warning.code for warning in self.warnings]

    def hears(self, frequency_hz: float) -> tuple[float, float]:
        """The start and the end of a tone in seconds; it may pause. Fails if there is no tone."""
        block = SAMPLE_RATE_HZ // 20
        count = len(self.samples) // block
        blocks = self.samples[: count * block].reshape(count, block).astype(float)
        spectra = np.abs(np.fft.rfft(blocks * np.hanning(block), axis=1)) / (block / 4)
        at = round(frequency_hz * block / SAMPLE_RATE_HZ)
        is_heard = spectra[:, at - 1 : at + 2].max(axis=1) > 1000
        heard = np.flatnonzero(is_heard)
        assert len(heard), f"no {frequency_hz} Hz"
        return heard[0] / 20, (heard[-1] + 1) / 20

    def level(self, start_s: float, end_s: float) -> float:
        """The root mean square of a stretch."""
        stretch = self.samples[int(start_s * SAMPLE_RATE_HZ) : int(end_s * SAMPLE_RATE_HZ)]
        return float(np.sqrt(np.mean(np.square(stretch.astype(float)))))


async def decoded(
    content: bytes,
    *,
    max_audio_s: float = 60.0,
    timeout_s: float = 30.0,
    raw: RawAudio | None = None,
    selection: Selection = WHOLE,
) -> Decoded:
    """Decodes bytes with limits that no harmless test reaches."""
    with stored(content) as file:
        info, samples = await decode_whole(
            file, max_audio_s=max_audio_s, timeout_s=timeout_s, raw=raw, selection=selection
        )
    return Decoded(samples, info.warnings)
