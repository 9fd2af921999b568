"""A thousand requests, one after the other: does anything grow?"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.chaos.faults import counts
from benchmarks.chaos.load import Load
from benchmarks.chaos.running_graph import Graph, object_store_mib, serves_own, spooled_bytes

EVERY = 10  # requests between two samples
WARM = 1.0  # so many more requests go before the first sample: until then caches and heaps fill
BLOCKS = 8  # neighbouring samples are not independent, the means of eight blocks nearly are
STUDENT_T = 2.447  # 95 %, 6 degrees of freedom: a line through eight points
KIB = 1024

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Sample:
    """What the processes held after so many requests."""

    requests: int
    rss_kib: dict[str, float]
    descriptors: dict[str, int]
    children: dict[str, int]
    spooled_bytes: int
    object_store_mib: float


def soak(graph: Graph, load: Load, requests: int) -> dict[str, Any]:
    """Requests of all kinds in turn; slopes and their margins are KiB of memory per 100 requests."""
    load.learn()
    outcomes = [load.send(load.clips[number % len(load.clips)]) for number in range(int(WARM * requests))]
    processes = {name: found[0] for name, found in graph.replicas().items()} | {
        "proxy": serves_own("ProxyActor")[0]
    }
    samples: list[Sample] = []
    for number in range(1, requests + 1):
        outcomes.append(load.send(load.clips[number % len(load.clips)]))
        if number % EVERY == 0:
            samples.append(_sample(number, processes))
        if number % 100 == 0:
            say.print(f"  {number} requests")
    time.sleep(2.0)  # Ray frees objects a moment later
    last = _sample(requests, processes)
    slopes = {
        name: _slope([(sample.requests, sample.rss_kib[name]) for sample in samples]) for name in processes
    }
    return {
        **counts(outcomes),
        "rss_kib_per_100": {
            name: {"slope": round(slope, 1), "margin": round(margin, 1)}
            for name, (slope, margin) in slopes.items()
        },
        "rss_slope_max": max(slope for slope, _ in slopes.values()),
        "rss_slope_high_max": max(slope + margin for slope, margin in slopes.values()),
        "rss_mib": {name: round(kib / KIB) for name, kib in last.rss_kib.items()},
        "descriptors_grown": _grown([sample.descriptors for sample in samples]),
        "children_grown": _grown([sample.children for sample in samples]),
        "spooled_bytes": last.spooled_bytes,
        "object_store_grown_mib": last.object_store_mib - samples[0].object_store_mib,
    }


def _sample(number: int, processes: dict[str, psutil.Process]) -> Sample:
    return Sample(
        number,
        {name: process.memory_info().rss / KIB for name, process in processes.items()},
        {name: process.num_fds() for name, process in processes.items()},
        {name: len(process.children()) for name, process in processes.items()},
        sum(spooled_bytes(process) for process in processes.values()),
        object_store_mib(),
    )


def _slope(points: list[tuple[int, float]]) -> tuple[float, float]:
    """Of a least-squares line through the means of blocks, per 100 requests, and its 95 % margin."""
    blocks = [np.mean(block, axis=0) for block in np.array_split(np.array(points), BLOCKS)]
    x, y = np.array(blocks).T
    x = x / 100
    slope, base = np.polyfit(x, y, 1)
    rest: NDArray[np.float64] = y - (slope * x + base)
    deviation = np.sqrt(np.sum(rest**2) / (BLOCKS - 2) / np.sum((x - x.mean()) ** 2))
    return float(slope), float(STUDENT_T * deviation)


def _grown(counts_of: list[dict[str, int]]) -> int:
    """The most that the median of any process's last quarter lies above that of its first one."""
    quarter = max(1, len(counts_of) // 4)
    return int(
        max(
            np.median([counts[name] for counts in counts_of[-quarter:]])
            - np.median([counts[name] for counts in counts_of[:quarter]])
            for name in counts_of[0]
        )
    )
