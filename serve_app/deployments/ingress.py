"""The ingress: HTTP and Python handles in, transcripts out."""

import asyncio
import io
import math
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import suppress
from contextvars import Context
from functools import partial
from time import monotonic
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app import proxy
from serve_app.audio import Source
from serve_app.deployments.calls.graph import Graph
from serve_app.deployments.calls.handles import has_replica, invoke, is_scaled_to_zero
from serve_app.deployments.calls.stage_calls import ASR
from serve_app.deployments.job_runner import reachable
from serve_app.deployments.metrics import IngressMetrics, log_errors_in_one_line
from serve_app.deployments.replica import OPTIONS
from serve_app.errors import InvalidRequest
from serve_app.http.app import create_app
from serve_app.http.asr_webservice.routes import language_answer
from serve_app.http.responses import answer, progress_response
from serve_app.http.without_text import (
    DIARIZATION_OPTIONS,
    LANGUAGE_OPTIONS,
    SPEECH_OPTIONS,
    WithoutText,
    parse_some,
    speakers_answer,
    speech_answer,
)
from serve_app.jobs.service import Jobs
from serve_app.languages import LANGUAGES
from serve_app.options import parse_options
from serve_app.request.progress import followed
from serve_app.settings import Settings
from serve_app.transcript import Progress

READY_TIMEOUT_S = 2.0
READY_MEMORY_S = 60.0  # how long a stage that is slow to answer stays ready, if it has a replica
READY_CACHE_S = 1.0  # how long an answer about readiness is given again


