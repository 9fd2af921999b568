"""What every deployment shares: queues, health, references to audio, and errors that cross replicas."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from time import monotonic
from typing import Any

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
    WorkerCrashedError,
)
from ray.serve.config import RequestRouterConfig

from serve_app.batching.items import BatcherDied
from serve_app.deployments.calls.ray_private import taken
from serve_app.errors import TranscriptionError
from serve_app.spool import no_room
from serve_app.transcript import Audio

AudioRef = list[Any]  # [ObjectRef of an Audio]: nested, so that Ray passes the reference on unresolved

# A queue in front of a replica costs Serve's router back-off; ours is inside, so replicas take many
# calls, and where one is full after all the router looks again soon.
MANY = 1024
ROUTER = RequestRouterConfig.model_validate({"initial_backoff_s": 0.005, "max_backoff_s": 0.02})

# A replica whose process hangs is killed after three unanswered questions, half a minute (Serve's own
# defaults: two). Constructors are not asked, so a model may load for as long as it takes.
HEALTH: dict[str, Any] = {"health_check_period_s": 5.0, "health_check_timeout_s": 10.0}
STAGE: dict[str, Any] = {"max_ongoing_requests": MANY, "request_router_config": ROUTER, **HEALTH}

# Clustering hours of audio keeps every other thread of its process waiting, for up to a minute.
WHOLE_FILES: dict[str, Any] = {**STAGE, "health_check_timeout_s": 120.0}

LOOK_TIMEOUT_S = 1.0

# What Ray raises for what a process that has ended owed: an answer, or an object.
GONE = (
    RayActorError,
    ObjectLostError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    OutOfMemoryError,
)


class AudioLost(Exception):
    """A stage found no audio behind its reference: its loader was killed, or the object is lost."""


class Hung(Exception):
    """A call took longer than it may."""


async def audio_behind(ref: AudioRef) -> Audio:
    """The audio behind a reference: zero-copy on one node, and read-only. Raises AudioLost."""
    try:
        audio: Audio = await ref[0]
    except GONE as error:  # also where the loader met it: then it is a RayTaskError too
        raise AudioLost(type(error).__name__) from None
    except RayTaskError as error:
        raise own_error(error) from None
    return audio


def own_error(error: RayTaskError) -> BaseException:
    """What crossed replicas inside a RayTaskError: an error of ours, Overloaded for a result that Ray had no
    room for, else the RayTaskError itself.
    """
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and cause.cause is not None:
        cause = cause.cause
    if isinstance(cause, ObjectStoreFullError | OutOfDiskError):
        return no_room()
    return cause if isinstance(cause, TranscriptionError | AudioLost | BatcherDied) else error


def caller(method: Any) -> Callable[..., Any]:
    """A handle method as a plain async callable: raises our errors, and cancelling it cancels the call.

    With `limit_s`, asked again and again, the call ends in Hung when it has lasted so long. Waiting for a
    replica that takes it does not count: until one lives, Serve's router holds the call.
    """

    async def call(*args: Any, limit_s: Callable[[], float] | None = None) -> Any:
        response = method.remote(*args)
        try:
            if limit_s is None:
                return await awaited(response)
            await taken(response)
            return await _within(awaited(response), limit_s)
        except (asyncio.CancelledError, Hung):
            response.cancel()
            raise

    return call


async def _within(answer: Any, limit_s: Callable[[], float]) -> Any:
    begun_s = monotonic()
    answering = asyncio.ensure_future(answer)
    try:
        while (left_s := begun_s + limit_s() - monotonic()) > 0:
            done, _ = await asyncio.wait({answering}, timeout=left_s)
            if done:
                return answering.result()
    finally:
        answering.cancel()
    raise Hung


def streamer(method: Any) -> Callable[..., AsyncGenerator[Any, None]]:
    """A streaming handle method as an async generator: raises our errors, and leaving it ends the call."""

    async def stream(*args: Any) -> AsyncGenerator[Any, None]:
        responses = method.remote(*args)
        try:
            async for response in responses:
                yield response
        except RayTaskError as error:
            raise own_error(error) from None
        except (asyncio.CancelledError, GeneratorExit):
            responses.cancel()
            raise

    return stream


async def awaited(response: Any) -> Any:
    try:
        return await response
    except RayTaskError as error:
        raise own_error(error) from None


async def has_replica(handle: Any) -> bool:
    """Whether any replica is there to be asked; one that is too busy to answer is."""
    try:
        answers = await handle.broadcast("ready").results_async(
            timeout_s=LOOK_TIMEOUT_S, return_exceptions=True
        )
    except TimeoutError:
        return True
    except Exception:  # noqa: BLE001  (DeploymentUnavailableError, or Serve itself is in trouble)
        return False
    return any(answer is True for answer in answers)
