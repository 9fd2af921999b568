"""Where the stages run: six thin Ray Serve classes in the order of a request. No algorithms here.

Each model class gets a loader (a function of no arguments) and calls it in its constructor, so that
tests pass fake models and no process imports a model package that it does not need.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve.config import RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from serve_app.api import create_app
from serve_app.batching import Batcher
from serve_app.errors import DeadlineExceeded, InvalidRequest, Overloaded, TranscriptionError
from serve_app.pipeline import Source, Stages, transcribe
from serve_app.schemas import Options, parse_options, predict_response
from serve_app.settings import IntakeSettings, Settings
from serve_app.stages.decode import decode
from serve_app.stages.fetch import fetch
from serve_app.transcript import (
    AlignRequest,
    AsrRequest,
    Audio,
    Diarization,
    Samples,
    Segment,
    Speech,
    Task,
    Transcript,
    Window,
    WindowText,
)

AudioRef = list[Any]  # [ObjectRef of an Audio]: nested, so that Ray passes the reference on unresolved

UPLOAD_CHUNK_BYTES = 8 << 20
READY_TIMEOUT_S = 2.0

# A queue in front of a replica costs Serve's router back-off; ours is inside, so replicas take many
# calls, and where one is full after all the router looks again soon.
_MANY = 1024
_ROUTER = RequestRouterConfig.model_validate({"initial_backoff_s": 0.005, "max_backoff_s": 0.02})
_QUEUES_INSIDE: dict[str, Any] = {"max_ongoing_requests": _MANY, "request_router_config": _ROUTER}


class BatchConfig(BaseModel):
    """`user_config` of the batching deployments; changes at run time without a restart."""

    model_config = ConfigDict(extra="forbid")

    max_batch_size: int = Field(8, ge=1, le=256)
    wait_s: float = Field(0.0, ge=0, le=1)


class Recognizer(Protocol):
    def features(self, samples: Samples) -> npt.NDArray[np.float32]: ...
    def batch_key(self, request: AsrRequest) -> Any: ...
    def transcribe(self, requests: list[AsrRequest]) -> list[WindowText | TranscriptionError]: ...


class SpeechModel(Protocol):
    def detect(self, audio: Audio) -> Speech: ...


class AlignModel(Protocol):
    def align(self, requests: list[AlignRequest]) -> list[tuple[Segment, ...] | TranscriptionError]: ...


class DiarizeModel(Protocol):
    def diarize(
        self,
        samples: Samples,
        *,
        num_speakers: int | None,
        min_speakers: int | None,
        max_speakers: int | None,
    ) -> Diarization: ...


async def _audio(ref: AudioRef) -> Audio:
    """The audio behind a reference: zero-copy on one node, and read-only."""
    try:
        audio: Audio = await ref[0]
    except RayTaskError as error:
        raise _own(error) from None
    return audio


def _own(error: RayTaskError) -> BaseException:
    """The TranscriptionError that crossed replicas inside a RayTaskError, else the error itself."""
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and cause.cause is not None:
        cause = cause.cause
    return cause if isinstance(cause, TranscriptionError) else error


@serve.deployment(**_QUEUES_INSIDE)
class AudioLoader:
    """URL or upload to samples. CPU only; hostile bytes stay in its child processes."""

    def __init__(self, intake: IntakeSettings) -> None:
        self._intake = intake

    async def load(self, url: str | None, headers: dict[str, str], chunks: list[Any]) -> Audio:
        """Fetches the URL, or joins the upload's chunks (references to bytes), and decodes it."""
        begun_s = time.monotonic()
        with tempfile.TemporaryFile(prefix="audio-") as file:
            if url is not None:
                await fetch(url, headers, file, self._intake)
            for chunk in chunks:
                await asyncio.to_thread(file.write, await chunk)
            file.flush()
            fetched_s = time.monotonic()
            audio = await decode(
                file, max_audio_s=self._intake.max_audio_s, timeout_s=self._intake.decode_timeout_s
            )
        timings = {"fetch": fetched_s - begun_s, "decode": time.monotonic() - fetched_s}
        return replace(audio, timings=timings)

    async def ready(self) -> bool:
        return True


@serve.deployment(**_QUEUES_INSIDE)
class SpeechDetector:
    """Samples to windows of speech."""

    def __init__(self, load: Callable[[], SpeechModel]) -> None:
        model = load()
        self._batcher: Batcher[Audio, Speech] = Batcher(
            lambda items: [model.detect(item) for item in items], max_batch_size=1, name="speech"
        )

    async def detect(self, ref: AudioRef, request_id: str) -> Speech:
        audio = await _audio(ref)
        speech = await self._batcher.submit(audio, request_id)
        return replace(speech, warnings=audio.warnings, timings=audio.timings)

    async def ready(self) -> bool:
        return True


@serve.deployment(**_QUEUES_INSIDE)
class Transcriber:
    """Windows of all requests to text, batched on one device."""

    def __init__(self, load: Callable[[], Recognizer]) -> None:
        self._model = load()
        self._batcher: Batcher[AsrRequest, WindowText] = Batcher(
            self._model.transcribe, max_batch_size=8, key=self._model.batch_key, name="asr"
        )
        # Features of coming windows are computed while the device runs the present batch.
        self._features_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="features")

    def reconfigure(self, config: dict[str, Any]) -> None:
        _reconfigure(self._batcher, config)

    async def transcribe(
        self, ref: AudioRef, window: Window, language: str | None, task: Task, request_id: str
    ) -> WindowText:
        samples = window.cut((await _audio(ref)).samples)
        loop = asyncio.get_running_loop()
        features = await loop.run_in_executor(self._features_thread, self._model.features, samples)
        return await self._batcher.submit(AsrRequest(features, language, task), request_id)

    async def counters(self) -> dict[str, float]:
        """Batches, items and times so far: what batch occupancy is computed from."""
        return vars(self._batcher.counters).copy()

    async def ready(self) -> bool:
        return True


