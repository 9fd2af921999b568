"""The ingress: HTTP and Python handles in, transcripts out."""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from contextvars import Context
from functools import partial
from time import monotonic
from typing import Any, BinaryIO

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import ObjectStoreFullError, OutOfDiskError
from ray.serve.handle import DeploymentHandle

from serve_app.admission import AudioInFlight, CountInFlight, InFlight
from serve_app.api import create_app
from serve_app.deployments.handles import MANY, ROUTER, AudioRef, awaited, caller, streamer
from serve_app.errors import AudioTooCostly, AudioTooLong, DeadlineExceeded, InvalidRequest, Overloaded
from serve_app.following import Report, followed
from serve_app.options import Options, parse_options
from serve_app.pipeline import Stages, transcribe, unheard
from serve_app.schemas import predict_response, progress_response
from serve_app.settings import Settings
from serve_app.spool import no_room
from serve_app.transcript import Progress, Source, Speech, Transcript
from serve_app.usage import charge

UPLOAD_CHUNK_BYTES = 2 << 20  # each costs this process twice its size while it is stored
READY_TIMEOUT_S = 2.0
READY_FOR_S = 1.0  # so long an answer about readiness is given again


@serve.deployment(max_ongoing_requests=MANY, request_router_config=ROUTER)
@serve.ingress()
class Ingress:
    """HTTP and Python handles in, transcripts out. Owns the request, never touches samples."""

    def __init__(
        self,
        settings: Settings,
        loader: DeploymentHandle[Any],
        detector: DeploymentHandle[Any],
        transcriber: DeploymentHandle[Any],
        aligner: DeploymentHandle[Any],
        diarizer: DeploymentHandle[Any] | None,
    ) -> None:
        self._settings = settings
        self._handles = {
            "loader": loader,
            "speech": detector,
            "asr": transcriber,
            "alignment": aligner,
            **({"diarization": diarizer} if diarizer else {}),
        }
        self._in_flight = InFlight(settings.requests_in_flight)
        self._audio = AudioInFlight(settings.intake.audio_in_flight_s)
        self._asked: asyncio.Task[dict[str, bool]] | None = None
        self._asked_at_s = 0.0
        self._draining = False
        self._stages = Stages(
            load=_load_with(loader, self._audio),
            detect_speech=_booked(streamer(detector.options(stream=True).detect), self._audio),
            transcribe=caller(transcriber.transcribe),
            align=caller(aligner.align),
            diarize=caller(diarizer.diarize) if diarizer else None,
            model=settings.model,
            windows_in_flight=settings.windows_in_flight,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        app = create_app(
            self._run,
            self.readiness,
            model=self._settings.model,
            max_bytes=self._settings.intake.max_bytes,
            access=self._settings.access,
            receive_timeout_s=self._settings.intake.receive_timeout_s,
        )
        app.add_middleware(CountInFlight, in_flight=self._in_flight)
        return app

    async def transcribe(
        self, source: str | bytes, *, headers: dict[str, str] | None = None, **options: Any
    ) -> dict[str, Any]:
        """For Python handles: an audio URL or a file's bytes; headers, options and answer as over HTTP."""
        where, parsed = _source(source, headers), parse_options(options)
        with self._in_flight.one():
            return predict_response(await self._run(where, parsed), words=parsed.word_timestamps)

    async def stream(
        self, source: str | bytes, *, headers: dict[str, str] | None = None, **options: Any
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The same for `handle.options(stream=True)`: progress as windows are done, then the answer.

        Every item but the last has `windows_done`, `windows_found`, `all_found` and `segments`: those that
        have become final, in order, without speakers. The last one is the answer.
        """
        where, parsed = _source(source, headers), parse_options(options)
        with self._in_flight.one():
            async with followed(partial(self._run, where, parsed)) as news:
                while isinstance(item := await news.get(), Progress):
                    yield progress_response(item, words=parsed.word_timestamps)
                yield predict_response(item.result(), words=parsed.word_timestamps)

    async def readiness(self) -> dict[str, bool]:
        """Per stage, whether a replica with its models answers: one question at a time, however many ask."""
        now_s = monotonic()
        if self._asked is None or (self._asked.done() and now_s - self._asked_at_s >= READY_FOR_S):
            # In no request's context: Serve would end the calls with the request that happened to ask.
            self._asked = Context().run(asyncio.create_task, self._ask_stages())
            self._asked_at_s = now_s
        return await asyncio.shield(self._asked) | {"accepting": not self._draining}

    async def _ask_stages(self) -> dict[str, bool]:
        async def ready(handle: DeploymentHandle[Any]) -> bool:
            response: Any = handle.ready.remote()
            try:
                return bool(await asyncio.wait_for(awaited(response), READY_TIMEOUT_S))
            except Exception:  # noqa: BLE001  (whatever the reason, the stage is not ready)
                response.cancel()
                return False

        answers = await asyncio.gather(*(ready(handle) for handle in self._handles.values()))
        return dict(zip(self._handles, answers, strict=True))

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests with 503 and waits for the running ones; True when all have ended."""
        self._draining = True
        try:
            await asyncio.wait_for(self._in_flight.none.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def _run(self, source: Source, options: Options, report: Report = unheard) -> Transcript:
        if self._draining:
            raise Overloaded("The server is shutting down; try again.", None, "shutting_down")
        self._audio.refuse_when_full()
        limit_s = self._settings.request_timeout_s
        try:
            return await asyncio.wait_for(transcribe(self._stages, source, options, report), limit_s)
        except (AudioTooLong, AudioTooCostly) as error:  # a decoder worked on it all the same
            intake = self._settings.intake
            charge(intake.max_audio_s if isinstance(error, AudioTooLong) else intake.decode_timeout_s)
            raise
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"The request took longer than {limit_s:g} s; send a shorter file."
            ) from None


def _source(source: str | bytes, headers: dict[str, str] | None) -> Source:
    if isinstance(source, str):
        return Source(url=source, headers=headers or {})
    if isinstance(source, bytes | bytearray | memoryview) and not headers:
        return Source(file=io.BytesIO(source))
    raise InvalidRequest("source: give an http(s) URL, with headers or without, or a file's bytes.")


def _load_with(
    loader: DeploymentHandle[Any], held: AudioInFlight
) -> Callable[[Source], AbstractAsyncContextManager[AudioRef]]:
    """Starts loading and gives the reference at once; whoever uses it waits for the samples.

    The loader returns the audio, so this process owns the object and it outlives the loader.
    """

    @asynccontextmanager
    async def load(source: Source) -> AsyncIterator[AudioRef]:
        chunks = await asyncio.to_thread(_put_chunks, source.file) if source.file else []
        response: Any = loader.load.remote(source.url, source.headers, chunks)
        try:
            audio = await response._to_object_ref()
            try:
                yield [audio]
            finally:
                held.remove(audio)
        finally:
            response.cancel()  # nobody waits for it any more; to one that has ended this does nothing

    return load


def _booked(
    detect_speech: Callable[..., AsyncGenerator[Speech, None]], held: AudioInFlight
) -> Callable[..., Any]:
    """The first that is heard of a file says how long it is: then it is counted, and booked on its key."""

    async def parts(audio: AudioRef, request_id: str) -> AsyncGenerator[Speech, None]:
        async with aclosing(detect_speech(audio, request_id)) as found:
            async for part in found:
                held.add(audio[0], part.duration_s)
                charge(part.duration_s)
                yield part

    return parts


def _put_chunks(file: BinaryIO) -> list[Any]:
    """The upload in the object store, a piece at a time: it may go to a loader on another node."""
    file.seek(0)
    try:
        return [ray.put(chunk) for chunk in iter(lambda: file.read(UPLOAD_CHUNK_BYTES), b"")]
    except (ObjectStoreFullError, OutOfDiskError) as error:
        raise no_room() from error
