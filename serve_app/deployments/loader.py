"""The audio loader: URL or upload to samples."""

import asyncio
import os
import tempfile
import time
from dataclasses import replace
from typing import Any

from ray import serve

from serve_app.deployments.handles import QUEUES_INSIDE
from serve_app.settings import IntakeSettings
from serve_app.stages.decode import decode
from serve_app.stages.fetch import fetch
from serve_app.transcript import Audio

MAX_FETCHES = 64  # at the same time in one replica


@serve.deployment(**QUEUES_INSIDE)
class AudioLoader:
    """URL or upload to samples. CPU only; hostile bytes stay in its child processes."""

    def __init__(self, intake: IntakeSettings) -> None:
        self._intake = intake
        self._fetching = asyncio.Semaphore(MAX_FETCHES)
        self._decoding = asyncio.Semaphore(os.cpu_count() or 1)  # each runs a child process at full speed

    async def load(self, url: str | None, headers: dict[str, str], chunks: list[Any]) -> Audio:
        """Fetches the URL, or joins the upload's chunks (references to bytes), and decodes it."""
        begun_s = time.monotonic()
        with tempfile.TemporaryFile(prefix="audio-") as file:
            if url is not None:
                async with self._fetching:
                    await fetch(url, headers, file, self._intake)
            for chunk in chunks:
                await asyncio.to_thread(file.write, await chunk)
            file.flush()
            fetched_s = time.monotonic()
            async with self._decoding:
                audio = await decode(
                    file, max_audio_s=self._intake.max_audio_s, timeout_s=self._intake.decode_timeout_s
                )
        timings = {"fetch": fetched_s - begun_s, "decode": time.monotonic() - fetched_s}
        return replace(audio, timings=timings)

    async def ready(self) -> bool:
        return True
