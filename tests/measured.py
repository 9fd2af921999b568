"""The fixture `measured`: the metrics that would go to Ray's registry."""

from typing import Any

import pytest
from ray.serve import metrics


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The sums of counters and histograms, and the last value of gauges, by name, over all labels."""
    found: dict[str, float] = {}

    def add(metric: Any, value: float = 1.0, tags: object = None) -> None:
        name = metric.info["name"]
        found[name] = found.get(name, 0.0) + value

    def put(metric: Any, value: float, tags: object = None) -> None:
        found[metric.info["name"]] = value

    monkeypatch.setattr(metrics.Counter, "inc", add)
    monkeypatch.setattr(metrics.Histogram, "observe", add)
    monkeypatch.setattr(metrics.Gauge, "set", put)
    return found
