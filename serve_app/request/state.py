"""What the steps of one request share: what was asked for, its deadline, warnings, and times of stages."""

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serve_app.audio import AudioInfo
from serve_app.options import Options
from serve_app.request.calls import Stages
from serve_app.request.progress import Report
from serve_app.transcript import StageWarning


class Timings:
    """Wall time per stage, from the first call's begin to the last call's end. Stages overlap."""

    def __init__(self) -> None:
        self._spans_s: dict[str, tuple[float, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times one call of the stage."""
        begun_s = time.monotonic()
        try:
            yield
        finally:
            first_s, _ = self._spans_s.get(name, (begun_s, begun_s))
            self._spans_s[name] = (min(first_s, begun_s), time.monotonic())

    def wall_s(self) -> dict[str, float]:
        """Seconds per stage."""
        return {name: end_s - begun_s for name, (begun_s, end_s) in self._spans_s.items()}


class RequestDeadline:
    """The end of a request's time, counted from now, less what is kept for writing its answer."""

    def __init__(self, limit_s: float) -> None:
        self._until_s = asyncio.get_running_loop().time() + limit_s - min(0.05 * limit_s, 30.0)

    async def comes_in_time(self, task: asyncio.Task[Any]) -> bool:
        """Waits for the task until the deadline; True if the task has ended."""
        left_s = max(0.0, self._until_s - asyncio.get_running_loop().time())
        done, _ = await asyncio.wait({task}, timeout=None if left_s == float("inf") else left_s)
        return bool(done)


class RequestState:
    """One request while it runs: what was asked for, and what its steps have found out besides the text."""

    def __init__(self, stages: Stages, options: Options, report: Report) -> None:
        self.stages = stages
        self.options = options
        self.id = uuid.uuid4().hex
        self.report = report
        self.timings = Timings()
        self.load_timings: dict[str, float] = {}
        self.warnings: list[StageWarning] = []
        self.duration_s, self.peaks = 0.0, b""

    def loaded(self, part: AudioInfo) -> None:
        """Records what is known of a part, once: with channels apart, every channel meets each part."""
        if part.start_s < self.duration_s:
            return
        self.duration_s = part.end_s
        self.peaks += part.peaks
        self.load_timings |= part.timings
        self.warnings.extend(part.warnings)

    def warn(self, warning: StageWarning | None) -> None:
        """Adds a warning once, not once per window."""
        if warning is not None and warning not in self.warnings:
            self.warnings.append(warning)
