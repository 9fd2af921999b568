"""The deployment that aligns: windows with text to sentences with word times."""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from pydantic import Field
from ray import serve

from serve_app.deployments.replica import OPTIONS, BatchConfig, ModelReplica
from serve_app.deployments.watchdog import CallTimeout
from serve_app.errors import TranscriptionError
from serve_app.request.calls import AlignCall
from serve_app.stage_requests import AlignRequest
from serve_app.transcript import Segment


class AlignModel(Protocol):
    """A model that aligns windows of one language; an error stands for one that failed."""

    def align(self, requests: list[AlignRequest]) -> list[tuple[Segment, ...] | TranscriptionError]: ...


class AlignerConfig(BatchConfig):
    """`user_config` of the Aligner, whose windows take time by their length."""

    max_batch_audio_s: float | None = Field(None, gt=0)  # a longer window still goes, alone


@serve.deployment(**OPTIONS)
class Aligner(ModelReplica):
    """Windows of all requests to word times, windows of one language together."""

    def __init__(
        self,
        load: Callable[[], AlignModel],
        batch: AlignerConfig,
        timeout: CallTimeout = CallTimeout(),  # noqa: B008  (frozen)
    ) -> None:
        super().__init__("alignment", timeout.with_model_load(), batch)
        self._windows = self._batcher(
            self._loaded(load).align,
            lambda request: request.end_s - request.start_s,
            key=lambda request: request.language,
        )

    async def align(self, call: AlignCall) -> tuple[Segment, ...]:
        """Finds the word times of one window."""
        samples = await call.audio.samples()
        request = AlignRequest.for_window(samples, call.window, call.text, call.audio.start_s)
        request = replace(request, has_chars=call.has_chars)
        segments: tuple[Segment, ...] = await self._windows.submit(
            request, call.request_id, is_first=call.is_first, runs_alone=call.runs_alone
        )
        return segments
