"""The graph on one screen: `serve run serve_config.yaml` builds what stands here.

Reading order: app -> api -> pipeline -> stages/fetch, decode, speech, asr, alignment, diarization,
speakers. `deployments` says where each stage runs.
"""
# No `from __future__ import annotations` here: Ray validates `args:` only when the annotation is a class.

from dataclasses import replace
from typing import Any

import ray
from ray.serve import Application

from serve_app import deployments as untyped_deployments
from serve_app.cli.config_file import ON_CPU
from serve_app.deployments.calls import ray_private
from serve_app.errors import ModelUnavailable
from serve_app.settings import Settings
from serve_app.stages import model_names as models
from serve_app.stages.asr.fallback import Fallback
from serve_app.stages.load import (
    Loaders,
    detector_device,
    loaders,
    max_padded_s,
)

deployments: Any = untyped_deployments  # Serve decorators turn classes into Deployments, unknown to mypy

CPU_BATCH = {"max_batch_size": 4}  # CPU decoding gains nothing from more
# On a T4 16 windows give 90 % of what 32 would; a batch more takes it 0.3 s.
GPU_BATCH = {"max_batch_size": 16, "company_s": 1.5}
ALIGN_GPU_BATCH = {"max_batch_size": 16, "max_batch_s": 30.0}  # fills a T4; more would keep others waiting
NO_BATCH = {"max_batch_size": 1}

# Seconds that a model call may last for each second of audio in it; generous, beyond it a replica is killed.
GPU_PER_AUDIO_S = 1.0
CPU_PER_AUDIO_S = 20.0

# What each replica books of a node's CPUs; small, so that a graph of one replica each fits on two
# cores. Threads are set apart from it, in `args:`, and by each replica itself (`model_loaders`).
BOOKED_CPUS = 0.25

# For models on CPUs that keep their memory: in large pages. A glibc that has no such setting leaves it alone.
LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

CPU_TYPES = ("int8", "int8_float32", "float32")  # CTranslate2's that every CPU has