@serve.deployment(**_QUEUES_INSIDE)
class Aligner:
    """Windows with text to sentences with word times."""

    def __init__(self, load: Callable[[], AlignModel]) -> None:
        model = load()
        self._batcher: Batcher[AlignRequest, tuple[Segment, ...]] = Batcher(
            model.align, max_batch_size=1, key=lambda request: request.language, name="align"
        )

    def reconfigure(self, config: dict[str, Any]) -> None:
        _reconfigure(self._batcher, config)

    async def align(
        self, ref: AudioRef, window: Window, text: WindowText, request_id: str
    ) -> tuple[Segment, ...]:
        request = AlignRequest.for_window((await _audio(ref)).samples, window, text)
        return await self._batcher.submit(request, request_id)

    async def ready(self) -> bool:
        return True


@serve.deployment(**_QUEUES_INSIDE)
class Diarizer:
    """The whole file to speaker turns."""

    def __init__(self, load: Callable[[], DiarizeModel]) -> None:
        model = load()

        def run(items: list[tuple[Samples, Options]]) -> list[Diarization]:
            return [
                model.diarize(
                    samples,
                    num_speakers=options.num_speakers,
                    min_speakers=options.min_speakers,
                    max_speakers=options.max_speakers,
                )
                for samples, options in items
            ]

        self._batcher: Batcher[tuple[Samples, Options], Diarization] = Batcher(
            run, max_batch_size=1, name="diarize"
        )

    async def diarize(self, ref: AudioRef, options: Options, request_id: str) -> Diarization:
        return await self._batcher.submit(((await _audio(ref)).samples, options), request_id)

    async def ready(self) -> bool:
        return True


def _reconfigure(batcher: Batcher[Any, Any], config: dict[str, Any]) -> None:
    batch = BatchConfig.model_validate(config)
    batcher.max_batch_size, batcher.wait_s = batch.max_batch_size, batch.wait_s


@serve.deployment(max_ongoing_requests=_MANY, request_router_config=_ROUTER)
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
        self._running = 0
        self._idle = asyncio.Event()
        self._draining = False
        self._stages = Stages(
            load=_load_with(loader),
            detect_speech=_caller(detector.detect),
            transcribe=_caller(transcriber.transcribe),
            align=_caller(aligner.align),
            diarize=_caller(diarizer.diarize) if diarizer else None,
            model=settings.model,
            windows_in_flight=settings.windows_in_flight,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(self._run, self.readiness, max_bytes=self._settings.intake.max_bytes)

    async def transcribe(self, source: str | bytes, **options: Any) -> dict[str, Any]:
        """For Python handles: an audio URL or a file's bytes; options and answer as over HTTP."""
        parsed = parse_options(options)
        with tempfile.TemporaryFile() as file:
            if isinstance(source, str):
                transcript = await self._run(Source(url=source), parsed)
            elif isinstance(source, bytes | bytearray | memoryview):
                file.write(source)
                file.seek(0)
                transcript = await self._run(Source(file=file), parsed)
            else:
                raise InvalidRequest("source: give an http(s) URL or the bytes of a file.", "source")
        return predict_response(transcript, words=parsed.word_timestamps)

    async def readiness(self) -> dict[str, bool]:
        """Per stage, whether a replica with its models answers."""

        async def ready(handle: DeploymentHandle[Any]) -> bool:
            response: Any = handle.ready.remote()
            try:
                return bool(await asyncio.wait_for(_await(response), READY_TIMEOUT_S))
            except Exception:  # noqa: BLE001  (whatever the reason, the stage is not ready)
                response.cancel()
                return False

        answers = await asyncio.gather(*(ready(handle) for handle in self._handles.values()))
        return dict(zip(self._handles, answers, strict=True)) | {"accepting": not self._draining}

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests with 503 and waits for the running ones; True when all have ended."""
        self._draining = True
        try:
            while self._running:
                self._idle.clear()
                await asyncio.wait_for(self._idle.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def _run(self, source: Source, options: Options) -> Transcript:
        if self._draining:
            raise Overloaded("The server is shutting down; try again.", None, "shutting_down")
        self._running += 1
        limit_s = self._settings.request_timeout_s
        try:
            return await asyncio.wait_for(transcribe(self._stages, source, options), limit_s)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"The request took longer than {limit_s:g} s; send a shorter file."
            ) from None
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()


def _caller(method: Any) -> Callable[..., Any]:
    """A handle method as a plain async callable: raises our errors, and cancelling it cancels the call."""

    async def call(*args: Any) -> Any:
        response = method.remote(*args)
        try:
            return await _await(response)
        except asyncio.CancelledError:
            response.cancel()
            raise

    return call


async def _await(response: Any) -> Any:
    try:
        return await response
    except RayTaskError as error:
        raise _own(error) from None


def _load_with(loader: DeploymentHandle[Any]) -> Callable[[Source], Any]:
    """Starts loading and returns the reference at once; whoever uses it waits for the samples.

    The loader returns the audio, so this process owns the object and it outlives the loader.
    """

    async def load(source: Source) -> AudioRef:
        chunks = await asyncio.to_thread(_put_chunks, source.file) if source.file else []
        response: Any = loader.load.remote(source.url, source.headers, chunks)
        return [await response._to_object_ref()]

    return load


def _put_chunks(file: BinaryIO) -> list[Any]:
    """The upload in the object store, a piece at a time: it may go to a loader on another node."""
    file.seek(0)
    return [ray.put(chunk) for chunk in iter(lambda: file.read(UPLOAD_CHUNK_BYTES), b"")]
