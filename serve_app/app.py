"""The graph on one screen: `serve run serve_config.yaml` builds what stands here.

Reading order: app -> api -> pipeline -> stages/fetch, decode, speech, asr, alignment, diarization,
speakers. `deployments` says where each stage runs.
"""
# No `from __future__ import annotations` here: Ray validates `args:` only when the annotation is a class.

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import ray
from huggingface_hub import get_token
from ray.serve import Application

from serve_app import deployments as untyped_deployments
from serve_app import models
from serve_app.errors import ModelUnavailable
from serve_app.fallback import Fallback
from serve_app.settings import Settings

deployments: Any = untyped_deployments  # Serve decorators turn classes into Deployments, unknown to mypy

CPU_BATCH = {"max_batch_size": 4}  # CPU decoding gains nothing from more
GPU_BATCH = {"max_batch_size": 16, "wait_s": 0.01}  # on a T4 16 windows give 90 % of what 32 would
ALIGN_GPU_BATCH = GPU_BATCH | {"max_batch_s": 30.0}  # fills a T4; more would only keep others waiting
NO_BATCH = {"max_batch_size": 1}
GPU_PADDED_S = 60.0  # a base model then takes 1.7 GB of a GPU, a large one 2.9 GB (computed, not measured)

# Seconds that a model call may last for each second of audio in it; generous, beyond it a replica is killed.
GPU_PER_AUDIO_S = 1.0
CPU_PER_AUDIO_S = 20.0

# What each replica books of a node's CPUs; small, so that a graph of one replica each fits on two
# cores. Threads are set apart from it, in `args:`.
BOOKED_CPUS = 0.25
MOST_THREADS = 8  # of a replica that is not told otherwise; these models gain little beyond


@dataclass(frozen=True)
class Loaders:
    """Functions that load each stage's model in the process where the stage runs."""

    detector: Callable[[], Any]
    recognizer: Callable[[], Any]
    aligner: Callable[[], Any]
    diarizer: Callable[[], Any] | None


def build(settings: Settings) -> Application:
    """The application for these settings; raises ModelUnavailable for a model that cannot be had."""
    names = models.resolve(settings)
    device = _device(settings)
    return graph(
        settings,
        Loaders(
            detector=partial(_load_detector, settings, names.window_s, _detector_device(settings, device)),
            recognizer=partial(_load_recognizer, settings, names.asr, device),
            aligner=partial(_load_aligner, settings, names.aligners, device),
            diarizer=partial(_load_diarizer, settings, names.diarization, device)
            if names.diarization
            else None,
        ),
        device,
    )


def graph(settings: Settings, load: Loaders, device: str) -> Application:
    """The six deployments and how they are composed."""
    asr, speech, alignment, diarization = (
        settings.asr,
        settings.speech,
        settings.alignment,
        settings.diarization,
    )

    patience = _patience(settings, device)
    # Two of each beside each other while they are replaced: both are small, and without them all waits.
    loader = deployments.AudioLoader.options(
        ray_actor_options=_without_secrets(), max_surge_percent=100
    ).bind(settings.intake)
    detector = deployments.SpeechDetector.options(
        ray_actor_options=_on(_detector_device(settings, device), speech.gpu_share, speech.threads)
    ).bind(load.detector, _patience(settings, _detector_device(settings, device)))
    transcriber = deployments.Transcriber.options(
        ray_actor_options=_on(device, asr.gpu_share, asr.threads)
    ).bind(
        load.recognizer,
        deployments.BatchConfig(**(GPU_BATCH if device == "cuda" else CPU_BATCH)),
        Fallback(
            asr.temperature_fallback,
            asr.compression_ratio_threshold,
            asr.log_prob_threshold,
            asr.no_speech_threshold,
        ),
        patience,
    )
    aligner = deployments.Aligner.options(
        ray_actor_options=_on(device, alignment.gpu_share, alignment.threads)
    ).bind(
        load.aligner,
        deployments.AlignerConfig(**(ALIGN_GPU_BATCH if _max_padded_s(settings, device) else NO_BATCH)),
        patience,
    )
    diarizer = (
        deployments.Diarizer.options(
            ray_actor_options=_on(device, diarization.gpu_share, diarization.threads)
        ).bind(load.diarizer, replace(patience, most_s=settings.request_timeout_s))
        if load.diarizer
        else None
    )
    application: Application = deployments.Ingress.options(
        ray_actor_options=_without_secrets(),
        max_surge_percent=100,
        graceful_shutdown_timeout_s=settings.request_timeout_s,  # its requests end first
    ).bind(settings, loader, detector, transcriber, aligner, diarizer, patience)
    return application


