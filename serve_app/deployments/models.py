"""The four deployments that hold a model: each a batcher in front of its device."""

from collections.abc import AsyncIterator, Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
from ray import serve

from serve_app.batching.batcher import Batcher
from serve_app.batching.turns import of_this_device
from serve_app.deployments.batch_config import AlignerConfig, TranscriberConfig
from serve_app.deployments.calls.handles import STAGE, AudioRef, audio_behind
from serve_app.deployments.metrics import Retries
from serve_app.deployments.protocols import AlignModel, Recognizer, SpeechModel
from serve_app.deployments.watchdog import Patience, Watch, by_halves
from serve_app.stages.asr.fallback import Fallback
from serve_app.transcript import (
    AlignRequest,
    AsrRequest,
    Decoding,
    Samples,
    Segment,
    Speech,
    Window,
    WindowText,
)

PATIENCE = Patience()
SCAN_EVERY_S = 2.0  # a search tells how far it is, also where there is no speech


def _padded_s(request: AsrRequest) -> float:
    return 30.0  # Whisper sees every window padded to so much


def _length_s(request: AlignRequest) -> float:
    return request.end_s - request.start_s


def _next_parts(scans: list[Iterator[tuple[Window, ...]]]) -> list[tuple[Window, ...] | None]:
    return [next(scan, None) for scan in scans]


@serve.deployment(**STAGE)
class SpeechDetector:
    """Samples to windows of speech. Files take turns, a second of work at a time."""

    def __init__(self, load: Callable[[], SpeechModel], patience: Patience = PATIENCE) -> None:
        self._model = load()
        self._watch = Watch(patience)
        run = by_halves(self._watch.over(_next_parts), "speech", Retries().note)
        self._batcher: Batcher[Iterator[tuple[Window, ...]], tuple[Window, ...] | None] = Batcher(
            run, max_batch_size=1, turns=of_this_device(), searches=True, name="speech"
        )

    async def detect(self, ref: AudioRef, scan: Any, request_id: str) -> AsyncIterator[Speech]:
        """Part after part, as soon as the windows in it are sure, or empty after a while without.

        The first one comes at once, empty. Every other one has what `scan` is to be in a call that goes on
        behind it: in this audio, or in more of it where it is only the beginning of a file. In a file's first
        call that is None.
        """
        audio = await audio_behind(ref)
        part = Speech((), audio.duration_s, expected_s=audio.expected_s, whole=audio.whole)
        yield replace(part, warnings=audio.warnings, timings=audio.timings, checksum=audio.checksum)
        if scan is None:
            scan = self._model.new_scan()
        steps = self._model.scan(audio, scan)
        said_s = monotonic()
        while (windows := await self._batcher.submit(steps, request_id, long=audio.is_long)) is not None:
            if windows or monotonic() - said_s > SCAN_EVERY_S:
                yield replace(part, windows=windows, scan=deepcopy(scan))  # which changes meanwhile
                said_s = monotonic()
        if not audio.whole:
            yield replace(part, scan=scan)

    async def check_health(self) -> None:
        self._watch.check()
        self._batcher.check()

    async def ready(self) -> bool:
        return True


@serve.deployment(**STAGE)
class Transcriber:
    """Windows of all requests to text, batched on one device."""

    def __init__(
        self,
        load: Callable[[], Recognizer],
        batch: TranscriberConfig,
        fallback: Fallback,
        patience: Patience = PATIENCE,
    ) -> None:
        self._model = load()
        self._fallback = fallback
        self._batch = batch
        self._watch = Watch(patience)
        self._batcher: Batcher[AsrRequest, WindowText] = Batcher(
            by_halves(self._watch.over(self._model.transcribe, _padded_s), "asr", Retries().note),
            max_batch_size=batch.max_batch_size,
            key=self._model.batch_key,
            audio_s=lambda request: request.length_s,
            lanes=self._model.lanes,
            newcomers_beside=True,
            turns=of_this_device(),
            name="asr",
        )
        self.reconfigure({})
        # Features of coming windows are computed while the device runs, requests taking turns here too.
        self._features: Batcher[Samples, npt.NDArray[np.float32]] = Batcher(
            self._watch.over(lambda items: [self._model.features(samples) for samples in items]),
            max_batch_size=1,
            name="features",
        )

    def reconfigure(self, config: dict[str, Any]) -> None:
        self._batch.apply(self._batcher, config)

    async def transcribe(
        self,
        ref: AudioRef,
        window: Window,
        language: str | None,
        decoding: Decoding,
        request_id: str,
        coming: int,
        alone: bool = False,
    ) -> WindowText:
        """A text that is not believed comes again as a new item, so its first batch waits for nobody.

        `coming` is how many other requests the caller has whose first window is still to come.
        """
        audio = await audio_behind(ref)
        features = await self._features.submit(window.cut(audio.samples), request_id)
        # All other windows of the file wait for its vote on the language, or its caller for the first text.
        urgent = language is None or not self._batcher.knows(request_id)
        submit = partial(self._batcher.submit, request_id=request_id, long=audio.is_long, alone=alone)
        attempts: list[WindowText] = []
        for temperature in self._fallback.schedule(decoding):
            how = replace(decoding, temperature=temperature)
            request = AsrRequest(features, language, how, window.end_s - window.start_s)
            text = await submit(request, urgent=urgent, coming=None if attempts else coming)
            attempts.append(text)
            if self._fallback.believes(text):
                break
            language = text.language
        return self._fallback.choose(attempts)

    async def counters(self) -> dict[str, float]:
        """Batches, items and times so far: what batch occupancy is computed from."""
        batcher = self._batcher
        return vars(batcher.counters) | {"queued": batcher.queued, "running": batcher.running}

    async def check_health(self) -> None:
        self._watch.check()
        self._batcher.check()
        self._features.check()

    async def ready(self) -> bool:
        return True


@serve.deployment(**STAGE)
class Aligner:
    """Windows with text to sentences with word times, windows of all requests in one language together."""

    def __init__(
        self, load: Callable[[], AlignModel], batch: AlignerConfig, patience: Patience = PATIENCE
    ) -> None:
        model = load()
        self._batch = batch
        self._watch = Watch(patience.with_model_load())
        self._batcher: Batcher[AlignRequest, tuple[Segment, ...]] = Batcher(
            by_halves(self._watch.over(model.align, _length_s), "alignment", Retries().note),
            max_batch_size=batch.max_batch_size,
            key=lambda request: request.language,
            audio_s=_length_s,
            turns=of_this_device(),
            name="align",
        )
        self.reconfigure({})

    def reconfigure(self, config: dict[str, Any]) -> None:
        self._batch.apply(self._batcher, config)

    async def align(
        self, ref: AudioRef, window: Window, text: WindowText, request_id: str, alone: bool = False
    ) -> tuple[Segment, ...]:
        audio = await audio_behind(ref)
        request = AlignRequest.for_window(audio.samples, window, text)
        return await self._batcher.submit(request, request_id, long=audio.is_long, alone=alone)

    async def counters(self) -> dict[str, float]:
        """Batches, items and times so far, as the Transcriber's."""
        return vars(self._batcher.counters).copy()

    async def check_health(self) -> None:
        self._watch.check()
        self._batcher.check()

    async def ready(self) -> bool:
        return True
