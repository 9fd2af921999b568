"""The ingress: HTTP and Python handles in, transcripts out."""

import asyncio
import io
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from contextvars import Context
from functools import partial
from time import monotonic
from typing import Any

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.deadline import timeout
from serve_app.deployments.calls.audio_ref import LoadedAudio, loading_with
from serve_app.deployments.calls.handles import HEALTH, MANY, ROUTER, awaited, caller, has_replica, streamer
from serve_app.deployments.calls.retries import lasting, resuming, with_clips
from serve_app.deployments.calls.spare import START_S, or_on_cpu
from serve_app.deployments.metrics import Retries
from serve_app.deployments.watchdog import Patience
from serve_app.errors import AudioTooCostly, AudioTooLong, DeadlineExceeded, InvalidRequest
from serve_app.http.app import create_app
from serve_app.http.quotas import charge
from serve_app.http.schemas import answer, progress_response
from serve_app.options import Options, parse_options
from serve_app.request.admission import Admission
from serve_app.request.pipeline import Stages, transcribe, unheard
from serve_app.request.progress import Report, followed
from serve_app.request.window_gate import WindowGate
from serve_app.settings import Settings
from serve_app.transcript import Progress, Source, Speech, Transcript

READY_TIMEOUT_S = 2.0
READY_LATELY_S = 60.0  # so long a stage that is slow to answer stays ready, if it has a replica
READY_FOR_S = 1.0  # so long an answer about readiness is given again
COMING_S = 3.0  # after its body, a request that will be recognised soon has been decoded and searched

Coming = dict[int, float]  # requests whose first window is still to come, by id of the source: since when


