"""Stage calls that outlive killed and hung replicas, lost objects and full GPUs.

Serve sends a call to another replica until one has accepted it; what goes wrong later is the caller's. A
stage call changes nothing, so it is made again. Waiting for a replica costs no attempt: while none lives,
Serve's router holds the call, and the request's deadline bounds that. No library for it: what to do between
two attempts (load audio again, go on with a stream) is all there is to it.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any

from ray.exceptions import ActorUnavailableError, ObjectLostError, OutOfMemoryError
from ray.serve.exceptions import ReplicaUnavailableError

from serve_app.batching.items import BatcherDied
from serve_app.deadline import timeout
from serve_app.deployments.calls.audio_ref import LoadedAudio
from serve_app.deployments.calls.handles import GONE, AudioLost, AudioRef, Hung
from serve_app.deployments.metrics import Retries
from serve_app.deployments.watchdog import Patience
from serve_app.errors import ModelCrashed, Overloaded, TranscriptionError
from serve_app.options import Options
from serve_app.transcript import KnownSpeaker, Speech, StageWarning, Window

logger = logging.getLogger("ray.serve")

ATTEMPTS = 4
DEATHS_IN_COMPANY = 2  # of replicas that a call has met; after so many it is made again alone,
DEATHS_ALONE = 2  # and after so many then, no more
MOST_DEATHS = 20  # of a call that gets on between them
SUSPECT_WAITS_S = 300.0  # for the suspects before it
PAUSE_S = 0.5  # before the second attempt where the first trouble may pass; doubled before each later one
PASSING = ("replica_unavailable", "out_of_memory")

# Some of them, see `cause_of`.
AGAIN = (*GONE, AudioLost, BatcherDied, Hung, ReplicaUnavailableError, TranscriptionError)


def cause_of(error: BaseException) -> str | None:
    """Why a call that ended so is to be made again; None where that would not help."""
    causes: list[tuple[type[BaseException] | tuple[type[BaseException], ...], str]] = [
        (AudioLost, "audio_lost"),
        (Hung, "hung"),
        ((ActorUnavailableError, ReplicaUnavailableError, BatcherDied), "replica_unavailable"),
        (OutOfMemoryError, "replica_out_of_memory"),
        (ObjectLostError, "answer_lost"),
        (GONE, "replica_died"),
    ]
    for kind, cause in causes:
        if isinstance(error, kind):
            return cause
    if isinstance(error, TranscriptionError) and error.code.endswith(("out_of_memory", "out_of_host_memory")):
        return "out_of_memory"
    return None


class Attempts:
    """What one call has met so far, which decides how it is made again, if at all.

    Which of a replica's calls killed it, no caller can see. So a call that has met two deaths becomes a
    suspect: suspects of a stage are made one at a time, each in a batch of its own. If the replica dies twice
    more meanwhile, it is the suspect's doing; those that only shared its batches come through when alone.
    """

    def __init__(self, stage: str, retries: Retries, suspects: asyncio.Lock) -> None:
        self._stage = stage
        self._retries = retries
        self._suspects = suspects
        self._made = 0
        self._deaths = 0  # at the present place, or in company
        self._all_deaths = 0

    @property
    def alone(self) -> bool:
        return self._deaths >= DEATHS_IN_COMPANY

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """To be held during the next attempt. Raises Overloaded where a suspect before this one hangs."""
        if not self.alone:
            yield
            return
        try:
            async with timeout(SUSPECT_WAITS_S):
                await self._suspects.acquire()
        except asyncio.TimeoutError:
            message = f"The {self._stage} stage keeps failing; try again later."
            raise Overloaded(message, None, f"{self._stage}_failed") from None
        try:
            yield
        finally:
            self._suspects.release()

    def got_on(self) -> None:
        """The call is past what the last replica died of: it is no nearer to its end, but stays a suspect."""
        self._made = 0
        self._deaths = min(self._deaths, DEATHS_IN_COMPANY)

    async def failed(self, error: Exception) -> None:
        """Counts, and waits where the trouble may pass; raises where there is to be no other attempt."""
        cause = cause_of(error)
        if cause is None:
            raise error
        self._made += not isinstance(error, Hung)
        self._deaths += cause == "replica_died"
        self._all_deaths += cause == "replica_died"
        if self._deaths == DEATHS_IN_COMPANY + DEATHS_ALONE or self._all_deaths == MOST_DEATHS:
            raise ModelCrashed(f"The {self._stage} stage crashes on this audio; leave it out.")
        if self._made == ATTEMPTS:
            if isinstance(error, TranscriptionError):
                raise error
            message = f"The {self._stage} stage keeps failing; try again later."
            raise Overloaded(message, None, f"{self._stage}_failed")
        self._retries.note(self._stage, cause, error)
        if cause in PASSING:
            await asyncio.sleep(PAUSE_S * 2 ** (self._made - 1) * random.uniform(0.5, 1.0))  # noqa: S311


def lasting(
    stage: str, call: Callable[..., Any], retries: Retries, patience: Patience | None = None
) -> Callable[..., Any]:
    """`call(reference, ...)` as `lasting_call(audio, ...)`, made again where that helps.

    Without `patience` it is about the whole file, and waits for that. With it, the first argument after the
    audio is a window, and the call has a deadline by its length. What others' audio does to the queue is in
    it: a call may take three times as long as the slowest so far of the same request. Deadlines cost no
    attempt, but each next one is twice as long. Its last argument: whether it is to have a batch of its own.
    """
    suspects = asyncio.Lock()

    async def lasting_call(audio: LoadedAudio, *args: Any) -> Any:
        attempts, factor = Attempts(stage, retries, suspects), 1.0
        while True:
            version = 0
            try:
                version = await (audio.whole() if patience is None else audio.later_than(0))
                async with attempts.turn():
                    if patience is None:
                        return await call(audio.ref, *args)
                    begun_s = monotonic()
                    limit_s = partial(
                        _limit_s, factor * patience.limit_s(_length_s(args[0])), audio.slowest_s, call
                    )
                    answer = await call(audio.ref, *args, attempts.alone, limit_s=limit_s)
                audio.slowest_s[call] = max(audio.slowest_s.get(call, 0.0), monotonic() - begun_s)
                return answer
            except AGAIN as error:
                if isinstance(error, Hung):
                    factor *= 2
                await attempts.failed(error)
                if isinstance(error, AudioLost):
                    await audio.load_again(version)

    return lasting_call


def with_clips(diarize: Callable[..., Any]) -> Callable[..., Any]:
    """`diarize` with references in the place of the known speakers' clips.

    Which audio was lost does not show, so then the clips, which are short, are loaded again, too.
    """

    async def call(ref: AudioRef, options: Options, request_id: str, known: Sequence[KnownSpeaker]) -> Any:
        versions = [0 for _ in known]
        try:
            versions = [await speaker.clip.whole() for speaker in known]
            speakers = tuple(replace(speaker, clip=speaker.clip.ref) for speaker in known)
            return await diarize(ref, options, request_id, speakers)
        except AudioLost:
            for speaker, version in zip(known, versions, strict=True):
                await speaker.clip.load_again(version)
            raise

    return call


def resuming(
    stage: str, detect: Callable[..., AsyncGenerator[Speech, None]], retries: Retries
) -> Callable[..., AsyncGenerator[Speech, None]]:
    """`detect(reference, scan, ...)` as a stream over `audio`, as it is decoded; goes on where it broke off.

    A replica that died further on in the file was not killed by what killed those before it: the search of
    hours of audio may well meet many deaths, but only so many at one place.
    """
    suspects = asyncio.Lock()

    async def parts(audio: LoadedAudio, *args: Any) -> AsyncGenerator[Speech, None]:
        attempts, searched, scan = Attempts(stage, retries, suspects), 0, None
        told: set[StageWarning] = set()
        while True:
            version, whole = searched, False
            try:
                version = await audio.later_than(searched)
                async with attempts.turn(), aclosing(detect(audio.ref, scan, *args)) as stream:
                    async for part in stream:
                        audio.checksum = part.checksum or audio.checksum
                        whole = part.whole
                        if part.scan is not None:
                            scan = part.scan
                            attempts.got_on()
                        news = tuple(warning for warning in part.warnings if warning not in told)
                        told.update(news)
                        yield replace(part, warnings=news)
                if whole:
                    return
                searched = version
            except AGAIN as error:
                await attempts.failed(error)
                if isinstance(error, AudioLost):
                    await audio.load_again(version)

    return parts


def _length_s(window: Window) -> float:
    return window.end_s - window.start_s


def _limit_s(own_s: float, slowest_s: dict[Any, float], call: Any) -> float:
    return own_s + 3 * slowest_s.get(call, 0.0)
