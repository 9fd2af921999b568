"""What the machine is and has, and what it can be given from a folder of wheels."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command itself runs before anything is installed
    from benchmarks.gpu.stages import Check

# What the stages import, beyond the standard library.
MODULES = (
    "numpy",
    "pydantic",
    "yaml",
    "huggingface_hub",
    "filelock",
    "langcodes",
    "language_data",
    "torch",
    "torchaudio",
    "transformers",
    "tokenizers",
    "ctranslate2",
    "faster_whisper",
    "av",
    "whisperx",
    "nltk",
    "pandas",
    "lightning",
    "pyannote.audio",
    "pyannote.metrics",
)
PACKAGES = (
    "torch",
    "torchaudio",
    "transformers",
    "ctranslate2",
    "faster-whisper",
    "whisperx",
    "pyannote-audio",
)
STAND_IN = "# Stands in for PyAV, with which faster-whisper decodes files: nothing here does that.\n"
SLICE = "MIG-"  # what the UUID of a part of a GPU begins with
SIDE = 8192  # of the square matrices that are multiplied


def gpu_in_use() -> str:
    """The first GPU that CUDA sees: its number in the order of the bus, or its UUID; empty: none.

    `environment` leaves the steps this one, by that number.
    """
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0].strip()


def gpu_of(field: str) -> str | None:
    """One field of nvidia-smi about this GPU; None where there is none."""
    gpu = gpu_in_use()
    if gpu in ("", "-1"):
        return None
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]
    command += [] if gpu.startswith(SLICE) else [f"--id={gpu}"]  # it takes no slice's UUID
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    found = {line.strip() for line in done.stdout.splitlines()} - {""}
    return "unknown" if len(found) > 1 else next(iter(found), None)  # which of them has the slice?


def machine_name(device: str) -> str:
    """What figures are labelled with."""
    cores = f"{len(os.sched_getaffinity(0))} cores"
    if device == "cuda":
        part, name = "a slice of " if gpu_in_use().startswith(SLICE) else "", gpu_of("name")
        return f"{part}{'an unknown GPU' if name in (None, 'unknown') else name}, {cores}"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {cores}, no GPU"


def install_missing(wheels: Path, target: Path) -> list[str]:
    """Installs the wheels of a folder whose packages are not here, without a network; returns their names."""
    missing = [path for path in sorted(wheels.glob("*.whl")) if not _is_installed(path.name.split("-")[0])]
    if missing:
        options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--target", str(target)]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, *map(str, missing)], check=True)
    return [path.name for path in missing]


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def environment(site: Path, libraries: Path) -> dict[str, str]:
    """The steps' environment: a GPU, packages in `site`, libraries that CTranslate2 asks for by name."""
    site.mkdir(exist_ok=True)
    if find_spec("av") is None and not (site / "av").exists():
        (site / "av").mkdir()
        (site / "av" / "__init__.py").write_text(STAND_IN)
    return os.environ | {
        "PYTHONPATH": _joined(site, os.environ.get("PYTHONPATH", "")),
        "LD_LIBRARY_PATH": _joined(*cublas_13_as_12(libraries), os.environ.get("LD_LIBRARY_PATH", "")),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # as NVIDIA's tools count; else CUDA's number 0 is the fastest
        "CUDA_VISIBLE_DEVICES": gpu_in_use(),
        "PYANNOTE_METRICS_ENABLED": "0",
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",  # nothing is fetched while the clock runs
        "TOKENIZERS_PARALLELISM": "false",
    }


def _joined(*parts: Path | str) -> str:
    return os.pathsep.join(str(part) for part in parts if str(part))


def cublas_13_as_12(folder: Path) -> list[Path]:
    """Where only cuBLAS 13 is installed: folders in which CTranslate2 finds it by version 12's name.

    CTranslate2's wheel is made for CUDA 12 and calls a few functions that are the same in both.
    """
    places = [Path(place) / "nvidia" for place in sys.path]
    old = any((place / "cublas/lib/libcublas.so.12").exists() for place in places)
    new = [place / "cu13/lib" for place in places if (place / "cu13/lib/libcublas.so.13").exists()]
    if old or not new:
        return []
    folder.mkdir(exist_ok=True)
    for name in ("libcublas", "libcublasLt"):
        (folder / f"{name}.so.12").symlink_to(new[0] / f"{name}.so.13")
    return [folder, new[0]]


def machine(check: "Check") -> None:
    """Reports GPU, driver, libraries and packages, and how fast matrices are multiplied at best."""
    check.report("python", platform.python_version())
    check.report("cores", len(os.sched_getaffinity(0)))
    if check.device == "cuda":
        for field in ("name", "memory.total", "driver_version", "compute_cap"):
            check.report(f"GPU: {field}", gpu_of(field) or "unknown")
    missing = [name for name in MODULES if not _is_there(name)]
    check.report("modules missing", ", ".join(missing) or "none")
    for package in PACKAGES:
        check.report(package, version(package) if _is_installed(package) else "missing")
    check.report(
        "ffmpeg", shutil.which("ffmpeg") or ("a wheel's" if _is_there("imageio_ffmpeg") else "missing")
    )
    if _is_there("ctranslate2"):
        _ctranslate2(check)
    if _is_there("torch"):
        _torch(check)


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of its parent
        return False


def _ctranslate2(check: "Check") -> None:
    import ctypes

    import ctranslate2

    types = sorted(ctranslate2.get_supported_compute_types(check.device))
    check.report("CTranslate2: compute types", ", ".join(types))
    if check.device == "cpu":
        return
    from serve_app.models.loaders import load_cublas

    load_cublas()
    try:
        cublas = ctypes.CDLL("libcublas.so.12")
        found = ctypes.c_int()
        cublas.cublasGetProperty(0, ctypes.byref(found))  # the major version
        check.report("CTranslate2: cuBLAS it finds", found.value)
    except OSError as error:
        check.report("CTranslate2: cuBLAS it finds", f"none: {error}")
    check.report("CTranslate2: GPUs it sees", ctranslate2.get_cuda_device_count(), at_least=1)


def _torch(check: "Check") -> None:
    import torch

    check.report("torch: CUDA", torch.version.cuda or "none")
    cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    check.report("torch: cuDNN", str(cudnn or "none"))
    if check.device == "cpu":
        return
    check.report("torch: GPUs it sees", torch.cuda.device_count(), at_least=1)
    from benchmarks.gpu.cost import seconds

    for name in ("float32", "float16", "bfloat16"):
        one = torch.randn(SIDE, SIDE, device="cuda", dtype=getattr(torch, name))
        spent_s = seconds(check, lambda matrix=one: matrix @ matrix)  # type: ignore[misc]
        check.report(f"torch: matrix product, {name}", 2 * SIDE**3 / spent_s / 1e12, "TFLOP/s")
    spent_s = seconds(check, one.clone)
    check.report("torch: copy inside the GPU", 2 * one.nbytes / spent_s / 1e9, "GB/s")
