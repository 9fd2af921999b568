"""The deployment that finds speech: samples to windows."""

from collections.abc import Callable
from typing import Protocol

from ray import serve

from serve_app.deployments.replica import OPTIONS, ModelReplica
from serve_app.deployments.watchdog import CallTimeout
from serve_app.errors import TranscriptionError
from serve_app.request.calls import DetectCall
from serve_app.stage_requests import SpeechRequest
from serve_app.transcript import SAMPLE_RATE_HZ, Speech


class SpeechModel(Protocol):
    """A model that searches stretches of files; an error stands for one that failed."""

    def find_speech(self, requests: list[SpeechRequest]) -> list[Speech | TranscriptionError]: ...


def _length_s(request: SpeechRequest) -> float:
    return len(request.samples) / SAMPLE_RATE_HZ


@serve.deployment(**OPTIONS)
class SpeechDetector(ModelReplica):
    """Parts of files to windows of speech. Files take turns, one part (30 s) each."""

    def __init__(
        self,
        load: Callable[[], SpeechModel],
        timeout: CallTimeout = CallTimeout(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__("speech", timeout)
        self._parts = self._batcher(self._loaded(load).find_speech, _length_s)

    async def detect(self, call: DetectCall) -> Speech:
        """Finds the windows that the part completes."""
        samples = await call.audio.samples()
        scan = call.before.scan if call.before else None
        request = SpeechRequest(samples, call.audio.start_s, call.part.is_last, scan, call.search)
        found: Speech = await self._parts.submit(
            request, call.request_id, is_first=call.before is None, runs_alone=call.runs_alone
        )
        return found