@serve.deployment(max_ongoing_requests=MANY, request_router_config=ROUTER, **HEALTH)
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
        patience: Patience = Patience(),  # noqa: B008  (frozen)
        spare: tuple[Any, Any, Any, Patience] | None = None,
    ) -> None:
        """`spare` is what stands in while a GPU is full: transcriber, aligner, diarizer, their patience."""
        self._settings = settings
        self._retries = Retries()
        self._handles = {
            "loader": loader,
            "speech": detector,
            "asr": transcriber,
            "alignment": aligner,
            **({"diarization": diarizer} if diarizer else {}),
        }
        self._admission = Admission(
            settings.requests_in_flight,
            settings.intake.audio_in_flight_s,
            within_s=settings.request_timeout_s,
        )
        self._asked: asyncio.Task[dict[str, bool]] | None = None
        self._asked_at_s = 0.0
        self._ready_at_s: dict[str, float] = {}  # stage -> when it last said so
        transcribe_window, align, diarize = self._calls(transcriber, aligner, diarizer, patience)
        if spare:
            start_s = min(START_S, settings.request_timeout_s / 4)
            on_gpu = (transcribe_window, align, diarize)
            twice = zip(("asr", "alignment", "diarization"), on_gpu, self._calls(*spare), spare, strict=False)
            transcribe_window, align, diarize = (
                gpu and or_on_cpu(stage, gpu, cpu, partial(has_replica, handle), self._retries, start_s)
                for stage, gpu, cpu, handle in twice
            )
        self._coming: Coming = {}
        self._stages = Stages(
            load=loading_with(loader, self._admission, self._retries),
            detect_speech=_booked(
                resuming("speech", streamer(detector.options(stream=True).detect), self._retries),
                self._admission,
                settings.intake.max_audio_s,
                self._coming,
            ),
            transcribe=_announcing(transcribe_window, self._coming),
            align=align,
            diarize=diarize,
            model=settings.model,
            window_gate=WindowGate(settings.windows_in_flight),
        )

    def _calls(
        self, transcriber: Any, aligner: Any, diarizer: Any, patience: Patience
    ) -> tuple[Any, Any, Any]:
        """What asr, alignment and diarization (or None) are for the pipeline."""
        return (
            lasting("asr", caller(transcriber.transcribe), self._retries, patience),
            lasting("alignment", caller(aligner.align), self._retries, patience.with_model_load()),
            lasting("diarization", with_clips(caller(diarizer.diarize)), self._retries) if diarizer else None,
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(
            self._run,
            self.readiness,
            model=self._settings.model,
            max_bytes=self._settings.intake.max_bytes,
            access=self._settings.access,
            receive_timeout_s=self._settings.intake.receive_timeout_s,
            admission=self._admission,
            behind_serve=True,
        )

    async def transcribe(
        self, source: str | bytes, *, headers: dict[str, str] | None = None, **options: Any
    ) -> dict[str, Any] | str:
        """For Python handles: an audio URL or a file's bytes; headers, options and answer as over HTTP.

        A dict for json and words, a str for the formats that are text (which have no place for warnings).
        """
        where, parsed = _source(source, headers), parse_options(options)
        with self._admission.one():
            transcript = await self._run(where, parsed)
            return await asyncio.to_thread(answer, transcript, parsed)

    async def stream(
        self, source: str | bytes, *, headers: dict[str, str] | None = None, **options: Any
    ) -> AsyncGenerator[dict[str, Any] | str, None]:
        """The same for `handle.options(stream=True)`: progress as windows are done, then the answer.

        Every item but the last has `windows_done`, `windows_found`, `all_found` and `segments`: those that
        have become final, in order, without speakers. The last one is the answer.
        """
        where, parsed = _source(source, headers), parse_options(options)
        with self._admission.one():
            async with followed(partial(self._run, where, parsed)) as news:
                while isinstance(item := await news.get(), Progress):
                    yield progress_response(item, parsed)
                yield await asyncio.to_thread(answer, item.result(), parsed)

    async def readiness(self) -> dict[str, bool]:
        """Per stage, whether a replica with its models answers: one question at a time, however many ask."""
        now_s = monotonic()
        if self._asked is None or (self._asked.done() and now_s - self._asked_at_s >= READY_FOR_S):
            # In no request's context: Serve would end the calls with the request that happened to ask.
            self._asked = Context().run(asyncio.create_task, self._ask_stages())
            self._asked_at_s = now_s
        return await asyncio.shield(self._asked) | {"accepting": not self._admission.draining}

    async def _ask_stages(self) -> dict[str, bool]:
        async def ready(stage: str, handle: DeploymentHandle[Any]) -> bool:
            response: Any = handle.ready.remote()
            try:
                async with timeout(READY_TIMEOUT_S):
                    answer = bool(await awaited(response))
            except asyncio.TimeoutError:  # it computes and hears nothing, or there is no replica
                response.cancel()
                lately = monotonic() - self._ready_at_s.get(stage, -math.inf) < READY_LATELY_S
                return lately and await has_replica(handle)
            except Exception:  # noqa: BLE001  (whatever the reason, the stage is not ready)
                self._ready_at_s.pop(stage, None)
                return False
            if answer:
                self._ready_at_s[stage] = monotonic()
            return answer

        answers = await asyncio.gather(*(ready(*each) for each in self._handles.items()))
        return dict(zip(self._handles, answers, strict=True))

    async def retries(self) -> dict[str, int]:
        """What this replica has had done again, by "stage/cause"; operators have the metric of it."""
        return {"/".join(what): times for what, times in self._retries.counts.items()}

    async def drain(self, timeout_s: float) -> bool:
        """Refuses new requests with 503 and waits for the running ones; True when all have ended."""
        self._admission.draining = True
        try:
            async with timeout(timeout_s):
                await self._admission.none.wait()
        except asyncio.TimeoutError:
            return False
        return True

    async def _run(self, source: Source, options: Options, report: Report = unheard) -> Transcript:
        self._admission.refuse_new()  # its body may have taken a while
        limit_s = self._settings.request_timeout_s
        self._coming[id(source)] = monotonic()
        try:
            async with timeout(limit_s):
                transcript = await transcribe(self._stages, source, options, report, limit_s)
        except (AudioTooLong, AudioTooCostly) as error:  # a decoder worked on it all the same
            intake = self._settings.intake
            charge(intake.max_audio_s if isinstance(error, AudioTooLong) else intake.decode_timeout_s)
            raise
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"The request took longer than {limit_s:g} s; send a shorter file."
            ) from None
        finally:
            self._coming.pop(id(source), None)
        self._admission.finished(transcript.duration_s)
        return transcript


def _source(source: str | bytes, headers: dict[str, str] | None) -> Source:
    if isinstance(source, str):
        return Source(url=source, headers=headers or {})
    if isinstance(source, bytes | bytearray | memoryview) and not headers:
        return Source(file=io.BytesIO(source))
    raise InvalidRequest("source: give an http(s) URL, with headers or without, or a file's bytes.")


def _announcing(transcribe: Callable[..., Any], coming: Coming) -> Callable[..., Any]:
    """`transcribe` that tells its device how many others will want it soon, which the slow ones will not."""

    async def call(*args: Any) -> Any:
        since_s = monotonic() - COMING_S
        return await transcribe(*args, sum(begun_s > since_s for begun_s in coming.values()))

    return call


def _booked(
    detect_speech: Callable[..., Any], held: Admission, most_s: float, coming: Coming
) -> Callable[..., Any]:
    """What is heard of a file says how long it is: so long it counts, and is booked on its key.

    While it is being decoded it counts for as long as it says it is, but for `most_s` at most: whoever comes
    meanwhile is to find the room taken. With its first window it is no longer `coming`.
    """

    async def parts(audio: LoadedAudio, request_id: str) -> AsyncGenerator[Speech, None]:
        async with aclosing(detect_speech(audio, request_id)) as found:
            async for part in found:
                held.add(audio, max(part.duration_s, min(part.expected_s, most_s)))
                charge(part.duration_s)
                if part.windows:
                    coming.pop(id(audio.source), None)
                yield part

    return parts
