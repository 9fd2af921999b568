"""A request's audio as the Ingress holds it: references to the parts of the file, never samples.

The loader returns the parts, so the Ingress owns the objects and they outlive the loader.
"""

import asyncio
import io
import logging
import math
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError

from serve_app.audio import AudioInfo
from serve_app.deployments.calls.handles import GONE, AudioLost, own_error
from serve_app.deployments.calls.ray_private import generator_of, references
from serve_app.deployments.metrics import Retries
from serve_app.errors import Overloaded
from serve_app.spool import disk_full_error
from serve_app.transcript import Samples, Window

logger = logging.getLogger("ray.serve")

# What ends a loading so that another one may come through.
LOST = (*GONE, AudioLost, ReplicaUnavailableError, DeploymentUnavailableError, StopAsyncIteration)

UPLOAD_PIECE_BYTES = 16 << 20  # memory of this process while a file on disk goes into the object store
MEMORY_PIECE_BYTES = 64 << 20  # of a file in memory no copy is made
MAX_LOADINGS = 4  # of one request's audio, the first included


@dataclass(frozen=True, slots=True)
class AudioSlice:
    """Consecutive parts of a file, by reference.

    Each reference is in a list of its own, so that Ray passes it on unresolved, and so that `LoadedAudio` can
    replace it, or drop it, in a call that Serve's router still holds.
    """

    parts: list[list[Any]]  # an ObjectRef of Samples each
    start_s: float  # where the first part begins in the file
    channel: int | None = None  # the row of their samples, where channels were loaded apart

    async def arrays(self) -> list[Samples]:
        """Waits for the samples of all parts, without a copy. Raises AudioLost."""
        try:
            arrays = [await part[0] for part in self.parts]
            return arrays if self.channel is None else [array[self.channel] for array in arrays]
        except GONE as error:  # also where the loader met it: then it is a RayTaskError too
            raise AudioLost(type(error).__name__) from None
        except RayTaskError as error:
            raise own_error(error) from None

    async def samples(self) -> Samples:
        """The samples of all parts in one array: a copy where there are several parts. Raises AudioLost."""
        return joined(await self.arrays())

    async def cut(self, window: Window) -> Samples:
        """The window's samples."""
        return window.cut(await self.samples(), self.start_s)


