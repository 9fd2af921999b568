"""The GPU: its driver and CUDA's libraries, and arithmetic that the settings want and it may not have."""

from collections.abc import Iterator

from serve_app.cli.doctor.checks import Check, Finding, State, Subject, fine, skipped, warning, wrong
from serve_app.cli.doctor.devices import Devices, Gpu
from serve_app.cli.doctor.gpu_memory import memory
from serve_app.settings import Settings
from serve_app.stages.devices import auto_compute_type

# NVIDIA's table "Minor Version Compatibility": the oldest driver for each major version of CUDA.
MIN_DRIVERS = {"11": 450, "12": 525, "13": 580}

WITHOUT_BFLOAT16 = (8, 0)  # GPUs before this capability compute it in float32, slowly

# CTranslate2 before this version offers int8 on this capability, and then fails: its issue 1865.
FAILING_INT8 = ((12, 0), (4, 6, 2))


def checks(subject: Subject) -> list[Check]:
    return [
        Check("GPU and driver", lambda: driver(subject.devices(), subject.settings)),
        Check("Compute type", lambda: compute_types(subject.devices(), subject.settings)),
        Check(
            "GPU memory",
            lambda: memory(subject.devices(), subject.settings, subject.application.deployments),
        ),
    ]


def device_of(devices: Devices, settings: Settings) -> str:
    """Where the models run if this machine is the whole cluster."""
    if settings.device != "auto":
        return settings.device
    return "cuda" if devices.gpus else "cpu"


def driver(devices: Devices, settings: Settings) -> Finding:
    """torch and CTranslate2 can compute on the GPUs, if the settings want that."""
    if settings.device == "cpu":
        return skipped("device: cpu needs no GPU.")
    if devices.torch is None:
        not_known = f"Whether a GPU can be used is not known: {devices.torch_error}."
        return warning(not_known) if settings.device == "cuda" else skipped(not_known)
    if devices.driver_error and not devices.gpus:
        said = f"NVIDIA's driver does not work ({devices.driver_error})"
        if settings.device == "auto":
            return warning(f"{said}, so the models run on the CPU; install it again, or set device: cpu.")
        return wrong(f"{said}; install it again and restart the machine, or set device: auto.")
    if not (devices.gpus or devices.driver_gpus):
        if settings.device == "auto":
            return fine("This machine shows no GPU, so the models run on the CPU (device: auto).")
        return wrong(
            "device: cuda, but this machine shows no NVIDIA GPU; install its driver, start the container "
            "with GPUs (--gpus all), or set device: auto."
        )
    names = ", ".join(dict.fromkeys(gpu.name for gpu in devices.gpus)) or ", ".join(devices.driver_gpus)
    if devices.cuda is None:  # also an error for device: auto: Ray counts the GPU, so the models go there
        return wrong(
            f"{names} cannot be used: torch {devices.torch} is built for CPUs; install one for CUDA, or set "
            "device: cpu."
        )
    oldest = MIN_DRIVERS.get(devices.cuda.partition(".")[0])
    if devices.driver and oldest and int(devices.driver.partition(".")[0]) < oldest:
        return wrong(
            f"{names}: driver {devices.driver} is too old for CUDA {devices.cuda} of torch {devices.torch}; "
            f"install driver {oldest} or newer."
        )
    if devices.cuda_error or not devices.gpus:
        why = devices.cuda_error or "torch finds no GPU"
        return wrong(
            f"{names} cannot be used ({why}); install the driver and torch for CUDA {devices.cuda} again, or "
            "set device: cpu."
        )
    return fine(
        f"{len(devices.gpus)} x {names}, driver {devices.driver or 'unknown'}, CUDA {devices.cuda}, "
        f"cuDNN {devices.cudnn}."
    )


def compute_types(devices: Devices, settings: Settings) -> Finding:
    """The device has the arithmetic that the settings ask for, for each of the models."""
    found = [_compute_type(devices, settings, "asr", settings.asr.compute_type)]
    found += [
        _compute_type(devices, settings, f"models.{name}", model.compute_type)
        for name, model in settings.models.items()
        if "compute_type" in model.model_fields_set
    ]
    return next((each for each in found if each.state != State.OK), found[0])


def _compute_type(devices: Devices, settings: Settings, section: str, asked: str) -> Finding:
    if devices.ctranslate2 is None:
        return skipped(f"What CTranslate2 can compute is not known: {devices.ctranslate2_error}.")
    device = device_of(devices, settings)

    def on(offered: frozenset[str]) -> str:
        return auto_compute_type(device, offered) if asked == "auto" else asked

    if device == "cpu":
        wanted = on(devices.cpu_types)
        if wanted in {"default", *devices.cpu_types}:
            return fine(f"{section}.compute_type: {asked} is {wanted} on this CPU.")
        return wrong(
            f"CTranslate2 has no {wanted} on this CPU; set {section}.compute_type to auto or one of "
            f"{', '.join(sorted(devices.cpu_types))}."
        )
    if not devices.gpus:
        return skipped("No GPU can be used, so what it can compute is not known.")
    version = devices.ctranslate2
    if lacking := next((gpu for gpu in devices.gpus if not _has(gpu, on(gpu.compute_types), version)), None):
        others = sorted(lacking.compute_types)
        usable = [kind for kind in others if _has(lacking, kind, version)]
        best = "float16" if "float16" in usable else "float32"
        return wrong(
            f"{lacking.name} has no {on(lacking.compute_types)} in CTranslate2 {version} (it has "
            f"{', '.join(usable)}); set {section}.compute_type: {best}, or install a newer CTranslate2."
        )
    if slow := [*_slow_bfloat16(devices.gpus, settings)]:
        return warning(
            f"{', '.join(slow)}: bfloat16 is slow on a GPU before Ampere; set float16 or auto there."
        )
    first = devices.gpus[0]
    return fine(f"{section}.compute_type: {asked} is {on(first.compute_types)} on {first.name}.")


def _has(gpu: Gpu, kind: str, ctranslate2: str) -> bool:
    capability, mended_in = FAILING_INT8
    version = tuple(int(part) for part in ctranslate2.split(".")[:3] if part.isdigit())
    if kind.startswith("int8") and gpu.capability >= capability and version < mended_in:
        return False
    return kind == "default" or kind in gpu.compute_types


def _slow_bfloat16(gpus: tuple[Gpu, ...], settings: Settings) -> Iterator[str]:
    chosen = {"alignment": settings.alignment.compute_type, "diarization": settings.diarization.compute_type}
    if any(gpu.capability < WITHOUT_BFLOAT16 for gpu in gpus):
        yield from (f"{stage}.compute_type" for stage, kind in chosen.items() if kind == "bfloat16")
