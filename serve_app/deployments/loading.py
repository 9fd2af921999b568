"""A request's audio as the ingress holds it: a reference, and the means to load it again."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, BinaryIO

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError
from ray.serve.handle import DeploymentHandle

from serve_app.admission import Admission
from serve_app.deployments.handles import AudioRef
from serve_app.errors import Overloaded
from serve_app.observability import Retries
from serve_app.spool import no_room
from serve_app.transcript import Source

UPLOAD_CHUNK_BYTES = 2 << 20  # each costs this process twice its size while it is stored
LOADINGS = 4  # of one request's audio, the first included


class LoadedAudio:
    """The audio of one request, in the object store or on its way there; whoever uses it waits for it.

    The loader returns it, so this process owns the object and it outlives the loader.
    """

    def __init__(self, load: Callable[[int | None], Awaitable[Any]], retries: Retries) -> None:
        """`load` starts a call of the loader; it is given the checksum that the file must have, if known."""
        self.checksum: int | None = None  # once a stage has said it
        self.slowest_s: dict[Any, float] = {}  # a stage's method -> its longest call about this audio so far
        self._load = load
        self._retries = retries
        self._loadings = 0
        self._response: Any = None
        self._one_at_a_time = asyncio.Lock()
        self.ref: AudioRef = []

    async def load(self) -> None:
        self._loadings += 1
        self._response = await self._load(self.checksum)
        self.ref = [await self._response._to_object_ref()]

    async def load_again(self, lost: AudioRef) -> None:
        """Replaces `ref` if it still is the one that was lost: many windows lose the same audio at once."""
        async with self._one_at_a_time:
            if self.ref is not lost:
                return
            if self._loadings == LOADINGS:
                raise Overloaded("The audio was lost again and again; try again later.", None, "audio_lost")
            self._retries.note("loader", "audio_lost")
            await self.load()

    def forget(self) -> None:
        """Ends the loading, if it has not ended, and lets go of the audio."""
        if self._response is not None:
            self._response.cancel()
        self.ref.clear()


def loading_with(
    loader: DeploymentHandle[Any], held: Admission, retries: Retries
) -> Callable[[Source], AbstractAsyncContextManager[LoadedAudio]]:
    """Starts loading and gives the audio at once; a source is there to be read for as long as it is held.

    Lists of references are emptied in the end, not just dropped: Serve's router at times leaves a call's
    arguments to the garbage collector, which an idle server does not run.
    """

    @asynccontextmanager
    async def loading(source: Source) -> AsyncIterator[LoadedAudio]:
        async def load(checksum: int | None) -> Any:
            chunks[:] = await asyncio.to_thread(_put_chunks, source.file) if source.file else []
            return loader.load.remote(source.url, source.headers, chunks, source.max_audio_s, checksum)

        chunks: list[Any] = []
        audio = LoadedAudio(load, retries)
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
    """The upload in the object store, a piece at a time: it may go to a loader on another node."""
    file.seek(0)
    try:
        return [ray.put(chunk) for chunk in iter(lambda: file.read(UPLOAD_CHUNK_BYTES), b"")]
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise no_room() from error
