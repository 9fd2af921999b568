"""A request's audio as the ingress holds it: a reference, and the means to load it again."""

import asyncio
import io
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, BinaryIO, cast

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.calls.handles import GONE, AudioLost, AudioRef, own_error
from serve_app.deployments.calls.ray_private import generator_of, references
from serve_app.deployments.metrics import Retries
from serve_app.errors import Overloaded, TranscriptionError
from serve_app.request.admission import Admission
from serve_app.spool import no_room
from serve_app.transcript import Source

logger = logging.getLogger("ray.serve")

UPLOAD_PIECE_BYTES = 16 << 20  # costs this process so much while a file on disk is stored
MEMORY_PIECE_BYTES = 64 << 20  # of one in memory costs nothing
LOADINGS = 4  # of one request's audio, the first included

# What ends a loading so that another one may come through. Any other error is a fault of the program.
LOST = (*GONE, AudioLost, TranscriptionError, ReplicaUnavailableError, DeploymentUnavailableError)


class LoadedAudio:
    """The audio of one request, in the object store or on its way there.

    Of a long file the loader gives the beginning, then more and more of it, at last the whole. `ref` is
    always the latest: it has all that was ever found in an earlier one. The loader returns them, so this
    process owns the objects and they outlive the loader.
    """

    def __init__(
        self, source: Source, load: Callable[[int | None, bool], Awaitable[Any]], retries: Retries
    ) -> None:
        """`load` starts a call of the loader; it is given the checksum that the file must have, if known, and
        whether to give the beginning early.
        """
        self.source = source
        self.ref: AudioRef = []  # one list for good: a call that Serve has not sent yet gets the latest, too
        self.checksum: int | None = None  # once a stage has said it
        self.slowest_s: dict[Any, float] = {}  # a stage's method -> its longest call about this audio so far
        self._load = load
        self._retries = retries
        self._loadings = 0
        self._response: Any = None
        self._following: asyncio.Task[None] | None = None
        self._one_at_a_time = asyncio.Lock()
        self._news = asyncio.Condition()
        self._versions = 0  # of `ref` so far
        self._lost = False  # `ref` is of a loading that is being replaced
        self._ended = False  # the loading, well or not
        self._fault: BaseException | None = None  # that ended it and is no loss

    async def load(self) -> None:
        """Hands the loading to a replica. Only the first gives the beginning early: later, windows may be
        anywhere.
        """
        self._stop()
        self._loadings += 1
        self._response = await self._load(self.checksum, self._loadings == 1)
        arriving = await generator_of(self._response)
        self._ended, self._fault = False, None
        self._following = asyncio.create_task(self._follow(references(arriving)))

    async def later_than(self, version: int) -> int:
        """Waits until `ref` is a later one than that, whose number it gives.

        Raises AudioLost; what ended the loading and is no loss, as it is.
        """
        return await self._when(lambda: self._versions > version and not self._lost)

    async def whole(self) -> int:
        """Waits until `ref` is the whole file, or what has become of it. Raises as `later_than`."""
        return await self._when(lambda: self._ended and not self._lost and self._versions > 0)

    async def load_again(self, version: int) -> None:
        """Replaces `ref` if it still is the one that was lost: many windows lose the same audio at once."""
        async with self._one_at_a_time:
            try:
                while self._versions <= version:
                    if self._loadings == LOADINGS:
                        raise Overloaded(
                            "The audio was lost again and again; try again later.", None, "audio_lost"
                        )
                    self._retries.note("loader", "audio_lost")
                    self._lost = True
                    try:
                        await self.load()
                    except BaseException:
                        self._ended = True  # nothing more comes of the loading that was stopped either
                        raise
                    async with self._news:
                        await self._news.wait_for(lambda: self._versions > version or self._ended)
                    self._raise_fault()
            finally:
                self._lost = False
                await self._tell()

    def forget(self) -> None:
        """Ends the loading, if it has not ended, and lets go of the audio."""
        self._stop()
        self.ref.clear()
        self._fault = None  # its traceback would keep what it was raised through

    def _stop(self) -> None:
        """So that nothing more comes of a loading; keeps nothing that would keep what has come of it."""
        if self._following is not None:
            self._following.cancel()
        if self._response is not None:
            self._response.cancel()
        self._following = self._response = None

    async def _when(self, is_so: Callable[[], bool]) -> int:
        async with self._news:
            await self._news.wait_for(lambda: is_so() or (self._ended and not self._lost))
        self._raise_fault()
        if not is_so():
            raise AudioLost("the loader gave none")
        return self._versions

    async def _follow(self, arriving: AsyncGenerator[Any, None]) -> None:
        """Takes what the loader gives; its error is a reference, too."""
        try:
            async with aclosing(arriving):
                async for reference in arriving:
                    self.ref[:] = [reference]
                    del reference
                    self._versions += 1
                    self._lost = False
                    await self._tell()
        except Exception as error:  # noqa: BLE001  (raised where the audio is waited for)
            cause = own_error(error) if isinstance(error, RayTaskError) else error
            if isinstance(cause, LOST):
                logger.warning("Loading has ended: %s: %s", type(cause).__name__, cause)
            else:
                self._fault = cause
        self._ended = True
        await self._tell()

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()


def loading_with(
    loader: DeploymentHandle[Any], held: Admission, retries: Retries
) -> Callable[[Source], AbstractAsyncContextManager[LoadedAudio]]:
    """Starts loading and gives the audio at once; a source is there to be read for as long as it is held.

    Lists of references are emptied in the end, not just dropped: Serve's router at times leaves a call's
    arguments to the garbage collector, which an idle server does not run.
    """

    call = loader.options(stream=True).load

    @asynccontextmanager
    async def loading(source: Source) -> AsyncIterator[LoadedAudio]:
        async def load(checksum: int | None, early: bool) -> Any:
            chunks[:] = await asyncio.to_thread(_put_chunks, source.file) if source.file else []
            return call.remote(source.url, source.headers, chunks, source.max_audio_s, checksum, early)

        chunks: list[Any] = []
        audio = LoadedAudio(source, load, retries)
        try:
            await audio.load()
            chunks.clear()  # the loader has them
            yield audio
        finally:
            chunks.clear()
            held.remove(audio)
            audio.forget()

    return loading


def _put_chunks(file: BinaryIO) -> list[Any]:
    """The upload in the object store, a piece at a time: it may go to a loader on another node.

    The pieces are arrays, which the loader gets as they lie in the store.
    """
    references = []
    pieces = _pieces(file)
    try:
        for piece in pieces:
            references.append(ray.put(piece))
    except (ObjectStoreFullError, OutOfDiskError) as error:
        pieces.close()
        del piece  # which the error would keep
        references.clear()
        raise no_room() from error
    return references


def _pieces(file: BinaryIO) -> Generator[NDArray[np.uint8], None, None]:
    """All of it. What is on disk comes in one buffer again and again: the store copies what it is given."""
    if isinstance(file, io.BytesIO):
        whole = np.frombuffer(file.getvalue(), np.uint8)
        yield from (whole[at : at + MEMORY_PIECE_BYTES] for at in range(0, len(whole), MEMORY_PIECE_BYTES))
        return
    buffer = np.empty(min(file.seek(0, os.SEEK_END), UPLOAD_PIECE_BYTES), np.uint8)
    file.seek(0)
    while n_bytes := cast(io.BufferedRandom, file).readinto(buffer.data):
        yield buffer[:n_bytes]
