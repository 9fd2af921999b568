"""Each stage on the device against the CPU, on the same input and weights: a count of what differs.

The CPU computes one window at a time, the device whole batches, as the service does. `float32` shows the
kernels, `served` what the service computes in: int8_float16 for the recogniser, float16 for alignment and
speaker embeddings. The recogniser's int8 is compared with the CPU's. Limits are wide: they find a wrong
kernel, a wrong mask or a wrong type, not the last digit.
"""

from typing import Any

import numpy as np

from benchmarks import people
from benchmarks.gpu import stages
from benchmarks.gpu.compare import (
    FRAME_S,
    Words,
    compare_words,
    relative_error,
    speakers_differ_percent,
    window_edges_apart_s,
    words_of,
)
from benchmarks.gpu.stages import Check
from serve_app.errors import TranscriptionError
from serve_app.settings.types import ComputeType
from serve_app.stage_requests import AsrRequest, Decoding
from serve_app.transcript import SAMPLE_RATE_HZ, Window

TYPES: dict[str, ComputeType] = {"float32": "float32", "served": "auto"}


def recognizer(check: Check) -> None:
    """Encoder, probabilities of a given text, and with real weights texts and word times."""
    real = stages.real_whisper(check)
    directory = real or stages.random_whisper(check)
    check.report("recognizer: weights", real.name if real else f"random, {directory.name}")
    windows = stages.windows_of(10.0, 2 if check.is_tiny else 16)
    for name, compute_type in TYPES.items():
        is_exact = compute_type == "float32"
        title = f"recognizer, {name}"
        # As many windows as the CPU can do in time: a large model takes seconds for each.
        used = windows if real or check.is_tiny else windows[:2]
        reference = stages.load_recognizer(directory, "cpu", compute_type)
        requests = stages.asr_requests(reference, used)
        encoded, probabilities = zip(*(_read(reference, [request]) for request in requests), strict=True)
        texts = [reference.transcribe([request])[0] for request in requests] if real else []
        del reference
        tested = stages.load_recognizer(directory, check.device, compute_type)
        found_encoded, found_probabilities = _read(tested, requests)
        error = relative_error(found_encoded, np.concatenate(encoded))
        check.report(f"{title}: encoder's relative error", 100 * error, "%", at_most=0.1 if is_exact else 10)
        apart = np.abs(np.log(found_probabilities + 1e-12) - np.log(np.concatenate(probabilities) + 1e-12))
        check.report(
            f"{title}: log-probability of a token, mean difference",
            float(apart.mean()),
            at_most=0.01 if is_exact else 0.25,
        )
        if real:
            _compare_texts(check, title, tested, (requests, tested.transcribe(requests), texts), is_exact)


def _compare_texts(check: Check, title: str, recognizer: Any, answers: Any, is_exact: bool) -> None:
    counts, changed, total = Words(), 0, len(answers[0])
    for request, found, expected in zip(*answers, strict=True):
        window = Window(0.0, request.times_until_s)
        both = [words_of(recognizer.sentences(text, window, request.features)) for text in (found, expected)]
        counts += compare_words(*both)
        changed += found.text != expected.text
    check.report(f"{title}: other texts, of {total} windows", changed)
    check.report(
        f"{title}: other words, of {counts.expected}",
        counts.changed_percent,
        "%",
        at_most=1 if is_exact else 5,
    )
    check.report(
        f"{title}: word times over {FRAME_S:g} s away",
        counts.moved_percent,
        "%",
        at_most=1 if is_exact else 5,
    )


def _read(recognizer: Any, requests: list[AsrRequest]) -> tuple[Any, Any]:
    """The encoder's output, and the probability of each token of a given text (windows, tokens)."""
    import ctranslate2

    features = ctranslate2.StorageView.from_array(np.stack([request.features for request in requests]))
    encoded = recognizer._model.encode(features)
    text = " ".join(said for _, said in stages.said()[:4])
    ids = recognizer._tokenizer.encode(f" {text}", add_special_tokens=False).ids[:100]
    start = recognizer._prompts.start("en", Decoding())
    aligned = recognizer._model.align(encoded, start, [ids] * len(requests), [1000] * len(requests))
    probabilities = np.array([result.text_token_probs for result in aligned], np.float64)
    if encoded.device == "cuda":
        encoded = encoded.to_device(ctranslate2.Device.cpu)
    return np.array(encoded.to(ctranslate2.DataType.float32)), probabilities


