"""Whether a replica's device still works: hung model calls, broken GPUs, batches that find no memory."""

import logging
import math
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from time import monotonic
from typing import Any, Self, TypeVar

from serve_app.errors import OutOfMemory

logger = logging.getLogger("ray.serve")

Item = TypeVar("Item")

# A CUDA context that has met one of these fails every later call; a batch that found no memory does not.
BROKEN_DEVICE = re.compile(r"CUDA (error|failed)|device-side assert|CU(DNN|BLAS)_STATUS_", re.IGNORECASE)
# Refused before anything ran: the next call finds the context as it was.
REFUSED = re.compile(
    r"_(NOT_SUPPORTED|INVALID_VALUE|BAD_PARAM)|no kernel image|invalid (argument|configuration)",
    re.IGNORECASE,
)
NO_MEMORY = re.compile(r"out of memory|ALLOC_FAILED", re.IGNORECASE)


MODEL_LOAD_S = 600.0  # a language's model may be loaded, and downloaded, by the first call that needs it


@dataclass(frozen=True)
class CallTimeout:
    """How long a model call may take before its replica counts as hung."""

    base_s: float = 120.0
    per_audio_s: float = 20.0  # more for each second of audio
    max_s: float = math.inf

    def limit_s(self, audio_s: float) -> float:
        """The limit of a call with this much audio."""
        return min(self.base_s + self.per_audio_s * audio_s, self.max_s)

    def with_model_load(self) -> Self:
        """The same for a stage whose calls may load a model first."""
        return replace(self, base_s=self.base_s + MODEL_LOAD_S)


class DeviceHung(Exception):
    """A model call has lasted longer than its timeout."""


class Watchdog:
    """Knows by when each model call that runs now should have ended."""

    def __init__(self, timeout: CallTimeout) -> None:
        self._timeout = timeout
        self._until_s: dict[int, float] = {}  # by thread

    def over(
        self,
        run: Callable[[list[Item]], Sequence[Any]],
        audio_s: Callable[[Item], float] = lambda item: 0.0,
    ) -> Callable[[list[Item]], Sequence[Any]]:
        """`run`, watched. A device that is broken for good ends the process: Serve starts another one."""

        def watched(items: list[Item]) -> Sequence[Any]:
            me = threading.get_ident()
            self._until_s[me] = monotonic() + self._timeout.limit_s(sum(map(audio_s, items)))
            try:
                return run(items)
            except RuntimeError as error:
                if is_broken_device(error):
                    logger.critical("The device is broken, this replica ends: %s", error)
                    os.kill(os.getpid(), signal.SIGKILL)  # callers call again, as for any killed replica
                raise
            finally:
                del self._until_s[me]

        return watched

    def check(self) -> None:
        """Raises DeviceHung: after three times Serve replaces the replica."""
        if any(until_s < monotonic() for until_s in list(self._until_s.values())):
            raise DeviceHung("A model call has lasted longer than call_timeout_s allows.")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None
    )


def is_broken_device(error: RuntimeError) -> bool:
    message = str(error)
    return (
        BROKEN_DEVICE.search(message) is not None
        and REFUSED.search(message) is None
        and not is_out_of_memory(error)
    )


def with_halved_batches(
    run: Callable[[list[Item]], Sequence[Any]], stage: str, note: Callable[[str, str, Exception], None]
) -> Callable[[list[Item]], Sequence[Any]]:
    """`run` that does not fail for a whole batch: a call that fails is made again with each half.

    So an item that breaks the model gets its own error, and an item that finds no memory even alone gets
    OutOfMemory as its value. `note` is told the stage, the cause (out_of_memory, batch_failed) and the error.
    """

    def halving(items: list[Item]) -> Sequence[Any]:
        try:
            return run(items)
        except Exception as error:  # noqa: BLE001  (after any error the other items may be fine)
            short, of_host = is_out_of_memory(error), type(error).__module__.startswith("numpy")
            # The frames of the failed call hold the very tensors that there is no room for.
            failed = error.with_traceback(None) if short else error
        if len(items) == 1:
            message = f"The {stage} stage is out of memory; try again later."
            code = f"{stage}_out_of_host_memory" if of_host else f"{stage}_out_of_memory"
            return [OutOfMemory(message, None, code) if short else failed]
        note(stage, "out_of_memory" if short else "batch_failed", failed)
        half = len(items) // 2
        return [*halving(items[:half]), *halving(items[half:])]

    return halving