def _device(settings: Settings) -> str:
    has_gpu = ray.is_initialized() and ray.cluster_resources().get("GPU", 0) > 0
    if settings.device == "cuda" and not has_gpu:
        raise ModelUnavailable("device: cuda, but this Ray cluster has no GPU; use auto or cpu.")
    if settings.device != "auto":
        return settings.device
    return "cuda" if has_gpu else "cpu"


def _detector_device(settings: Settings, device: str) -> str:
    return device if settings.speech.gpu_share else "cpu"


def _patience(settings: Settings, device: str) -> Any:
    per_audio_s = settings.call_timeout_per_audio_s
    if per_audio_s is None:
        per_audio_s = GPU_PER_AUDIO_S if device == "cuda" else CPU_PER_AUDIO_S
    return deployments.Patience(settings.call_timeout_s, per_audio_s)


def _threads(chosen: int | None, device: str) -> int:
    if chosen is not None:
        return chosen
    return 1 if device == "cuda" else min(len(os.sched_getaffinity(0)), MOST_THREADS)


def _on(device: str, gpu_share: float, threads: int | None) -> dict[str, Any]:
    if device == "cuda":
        options = _on_cpu(_threads(threads, device))
        del options["runtime_env"]["env_vars"]["CUDA_VISIBLE_DEVICES"]
        return {**options, "num_gpus": gpu_share}
    return _on_cpu(_threads(threads, device))


def _on_cpu(threads: int = 1) -> dict[str, Any]:
    env_vars = {
        "OMP_NUM_THREADS": str(threads),
        # Replicas share the cores, so threads that wait sleep; but not at once: a nap between the small
        # steps of speech detection costs more than they do (64 instead of 27 ms for 5 s of audio).
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
        "MALLOC_ARENA_MAX": "1",  # with one for each of Ray's threads, memory grows for thousands of requests
        "CUDA_VISIBLE_DEVICES": "",  # Ray shows the GPU even to replicas that booked none
        "GRPC_VERBOSITY": "ERROR",  # else Ray says something for every child process of a decoder
        "PYANNOTE_METRICS_ENABLED": "0",  # no telemetry about our users' audio
    }
    return {"num_cpus": BOOKED_CPUS, "runtime_env": {"env_vars": env_vars}}


def _without_secrets() -> dict[str, Any]:
    """For the two that read what strangers send, and load no model."""
    options = _on_cpu()
    options["runtime_env"]["env_vars"] |= {"HF_TOKEN": "", "HUGGING_FACE_HUB_TOKEN": ""}
    return options


# Each loader imports its stage where it runs: the model packages cost up to 20 s and 0.9 GB.


def _load_detector(settings: Settings, window_s: float, device: str) -> Any:
    from serve_app.stages import speech
    from serve_app.stages.gpu_memory import keep_within_share

    if settings.speech.method == "silero":
        return speech.load_silero_detector(settings.speech, window_s)
    keep_within_share(settings.speech.gpu_share, device)
    return speech.load_pyannote_detector(settings.speech, window_s, device)


def _load_recognizer(settings: Settings, model: str, device: str) -> Any:
    from serve_app.stages.asr import load_recognizer

    asr = settings.asr
    return load_recognizer(
        model,
        device=device,
        compute_type=asr.compute_type,
        threads=_threads(asr.threads, device),
        beam_size=asr.beam_size,
        compression_ratio_threshold=asr.compression_ratio_threshold,
    )


def _max_padded_s(settings: Settings, device: str) -> float:
    """Seconds of audio, padding included, that the alignment model takes at once."""
    chosen = settings.alignment.max_padded_s
    if chosen is not None:
        return chosen
    return GPU_PADDED_S if device == "cuda" else 0.0


def _load_aligner(settings: Settings, aligners: dict[str, str], device: str) -> Any:
    from serve_app.stages.alignment import load_aligner
    from serve_app.stages.gpu_memory import keep_within_share

    alignment = settings.alignment
    keep_within_share(alignment.gpu_share, device)
    return load_aligner(
        aligners,
        device=device,
        max_padded_s=_max_padded_s(settings, device),
        max_loaded_languages=alignment.max_loaded_languages,
        preload=alignment.preload,
    )


def _load_diarizer(settings: Settings, model: str, device: str) -> Any:
    from serve_app.stages.diarization import load_diarizer
    from serve_app.stages.gpu_memory import keep_within_share

    keep_within_share(settings.diarization.gpu_share, device)
    return load_diarizer(
        model,
        device=device,
        token=get_token(),
        batch_windows=settings.diarization.batch_windows,
        max_voice_distance=settings.diarization.known_speaker_threshold,
    )
