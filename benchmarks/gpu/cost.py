"""What each stage costs on the device: memory at the batch in use, then seconds, then the simulation's terms.

Weights are random, of true dimensions. Memory is the whole GPU's, CUDA's own part included, less what was in
use before, against the stage's share of 16 GB in serve_config.yaml.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from benchmarks import people
from benchmarks.gpu import meter, stages
from benchmarks.gpu.figures import SIMULATED
from benchmarks.gpu.stages import TEXT_TOKENS, Check
from serve_app.stage_requests import AlignRequest, AsrRequest
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, Window, WindowText

CONFIG = Path(__file__).parents[2] / "serve_config.yaml"
GPU_MIB = 16e9 / meter.MIB
BATCHES = (1, 4, 8, 16, 32)
TINY_BATCHES = (1, 2, 4)
ROUNDS = 3
MIN_BUSY_PERCENT = 90  # of a GPU that recognises: else the service leaves it idle
WINDOW_S = 30.0
WINDOW_WORDS = 75


def share_mib(stage: str) -> float:
    """What serve_config.yaml books for a stage (a key of `args`) of a GPU with 16 GB."""
    [application] = yaml.safe_load(CONFIG.read_text())["applications"]
    return float(application["args"][stage]["gpu_share"]) * GPU_MIB


def seconds(check: Check, run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """The median time, after one run that is not counted."""
    spent_s = []
    for _ in range(rounds + 1):
        check.synchronize()
        begun_s = time.perf_counter()
        run()
        check.synchronize()
        spent_s.append(time.perf_counter() - begun_s)
    return median(spent_s[1:])


@contextmanager
def memory_of(check: Check, name: str, stage: str) -> Iterator[None]:
    """Reports what memory the models and batches inside take; on a CPU without a limit."""
    with meter.usage(check.device) as used:
        yield
    limit = share_mib(stage) if check.device == "cuda" else None
    check.report(f"{name}: memory", used.grown_mib, "MiB", at_most=limit)


def busy_while(
    check: Check, name: str, run: Callable[[], Any], *, for_s: float = 1.5, min_percent: float | None = None
) -> None:
    """How busy the device is while `run` is repeated: the rest of the time it waits for the CPU."""
    for_s = 0.0 if check.is_tiny else for_s
    begun_s = time.perf_counter()
    with meter.usage(check.device) as used:
        while True:
            run()
            check.synchronize()
            if time.perf_counter() - begun_s >= for_s:
                break
    check.report(f"{name}: device busy", used.mean_busy_percent, "%", at_least=min_percent)


def recognizer(check: Check, mel_bands: int = 80) -> None:
    """`large-v2`: encoder and beam search by batch size."""
    directory = stages.random_whisper(check, mel_bands=mel_bands)
    name = "recognizer" if mel_bands == 80 else "recognizer, large-v3"
    with ExitStack() as held:
        held.enter_context(memory_of(check, f"{name}, batch of {check.batch}", "asr"))
        model = stages.load_recognizer(directory, check.device)
        requests = _windows(model, max(TINY_BATCHES if check.is_tiny else BATCHES))
        model.transcribe(requests[: check.batch])
    batches = TINY_BATCHES if check.is_tiny else BATCHES
    steps_s, encode_s = [], {}
    for batch in batches:
        features = _stacked(requests[:batch])
        encode_s[batch] = seconds(check, partial(model._model.encode, features))
        total_s = seconds(check, partial(model.transcribe, requests[:batch]), 2)
        steps_s.append(max(0.0, total_s - encode_s[batch]) / TEXT_TOKENS)
        check.report(f"{name}, batch of {batch}: encoder, a window", 1000 * encode_s[batch] / batch, "ms")
        check.report(f"{name}, batch of {batch}: all of a window", 1000 * total_s / batch, "ms")
        check.report(f"{name}, batch of {batch}: times real time", batch * WINDOW_S / total_s)
    busy_while(
        check,
        f"{name}, batch of {check.batch}",
        lambda: model.transcribe(requests[: check.batch]),
        for_s=3.0,  # the driver's figure may be a second old
        min_percent=check.goal(MIN_BUSY_PERCENT),
    )
    if mel_bands == 80:
        each_s, base_s = np.polyfit(batches, steps_s, 1)
        check.report(f"{SIMULATED}ENCODE_S", encode_s[batches[-2]] / batches[-2], "s")
        check.report(f"{SIMULATED}STEP_S", max(0.0, base_s), "s")
        check.report(f"{SIMULATED}STEP_PER_WINDOW_S", max(0.0, each_s), "s")


def large_v3(check: Check) -> None:
    """The same with 128 mel bands."""
    recognizer(check, mel_bands=128)


def _windows(recognizer: Any, count: int) -> list[AsrRequest]:
    return [AsrRequest(recognizer.features(samples), "en") for samples in stages.windows_of(WINDOW_S, count)]


def _stacked(requests: list[AsrRequest]) -> Any:
    import ctranslate2

    return ctranslate2.StorageView.from_array(np.stack([request.features for request in requests]))


def aligner(check: Check) -> None:
    """wav2vec2-base: ours in batches, and whisperx's call, one window at a time in float32."""
    import torch

    from serve_app.stages.alignment.aligner import align_language

    directory = stages.random_wav2vec2(check)
    requests = _align_requests(2)
    with memory_of(check, "aligner, 60 s at once", "alignment"):
        model = stages.load_aligner(directory, check.device)
        align_language(model, requests)
    windows = [request.samples for request in requests]
    audio_s = WINDOW_S * len(windows)
    ours_s = seconds(check, lambda: model.acoustic.emissions(windows)) / audio_s
    all_s = seconds(check, lambda: align_language(model, requests)) / audio_s
    waveform = torch.from_numpy(windows[0].astype(np.float32) / 32768)[None].to(check.device)

    @torch.inference_mode()
    def as_whisperx() -> Any:
        return model.acoustic.model(waveform).logits.cpu()

    stock_s = seconds(check, as_whisperx) / WINDOW_S
    check.report("aligner: network, times real time", 1 / ours_s)
    check.report("aligner: with everything, times real time", 1 / all_s)
    check.report("aligner: network, whisperx's time over ours", stock_s / ours_s)
    busy_while(check, "aligner", lambda: align_language(model, requests))
    check.report(f"{SIMULATED}STOCK_ALIGN", stock_s, "s for each second")
    check.report(f"{SIMULATED}ALIGN", ours_s, "s for each second")
    check.report(f"{SIMULATED}HALF", ours_s / stock_s)