def joined(parts: Sequence[Samples]) -> Samples:
    """All samples in one array; those of a single part are not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class LoadedAudio:
    """The audio of one request: the parts that are decoded so far, and the means to load them again."""

    def __init__(
        self,
        start_loading: Callable[[int | None], Awaitable[Any]],
        retries: Retries,
        note_length: Callable[["LoadedAudio", AudioInfo], None] = lambda audio, part: None,
    ) -> None:
        """`start_loading` calls the loader, with the checksum that the file must have if that is known.

        `note_length` hears of every part; what it raises ends the request.
        """
        self._start_loading = start_loading
        self._retries = retries
        self._note_length = note_length
        self._refs: list[list[Any]] = []
        self._infos: list[AudioInfo] = []
        self._loadings = 0
        self._loaded = 0  # parts of the present loading that are there
        self._is_over = True  # the present loading has ended, well or not
        self._fault: BaseException | None = None  # of the request; loading again would not help
        self._response: Any = None
        self._following: asyncio.Task[None] | None = None
        self._reload_lock = asyncio.Lock()
        self._news = asyncio.Condition()

    async def parts(self) -> AsyncGenerator[AudioInfo]:
        """Gives the AudioInfo of each part as it is decoded; raises what is wrong with the file."""
        number = 0
        while True:
            await self._wait_until(lambda: len(self._infos) > number)  # noqa: B023  (awaited at once)
            yield self._infos[number]
            if self._infos[number].is_last:
                return
            number += 1

    async def between(self, start_s: float = 0.0, end_s: float = math.inf) -> tuple[AudioSlice, int]:
        """Waits until all between these times is decoded; the parts, and the number of their loading."""

        def is_there() -> bool:
            last = self._infos[self._loaded - 1] if self._loaded else None
            return last is not None and (last.is_last or last.end_s >= end_s)

        await self._wait_until(is_there)
        infos = self._infos[: self._loaded]
        first = next((n for n, info in enumerate(infos) if info.end_s > start_s), len(infos) - 1)
        stop = next((n for n, info in enumerate(infos) if info.end_s >= end_s), len(infos) - 1) + 1
        return AudioSlice(self._refs[first:stop], infos[first].start_s), self._loadings

    async def load(self) -> None:
        """Starts the loading, or starts it again; raises Overloaded after too many."""
        if self._loadings == MAX_LOADINGS:
            raise Overloaded("The audio was lost again and again; try again later.", None, "audio_lost")
        self._stop()
        self._loadings += 1
        self._loaded, self._is_over = 0, False
        checksum = self._infos[0].checksum if self._infos else None
        self._response = await self._start_loading(checksum)
        arriving = await generator_of(self._response)
        self._following = asyncio.create_task(self._follow(arriving))

    async def load_again(self, loading: int) -> None:
        """Loads again what was lost of that loading, once for the many windows that lose it together."""
        async with self._reload_lock:
            if self._loadings != loading:
                return
            self._retries.note("loader", "audio_lost")
            try:
                await self.load()
            except LOST:
                self._is_over = True  # those that wait load again
            except asyncio.CancelledError:
                self._is_over = True
                raise
            except Exception as error:
                self._fault = error
                raise
            finally:
                await self._tell()

    def forget(self) -> None:
        """Ends the loading, if it has not ended, and lets go of the audio."""
        self._stop()
        for ref in self._refs:
            ref.clear()
        self._fault = None  # its traceback holds frames, and they hold audio

    def _stop(self) -> None:
        if self._following is not None:
            self._following.cancel()
        if self._response is not None:
            self._response.cancel()
        self._following = self._response = None

    async def _wait_until(self, is_there: Callable[[], bool]) -> None:
        """Waits, and loads again where the loading has ended without that; raises the request's fault."""
        while not is_there():
            if self._fault is not None:
                raise self._fault
            if self._is_over:
                await self.load_again(self._loadings)
                continue
            async with self._news:
                await self._news.wait_for(lambda: is_there() or self._is_over or self._fault is not None)

    async def _follow(self, arriving: Any) -> None:
        """Takes what the loader gives: by turns an AudioInfo, which is small, and a part's samples."""
        try:
            async with aclosing(references(arriving)) as found:
                async for info_ref in found:
                    info: AudioInfo = await info_ref
                    if self._loaded == len(self._infos):  # a part that is loaded again counts already
                        self._note_length(self, info)
                    self._add(info, await anext(found))
                    await self._tell()
        except Exception as error:  # noqa: BLE001  (raised where the audio is waited for)
            cause = own_error(error)
            if isinstance(cause, LOST):
                logger.warning("Loading has ended: %s", type(cause).__name__)
            else:
                self._fault = cause
        self._is_over = True
        await self._tell()

    def _add(self, info: AudioInfo, ref: Any) -> None:
        if self._loaded == len(self._infos):
            self._infos.append(info)
            self._refs.append([])
        self._infos[self._loaded] = info
        self._refs[self._loaded][:] = [ref]
        self._loaded += 1

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


def put_upload(file: BinaryIO) -> list[Any]:
    """Puts an upload into the object store, piece by piece: it may go to a loader on another node.

    The pieces are arrays, which the loader reads where they lie. Raises Overloaded where the store is full.
    """
    found = []
    pieces = _pieces(file)
    try:
        for piece in pieces:
            found.append(ray.put(piece))
    except (ObjectStoreFullError, OutOfDiskError) as error:
        del piece, pieces  # the error would keep them
        found.clear()
        raise disk_full_error() from error
    return found


def _pieces(file: BinaryIO) -> Iterator[NDArray[np.uint8]]:
    """All of the file. A file on disk is read into one buffer again and again: the store copies its input."""
    if isinstance(file, io.BytesIO):
        whole = np.frombuffer(file.getvalue(), np.uint8)
        yield from (whole[at : at + MEMORY_PIECE_BYTES] for at in range(0, len(whole), MEMORY_PIECE_BYTES))
        return
    buffer = np.empty(min(file.seek(0, os.SEEK_END), UPLOAD_PIECE_BYTES), np.uint8)
    file.seek(0)
    while n_bytes := cast(io.BufferedRandom, file).readinto(buffer.data):
        yield buffer[:n_bytes]
