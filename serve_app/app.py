"""The graph on one screen: `serve run serve_config.yaml` builds what stands here.

Reading order: deployments.ingress -> http.app -> deployments.calls.graph -> request.pipeline ->
deployments.calls.stage_calls -> stages/audio, speech, asr, alignment, diarization -> request.assign_speakers.
`deployments` says where each stage runs, docs/architecture.md what each is called.
"""
# No `from __future__ import annotations` here: Ray validates `args:` only when the annotation is a class.

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import ray
from ray.serve import Application

from serve_app import deployments as untyped_deployments
from serve_app.deployments.calls import ray_private
from serve_app.deployments.replica import (
    BOOKED_BY_OTHERS,
    BOOKED_CPUS,
    LARGE_PAGES,
    NO_DATABASE,
    NO_MODEL_TOKENS,
    NO_SECRETS,
    NO_WEBHOOK_SECRETS,
    actor_options,
)
from serve_app.errors import ModelUnavailable
from serve_app.http.model_names import ModelNames
from serve_app.http.openai.request import check_aliases
from serve_app.jobs.places import prepare, store_url
from serve_app.models import names as model_names
from serve_app.models.loaders import Loaders, detector_device, loaders, max_padded_s
from serve_app.settings import Settings
from serve_app.settings.asr import AsrSettings, deployment_of
from serve_app.stages.asr.fallback import Fallback

deployments: Any = untyped_deployments  # Serve decorators turn classes into Deployments, unknown to mypy

# CPU decoding gains nothing from more windows; on a T4 16 give 95 % of what 32 would (computed).
MAX_BATCH_SIZE = {"cpu": 4, "cuda": 16}
# wav2vec2 gains nothing from batches on a CPU; 30 s fill a T4, and more would keep others waiting.
ALIGN_BATCH: dict[str, dict[str, float]] = {
    "cpu": {"max_batch_size": 1},
    "cuda": {"max_batch_size": 16, "max_batch_audio_s": 30.0},
}
# Seconds that a model call may last for each second of its audio; generous, because then a replica is killed.
CALL_TIMEOUT_PER_AUDIO_S = {"cpu": 20.0, "cuda": 1.0}


def build(settings: Settings) -> Application:
    """The application for these settings.

    Raises ModelUnavailable for a model that cannot be had, JobsUnusable where jobs could not be kept,
    InvalidRequest for the options of an alias.
    """
    check_aliases(ModelNames(settings.model, settings.openai.names(), settings.models))
    asyncio.run(prepare(settings.jobs))
    device = choose_device(settings)
    load = loaders(settings, model_names.resolve(settings), device)
    if device == "cuda":
        refuse_shares_without_gpus(settings, load)
    return graph(settings, load, device)


