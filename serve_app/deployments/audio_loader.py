"""The audio loader: URL or upload to samples."""

import asyncio
import math
import os
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any, BinaryIO

from ray import serve

from serve_app.deadline import timeout
from serve_app.deployments.calls.handles import STAGE
from serve_app.errors import Overloaded, SourceUnavailable
from serve_app.settings import IntakeSettings
from serve_app.spool import nameless_file, no_room
from serve_app.stages.audio.decode import EARLY_S, decoding
from serve_app.stages.audio.fetch import fetch
from serve_app.transcript import Audio

MAX_FILES = 64  # on the disk of one replica, being fetched or waiting for a decoder
MAX_WAIT_S = 600.0  # for a place among them, and again for a decoder
PIECE_BYTES = 1 << 20
RETRY_AFTER_S = 60  # a queue of so many minutes is not gone in seconds


@serve.deployment(**STAGE)
class AudioLoader:
    """URL or upload to samples. CPU only; hostile bytes stay in its child processes."""

    def __init__(self, intake: IntakeSettings) -> None:
        self._intake = intake
        self._files = asyncio.Semaphore(MAX_FILES)
        self._decoders = asyncio.Semaphore(os.cpu_count() or 1)  # each is a child process at full speed

    async def load(
        self,
        url: str | None,
        headers: dict[str, str],
        chunks: list[Any],
        max_audio_s: float | None = None,
        checksum: int | None = None,
        early: bool = False,
    ) -> AsyncIterator[Audio]:
        """Fetches the URL, or joins the upload's chunks (references to arrays of bytes), and decodes it.

        Gives the whole; with `early`, more and more of a long file's beginning before that. More than
        `max_audio_s` of sound, or more than the server takes, is AudioTooLong. With `checksum`, a URL that
        gives another file is refused: half of the transcript is of the one before.
        """
        begun_s = time.monotonic()
        try:
            # A file that comes slowly holds no decoder; one that waits for a decoder still holds its place.
            async with _one_of(self._files):
                with nameless_file() as file:
                    if url is not None:
                        await fetch(url, headers, file, self._intake)
                    await _join(chunks, file)
                    found = 0 if url is None else await asyncio.to_thread(_checksum, file)
                    if checksum not in (None, found):
                        raise SourceUnavailable(
                            "The audio URL gave another file when it was fetched again; try again later.",
                            None,
                            "source_changed",
                        )
                    fetched_s = time.monotonic()
                    most_s = self._intake.max_audio_s
                    parts = decoding(
                        file,
                        max_audio_s=min(most_s, max_audio_s or most_s),
                        timeout_s=self._intake.decode_timeout_s,
                        early_s=EARLY_S if early else math.inf,
                    )
                    async with _one_of(self._decoders), aclosing(parts):
                        async for audio in parts:
                            decoded_s = time.monotonic()
                            timings = {"fetch": fetched_s - begun_s, "decode": decoded_s - fetched_s}
                            yield replace(audio, timings=timings, checksum=found)
                            del audio  # the store has it, and more comes
        finally:
            # Serve leaves a failed call's arguments to the garbage collector: this list, but not the upload.
            chunks.clear()

    async def ready(self) -> bool:
        return True


@asynccontextmanager
async def _one_of(places: asyncio.Semaphore) -> AsyncIterator[None]:
    """One of these places while it is entered; Overloaded when none became free in time."""
    try:
        async with timeout(MAX_WAIT_S):
            await places.acquire()
    except asyncio.TimeoutError:
        raise Overloaded(
            "Too many files wait to be decoded; try again later.", None, None, RETRY_AFTER_S
        ) from None
    try:
        yield
    finally:
        places.release()


def _checksum(file: BinaryIO) -> int:
    """CRC-32 of the file, some GB a second."""
    file.seek(0)
    checksum = 0
    while piece := file.read(PIECE_BYTES):
        checksum = zlib.crc32(piece, checksum)
    return checksum


async def _join(chunks: list[Any], file: BinaryIO) -> None:
    for reference in chunks:
        chunk = await reference
        try:
            await asyncio.to_thread(file.write, chunk)
        except OSError as error:
            raise no_room() from error
        finally:
            del chunk  # a view of the store, which an error would keep
    try:
        await asyncio.to_thread(file.flush)
    except OSError as error:
        raise no_room() from error
