"""A whole file at once, for benchmarks and tests."""

from contextlib import aclosing
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from serve_app.audio import AudioInfo, RawAudio
from serve_app.stages.audio.decode import decode
from serve_app.transcript import Samples


async def decode_whole(
    file: BinaryIO, *, max_audio_s: float, timeout_s: float, raw: RawAudio | None = None
) -> tuple[AudioInfo, Samples]:
    """All parts of `decode` as one."""
    async with aclosing(decode(file, max_audio_s=max_audio_s, timeout_s=timeout_s, raw=raw)) as parts:
        found = [part async for part in parts]
    whole = np.concatenate([samples for _, samples in found])
    whole.flags.writeable = False
    return replace(found[-1][0], start_s=0.0), whole