def graph(settings: Settings, load: Loaders, device: str) -> Application:
    """The deployments, seven at most and one for each of `models`, and how they are composed.

    Raises UnknownRay for a version of Ray that lacks something that the service needs.
    """
    ray_private.check()
    speech_device, placement = detector_device(settings, device), settings.placement

    def on(
        device: str, gpu_share: float, *, keeps_memory: bool = True, num_cpus: float = BOOKED_CPUS
    ) -> dict[str, Any]:
        if device == "cuda":
            return actor_options(gpu_share, NO_DATABASE | NO_WEBHOOK_SECRETS, placement, num_cpus)
        variables = NO_DATABASE | NO_WEBHOOK_SECRETS | (LARGE_PAGES if keeps_memory else {})
        return actor_options(0.0, variables, placement, num_cpus)

    # When AudioLoaders, JobRunners or Ingresses are replaced, the new one starts before the old one ends:
    # they are small, and without them requests and jobs would wait.
    surge = {"ray_actor_options": actor_options(0.0, NO_SECRETS, placement), "max_surge_percent": 100}
    loader = deployments.AudioLoader.options(
        # It reads what strangers send.
        **surge | {"ray_actor_options": actor_options(0.0, NO_DATABASE | NO_SECRETS, placement)}
    ).bind(settings.intake)
    detector = deployments.SpeechDetector.options(
        ray_actor_options=on(speech_device, settings.speech.gpu_share)
    ).bind(load.detector, _call_timeout(settings, speech_device))

    def transcriber(recognizer: Callable[[], Any], asr: AsrSettings, name: str, num_cpus: float) -> Any:
        options = on(device, asr.gpu_share, num_cpus=num_cpus)
        return deployments.Transcriber.options(name=name, ray_actor_options=options).bind(
            recognizer,
            deployments.BatchConfig(max_batch_size=MAX_BATCH_SIZE[device]),
            Fallback(asr),
            _call_timeout(settings, device),
        )

    own = transcriber(load.recognizer, settings.asr, "Transcriber", BOOKED_CPUS)
    others = {
        name: transcriber(recognizer, settings.asr_of(name), deployment_of(name), BOOKED_BY_OTHERS)
        for name, recognizer in load.other_recognizers.items()
    }
    aligner = None
    if load.aligner:
        aligner = deployments.Aligner.options(
            ray_actor_options=on(device, settings.alignment.gpu_share)
        ).bind(
            load.aligner,
            deployments.AlignerConfig(**ALIGN_BATCH["cuda" if max_padded_s(settings, device) else "cpu"]),
            _call_timeout(settings, device),
        )
    has_jobs = store_url(settings.jobs) is not None
    longest_s = max(settings.request_timeout_s, settings.jobs.timeout_s if has_jobs else 0.0)
    diarizer = None
    if load.diarizer:  # its calls need more memory the longer a file is, which is not to be kept
        diarizer = deployments.Diarizer.options(
            ray_actor_options=on(device, settings.diarization.gpu_share, keeps_memory=False)
        ).bind(load.diarizer, replace(_call_timeout(settings, device), max_s=longest_s))
    stages = (loader, detector, own, aligner, diarizer, load.aligner_languages)
    job_runner = None
    if has_jobs:
        job_runner = deployments.JobRunner.options(
            # It signs webhooks.
            **surge | {"ray_actor_options": actor_options(0.0, NO_MODEL_TOKENS, placement)}
        ).bind(settings, *stages, other_transcribers=others)
    application: Application = deployments.Ingress.options(
        **surge,
        graceful_shutdown_timeout_s=settings.request_timeout_s,  # its requests end first
    ).bind(settings, *stages, job_runner, other_transcribers=others)
    return application


def choose_device(settings: Settings) -> str:
    """Where the models run. GPU nodes that are started only once a replica waits for one count, too."""
    if settings.device == "cpu" or not ray.is_initialized():
        may_have_gpu: bool | None = False
    else:
        may_have_gpu = ray.cluster_resources().get("GPU", 0) > 0 or ray_private.gpus_may_join()
    if settings.device == "cuda" and may_have_gpu is False:
        raise ModelUnavailable(
            "device: cuda, but no node of this Ray cluster has a GPU, and none is known to join; "
            "use auto or cpu, or add a node with a GPU."
        )
    if settings.device != "auto":
        return settings.device
    return "cuda" if may_have_gpu else "cpu"


def refuse_shares_without_gpus(settings: Settings, load: Loaders) -> None:
    """Raises ModelUnavailable where one replica of each stage would book more GPUs than there are or may be.

    Serve would wait for another GPU for ever. Whether the shares can be put together on each is Ray's to say.
    """
    shares = {"asr": settings.asr.gpu_share, "speech": settings.speech.gpu_share}
    shares |= {f"models.{name}": settings.asr_of(name).gpu_share for name in settings.models}
    shares |= {"alignment": settings.alignment.gpu_share} if load.aligner else {}
    shares |= {"diarization": settings.diarization.gpu_share} if load.diarizer else {}
    gpus, booked = ray.cluster_resources().get("GPU", 0.0), sum(shares.values())
    if booked > gpus + 1e-6 and ray_private.gpus_may_join() is False:
        each = ", ".join(f"{name} {share:g}" for name, share in shares.items() if share)
        raise ModelUnavailable(
            f"One replica of each stage books {booked:.2f} GPUs ({each}), and the cluster has {gpus:g}; "
            "lower a gpu_share, leave a model out, or add a GPU."
        )


def _call_timeout(settings: Settings, device: str) -> Any:
    per_audio_s = settings.call_timeout_per_audio_s
    if per_audio_s is None:
        per_audio_s = CALL_TIMEOUT_PER_AUDIO_S[device]
    return deployments.CallTimeout(settings.call_timeout_s, per_audio_s)
