"""GPU memory: what each stage needs, and whether it fits into the share of a GPU that its replicas book."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from serve_app.cli.config_file import least_replicas
from serve_app.cli.doctor.checks import Finding, fine, skipped, warning, wrong
from serve_app.cli.doctor.devices import Devices, Gpu
from serve_app.models.catalogue import catalogue
from serve_app.settings import Settings
from serve_app.settings.asr import deployment_of
from serve_app.stages.devices import auto_compute_type

GB = 1e9

# docs/deploy.md, "Size of a GPU"; computed from published figures and CPU measurements, CUDA's own 0.4 GB
# included. large-v2 in int8_float16 with 16 windows a batch: 1.5 + 1.2 + 16 * 0.224 = 6.3 GB.
WINDOWS = 16  # of a batch on a GPU, where `user_config` says nothing else
FIXED_GB, WINDOW_GB = 1.2, 0.224  # of large-v2; a window's part is the decoder's cache
LARGE_GB = 3.09  # large-v2's file, which is float16
# Layers times width of the decoder, which a window's cache grows with; other models count as large-v2.
LARGE_DECODER = 32 * 1280
DECODERS = {
    "tiny": 4 * 384, "base": 6 * 512, "small": 12 * 768, "medium": 24 * 1024, "large-v3-turbo": 4 * 1280,
    "distil-small": 4 * 768, "distil-medium": 2 * 1024, "distil-large": 2 * 1280,
}  # fmt: skip
WEIGHTS = {"int8": 0.5, "float16": 1.0, "bfloat16": 1.0, "float32": 2.0}  # of the file's size
DETECTOR_GB, DIARIZER_GB = 0.5, 2.3
ALIGNER_GB, LARGE_ALIGNER_GB = 1.7, 2.9
LARGE_ALIGNER_MB = 1000  # files of base models have 380 MB, of large ones 1262


@dataclass(frozen=True)
class Need:
    """What the replicas of a stage need and book."""

    stage: str
    setting: str
    share: float
    memory_gb: float
    replicas: int


def memory(devices: Devices, settings: Settings, deployments: dict[str, dict[str, Any]]) -> Finding:
    """The shares fit on the GPUs, and what the models need fits in them."""
    if settings.device == "cpu":
        return skipped("No model runs on a GPU here.")
    if devices.torch is None:
        return skipped(f"Which GPUs there are is not known: {devices.torch_error}.")
    if not devices.gpus:
        return skipped("No GPU can be used here.")
    smallest = min(devices.gpus, key=lambda gpu: gpu.memory_bytes)
    needs = needs_of(settings, deployments, smallest.compute_types)
    booked = sum(need.share * need.replicas for need in needs)
    # A file for a cluster has more replicas than fit here; this machine is judged by its share of them.
    nodes = max(1.0, booked / len(devices.gpus))
    total_gb = sum(need.memory_gb * need.replicas for need in needs) / nodes
    all_gb = sum(gpu.memory_bytes for gpu in devices.gpus) / GB
    asked = f"The models here need about {total_gb:.1f} GB (computed, not measured)"
    tight = [need for need in needs if need.memory_gb > need.share * smallest.memory_bytes / GB]
    if total_gb > all_gb:
        return wrong(
            f"{asked}, and {_named(devices.gpus)} has {all_gb:.1f} GB; choose a smaller model, set "
            "user_config.max_batch_size of the Transcriber lower, or use a larger GPU."
        )
    if booked > len(devices.gpus) + 1e-6:
        return warning(
            f"All replicas book {booked:.2f} GPUs and this machine has {len(devices.gpus)}, so some wait for "
            "another node; lower num_replicas or the gpu_shares, or add a node with a GPU."
        )
    if tight:
        said = ", ".join(
            f"{need.setting}: {need.share:g} is {need.share * smallest.memory_bytes / GB:.2f} GB of "
            f"{smallest.name}, and the {need.stage} needs about {need.memory_gb:.2f} GB"
            for need in tight
        )
        return warning(f"{said}; raise that share, and lower one that has room.")
    free_gb = sum(gpu.free_bytes for gpu in devices.gpus) / GB
    if total_gb > free_gb:
        return warning(
            f"{asked}, and only {free_gb:.1f} of {all_gb:.1f} GB are free; stop what else uses the GPU, "
            "unless it is this service."
        )
    return fine(f"{asked}, and {_named(devices.gpus)} has {all_gb:.1f} GB.")


def needs_of(
    settings: Settings, deployments: dict[str, dict[str, Any]], offered: Collection[str]
) -> list[Need]:
    """The stages that run on a GPU, for which CTranslate2 offers these compute types."""
    speech, alignment, diarization = settings.speech, settings.alignment, settings.diarization
    found = []
    for name in (settings.model, *settings.models):
        section, deployment, asr = "asr", "Transcriber", settings.asr_of(name)
        if name in settings.models:
            section, deployment = f"models.{name}", deployment_of(name)
        config = deployments.get(deployment, {}).get("user_config") or {}
        kind = auto_compute_type("cuda", offered) if asr.compute_type == "auto" else asr.compute_type
        needed_gb = recognizer_gb(settings.model_of(name), kind, config.get("max_batch_size", WINDOWS))
        found.append((deployment, section, asr.gpu_share, needed_gb))
    if speech.gpu_share:
        found.append(("SpeechDetector", "speech", speech.gpu_share, DETECTOR_GB))
    if alignment.method in ("auto", "wav2vec2"):
        found.append(("Aligner", "alignment", alignment.gpu_share, _aligner_gb(alignment.preload)))
    if diarization.model != "off":
        found.append(("Diarizer", "diarization", diarization.gpu_share, DIARIZER_GB))
    return [
        Need(stage, f"{section}.gpu_share", share, memory_gb, least_replicas(deployments.get(stage, {})))
        for stage, section, share, memory_gb in found
    ]


def recognizer_gb(model: str, compute_type: str, windows: int) -> float:
    """What Whisper needs. A model that is not in the catalogue counts as a large one."""
    known = catalogue().get(model)
    file_gb = known.size / GB if known else LARGE_GB
    kind = "int8" if compute_type in ("auto", "default") else compute_type.partition("_")[0]
    sizes = [size for name, size in DECODERS.items() if known and known.name.startswith(name)]
    window_gb = WINDOW_GB * (sizes[0] if sizes else LARGE_DECODER) / LARGE_DECODER
    return file_gb * WEIGHTS.get(kind, 1.0) + FIXED_GB + windows * window_gb


def _aligner_gb(languages: tuple[str, ...]) -> float:
    models = [catalogue().get(f"wav2vec2-{language}") for language in languages]
    is_large = any(model is not None and model.size / 1e6 > LARGE_ALIGNER_MB for model in models)
    return LARGE_ALIGNER_GB if is_large else ALIGNER_GB


def _named(gpus: tuple[Gpu, ...]) -> str:
    return gpus[0].name if len(gpus) == 1 else f"{len(gpus)} x {gpus[0].name}"
