"""What every deployment shares: queues, references to audio, and errors that cross replicas."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Any

from ray.exceptions import RayTaskError
from ray.serve.config import RequestRouterConfig

from serve_app.errors import TranscriptionError
from serve_app.transcript import Audio

AudioRef = list[Any]  # [ObjectRef of an Audio]: nested, so that Ray passes the reference on unresolved

# A queue in front of a replica costs Serve's router back-off; ours is inside, so replicas take many
# calls, and where one is full after all the router looks again soon.
MANY = 1024
ROUTER = RequestRouterConfig.model_validate({"initial_backoff_s": 0.005, "max_backoff_s": 0.02})
QUEUES_INSIDE: dict[str, Any] = {"max_ongoing_requests": MANY, "request_router_config": ROUTER}


async def audio_behind(ref: AudioRef) -> Audio:
    """The audio behind a reference: zero-copy on one node, and read-only."""
    try:
        audio: Audio = await ref[0]
    except RayTaskError as error:
        raise own_error(error) from None
    return audio


def own_error(error: RayTaskError) -> BaseException:
    """The TranscriptionError that crossed replicas inside a RayTaskError, else the error itself."""
    cause: BaseException = error
    while isinstance(cause, RayTaskError) and cause.cause is not None:
        cause = cause.cause
    return cause if isinstance(cause, TranscriptionError) else error


def caller(method: Any) -> Callable[..., Any]:
    """A handle method as a plain async callable: raises our errors, and cancelling it cancels the call."""

    async def call(*args: Any) -> Any:
        response = method.remote(*args)
        try:
            return await awaited(response)
        except asyncio.CancelledError:
            response.cancel()
            raise

    return call


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
