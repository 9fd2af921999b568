"""The ingress: HTTP and Python handles in, transcripts out."""

import asyncio
import io
import math
from collections.abc import AsyncGenerator, Collection
from contextvars import Context
from functools import partial
from time import monotonic
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app import proxy
from serve_app.deployments.calls.handles import has_replica, invoke
from serve_app.deployments.calls.stage_calls import StageCalls
from serve_app.deployments.metrics import Retries, log_errors_in_one_line
from serve_app.deployments.replica import OPTIONS
from serve_app.errors import AudioTooCostly, AudioTooLong, DeadlineExceeded, InvalidRequest
from serve_app.http.app import create_app
from serve_app.http.auth import charge
from serve_app.http.responses import answer, progress_response
from serve_app.languages import LANGUAGES
from serve_app.options import Options, parse_options
from serve_app.request.admission import Admission, WindowGate
from serve_app.request.calls import Stages
from serve_app.request.pipeline import transcribe
from serve_app.request.progress import Report, followed, ignore_progress
from serve_app.settings import Settings
from serve_app.transcript import Progress, Source, Transcript

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
    ) -> None:
        log_errors_in_one_line()
        self._settings = settings
        self._retries = Retries()
        self._handles = {"loader": loader, "speech": detector, "asr": transcriber}
        self._handles |= {"alignment": aligner} if aligner else {}
        self._handles |= {"diarization": diarizer} if diarizer else {}
        self._admission = Admission(settings.requests_in_flight, settings.intake.audio_in_flight_s)
        calls = StageCalls(
            loader,
            detector,
            transcriber,
            aligner,
            diarizer,
            admission=self._admission,
            max_audio_s=settings.intake.max_audio_s,
            retries=self._retries,
        )
        self._stages = Stages(
            load=calls.load,
            detect=calls.detect,
            transcribe=calls.transcribe,
            align=calls.align if aligner else None,
            diarize=calls.diarize if diarizer else None,
            model=settings.model,
            window_gate=WindowGate(settings.windows_in_flight),
            aligner_languages=aligner_languages,
            attention=settings.alignment.method in ("auto", "attention"),
        )
        self._readiness: asyncio.Task[dict[str, bool]] | None = None
        self._asked_at_s = 0.0
        self._ready_at_s: dict[str, float] = {}  # stage -> when it last answered that it is ready

    def __serve_build_asgi_app__(self) -> FastAPI:
        intake = self._settings.intake
        return create_app(
            self._run,
            self.readiness,
            model=self._settings.model,
            max_bytes=intake.max_bytes,
            max_json_bytes=intake.max_json_bytes,
            access=self._settings.access,
            receive_timeout_s=intake.receive_timeout_s,
            admission=self._admission,
            outermost=proxy.ingress_middlewares(),
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
        have become final, in order, without speakers. The last one is the answer.
        """
        where, parsed = _source(source, headers), parse_options(options)
        with self._admission.admit():
            async with followed(partial(self._run, where, parsed)) as news:
                while isinstance(item := await news.get(), Progress):
                    yield progress_response(item, parsed)
                yield await asyncio.to_thread(answer, item.result(), parsed)

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
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                is_ready = bool(await invoke(handle.ready))
        except TimeoutError:  # it computes and does not hear, or there is no replica
            lately = monotonic() - self._ready_at_s.get(stage, -math.inf) < READY_MEMORY_S
            return lately and await has_replica(handle)
        except Exception:  # noqa: BLE001  (whatever the reason, the stage is not ready)
            self._ready_at_s.pop(stage, None)
            return False
        if is_ready:
            self._ready_at_s[stage] = monotonic()
        return is_ready

    async def retries(self) -> dict[str, int]:
        """What this replica has had done again, by "stage/cause"; operators have the metric of it."""
        return {"/".join(what): times for what, times in self._retries.counts.items()}

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests with 503 and waits for the running ones; True when all have ended."""
        self._admission.is_draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._admission.idle.wait()
        except TimeoutError:
            return False
        return True

    async def _run(self, source: Source, options: Options, report: Report = ignore_progress) -> Transcript:
        self._admission.refuse_new()  # receiving its body may have taken a while
        limit_s = self._settings.request_timeout_s
        begun_s = monotonic()
        try:
            async with asyncio.timeout(limit_s) as limit:
                transcript = await transcribe(self._stages, source, options, report, limit_s)
        except (AudioTooLong, AudioTooCostly) as error:  # a decoder worked on it all the same
            intake = self._settings.intake
            charge(intake.max_audio_s if isinstance(error, AudioTooLong) else intake.decode_timeout_s)
            raise
        except TimeoutError:
            if not limit.expired():
                raise  # of something inside, and no matter of the request's length
            message = f"The request took longer than {limit_s:g} s; send a shorter file."
            raise DeadlineExceeded(message) from None
        self._admission.finished(monotonic() - begun_s)
        return transcript


def _source(source: str | bytes, headers: dict[str, str] | None) -> Source:
    if isinstance(source, str):
        return Source(url=source, headers=headers or {})
    if isinstance(source, bytes | bytearray | memoryview) and not headers:
        return Source(file=io.BytesIO(source))
    raise InvalidRequest("source: give an http(s) URL, with headers or without, or a file's bytes.")
