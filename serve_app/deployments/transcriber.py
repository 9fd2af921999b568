"""The deployment that recognises: windows to text."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from ray import serve

from serve_app.deployments.replica import OPTIONS, BatchConfig, ModelReplica
from serve_app.deployments.watchdog import CallTimeout
from serve_app.errors import TranscriptionError
from serve_app.request.calls import TranscribeCall
from serve_app.stage_requests import AsrRequest
from serve_app.stages.asr.fallback import Fallback
from serve_app.transcript import Samples, Segment, Window, WindowText

PADDED_S = 30.0  # Whisper sees every window padded to this


class Recognizer(Protocol):
    """A model that recognises windows of equal `batch_key`; an error stands for a window that failed."""

    def features(self, samples: Samples) -> npt.NDArray[np.float32]: ...
    def batch_key(self, request: AsrRequest) -> Any: ...
    def transcribe(self, requests: list[AsrRequest]) -> list[WindowText | TranscriptionError]: ...
    def sentences(
        self, text: WindowText, window: Window, features: npt.NDArray[np.float32]
    ) -> tuple[Segment, ...]: ...


@serve.deployment(**OPTIONS)
class Transcriber(ModelReplica):
    """Windows of all requests to text, batched on one device."""

    def __init__(
        self,
        load: Callable[[], Recognizer],
        batch: BatchConfig,
        fallback: Fallback,
        timeout: CallTimeout = CallTimeout(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__("asr", timeout, batch)
        self._model = self._loaded(load)
        self._fallback = fallback
        self._windows = self._batcher(
            self._model.transcribe, lambda request: PADDED_S, key=self._model.batch_key
        )
        # Computed while the device runs, by the same rule of whose turn it is. A waiting window's features
        # take 1 MB; the Ingress bounds how many windows wait (`windows_in_flight`).
        self._features = self._batcher(
            lambda items: [self._model.features(samples) for samples in items], name="features"
        )

    async def transcribe(self, call: TranscribeCall) -> WindowText:
        """Recognises one window; a text that is not believable is decoded again at higher temperatures.

        Where the language alone is wanted, it is detected and nothing else.
        """
        samples = await call.audio.cut(call.window)
        features = await self._features.submit(samples, call.request_id, is_first=call.is_first)
        if call.only_language:
            request = AsrRequest(features, decoding=call.decoding, only_language=True)
            return await self._recognised(request, call)
        has_tokens = call.word_times or call.decoding.logprobs
        times_until_s = call.window.end_s - call.window.start_s if has_tokens else 0.0
        language, certain_at, attempts = call.language, call.certain_at, list[WindowText]()
        for temperature in self._fallback.schedule(call.decoding):
            decoding = replace(call.decoding, temperature=temperature)
            request = AsrRequest(features, language, decoding, certain_at, times_until_s)
            text = await self._recognised(request, call)
            attempts.append(text)
            if self._fallback.is_believable(text):
                break
            language, certain_at = text.language, None
        self._metrics.recognized(len(attempts))
        best = self._fallback.best_attempt(attempts)
        tokens = best.tokens if best.text.strip() else ()
        found: tuple[Segment, ...] = ()
        if tokens and call.word_times:
            found = await asyncio.to_thread(self._model.sentences, best, call.window, features)
        return replace(best, tokens=tokens if call.decoding.logprobs else (), sentences=found)

    async def _recognised(self, request: AsrRequest, call: TranscribeCall) -> WindowText:
        text: WindowText = await self._windows.submit(
            request, call.request_id, is_first=call.is_first, runs_alone=call.runs_alone
        )
        return text
