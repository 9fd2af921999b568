"""Stage calls that survive killed replicas, lost audio and full GPUs.

Serve sends a call to another replica until one has accepted it; what goes wrong later is the caller's to
mend. A stage call changes nothing, so it is made again. Waiting for a replica costs no attempt: while there
is none, Serve's router holds the call, and the request's timeout bounds that.
"""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

from ray.exceptions import ActorUnavailableError, ObjectLostError, OutOfMemoryError
from ray.serve.exceptions import ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from serve_app.audio import AudioInfo, Source
from serve_app.batching.batcher import BatcherDied
from serve_app.deployments.calls.audio_ref import LoadedAudio, put_upload
from serve_app.deployments.calls.handles import GONE, AudioLost, invoke
from serve_app.deployments.metrics import RequestMetrics, Retries
from serve_app.errors import InvalidRequest, ModelCrashed, OutOfMemory, Overloaded, TranscriptionError
from serve_app.request.admission import Admission
from serve_app.request.calls import AlignCall, DetectCall, DiarizeCall, StageCall, TranscribeCall
from serve_app.request.quotas import charge
from serve_app.transcript import Diarization, Segment, Speech, WindowText

Answer = TypeVar("Answer")
ASR = "asr"  # the stage of the configured model; that of another one has its name behind it
MAX_ATTEMPTS = 5
MAX_CRASHES_IN_SHARED_BATCH = 2  # a call during which this many replicas died runs alone from then on
MAX_CRASHES_ALONE = 3  # then it is given up; with 2, kills every 8 s made one of 1,400 calls fail
QUARANTINE_TIMEOUT_S = 300.0  # how long one quarantined call waits for those before it
PAUSE = wait_random_exponential(multiplier=1.0, max=8.0)  # seconds, where the trouble may pass by itself

_Kinds = type[BaseException] | tuple[type[BaseException], ...]
CAUSES: tuple[tuple[_Kinds, str], ...] = (  # the first that fits
    (OutOfMemory, "out_of_memory"),
    (AudioLost, "audio_lost"),
    ((ActorUnavailableError, ReplicaUnavailableError, BatcherDied), "replica_unavailable"),
    (OutOfMemoryError, "replica_out_of_memory"),
    (ObjectLostError, "answer_lost"),
    (GONE, "replica_died"),
)
PASSING_CAUSES = ("replica_unavailable", "out_of_memory")


def retry_cause(error: BaseException) -> str | None:
    """Why a call that ended in this error should be made again; None where that would not help."""
    return next((cause for kind, cause in CAUSES if isinstance(error, kind)), None)


class CallHistory:
    """What one call has met so far, which decides whether it is made again, and how.

    A caller cannot see which of a replica's calls killed it. So a call that has met two deaths is
    quarantined: quarantined calls of a stage run one at a time, each in a batch of its own. If the replica
    dies three times more, it is this call's doing; calls that only shared its batches come through.
    """

    def __init__(self, stage: str, retries: Retries) -> None:
        self._stage, self._retries = stage, retries
        self._failures = self._crashes = 0
        self._cause: str | None = None

    @property
    def is_quarantined(self) -> bool:
        return self._crashes >= MAX_CRASHES_IN_SHARED_BATCH

    def should_retry(self, error: BaseException) -> bool:
        """Counts the failure, and says whether another attempt may help."""
        self._cause = retry_cause(error)
        if self._cause is None:
            return False
        self._failures += 1
        self._crashes += self._cause == "replica_died"
        if self._has_crashed_too_often or self._failures == MAX_ATTEMPTS:
            return False
        self._retries.note(self._stage, self._cause, error)
        return True

    def pause_s(self, attempts: RetryCallState) -> float:
        """Seconds to wait before the next attempt."""
        return PAUSE(attempts) if self._cause in PASSING_CAUSES else 0.0

    def final_error(self, error: Exception) -> Exception:
        """The caller's error where the last attempt ended in this one."""
        if isinstance(error, TranscriptionError) or self._cause is None:
            return error
        if self._has_crashed_too_often:
            return ModelCrashed(f"The {self._stage} stage crashes on this audio; leave it out.")
        return _keeps_failing(self._stage)

    @property
    def _has_crashed_too_often(self) -> bool:
        return self._crashes == MAX_CRASHES_IN_SHARED_BATCH + MAX_CRASHES_ALONE


