"""What loads each stage's model, in the process where the stage runs.

Each function prepares its process first, by the node it is on, and imports its stage itself: the model
packages cost up to 20 s and 0.9 GB.
"""

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from huggingface_hub import get_token

from serve_app.settings import MOST_THREADS, Settings
from serve_app.stages.model_names import Models

# glibc's numbers for mallopt, and what they are set to.
M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 2**28
M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES = -1, 2**30

GPU_PADDED_S = 60.0  # a base model then takes 1.7 GB of a GPU, a large one 2.9 GB (computed, not measured)


@dataclass(frozen=True)
class Loaders:
    """Functions of no arguments that load each stage's model."""

    detector: Callable[[], Any]
    recognizer: Callable[[], Any]
    aligner: Callable[[], Any]
    diarizer: Callable[[], Any] | None


def loaders(settings: Settings, names: Models, device: str) -> Loaders:
    """Of the models with these names, on this device."""
    return Loaders(
        detector=partial(_load_detector, settings, names.window_s, detector_device(settings, device)),
        recognizer=partial(_load_recognizer, settings, names.asr, device),
        aligner=partial(_load_aligner, settings, names.aligners, device),
        diarizer=partial(_load_diarizer, settings, names.diarization, device) if names.diarization else None,
    )


def detector_device(settings: Settings, device: str) -> str:
    return device if settings.speech.gpu_share else "cpu"


def threads_on(device: str, chosen: int | None) -> int:
    if chosen is not None:
        return chosen
    return 1 if device == "cuda" else min(len(os.sched_getaffinity(0)), MOST_THREADS)


def detector_threads(settings: Settings, device: str) -> int:
    """Half of the cores: its steps are small, and threads wait for each other after each."""
    return settings.speech.threads or max(1, threads_on(device, None) // 2)


def max_padded_s(settings: Settings, device: str) -> float:
    """Seconds of audio, padding included, that the alignment model takes at once."""
    chosen = settings.alignment.max_padded_s
    if chosen is not None:
        return chosen
    return GPU_PADDED_S if device == "cuda" else 0.0


def prepare_process(threads: int, *, keep_memory: bool) -> None:
    """Sets the threads of OpenMP and, with `keep_memory`, that freed memory stays with the process.

    Before the model packages are imported: OpenMP reads its variable when it is loaded. (numpy, which is
    there already, stays with one thread.)

    glibc would hand every large array's memory back and have it zeroed page by page for the next one, which
    is a tenth to a quarter of an encoder's time on a CPU. Kept instead, it is some 1 GiB a process.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # Before 2.35 glibc takes no such threshold; without it the other one would do harm.
    if keep_memory and (libc := ctypes.CDLL(None)).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES):
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES)


def _load_detector(settings: Settings, window_s: float, device: str) -> Any:
    prepare_process(detector_threads(settings, device), keep_memory=device == "cpu")
    from serve_app.stages.gpu_memory import keep_within_share
    from serve_app.stages.speech import detector as speech

    if settings.speech.method == "silero":
        return speech.load_silero_detector(settings.speech, window_s)
    keep_within_share(settings.speech.gpu_share, device)
    return speech.load_pyannote_detector(settings.speech, window_s, device)


def _load_recognizer(settings: Settings, model: str, device: str) -> Any:
    asr = settings.asr
    threads = threads_on(device, asr.threads)
    prepare_process(threads, keep_memory=device == "cpu")
    from serve_app.stages.asr.loading import load_recognizer

    return load_recognizer(
        model,
        device=device,
        compute_type=asr.compute_type,
        threads=threads,
        beam_size=asr.beam_size,
        compression_ratio_threshold=asr.compression_ratio_threshold,
    )


def _load_aligner(settings: Settings, aligners: dict[str, str], device: str) -> Any:
    alignment = settings.alignment
    prepare_process(threads_on(device, alignment.threads), keep_memory=device == "cpu")
    from serve_app.stages.alignment.aligner import load_aligner
    from serve_app.stages.gpu_memory import keep_within_share

    keep_within_share(alignment.gpu_share, device)
    return load_aligner(
        aligners,
        device=device,
        compute_type=alignment.compute_type,
        max_padded_s=max_padded_s(settings, device),
        max_loaded_languages=alignment.max_loaded_languages,
        preload=alignment.preload,
    )


def _load_diarizer(settings: Settings, model: str, device: str) -> Any:
    # Its calls need more memory the longer a file is, which is not to be kept.
    prepare_process(threads_on(device, settings.diarization.threads), keep_memory=False)
    from serve_app.stages.diarization.diarizer import load_diarizer
    from serve_app.stages.gpu_memory import keep_within_share

    keep_within_share(settings.diarization.gpu_share, device)
    return load_diarizer(
        model,
        device=device,
        token=get_token(),
        compute_type=settings.diarization.compute_type,
        batch_windows=settings.diarization.batch_windows,
        max_voice_distance=settings.diarization.known_speaker_threshold,
    )