# Of what stands in while a GPU is full: no replica, until there is a call for one.
WHEN_NEEDED = {"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1}


def build(settings: Settings) -> Application:
    """The application for these settings; raises ModelUnavailable for a model that cannot be had."""
    names = models.resolve(settings)
    device = choose_device(settings)
    on_cpu = None
    if settings.cpu_when_gpu_is_full and device == "cuda":
        on_cpu = loaders(_for_cpu(settings), names, "cpu")
    return graph(settings, loaders(settings, names, device), device, on_cpu)


def graph(settings: Settings, load: Loaders, device: str, on_cpu: Loaders | None = None) -> Application:
    """The six deployments and how they are composed; with `on_cpu` three more, for when the GPU is full.

    Raises UnknownRay for a version of Ray that lacks something that they need.
    """
    ray_private.check()
    patience, speech = _patience(settings, device), settings.speech
    # Two of each beside each other while they are replaced: both are small, and without them all waits.
    loader = deployments.AudioLoader.options(
        ray_actor_options=_without_secrets(), max_surge_percent=100
    ).bind(settings.intake)
    detects_on = detector_device(settings, device)
    detector = deployments.SpeechDetector.options(ray_actor_options=_on(detects_on, speech.gpu_share)).bind(
        load.detector, _patience(settings, detects_on)
    )
    spare = None
    if on_cpu:
        cpu = _for_cpu(settings)
        spare = (*_text_and_speakers(cpu, on_cpu, "cpu", spare=True), _patience(cpu, "cpu"))
    application: Application = deployments.Ingress.options(
        ray_actor_options=_without_secrets(),
        max_surge_percent=100,
        graceful_shutdown_timeout_s=settings.request_timeout_s,  # its requests end first
    ).bind(
        settings,
        loader,
        detector,
        *_text_and_speakers(settings, load, device),
        patience=patience,
        spare=spare,
    )
    return application


def _text_and_speakers(
    settings: Settings, load: Loaders, device: str, *, spare: bool = False
) -> tuple[Any, Any, Any]:
    """Transcriber, Aligner and Diarizer (or None)."""
    asr, alignment, diarization = settings.asr, settings.alignment, settings.diarization
    patience = _patience(settings, device)

    def options(deployment: Any, gpu_share: float, *, keep: bool = True) -> Any:
        actor = _on(device, gpu_share, keep=keep)
        if not spare:
            return deployment.options(ray_actor_options=actor)
        return deployment.options(
            name=f"{deployment.name}{ON_CPU}",
            autoscaling_config=WHEN_NEEDED,
            ray_actor_options={**actor, "num_cpus": 0},  # it must find a place whatever the others book
        )

    transcriber = options(deployments.Transcriber, asr.gpu_share).bind(
        load.recognizer,
        deployments.TranscriberConfig(**(GPU_BATCH if device == "cuda" else CPU_BATCH)),
        Fallback(
            asr.temperature_fallback,
            asr.compression_ratio_threshold,
            asr.log_prob_threshold,
            asr.no_speech_threshold,
        ),
        patience,
    )
    aligner = options(deployments.Aligner, alignment.gpu_share).bind(
        load.aligner,
        deployments.AlignerConfig(**(ALIGN_GPU_BATCH if max_padded_s(settings, device) else NO_BATCH)),
        patience,
    )
    diarizer = None
    if load.diarizer:
        diarizer = options(deployments.Diarizer, diarization.gpu_share, keep=False).bind(
            load.diarizer, replace(patience, most_s=settings.request_timeout_s)
        )
    return transcriber, aligner, diarizer


def _for_cpu(settings: Settings) -> Settings:
    """The same with a CPU's threads and batches, numbers that it has, and no less patience than it needs."""
    compute_type = settings.asr.compute_type
    per_audio_s = max(settings.call_timeout_per_audio_s or 0.0, CPU_PER_AUDIO_S)
    of_gpu: dict[str, dict[str, Any]] = {
        "asr": {"compute_type": compute_type if compute_type in CPU_TYPES else "auto", "threads": None},
        "alignment": {"max_padded_s": None, "compute_type": "auto", "threads": None},
        "diarization": {"batch_windows": None, "compute_type": "auto", "threads": None},
    }
    stages = {name: getattr(settings, name).model_copy(update=update) for name, update in of_gpu.items()}
    return settings.model_copy(update={**stages, "call_timeout_per_audio_s": per_audio_s})


def choose_device(settings: Settings) -> str:
    """Where the models run; GPU nodes that are only started once a replica waits for one count, too."""
    if settings.device == "cpu" or not ray.is_initialized():
        may_have_gpu: bool | None = False
    else:
        may_have_gpu = ray.cluster_resources().get("GPU", 0) > 0 or ray_private.gpus_may_join()
    if settings.device == "cuda" and may_have_gpu is False:
        raise ModelUnavailable(
            "device: cuda, but no node of this Ray cluster has a GPU, and none that its autoscaler may add; "
            "use auto or cpu, or add a node with a GPU."
        )
    if settings.device != "auto":
        return settings.device
    return "cuda" if may_have_gpu else "cpu"


def _patience(settings: Settings, device: str) -> Any:
    per_audio_s = settings.call_timeout_per_audio_s
    if per_audio_s is None:
        per_audio_s = GPU_PER_AUDIO_S if device == "cuda" else CPU_PER_AUDIO_S
    return deployments.Patience(settings.call_timeout_s, per_audio_s)


def _on(device: str, gpu_share: float, *, keep: bool = True) -> dict[str, Any]:
    options = _on_cpu()
    env_vars = options["runtime_env"]["env_vars"]
    if device == "cuda":
        del env_vars["CUDA_VISIBLE_DEVICES"]
        return {**options, "num_gpus": gpu_share}
    if keep:
        env_vars.update(LARGE_PAGES)
    return options


def _on_cpu() -> dict[str, Any]:
    """Only what is right on every node: the graph may be built on another one than a replica runs on."""
    env_vars = {
        "OMP_NUM_THREADS": "1",  # until a model's loader knows better
        # Replicas share the cores, so threads that wait sleep; but not at once: a nap between the small
        # steps of speech detection costs more than they do (64 instead of 27 ms for 5 s of audio).
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
        "MALLOC_ARENA_MAX": "1",  # with one for each of Ray's threads, memory grows for thousands of requests
        "CUDA_VISIBLE_DEVICES": "",  # Ray shows the GPU even to replicas that booked none
        "GRPC_VERBOSITY": "ERROR",  # else Ray says something for every child process of a decoder
        "RAY_IGNORE_UNHANDLED_ERRORS": "1",  # of calls whose request has failed already
        "PYANNOTE_METRICS_ENABLED": "0",  # no telemetry about our users' audio
    }
    return {"num_cpus": BOOKED_CPUS, "runtime_env": {"env_vars": env_vars}}


def _without_secrets() -> dict[str, Any]:
    """For the two that read what strangers send, and load no model."""
    options = _on_cpu()
    options["runtime_env"]["env_vars"] |= {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": ""}
    return options
