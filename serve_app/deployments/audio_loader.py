"""The deployment that loads audio: a URL or an upload to samples."""

import asyncio
import os
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, BinaryIO

from ray import serve

from serve_app.audio import WHOLE, AudioInfo, RawAudio, Selection
from serve_app.deployments.metrics import StageMetrics, log_errors_in_one_line
from serve_app.deployments.replica import OPTIONS
from serve_app.errors import NoRoom, SourceUnavailable
from serve_app.settings import IntakeSettings
from serve_app.spool import anonymous_temp_file, disk_full_error
from serve_app.stages.audio.decode import decode
from serve_app.stages.audio.fetch import fetch
from serve_app.transcript import Samples

MAX_FILES = 64  # on the disk of one replica, being fetched or waiting for a decoder
MAX_WAIT_S = 600.0  # for a place among them, and again for a decoder
PIECE_BYTES = 1 << 20
RETRY_AFTER_S = 60  # a queue of minutes is not gone in seconds


@serve.deployment(**OPTIONS)
class AudioLoader:
    """URLs and uploads to samples. CPU only; what is hostile in a file is decoded in child processes."""

    def __init__(self, intake: IntakeSettings) -> None:
        log_errors_in_one_line()
        self._intake = intake
        self._metrics = StageMetrics("loader")
        self._files = asyncio.Semaphore(MAX_FILES)
        self._decoders = asyncio.Semaphore(os.cpu_count() or 1)  # each is a child process at full speed

    async def load(
        self,
        url: str | None,
        headers: dict[str, str],
        pieces: list[Any],
        max_audio_s: float | None = None,
        checksum: int | None = None,
        raw: RawAudio | None = None,
        selection: Selection = WHOLE,
    ) -> AsyncIterator[AudioInfo | Samples]:
        """Fetches the URL, or joins the upload's pieces (references to arrays of bytes), and decodes it.

        Gives, for each part of the file, an AudioInfo and then the part's samples. More than `max_audio_s` of
        sound, or more than the server takes, is AudioTooLong. With `checksum`, a URL that gives another file
        is refused: half of the transcript is of the one before. `raw` says what a file without a header is,
        `selection` what of the file is wanted.
        """
        begun_s = time.monotonic()
        try:
            # A file that comes slowly holds no decoder; one that waits for a decoder still holds its place.
            async with _one_of(self._files):
                with anonymous_temp_file() as file:
                    if url is not None:
                        await fetch(url, headers, file, self._intake)
                    await _join(pieces, file)
                    found = 0 if url is None else await asyncio.to_thread(_checksum, file)
                    if checksum not in (None, found):
                        message = (
                            "The audio URL gave another file when it was fetched again; try again later."
                        )
                        raise SourceUnavailable(message, None, "source_changed")
                    fetched_s = time.monotonic()
                    limit_s = min(self._intake.max_audio_s, max_audio_s or self._intake.max_audio_s)
                    timeout_s = self._intake.decode_timeout_s
                    parts = decode(
                        file, max_audio_s=limit_s, timeout_s=timeout_s, raw=raw, selection=selection
                    )
                    async with _one_of(self._decoders), aclosing(parts):
                        decoding_s = time.monotonic()
                        self._metrics.waited(decoding_s - fetched_s)
                        try:
                            async for info, samples in parts:
                                decode_s = time.monotonic() - fetched_s
                                timings = {"fetch": fetched_s - begun_s, "decode": decode_s}
                                yield replace(info, timings=timings, checksum=found)
                                yield samples
                        finally:  # also where the file is broken, or its client leaves
                            self._metrics.ran_alone(time.monotonic() - decoding_s)
        finally:
            # Serve leaves a failed call's arguments to the garbage collector: this list, but not the upload.
            pieces.clear()

    async def ready(self) -> bool:
        """Whether the replica can load: it needs no model."""
        return True


@asynccontextmanager
async def _one_of(places: asyncio.Semaphore) -> AsyncIterator[None]:
    """Holds one of these places while entered; raises NoRoom when none becomes free in time."""
    try:
        async with asyncio.timeout(MAX_WAIT_S):
            await places.acquire()
    except TimeoutError:
        message = "Too many files wait to be decoded; try again later."
        raise NoRoom(message, None, None, RETRY_AFTER_S) from None
    try:
        yield
    finally:
        places.release()


def _checksum(file: BinaryIO) -> int:
    """CRC-32 of the file; it reads some GB a second."""
    file.seek(0)
    checksum = 0
    while piece := file.read(PIECE_BYTES):
        checksum = zlib.crc32(piece, checksum)
    return checksum


async def _join(pieces: list[Any], file: BinaryIO) -> None:
    try:
        for reference in pieces:
            piece = await reference
            try:
                await asyncio.to_thread(file.write, piece)
            finally:
                del piece  # a view into the object store, which an error's traceback would keep
        await asyncio.to_thread(file.flush)
    except OSError as error:
        raise disk_full_error() from error
