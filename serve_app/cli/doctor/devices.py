"""What the model packages and the driver find on this machine."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from shutil import which
from threading import Thread
from time import monotonic

PROBE_S = 12.5
DRIVER_S = 5.0


@dataclass(frozen=True)
class Gpu:
    """A GPU that torch can compute on."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]  # 7.5: T4; 8.9: L4; 9.0: H100; 10.0 and 12.0: Blackwell
    compute_types: frozenset[str]  # CTranslate2's


@dataclass(frozen=True)
class Devices:
    """The model packages, the driver and the GPUs."""

    torch: str | None = None
    torch_error: str = ""
    cuda: str | None = None  # that torch was built for
    cudnn: str | None = None
    cuda_error: str = ""  # why torch or CTranslate2 cannot compute on a GPU
    is_late: bool = False  # the model packages were not imported in time
    ctranslate2: str | None = None
    ctranslate2_error: str = ""
    cpu_types: frozenset[str] = frozenset()
    gpus: tuple[Gpu, ...] = ()
    driver_error: str = ""  # what its program says where it fails
    driver: str | None = None
    driver_gpus: tuple[str, ...] = ()  # that the driver shows, whether torch can use them or not


def probing() -> Callable[[], Devices]:
    """Starts to look; the function waits for what is found, which is the same for all who ask."""
    found: Future[Devices] = Future()

    def look() -> None:
        try:
            found.set_result(probe())
        except BaseException as error:  # noqa: BLE001  (raised again where the result is asked for)
            found.set_exception(error)

    Thread(target=look, daemon=True).start()
    return found.result


def probe(timeout_s: float = PROBE_S) -> Devices:
    """Asks the driver, and the model packages in a process of their own, which may hang or crash."""
    until_s = monotonic() + timeout_s
    seen = ask_driver()
    command = [sys.executable, "-m", "serve_app.stages.devices"]
    try:
        left_s = until_s - monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=left_s, check=True)  # noqa: S603
        answer = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        why = f"the model packages took over {timeout_s:g} s to import"
        return replace(seen, torch_error=why, ctranslate2_error=why, is_late=True)
    except (subprocess.CalledProcessError, ValueError, IndexError):
        why = "the process that imports the model packages crashed"
        return replace(seen, torch_error=why, ctranslate2_error=why)
    gpus = tuple(
        Gpu(
            **gpu | {"capability": tuple(gpu["capability"]), "compute_types": frozenset(gpu["compute_types"])}
        )
        for gpu in answer.pop("gpus")
    )
    return replace(seen, **answer | {"gpus": gpus, "cpu_types": frozenset(answer["cpu_types"])})


def ask_driver() -> Devices:
    """What NVIDIA's driver says about itself and its GPUs, by its own program."""
    program = which("nvidia-smi")
    if program is None:
        return Devices()
    command = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DRIVER_S, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return Devices(driver_error=f"nvidia-smi: {type(error).__name__}")
    if done.returncode:
        lines = (done.stdout + done.stderr).strip().splitlines()
        return Devices(driver_error=lines[0].rstrip(".") if lines else "nvidia-smi fails")
    rows = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return Devices(driver=rows[0][0] if rows else None, driver_gpus=tuple(name for _, name in rows))