def _align_requests(count: int) -> list[AlignRequest]:
    """Windows of 30 s with 75 words each."""
    words = [word for recording in people.packaged() for word in (recording.text or "").split()]
    text = WindowText(" ".join(words[:WINDOW_WORDS]), "en", None, -0.1, 0.0, 1.0)
    return [
        AlignRequest.for_window(samples, Window(0.0, WINDOW_S), text)
        for samples in stages.windows_of(WINDOW_S, count)
    ]


def detector(check: Check) -> None:
    """pyannote's speech detection, which is the trained model that whisperx brings."""
    samples = people.speech(10.0 if check.is_tiny else 120.0)
    with memory_of(check, "detector", "speech"):
        model = stages.load_detector(check.device)
        stages.find_speech(model, samples)
    spent_s = seconds(check, lambda: stages.find_speech(model, samples))
    duration_s = len(samples) / SAMPLE_RATE_HZ
    check.report("detector: times real time", duration_s / spent_s)
    busy_while(check, "detector", lambda: stages.find_speech(model, samples))
    chunks = 1 + math.ceil((duration_s - 5.0) / 0.5)
    check.report(f"{SIMULATED}DETECT", spent_s / chunks, "s for each chunk")


def diarizer(check: Check) -> None:
    """community-1's parts: ours, and pyannote's own pipeline in float32; CPU work included in both."""
    directory = stages.random_pyannote(check, trained_segmentation=False)
    samples = people.speech(12.0 if check.is_tiny else 120.0)
    rounds = 1 if check.is_tiny else ROUNDS
    ours_s = _our_diarization_s(check, directory, samples, rounds)
    check.report("diarizer: times real time", len(samples) / SAMPLE_RATE_HZ / ours_s)
    stock_s = _pyannotes_diarization_s(check, directory, samples)
    check.report("diarizer: pyannote's time over ours", stock_s / ours_s)
    chunks = 1 + max(0, math.ceil(len(samples) / SAMPLE_RATE_HZ - 10.0))
    check.report(f"{SIMULATED}STOCK_DIARIZE", stock_s / chunks, "s for each chunk")
    check.report(f"{SIMULATED}DIARIZE", ours_s / chunks, "s for each chunk")


def _our_diarization_s(check: Check, directory: Path, samples: Samples, rounds: int) -> float:
    with memory_of(check, "diarizer, batches of 16", "diarization"):
        model = stages.load_diarizer(directory, check.device)
        stages.diarize(model, samples)
    spent_s = seconds(check, lambda: stages.diarize(model, samples), rounds)
    busy_while(check, "diarizer", lambda: stages.diarize(model, samples))
    return spent_s


def _pyannotes_diarization_s(check: Check, directory: Path, samples: Samples) -> float:
    import torch

    from serve_app.stages.diarization.pipeline import load_pipeline

    stock = load_pipeline(str(directory), device=check.device, token=None)
    waveform = torch.from_numpy(samples.astype(np.float32) / 32768)[None]
    return seconds(check, lambda: stock({"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ}), 1)
