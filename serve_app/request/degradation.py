"""Stages that the text can do without: when it stops waiting for them, and what the caller is told."""

import asyncio
import logging
from typing import Any

from serve_app.errors import DeadlineExceeded, TranscriptionError
from serve_app.transcript import StageWarning

logger = logging.getLogger("ray.serve")  # Serve's logger adds the request id to every line

# Of a request's time, what is kept for the answer: this part, and no more than so many seconds.
KEPT_SHARE = 0.05
MOST_KEPT_S = 30.0


class Deadline:
    """When a request must have ended, counted from now."""

    def __init__(self, limit_s: float) -> None:
        kept_s = min(KEPT_SHARE * limit_s, MOST_KEPT_S)
        self._until_s = asyncio.get_running_loop().time() + limit_s - kept_s

    async def comes_in_time(self, task: "asyncio.Task[Any]") -> bool:
        """Waits for the task until shortly before the deadline; True when it has ended."""
        left_s = max(0.0, self._until_s - asyncio.get_running_loop().time())
        done, _ = await asyncio.wait({task}, timeout=None if left_s == float("inf") else left_s)
        return bool(done)


def diarization_timeout() -> DeadlineExceeded:
    return DeadlineExceeded(
        "Telling the speakers apart took too long; send a shorter file.", None, "diarization_timeout"
    )


def degraded(stage: str, error: Exception, consequence: str) -> StageWarning:
    """The warning in place of an error that does not cost the text; logs what is not meant for callers."""
    if isinstance(error, TranscriptionError):
        return StageWarning(stage, error.code, f"{error.message} {consequence}")
    logger.error("%s failed", stage, exc_info=error)
    return StageWarning(stage, f"{stage}_failed", f"The {stage} stage failed. {consequence}")
