"""A whole file at once, for benchmarks and tests."""

from contextlib import aclosing
from dataclasses import replace
from typing import BinaryIO

import numpy as np

from serve_app.audio import WHOLE, AudioInfo, RawAudio, Selection
from serve_app.stages.audio.decode import decode
from serve_app.transcript import Samples


async def decode_whole(
    file: BinaryIO,
    *,
    max_audio_s: float,
    timeout_s: float,
    raw: RawAudio | None = None,
    selection: Selection = WHOLE,
) -> tuple[AudioInfo, Samples]:
    """All parts of `decode` as one."""
    decoding = decode(file, max_audio_s=max_audio_s, timeout_s=timeout_s, raw=raw, selection=selection)
    async with aclosing(decoding) as parts:
        found = [part async for part in parts]
    whole = np.concatenate([samples for _, samples in found], axis=-1)
    whole.flags.writeable = False
    return replace(found[-1][0], start_s=0.0), whole
