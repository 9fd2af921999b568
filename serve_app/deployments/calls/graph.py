"""The graph as one replica has requests run on it."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from time import monotonic
from typing import Any, TypeVar

from ray.serve.handle import DeploymentHandle

from serve_app.audio import Source
from serve_app.deployments.calls.stage_calls import ASR, Stage, StageCalls
from serve_app.deployments.metrics import RequestMetrics, Retries
from serve_app.errors import AudioTooCostly, AudioTooLong, DeadlineExceeded
from serve_app.options import Options
from serve_app.request.admission import Admission, WindowGate
from serve_app.request.calls import OtherModel, Stages
from serve_app.request.pipeline import transcribe
from serve_app.request.progress import Report, ignore_progress
from serve_app.request.quotas import charge
from serve_app.request.without_text import (
    DetectedLanguage,
    DetectedSpeech,
    detect_language,
    detect_speech,
    diarize,
)
from serve_app.settings import Settings
from serve_app.tracing import tracer
from serve_app.transcript import Transcript, WindowText

Result = TypeVar("Result")


class Graph:
    """The stages, and how much this replica takes on at once."""

    def __init__(
        self,
        settings: Settings,
        loader: DeploymentHandle[Any],
        detector: DeploymentHandle[Any],
        transcriber: DeploymentHandle[Any],
        aligner: DeploymentHandle[Any] | None,
        diarizer: DeploymentHandle[Any] | None,
        aligner_languages: Collection[str],
        *,
        other_transcribers: Mapping[str, DeploymentHandle[Any]],
        limit_s: float,
        kind: str,
    ) -> None:
        self._settings, self._limit_s, self._kind = settings, limit_s, kind
        self.handles = {"loader": loader, "speech": detector, ASR: transcriber}
        self.handles |= {f"{ASR}-{name}": handle for name, handle in other_transcribers.items()}
        self.handles |= {"alignment": aligner} if aligner else {}
        self.handles |= {"diarization": diarizer} if diarizer else {}
        self.retries = Retries()
        self._metrics = RequestMetrics(kind)
        gate = WindowGate(settings.windows_in_flight)
        others = {
            name: OtherModel(
                Stage[WindowText](f"{ASR}-{name}", handle.transcribe, self.retries).call_for_window,
                WindowGate(settings.windows_in_flight),
            )
            for name, handle in other_transcribers.items()
        }
        self._gates = [gate, *(each.window_gate for each in others.values())]
        self.admission = Admission(settings.requests_in_flight, settings.intake.audio_in_flight_s)
        calls = StageCalls(
            loader,
            detector,
            transcriber,
            aligner,
            diarizer,
            admission=self.admission,
            max_audio_s=settings.intake.max_audio_s,
            retries=self.retries,
            metrics=self._metrics,
        )
        self._stages = Stages(
            load=calls.load,
            detect=calls.detect,
            transcribe=calls.transcribe,
            align=calls.align if aligner else None,
            diarize=calls.diarize if diarizer else None,
            model=settings.model,
            window_gate=gate,
            aligner_languages=aligner_languages,
            attention=settings.alignment.method in ("auto", "attention"),
            other_models=others,
        )

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models that recognise, the configured one first."""
        return self._stages.models

    @property
    def windows_waiting(self) -> int:
        """How many windows wait until `windows_in_flight` lets them in."""
        return sum(gate.waiting for gate in self._gates)

    async def run(self, source: Source, options: Options, report: Report = ignore_progress) -> Transcript:
        """Runs a request to its end or its deadline. Raises TranscriptionError."""
        begun_s = monotonic()
        work = partial(transcribe, self._stages, source, options, report, self._limit_s)
        transcript = await self._run_observed("transcribe", work)
        self.admission.finished(monotonic() - begun_s)
        self._metrics.transcribed(transcript, monotonic() - begun_s)
        return transcript

    async def detect_language(self, source: Source, options: Options) -> DetectedLanguage:
        """The language of the speech in a file. Raises TranscriptionError."""
        work = partial(detect_language, self._stages, source, options)
        return await self._run_observed("detect language", work)

    async def diarize(self, source: Source, options: Options) -> Transcript:
        """Who speaks when in a file, without its text. Raises TranscriptionError."""
        work = partial(diarize, self._stages, source, options)
        return await self._run_observed("diarize", work)

    async def detect_speech(self, source: Source, options: Options) -> DetectedSpeech:
        """Where speech is in a file. Raises TranscriptionError."""
        return await self._run_observed(
            "detect speech", partial(detect_speech, self._stages, source, options)
        )

    async def _run_observed(self, what: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """Does the work in time, with a span, and counts how it ended."""
        try:
            with tracer.start_as_current_span(f"{what} {self._kind}"):  # a job has no other span above
                result = await self._in_time(work)
        except BaseException as error:
            self._metrics.failed(error)
            raise
        self._metrics.succeeded()
        return result

    async def _in_time(self, work: Callable[[], Awaitable[Result]]) -> Result:
        self.admission.refuse_new()  # receiving its body may have taken a while
        limit_s = self._limit_s
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await work()
        except (AudioTooLong, AudioTooCostly) as error:  # a decoder worked on it all the same
            intake = self._settings.intake
            charge(intake.max_audio_s if isinstance(error, AudioTooLong) else intake.decode_timeout_s)
            raise
        except TimeoutError:
            if not limit.expired():
                raise  # of something inside, and no matter of the request's length
            message = f"The request took longer than {limit_s:g} s; send a shorter file."
            raise DeadlineExceeded(message) from None