def aligner(check: Check) -> None:
    """The acoustic model's probabilities and the times of words."""
    from serve_app.stages.alignment.aligner import align_language

    real = stages.real_model("wav2vec2-en")
    directory = real or stages.random_wav2vec2(check)
    check.report("aligner: weights", "wav2vec2-base-960h" if real else "random")
    requests = stages.align_requests()
    requests = requests[:4] if check.is_tiny else requests
    for name, compute_type in TYPES.items():
        is_exact, title = compute_type == "float32", f"aligner, {name}"
        reference = stages.load_aligner(directory, "cpu", "float32")
        tested = stages.load_aligner(directory, check.device, compute_type)
        emissions = [
            [model.acoustic.emissions(batch) for batch in batches]
            for model, batches in (
                (reference, [[request.samples] for request in requests]),
                (tested, [[request.samples for request in requests]]),
            )
        ]
        expected = np.concatenate([found[0][1] for found in emissions[0]])
        found = np.concatenate([probabilities for _, probabilities in emissions[1][0]])
        check.report(
            f"{title}: probability of a character, largest difference",
            float(np.abs(found - expected).max()),
            at_most=0.001 if is_exact else 0.1,
        )
        counts = Words()
        for one, other in zip(
            align_language(tested, requests), align_language(reference, requests), strict=True
        ):
            assert not isinstance(one, TranscriptionError), one
            assert not isinstance(other, TranscriptionError), other
            counts += compare_words(words_of(one), words_of(other))
        check.report(
            f"{title}: word times over {FRAME_S:g} s away, of {counts.expected}",
            counts.moved_percent,
            "%",
            # Random probabilities are all alike, so rounding decides where a letter is.
            at_most=(1 if is_exact else 2) if real else None,
        )


def detector(check: Check) -> None:
    """Windows of speech, with the trained model that whisperx has in its wheel; always in float32."""
    samples = people.speech(20.0 if check.is_tiny else 180.0)
    expected = stages.find_speech(stages.load_detector("cpu"), samples)
    found = stages.find_speech(stages.load_detector(check.device), samples)
    check.report("detector: windows more or fewer", abs(len(found) - len(expected)), at_most=0)
    apart_s = window_edges_apart_s(found, expected)
    check.report(f"detector: edges of {len(expected)} windows, furthest", apart_s, "s", at_most=FRAME_S)


def diarizer(check: Check) -> None:
    """Turns, with CAM++ where it is on this machine and with a ResNet34 of random weights."""
    [recording] = people.packaged()
    samples = recording.samples[: 12 * SAMPLE_RATE_HZ] if check.is_tiny else recording.samples
    campplus = stages.real_model("campplus")
    models = {"CAM++": campplus} if campplus else {}
    if not check.is_tiny:
        models["random ResNet34"] = stages.random_pyannote(check, trained_segmentation=True)
    if not models:
        raise stages.NotPossible("CAM++ is not on this machine: python -m serve_app prefetch speakers")
    for model, directory in models.items():
        expected = stages.diarize(stages.load_diarizer(directory, "cpu", "float32"), samples)
        for name, compute_type in TYPES.items():
            found = stages.diarize(stages.load_diarizer(directory, check.device, compute_type), samples)
            title = f"diarizer, {model}, {name}"
            same = sum(turn in found.turns for turn in expected.turns)
            check.report(f"{title}: other turns, of {len(expected.turns)}", len(expected.turns) - same)
            percent = speakers_differ_percent(found, expected)
            is_random = model != "CAM++"  # voices that are all alike: rounding decides who it is
            limit = None if is_random and compute_type != "float32" else 1.0
            check.report(f"{title}: time with another speaker", percent, "%", at_most=limit)
