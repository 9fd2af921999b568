"""How much memory is used and how busy the device is, while something runs: a GPU, or this process."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

MIB = 1 << 20
NVIDIA_SMI = (
    "nvidia-smi",
    "--query-gpu=memory.used,utilization.gpu",
    "--format=csv,noheader,nounits",
    "--id=0",
)


@dataclass
class Usage:
    """Samples so far. A GPU's memory counts all its processes; its load is NVIDIA's `utilization.gpu`."""

    memory_mib: list[float] = field(default_factory=list)
    busy_percent: list[float] = field(default_factory=list)

    @property
    def peak_mib(self) -> float:
        return max(self.memory_mib, default=0.0)

    @property
    def mean_busy_percent(self) -> float:
        return sum(self.busy_percent) / max(1, len(self.busy_percent))


def now_mib(device: str) -> float:
    """Memory in use."""
    if device == "cpu":
        return float(psutil.Process().memory_info().rss) / MIB
    done = subprocess.run(NVIDIA_SMI, capture_output=True, text=True, check=True, timeout=20)
    return float(done.stdout.split(",")[0])


@contextmanager
def usage(device: str) -> Iterator[Usage]:
    """Samples while entered, ten times a second on a GPU, and once more at the end."""
    seen = Usage()
    with _gpu_samples(seen) if device == "cuda" else _process_samples(seen):
        yield seen
    seen.memory_mib.append(now_mib(device))


@contextmanager
def _gpu_samples(seen: Usage) -> Iterator[None]:
    process = subprocess.Popen((*NVIDIA_SMI, "--loop-ms=100"), stdout=subprocess.PIPE, text=True)

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with suppress(ValueError):  # "[N/A]", or a line that is cut off
                memory, busy = line.split(",")
                seen.memory_mib.append(float(memory))
                seen.busy_percent.append(float(busy))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield
    finally:
        process.kill()
        process.wait()
        thread.join(5)


@contextmanager
def _process_samples(seen: Usage) -> Iterator[None]:
    """The memory of this process, and how many percent of its CPUs it uses."""
    ended, begun_s, spent_s = threading.Event(), time.monotonic(), time.process_time()
    cores = len(psutil.Process().cpu_affinity() or (0,))

    def watch() -> None:
        while not ended.wait(0.05):
            seen.memory_mib.append(now_mib("cpu"))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        wall_s = max(1e-9, time.monotonic() - begun_s)
        seen.busy_percent.append(100 * (time.process_time() - spent_s) / wall_s / cores)