@serve.deployment(**OPTIONS)
@serve.ingress()
class Ingress:
    """HTTP and Python handles in, transcripts out. It owns the requests and never touches samples."""

    def __init__(
        self,
        settings: Settings,
        loader: DeploymentHandle[Any],
        detector: DeploymentHandle[Any],
        transcriber: DeploymentHandle[Any],
        aligner: DeploymentHandle[Any] | None,
        diarizer: DeploymentHandle[Any] | None,
        aligner_languages: Collection[str] = frozenset(LANGUAGES),
        job_runner: DeploymentHandle[Any] | None = None,
        *,
        other_transcribers: Mapping[str, DeploymentHandle[Any]] = MappingProxyType({}),
    ) -> None:
        log_errors_in_one_line()
        self._settings = settings
        stages = (loader, detector, transcriber, aligner, diarizer)
        graph = self._graph = Graph(
            settings,
            *stages,
            aligner_languages,
            other_transcribers=other_transcribers,
            limit_s=settings.request_timeout_s,
            kind="request",
        )
        self._metrics = IngressMetrics()
        self._run, self._admission, self._retries = graph.run, graph.admission, graph.retries
        self._detect_language = graph.detect_language
        self._without_text = WithoutText(graph.diarize, graph.detect_speech)
        self._handles = graph.handles
        self._job_runner = job_runner
        self._readiness: asyncio.Task[dict[str, bool]] | None = None
        self._asked_at_s = 0.0
        self._ready_at_s: dict[str, float] = {}  # stage -> when it last answered that it is ready

    def __serve_build_asgi_app__(self) -> FastAPI:
        intake, runner = self._settings.intake, self._job_runner
        has_speakers = "diarization" in self._handles
        models = self._graph.models
        jobs = Jobs(self._settings.jobs, intake, has_speakers=has_speakers, models=models) if runner else None
        return create_app(
            self._run,
            self.readiness,
            model=self._settings.model,
            other_models=models[1:],
            max_bytes=intake.max_bytes,
            max_json_bytes=intake.max_json_bytes,
            access=self._settings.access,
            openai=self._settings.openai,
            receive_timeout_s=intake.receive_timeout_s,
            admission=self._admission,
            on_error=self._metrics.refused,
            outermost=proxy.ingress_middlewares(),
            detect_language=self._detect_language,
            without_text=self._without_text,
            jobs=jobs,
            jobs_reachable=reachable(runner, jobs.store) if runner and jobs else None,
        )

    async def transcribe(
        self, source: str | bytes, *, headers: dict[str, str] | None = None, **options: Any
    ) -> dict[str, Any] | str:
        """For Python handles: an audio URL or a file's bytes; headers, options and answer as over HTTP.

        Gives a dict for json and words, a str for the formats that are text (which have no place for
        warnings). Raises TranscriptionError.
        """
        where, parsed = _source(source, headers), parse_options(options)
        with self._admission.admit():
            return await asyncio.to_thread(answer, await self._run(where, parsed), parsed)

    async def stream(
        self, source: str | bytes, *, headers: dict[str, str] | None = None, **options: Any
    ) -> AsyncGenerator[dict[str, Any] | str, None]:
        """The same for `handle.options(stream=True)`: progress as windows are done, then the answer.

        Every item but the last has `windows_done`, `windows_found`, `all_found` and `segments`: those that
        have become final, in order, without speakers unless channels are speakers. The last is the answer.
        """
        where, parsed = _source(source, headers), parse_options(options)
        with self._admission.admit():
            async with followed(partial(self._run, where, parsed)) as news:
                while isinstance(item := await news.get(), Progress):
                    yield progress_response(item, parsed)
                yield await asyncio.to_thread(answer, item.result(), parsed)

    async def detect_language(
        self, source: str | bytes, *, headers: dict[str, str] | None = None, **options: Any
    ) -> dict[str, Any]:
        """For Python handles: what `POST /detect-language` answers, of a URL or a file's bytes."""
        where, parsed = _source(source, headers), parse_some(("model", *LANGUAGE_OPTIONS), options, more=())
        with self._admission.admit():
            return {**language_answer(await self._detect_language(where, parsed))}

    async def diarize(
        self, source: str | bytes, *, headers: dict[str, str] | None = None, **options: Any
    ) -> dict[str, Any] | str:
        """For Python handles: what `POST /v1/audio/diarization` answers, a str for rttm."""
        where, parsed = _source(source, headers), parse_some(DIARIZATION_OPTIONS, options, more=())
        with self._admission.admit():
            found = await self._without_text.diarize(where, parsed)
            return await asyncio.to_thread(speakers_answer, found, parsed)

    async def detect_speech(
        self, source: str | bytes, *, headers: dict[str, str] | None = None, **options: Any
    ) -> list[dict[str, Any]]:
        """For Python handles: what `POST /v1/audio/speech/timestamps` answers."""
        where, parsed = _source(source, headers), parse_some(SPEECH_OPTIONS, options, more=())
        with self._admission.admit():
            found = await self._without_text.detect_speech(where, parsed)
            return [{**each} for each in await asyncio.to_thread(speech_answer, found)]

    async def check_health(self) -> None:
        """Sets the gauges. Serve calls this every few seconds."""
        self._metrics.holds(
            windows_waiting=self._graph.windows_waiting,
            requests_open=self._admission.open,
            audio_held_seconds=self._admission.held_s,
        )

    async def readiness(self) -> dict[str, bool]:
        """Per stage, whether a replica with its models answers: asked once for all who want to know."""
        now_s = monotonic()
        if self._readiness is None or (self._readiness.done() and now_s - self._asked_at_s >= READY_CACHE_S):
            # In no request's context: Serve would end the calls with the request that happened to ask.
            self._readiness = Context().run(asyncio.create_task, self._ask_stages())
            self._asked_at_s = now_s
        return await asyncio.shield(self._readiness) | {"accepting": not self._admission.is_draining}

    async def _ask_stages(self) -> dict[str, bool]:
        answers = await asyncio.gather(*(self._is_ready(*each) for each in self._handles.items()))
        return dict(zip(self._handles, answers, strict=True))

    async def _is_ready(self, stage: str, handle: DeploymentHandle[Any]) -> bool:
        # Stages that not every request needs may go to zero, where a question would start a replica.
        if stage.startswith(("diarization", f"{ASR}-")) and await is_scaled_to_zero(handle):
            return True
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                is_ready = bool(await invoke(handle.ready))
        except TimeoutError:  # it computes and does not hear, or there is no replica
            lately = monotonic() - self._ready_at_s.get(stage, -math.inf) < READY_MEMORY_S
            return lately and await has_replica(handle)
        except Exception:  # noqa: BLE001  (a stage whose call fails is not ready)
            self._ready_at_s.pop(stage, None)
            return False
        if is_ready:
            self._ready_at_s[stage] = monotonic()
        return is_ready

    async def retries(self) -> dict[str, int]:
        """What this replica has had done again, by "stage/cause"; operators have the metric of it."""
        return {"/".join(what): times for what, times in self._retries.counts.items()}

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests with 503, waits for the running ones and has running jobs given back.

        True when all have ended in time.
        """
        self._admission.is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(self._admission.idle.wait(), self._drain_jobs(timeout_s))
        except TimeoutError:
            return False
        return True

    async def _drain_jobs(self, timeout_s: float) -> None:
        """Has all JobRunners give their jobs back; one that cannot loses them when its leases run out."""
        if self._job_runner is None:
            return
        with suppress(Exception):  # the jobs of a runner that does not answer wait for the end of its lease
            await invoke(self._job_runner.ready)  # it waits until replicas are known, as a broadcast does not
            await self._job_runner.broadcast("drain", timeout_s).results_async(
                timeout_s=timeout_s, return_exceptions=True
            )


def _source(source: str | bytes, headers: dict[str, str] | None) -> Source:
    if isinstance(source, str):
        return Source(url=source, headers=headers or {})
    if isinstance(source, bytes | bytearray | memoryview) and not headers:
        return Source(file=io.BytesIO(source))
    raise InvalidRequest("source: give an http(s) URL, with headers or without, or a file's bytes.")
