"""Devices that hang or are full, as a replica's health sees them; broken ones are in cluster/test_faults."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serve_app.deployments.watchdog import (
    CallTimeout,
    DeviceHung,
    Watchdog,
    is_broken_device,
    with_halved_batches,
)
from serve_app.errors import Overloaded


def test_a_model_call_that_does_not_end_makes_the_replica_unhealthy() -> None:
    """One that may take as long as its audio asks for does not, and neither does one that has ended."""
    watch = Watchdog(CallTimeout(0.0, 1.0))
    begun, end = threading.Barrier(2), threading.Event()

    def run(items: list[float]) -> list[float]:
        begun.wait(10)
        end.wait(10)
        return items

    def check_while_running(audio_s: float) -> None:
        end.clear()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(watch.over(run, lambda item: item), [audio_s])
            try:
                begun.wait(10)
                watch.check()
            finally:
                end.set()
            assert running.result() == [audio_s]

    check_while_running(100.0)
    with pytest.raises(DeviceHung):
        check_while_running(-1.0)
    watch.check()


def test_a_model_call_that_fails_is_no_longer_watched() -> None:
    """Its error is its caller's business."""
    watch = Watchdog(CallTimeout(-1.0, 0.0))

    def fail(items: list[int]) -> list[int]:
        raise ValueError("odd")

    with pytest.raises(ValueError, match="odd"):
        watch.over(fail)([1])
    watch.check()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA failed with error out of memory"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("cuBLAS failed with status CUBLAS_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
)
def test_a_batch_without_memory_runs_in_parts_and_in_order(error: Exception) -> None:
    """By halves, as small as need be; what finds none even alone may be asked for again."""
    sizes: list[int] = []
    noted: list[tuple[str, str]] = []

    def run(items: list[int]) -> list[int]:
        sizes.append(len(items))
        if len(items) > 2 or 7 in items:
            raise error
        return [10 * item for item in items]

    *results, last = with_halved_batches(run, "asr", lambda *what: noted.append(what[:2]))([1, 2, 3, 4, 7])
    assert (results, sizes) == ([10, 20, 30, 40], [5, 2, 3, 1, 2, 1, 1])
    assert isinstance(last, Overloaded)
    assert last.code == "asr_out_of_memory"
    assert noted == [("asr", "out_of_memory")] * 3


def test_memory_that_the_host_lacks_is_no_full_gpu() -> None:
    """numpy says which: on a CPU there would be no more of it."""

    def run(items: list[int]) -> list[int]:
        np.zeros(1 << 62, np.uint8)
        return items

    [error] = with_halved_batches(run, "diarization", lambda *_: None)([1])
    assert isinstance(error, Overloaded)
    assert error.code == "diarization_out_of_host_memory"


def test_an_item_that_breaks_the_model_breaks_no_other() -> None:
    """The other requests' windows in its batch get their results."""

    def run(items: list[int]) -> list[int]:
        if 3 in items:
            raise ValueError("three")
        return items

    results = with_halved_batches(run, "asr", lambda *_: None)([1, 2, 3, 4])
    assert [result for result in results if not isinstance(result, ValueError)] == [1, 2, 4]
    assert isinstance(results[2], ValueError)


@pytest.mark.parametrize(
    ("message", "broken"),
    [
        ("CUDA error: an illegal memory access was encountered\nCompile with `TORCH_USE_CUDA_DSA`", True),
        ("CUDA error: device-side assert triggered", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("CUDA error: unspecified launch failure", True),
        ("CUDA error: no kernel image is available for execution on the device", False),
        ("CUDA error: invalid argument", False),
        ("CUDA error: invalid configuration argument", False),
        ("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasGemmEx`", False),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear for non-contiguous input", False),
        ("CUDA failed with error out of memory", False),
        ("The size of tensor a must match the size of tensor b", False),
    ],
)
def test_only_a_device_that_is_broken_for_good_ends_its_replica(message: str, broken: bool) -> None:
    """A call that the device refused leaves it as it was, for everybody else."""
    assert is_broken_device(RuntimeError(message)) is broken


def test_a_model_call_may_not_last_longer_than_anybody_waits_for_it() -> None:
    """Four hours of audio would allow days."""
    assert CallTimeout(120.0, 20.0, max_s=3600.0).limit_s(4 * 3600.0) == 3600.0
    assert CallTimeout(120.0, 20.0, max_s=3600.0).limit_s(10.0) == 320.0
