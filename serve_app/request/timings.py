"""How long a request's stages took. They overlap: one file's windows are in several of them at a time."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Wall time per stage: from the first call's begin to the last call's end."""

    def __init__(self) -> None:
        self._spans: dict[str, tuple[float, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun_s = time.monotonic()
        try:
            yield
        finally:
            first_s, _ = self._spans.get(name, (begun_s, begun_s))
            self._spans[name] = (min(first_s, begun_s), time.monotonic())

    def wall_s(self) -> dict[str, float]:
        return {name: end_s - begun_s for name, (begun_s, end_s) in self._spans.items()}
