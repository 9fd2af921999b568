"""The four deployments that hold a model: each a batcher in front of one device thread."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from ray import serve

from serve_app.batching import Batcher
from serve_app.deployments.handles import QUEUES_INSIDE, AudioRef, audio_behind
from serve_app.errors import TranscriptionError
from serve_app.known_speakers import reference_samples
from serve_app.options import Options
from serve_app.transcript import (
    AlignRequest,
    AsrRequest,
    Audio,
    Decoding,
    Diarization,
    KnownSpeaker,
    Samples,
    Segment,
    Speech,
    Window,
    WindowText,
)


class BatchConfig(BaseModel):
    """`user_config` of the Transcriber; changes at run time. What it leaves out stays as bound."""

    model_config = ConfigDict(extra="forbid")

    max_batch_size: int = Field(8, ge=1, le=256)
    wait_s: float = Field(0.0, ge=0, le=1)

    def apply(self, batcher: Batcher[Any, Any], changes: dict[str, Any]) -> None:
        """Sets the batcher to this with `changes`; raises ValidationError for what is no setting."""
        changed = self.model_validate(self.model_dump() | changes)
        for name, value in changed:
            setattr(batcher, name, value)


class AlignerConfig(BatchConfig):
    """`user_config` of the Aligner, whose windows take time by their length."""

    max_batch_s: float | None = Field(None, gt=0)  # of audio; a longer window still goes, alone


class Recognizer(Protocol):
    def features(self, samples: Samples) -> npt.NDArray[np.float32]: ...
    def batch_key(self, request: AsrRequest) -> Any: ...
    def transcribe(self, requests: list[AsrRequest]) -> list[WindowText | TranscriptionError]: ...


class SpeechModel(Protocol):
    def scan(self, audio: Audio) -> Iterator[tuple[Window, ...]]: ...


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
        known: tuple[KnownSpeaker, ...],
    ) -> Diarization: ...


@serve.deployment(**QUEUES_INSIDE)
class SpeechDetector:
    """Samples to windows of speech. Files take turns, a second of work at a time."""

    def __init__(self, load: Callable[[], SpeechModel]) -> None:
        self._model = load()
        self._batcher: Batcher[Iterator[tuple[Window, ...]], tuple[Window, ...] | None] = Batcher(
            lambda scans: [next(scan, None) for scan in scans], max_batch_size=1, name="speech"
        )

    async def detect(self, ref: AudioRef, request_id: str) -> AsyncIterator[Speech]:
        """Part after part, as soon as the windows in it are sure; the first one comes at once, empty."""
        audio = await audio_behind(ref)
        yield Speech((), audio.duration_s, audio.warnings, audio.timings)
        scan = self._model.scan(audio)
        while (windows := await self._batcher.submit(scan, request_id)) is not None:
            if windows:
                yield Speech(windows, audio.duration_s)

    async def ready(self) -> bool:
        return True


@serve.deployment(**QUEUES_INSIDE)
class Transcriber:
    """Windows of all requests to text, batched on one device."""

    def __init__(self, load: Callable[[], Recognizer], batch: BatchConfig) -> None:
        self._model = load()
        self._batch = batch
        self._batcher: Batcher[AsrRequest, WindowText] = Batcher(
            self._model.transcribe,
            max_batch_size=batch.max_batch_size,
            key=self._model.batch_key,
            lanes=2,
            name="asr",
        )
        self.reconfigure({})
        # Features of coming windows are computed while the device runs, requests taking turns here too.
        self._features: Batcher[Samples, npt.NDArray[np.float32]] = Batcher(
            lambda items: [self._model.features(samples) for samples in items],
            max_batch_size=1,
            name="features",
        )

    def reconfigure(self, config: dict[str, Any]) -> None:
        self._batch.apply(self._batcher, config)

    async def transcribe(
        self, ref: AudioRef, window: Window, language: str | None, decoding: Decoding, request_id: str
    ) -> WindowText:
        samples = window.cut((await audio_behind(ref)).samples)
        features = await self._features.submit(samples, request_id)
        return await self._batcher.submit(AsrRequest(features, language, decoding), request_id)

    async def counters(self) -> dict[str, float]:
        """Batches, items and times so far: what batch occupancy is computed from."""
        batcher = self._batcher
        return vars(batcher.counters) | {"queued": batcher.queued, "running": batcher.running}

    async def ready(self) -> bool:
        return True


@serve.deployment(**QUEUES_INSIDE)
class Aligner:
    """Windows with text to sentences with word times, windows of all requests in one language together."""

    def __init__(self, load: Callable[[], AlignModel], batch: AlignerConfig) -> None:
        model = load()
        self._batch = batch
        self._batcher: Batcher[AlignRequest, tuple[Segment, ...]] = Batcher(
            model.align,
            max_batch_size=batch.max_batch_size,
            key=lambda request: request.language,
            audio_s=lambda request: request.end_s - request.start_s,
            name="align",
        )
        self.reconfigure({})

    def reconfigure(self, config: dict[str, Any]) -> None:
        self._batch.apply(self._batcher, config)

    async def align(
        self, ref: AudioRef, window: Window, text: WindowText, request_id: str
    ) -> tuple[Segment, ...]:
        request = AlignRequest.for_window((await audio_behind(ref)).samples, window, text)
        return await self._batcher.submit(request, request_id)

    async def counters(self) -> dict[str, float]:
        """Batches, items and times so far, as the Transcriber's."""
        return vars(self._batcher.counters).copy()

    async def ready(self) -> bool:
        return True


@serve.deployment(**QUEUES_INSIDE)
class Diarizer:
    """The whole file to speaker turns."""

    def __init__(self, load: Callable[[], DiarizeModel]) -> None:
        model = load()

        def run(
            items: list[tuple[Samples, Options, tuple[KnownSpeaker, ...]]],
        ) -> list[Diarization]:
            return [
                model.diarize(
                    samples,
                    num_speakers=options.num_speakers,
                    min_speakers=options.min_speakers,
                    max_speakers=options.max_speakers,
                    known=known,
                )
                for samples, options, known in items
            ]

        self._batcher: Batcher[tuple[Samples, Options, tuple[KnownSpeaker, ...]], Diarization] = Batcher(
            run, max_batch_size=1, name="diarize"
        )

    async def diarize(
        self, ref: AudioRef, options: Options, request_id: str, known: tuple[KnownSpeaker, ...] = ()
    ) -> Diarization:
        """The clips of `known` are references to audio; what is wrong with one is raised first."""
        clips = [
            await reference_samples(audio_behind(speaker.clip), number)
            for number, speaker in enumerate(known)
        ]
        decoded = tuple(replace(speaker, clip=clip) for speaker, clip in zip(known, clips, strict=True))
        return await self._batcher.submit(((await audio_behind(ref)).samples, options, decoded), request_id)

    async def ready(self) -> bool:
        return True
