"""The compute type and the memory of GPUs, and what the model packages find on this machine.

`python -m serve_app.stages.devices` prints the latter as JSON. `doctor` runs it as a separate process: a
broken CUDA library may end it, and imports can hang. So nothing is imported until it is needed.
"""

import ctypes
import json
import mmap
import re
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

GPU_COMPUTE_TYPES = ("int8_float16", "float16", "int8_float32", "float32")  # the first that there is


def auto_compute_type(device: str, offered: Collection[str]) -> str:
    """What `asr.compute_type: auto` is: CTranslate2 has no int8 on Blackwell, and no float16 on Pascal."""
    if device == "cpu":
        return "int8"
    return next((kind for kind in GPU_COMPUTE_TYPES if kind in offered), "float16")


def choose_compute_type(compute_type: str, device: str) -> str:
    """CTranslate2's name for "auto" on this device; a named type stays."""
    import ctranslate2

    if compute_type != "auto":
        return compute_type
    return auto_compute_type(device, ctranslate2.get_supported_compute_types(device))


def describe() -> dict[str, Any]:
    """The versions of torch and CTranslate2, their errors, and the GPUs that they can use."""
    found: dict[str, Any] = {"gpus": [], "cpu_types": []}
    try:
        import torch

        found |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    except Exception as error:  # noqa: BLE001  (a missing library raises OSError, a broken build anything)
        found["torch_error"] = _first_line(error)
    try:
        import ctranslate2  # after torch, which loads the CUDA libraries that it needs

        found |= {
            "ctranslate2": ctranslate2.__version__,
            "cpu_types": sorted(ctranslate2.get_supported_compute_types("cpu")),
        }
    except Exception as error:  # noqa: BLE001
        found["ctranslate2_error"] = _first_line(error)
    if "torch" in found and found["cuda"]:
        try:
            found["gpus"] = _gpus()
            found["cudnn"] = _cudnn()
            if found["gpus"] and "ctranslate2" in found:
                _load_what_ctranslate2_needs()
        except Exception as error:  # noqa: BLE001
            found["cuda_error"] = _first_line(error)
    return found


def gpu_memory_bytes() -> int | None:
    """What torch has reserved of the GPU in this process; None where it computes on none.

    This is what `limit_gpu_memory` bounds. CTranslate2 says of its own memory nothing.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.memory_reserved())


def _gpus() -> list[dict[str, Any]]:
    """The GPUs that torch can compute on. Raises torch's error where it cannot."""
    import ctranslate2
    import torch

    torch.cuda.init()  # type: ignore[no-untyped-call]
    gpus = []
    for index in range(torch.cuda.device_count()):
        # A convolution needs the driver, cuDNN, and code for this GPU in torch.
        signal, kernel = torch.ones(1, 1, 64, device=f"cuda:{index}"), torch.ones(1, 1, 3)
        torch.nn.functional.conv1d(signal, kernel.to(signal.device)).sum().item()
        free_bytes, memory_bytes = torch.cuda.mem_get_info(index)
        gpus.append(
            {
                "name": torch.cuda.get_device_name(index),
                "memory_bytes": memory_bytes,
                "free_bytes": free_bytes,
                "capability": torch.cuda.get_device_capability(index),
                "compute_types": sorted(ctranslate2.get_supported_compute_types("cuda", index)),
            }
        )
    return gpus


def _cudnn() -> str | None:
    import torch

    version = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version and f"{version // 10_000}.{version // 100 % 100}.{version % 100}"


def _load_what_ctranslate2_needs() -> None:
    """Loads cuBLAS as CTranslate2 does at its first batch, by the name in its own library."""
    import ctranslate2

    package = Path(ctranslate2.__file__).parent
    for library in [*package.glob("libctranslate2*"), *package.with_name("ctranslate2.libs").glob("libct*")]:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for name in set(re.findall(rb"libcublas\.so\.\d+", content)):
                ctypes.CDLL(name.decode())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")


if __name__ == "__main__":
    print(json.dumps(describe()))  # noqa: T201  (what the parent reads)
