"""Calls of deployment handles, and what becomes of errors on their way from one replica to another."""

import asyncio
from typing import Any

from ray import serve
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

from serve_app.batching.batcher import BatcherDied
from serve_app.errors import TranscriptionError
from serve_app.spool import disk_full_error

LOOK_TIMEOUT_S = 1.0

# What Ray raises where a process has ended that had yet to give an answer, or that owned an object.
GONE = (
    RayActorError,
    ObjectLostError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    OutOfMemoryError,
)


class AudioLost(Exception):
    """A stage found no audio behind its references: the loader was killed, or an object is lost."""


def own_error(error: BaseException) -> BaseException:
    """The error that crossed replicas inside a RayTaskError, if it is one of ours, else the error itself.

    A result for which Ray had no room is an Overloaded.
    """
    cause = error
    while isinstance(cause, RayTaskError) and cause.cause is not None:
        cause = cause.cause
    if isinstance(cause, ObjectStoreFullError | OutOfDiskError):
        return disk_full_error()
    return cause if isinstance(cause, TranscriptionError | AudioLost | BatcherDied) else error


async def invoke(method: Any, *arguments: Any) -> Any:
    """Calls a handle's method; raises our errors, and cancels the call where the caller is cancelled.

    A call that was cancelled on the replica's side, as when its process ends, is an error like others: as a
    cancellation it would end a task here without a word.
    """
    response = method.remote(*arguments)
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        if (caller := asyncio.current_task()) is None or caller.cancelling():
            raise
        raise BatcherDied from None
    except RayTaskError as error:
        raise own_error(error) from None


async def is_scaled_to_zero(handle: Any) -> bool:
    """Whether Serve's autoscaler has stopped all replicas, and starts one when a call comes.

    It makes no call that waits for a replica: that would start one.
    """
    if await has_replica(handle):
        return False
    try:
        applications = (await asyncio.to_thread(serve.status)).applications
        found = applications[handle.app_name].deployments[handle.deployment_name]
    except Exception:  # noqa: BLE001  (the controller is away)
        return False
    return found.status == "HEALTHY" and not sum(found.replica_states.values())


async def has_replica(handle: Any) -> bool:
    """Whether the deployment has a replica, be it too busy to answer."""
    try:
        answers = await handle.broadcast("ready").results_async(
            timeout_s=LOOK_TIMEOUT_S, return_exceptions=True
        )
    except TimeoutError:
        return True
    except Exception:  # noqa: BLE001  (DeploymentUnavailableError, or Serve itself is in trouble)
        return False
    return any(answer is True for answer in answers)
