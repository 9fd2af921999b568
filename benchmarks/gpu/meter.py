"""How much memory is used and how busy the device is, while something runs: a GPU, or this process."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from benchmarks.gpu.machine import gpu_in_use

MIB = 1 << 20
INTERVAL_S = 0.05


class _Memory(ctypes.Structure):
    """nvmlMemory_t, in bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Load(ctypes.Structure):
    """nvmlUtilization_t, in percent."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class Nvml:
    """The GPU that CUDA uses, asked through the library of NVIDIA's driver, which makes no CUDA context.

    What it has no answer for is None: of a slice of a GPU (MIG) the load, and often the memory.
    """

    def __init__(self, library: Any = None) -> None:
        self._library, self._gpu = library, ctypes.c_void_p()
        with suppress(OSError):
            self._library = library or ctypes.CDLL("libnvidia-ml.so.1")
        gpu, handle = gpu_in_use(), ctypes.byref(self._gpu)
        self._is_found = self._answers("nvmlInit_v2") and (
            self._answers("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(int(gpu)), handle)
            if gpu.isdecimal()
            else self._answers("nvmlDeviceGetHandleByUUID", gpu.encode(), handle)
        )

    def memory_mib(self) -> float | None:
        """In use, by all processes."""
        found = _Memory()
        is_known = self._asks_gpu("nvmlDeviceGetMemoryInfo", found)
        return float(found.used) / MIB if is_known else None

    def busy_percent(self) -> float | None:
        """Time in which a kernel ran, of the last sixth of a second to second."""
        found = _Load()
        is_known = self._asks_gpu("nvmlDeviceGetUtilizationRates", found)
        return float(found.gpu) if is_known else None

    def _asks_gpu(self, name: str, found: ctypes.Structure) -> bool:
        return self._is_found and self._answers(name, self._gpu, ctypes.byref(found))

    def _answers(self, name: str, *arguments: Any) -> bool:
        return self._library is not None and not getattr(self._library, name)(*arguments)


@dataclass
class Usage:
    """Samples so far. A GPU's memory counts all its processes; its load is NVIDIA's `utilization.gpu`.

    None is what the GPU does not say.
    """

    before_mib: float | None
    memory_mib: list[float | None] = field(default_factory=list)
    busy_percent: list[float | None] = field(default_factory=list)

    @property
    def grown_mib(self) -> float | None:
        """How much more memory was in use at the most than before."""
        samples = [self.before_mib, *self.memory_mib]
        known = [mib for mib in samples if mib is not None]
        return max(known) - known[0] if len(known) == len(samples) else None

    @property
    def mean_busy_percent(self) -> float | None:
        known = [percent for percent in self.busy_percent if percent is not None]
        return sum(known) / len(known) if known else None


@contextmanager
def usage(device: str, library: Any = None) -> Iterator[Usage]:
    """Samples twenty times a second while entered, and once at the end."""
    gpu = Nvml(library) if device == "cuda" else None

    def now_mib() -> float | None:
        return gpu.memory_mib() if gpu else float(psutil.Process().memory_info().rss) / MIB

    seen, ended = Usage(now_mib()), threading.Event()
    begun_s, spent_s = time.monotonic(), time.process_time()

    def watch() -> None:
        while not ended.wait(INTERVAL_S):
            seen.memory_mib.append(now_mib())
            if gpu:
                seen.busy_percent.append(gpu.busy_percent())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
    seen.memory_mib.append(now_mib())
    if gpu is None:
        wall_s = max(1e-9, time.monotonic() - begun_s)
        cores = len(psutil.Process().cpu_affinity() or (0,))
        seen.busy_percent.append(100 * (time.process_time() - spent_s) / wall_s / cores)
