"""How much memory is used and how busy the device is, while something runs: a GPU, or this process."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil

MIB = 1 << 20
INTERVAL_S = 0.05


class _Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Load(ctypes.Structure):
    """nvmlUtilization_t, in percent."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Nvml:
    """The first GPU, asked through the library of NVIDIA's driver, which makes no CUDA context."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libnvidia-ml.so.1")
        self._call("nvmlInit_v2")
        self._gpu = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(0), ctypes.byref(self._gpu))

    def memory_mib(self) -> float:
        """In use, by all processes."""
        found = _Memory()
        self._call("nvmlDeviceGetMemoryInfo", self._gpu, ctypes.byref(found))
        return float(found.used) / MIB

    def busy_percent(self) -> float:
        """Time in which a kernel ran, of the last sixth of a second to second."""
        found = _Load()
        self._call("nvmlDeviceGetUtilizationRates", self._gpu, ctypes.byref(found))
        return float(found.gpu)

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise OSError(f"{name} failed with status {status}")


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
    """Memory in use: of the GPU, or of this process."""
    if device == "cuda":
        return Nvml().memory_mib()
    return float(psutil.Process().memory_info().rss) / MIB


@contextmanager
def usage(device: str) -> Iterator[Usage]:
    """Samples twenty times a second while entered, and once at the end."""
    seen, ended = Usage(), threading.Event()
    gpu = Nvml() if device == "cuda" else None
    begun_s, spent_s = time.monotonic(), time.process_time()

    def watch() -> None:
        while not ended.wait(INTERVAL_S):
            seen.memory_mib.append(gpu.memory_mib() if gpu else now_mib(device))
            if gpu:
                seen.busy_percent.append(gpu.busy_percent())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
    seen.memory_mib.append(now_mib(device))
    if gpu is None:
        wall_s = max(1e-9, time.monotonic() - begun_s)
        cores = len(psutil.Process().cpu_affinity() or (0,))
        seen.busy_percent.append(100 * (time.process_time() - spent_s) / wall_s / cores)
