"""Loads each stage's model in the process where the stage runs.

The process is prepared first, for the node that it is on, and only then is the stage imported: the model
packages cost up to 20 s and 0.9 GB.
"""

import ctypes
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from serve_app.languages import LANGUAGES
from serve_app.models.names import Models, Whisper
from serve_app.models.prefetch import alignment_model, directory_of, download_repository
from serve_app.settings import MAX_DEFAULT_THREADS, Settings

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's numbers for mallopt

GPU_PADDED_S = 60.0  # a base model then takes 1.7 GB of a GPU, a large one 2.9 GB (computed, not measured)


@dataclass(frozen=True)
class Loaders:
    """A function without arguments for each stage that loads its model."""

    detector: Callable[[], Any]
    recognizer: Callable[[], Any]
    aligner: Callable[[], Any] | None
    diarizer: Callable[[], Any] | None
    aligner_languages: frozenset[str] = frozenset(LANGUAGES)  # that the aligner has, or is to try
    other_recognizers: Mapping[str, Callable[[], Any]] = field(default_factory=dict)  # by their names


def loaders(settings: Settings, names: Models, device: str) -> Loaders:
    """Loads the models with these names on this device."""
    has_aligner = bool(names.aligners) or settings.alignment.method == "wav2vec2"
    return Loaders(
        detector=partial(_load_detector, settings, detector_device(settings, device)),
        recognizer=partial(
            _load_recognizer, settings, names.name, Whisper(names.asr, names.attention_shift_s), device
        ),
        aligner=partial(_load_aligner, settings, names.aligners, device) if has_aligner else None,
        diarizer=partial(_load_diarizer, settings, names.diarization, device) if names.diarization else None,
        aligner_languages=frozenset(LANGUAGES if settings.alignment.method == "wav2vec2" else names.aligners),
        other_recognizers={
            name: partial(_load_recognizer, settings, name, whisper, device)
            for name, whisper in names.others.items()
        },
    )


def detector_device(settings: Settings, device: str) -> str:
    return device if settings.speech.gpu_share else "cpu"


def threads_on(device: str, chosen: int | None) -> int:
    """The chosen number of CPU threads; by default the node's cores, at most 8, or 1 next to a GPU."""
    if chosen is not None:
        return chosen
    return 1 if device == "cuda" else min(len(os.sched_getaffinity(0)), MAX_DEFAULT_THREADS)


def max_padded_s(settings: Settings, device: str) -> float:
    """Seconds of audio, padding included, in one pass of the alignment model."""
    chosen, default = settings.alignment.max_padded_s, GPU_PADDED_S if device == "cuda" else 0.0
    return default if chosen is None else chosen


def prepare_process(threads: int, *, keep_memory: bool) -> None:
    """Sets the number of OpenMP threads and, with `keep_memory`, keeps freed memory in the process.

    Call it before the model packages are imported: OpenMP reads its variable when it is loaded. (numpy, which
    is there already, stays with one thread.)

    Otherwise glibc returns the memory of every large array to the kernel, which zeroes it page by page for
    the next one: a tenth to a quarter of an encoder's time on a CPU. What is kept is some 1 GiB a process.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # glibc before 2.35 refuses the first threshold; the second one alone would do harm.
    if keep_memory and (libc := ctypes.CDLL(None)).mallopt(M_MMAP_THRESHOLD, 2**28):
        libc.mallopt(M_TRIM_THRESHOLD, 2**30)


def load_cublas() -> None:
    """Loads the cuBLAS of pip's packages, if they are there, so that CTranslate2 finds it.

    CTranslate2 asks the system for libcublas.so.12 by name, at its first matrix product. The system does not
    know pip's folders. torch, which needs the packages too, loads them, but the recogniser has no torch.
    """
    with suppress(ModuleNotFoundError):  # of `nvidia`
        package = find_spec("nvidia.cublas")
        for folder in (package and package.submodule_search_locations) or ():
            for name in ("libcublasLt.so.12", "libcublas.so.12"):
                with suppress(OSError):  # another version: the system's is used
                    ctypes.CDLL(f"{folder}/lib/{name}", ctypes.RTLD_GLOBAL)


def _load_detector(settings: Settings, device: str) -> Any:
    speech = settings.speech
    # Half of the cores: its steps are small, and threads wait for each other after each.
    prepare_process(speech.threads or max(1, threads_on(device, None) // 2), keep_memory=device == "cpu")
    from serve_app.stages.speech import detector

    if speech.method == "silero":
        return detector.load_silero_detector(speech, settings.asr.window_s)
    from serve_app.stages.torch_support import limit_gpu_memory

    limit_gpu_memory(speech.gpu_share, device)
    return detector.load_pyannote_detector(speech, settings.asr.window_s, device)


def _load_recognizer(settings: Settings, name: str, whisper: Whisper, device: str) -> Any:
    asr = settings.asr_of(name)
    threads = threads_on(device, asr.threads)
    prepare_process(threads, keep_memory=device == "cpu")
    if device == "cuda":
        load_cublas()
    from serve_app.stages.asr.recognizer import load_recognizer

    return load_recognizer(
        directory_of(whisper.model, settings.models_dir),
        device=device,
        threads=threads,
        settings=asr,
        name=Path(name).name,
        attention_shift_s=whisper.attention_shift_s,
    )


def _load_aligner(settings: Settings, models: dict[str, str], device: str) -> Any:
    alignment = settings.alignment
    prepare_process(threads_on(device, alignment.threads), keep_memory=device == "cpu")
    from serve_app.stages.alignment.aligner import Aligner
    from serve_app.stages.torch_support import limit_gpu_memory

    limit_gpu_memory(alignment.gpu_share, device)
    here = {language: alignment_model(name, settings.models_dir) for language, name in models.items()}
    return Aligner(
        {language: place for language, place in here.items() if place},
        device=device,
        max_padded_s=max_padded_s(settings, device),
        settings=alignment,
        downloads={
            language: partial(download_repository, models[language], settings.models_dir)
            for language, place in here.items()
            if not place
        },
    )


def _load_diarizer(settings: Settings, model: str, device: str) -> Any:
    diarization = settings.diarization
    # The memory that a call needs grows with the length of its file, so it is not kept.
    prepare_process(threads_on(device, diarization.threads), keep_memory=False)
    from serve_app.stages.diarization.diarizer import load_pyannote
    from serve_app.stages.torch_support import limit_gpu_memory

    limit_gpu_memory(diarization.gpu_share, device)
    directory = directory_of(model, settings.models_dir)
    return load_pyannote(directory, device=device, token=get_token(), settings=diarization)
