"""What stands in for a GPU that stays too full: the same call on a CPU."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any

from serve_app.deployments.metrics import Retries
from serve_app.errors import ModelCrashed, TranscriptionError

logger = logging.getLogger("ray.serve")

START_S = 300.0  # that a CPU replica may take to be scheduled and to load its model


def or_on_cpu(
    stage: str,
    on_gpu: Callable[..., Any],
    on_cpu: Callable[..., Any],
    has_started: Callable[[], Awaitable[bool]],
    retries: Retries,
    start_s: float = START_S,
) -> Callable[..., Any]:
    """`on_gpu`; where the GPU stays too full for a call of it, `on_cpu` with the same arguments.

    `on_cpu` waits until a replica has started. If none has after `start_s`, or none can, the GPU's error it
    is, for other calls as well for as long again: a file of many windows waits once.
    """
    in_vain_until_s = 0.0

    async def call(*args: Any) -> Any:
        nonlocal in_vain_until_s
        try:
            return await on_gpu(*args)
        except TranscriptionError as error:
            if not error.code.endswith("out_of_memory"):
                raise
            if monotonic() < in_vain_until_s:
                raise
            full = error.with_traceback(None)
        retries.note(stage, "on_cpu", full)
        calling = asyncio.ensure_future(on_cpu(*args))
        try:
            done, _ = await asyncio.wait({calling}, timeout=start_s)
            if not done and not await has_started():
                in_vain_until_s = monotonic() + start_s
                raise full
            return await calling
        except ModelCrashed:  # by the kernel, for want of memory: not the audio's fault
            raise full from None
        except TranscriptionError:
            raise
        except Exception as error:  # noqa: BLE001  (such as Serve's, of a deployment that failed to start)
            logger.warning("%s: not on a CPU either (%s)", stage, type(error).__name__)
            raise full from None
        finally:
            calling.cancel()

    return call