class Stage(Generic[Answer]):
    """One stage's method on other replicas, called until it answers or cannot."""

    def __init__(self, name: str, method: Any, retries: Retries) -> None:
        self._name, self._method, self._retries = name, method, retries
        self._quarantine = asyncio.Lock()

    async def call(self, call: StageCall, start_s: float = 0.0, end_s: float = math.inf) -> Answer:
        """The answer to a call about the audio between these times.

        Raises TranscriptionError: the stage's own, ModelCrashed, or Overloaded after MAX_ATTEMPTS.
        """
        history = CallHistory(self._name, self._retries)
        retrying = AsyncRetrying(
            retry=retry_if_exception(history.should_retry), wait=history.pause_s, reraise=True
        )
        try:
            async for attempt in retrying:
                with attempt:
                    return await self._attempt(call, start_s, end_s, history)
        except Exception as error:
            final = history.final_error(error)
            if final is error:
                raise
            raise final from None
        raise AssertionError("unreachable")

    async def call_for_window(self, call: TranscribeCall | AlignCall) -> Answer:
        """The answer to a call about one window."""
        return await self.call(call, call.window.start_s, call.window.end_s)

    async def _attempt(self, call: StageCall, start_s: float, end_s: float, history: CallHistory) -> Answer:
        loadings: list[tuple[LoadedAudio, int]] = []

        async def loaded(audio: LoadedAudio, *times_s: float) -> Any:
            found, loading = await audio.between(*times_s)
            loadings.append((audio, loading))
            return found

        try:
            found = await loaded(call.audio, start_s, end_s)
            ready: StageCall = replace(call, audio=replace(found, channel=call.channel))
            if isinstance(ready, DiarizeCall):
                known = [replace(speaker, clip=await loaded(speaker.clip)) for speaker in ready.known]
                ready = replace(ready, known=tuple(known))
            async with self._quarantined(history):
                ready = replace(ready, runs_alone=history.is_quarantined)
                answer: Answer = await invoke(self._method, ready)
                return answer
        except AudioLost:
            for audio, loading in loadings:  # which of them was lost does not show
                await audio.load_again(loading)
            raise

    @asynccontextmanager
    async def _quarantined(self, history: CallHistory) -> AsyncIterator[None]:
        """Lets quarantined calls run one at a time; raises Overloaded where one before this one hangs."""
        if not history.is_quarantined:
            yield
            return
        try:
            async with asyncio.timeout(QUARANTINE_TIMEOUT_S):
                await self._quarantine.acquire()
        except TimeoutError:
            raise _keeps_failing(self._name) from None
        try:
            yield
        finally:
            self._quarantine.release()


class StageCalls:
    """The stages of the graph as `request.pipeline` calls them; `audio` is a LoadedAudio."""

    def __init__(
        self,
        loader: DeploymentHandle[Any],
        detector: DeploymentHandle[Any],
        transcriber: DeploymentHandle[Any],
        aligner: DeploymentHandle[Any] | None,
        diarizer: DeploymentHandle[Any] | None,
        *,
        admission: Admission,
        max_audio_s: float,
        retries: Retries,
        metrics: RequestMetrics,
    ) -> None:
        self._load = loader.options(stream=True).load
        self._speech: Stage[Speech] = Stage("speech", detector.detect, retries)
        self.transcribe = Stage[WindowText](ASR, transcriber.transcribe, retries).call_for_window
        self._alignment = Stage[tuple[Segment, ...]]("alignment", aligner.align, retries) if aligner else None
        self._diarization = Stage[Diarization]("diarization", diarizer.diarize, retries) if diarizer else None
        self._admission, self._max_audio_s = admission, max_audio_s
        self._retries, self._metrics = retries, metrics

    @asynccontextmanager
    async def load(self, source: Source) -> AsyncIterator[LoadedAudio]:
        """Starts loading and gives the audio at once; the source must stay readable while this is entered.

        Lists of references are emptied in the end, not just dropped: Serve's router at times leaves a call's
        arguments to the garbage collector, which does not run in an idle server.
        """

        async def start(checksum: int | None) -> Any:
            pieces[:] = await asyncio.to_thread(put_upload, source.file) if source.file else []
            more = source.max_audio_s, checksum, source.raw, source.selection
            return self._load.remote(source.url, source.headers, pieces, *more)

        pieces: list[Any] = []
        audio = LoadedAudio(start, self._retries, self._note_length)
        try:
            await audio.load()
            pieces.clear()  # the loader has them
            yield audio
        except InvalidRequest as error:
            if error.param == "start_s":  # the file was decoded to its end, which is before it
                charge(min(source.selection.start_s, self._max_audio_s))
            raise
        finally:
            pieces.clear()
            self._admission.release(audio)
            audio.forget()

    def _note_length(self, audio: LoadedAudio, part: AudioInfo) -> None:
        """Counts the file by its declared length until it is decoded, so that its room is not given away."""
        declared_s = 0.0 if part.is_last else min(part.expected_s, self._max_audio_s)
        self._admission.hold(audio, part.channels * max(part.end_s, declared_s))
        charge(part.channels * (min(part.skipped_s, self._max_audio_s) + part.end_s))
        self._metrics.decoded(part)

    async def detect(self, call: DetectCall) -> Speech:
        """Searches one more part of a file for speech."""
        start_s = call.before.resume_s if call.before else 0.0
        return await self._speech.call(call, start_s, call.part.end_s)

    async def align(self, call: AlignCall) -> tuple[Segment, ...]:
        """Finds the times of the words in one window."""
        assert self._alignment is not None
        return await self._alignment.call_for_window(call)

    async def diarize(self, call: DiarizeCall) -> Diarization:
        """Tells the speakers of a whole file apart."""
        assert self._diarization is not None
        return await self._diarization.call(call)


def _keeps_failing(stage: str) -> Overloaded:
    kind = ASR if stage.startswith(f"{ASR}-") else stage  # codes know no models
    return Overloaded(f"The {stage} stage keeps failing; try again later.", None, f"{kind}_failed")
