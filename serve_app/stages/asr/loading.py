"""Loads a Whisper for CTranslate2.

On CPUs a search gains little from a second core, whose threads mostly wait for each other, and an encoder
all of it. So two batches go side by side, each on half of the cores, and the encoder of one that is alone
has all of them, in a second copy of the weights: CTranslate2 settles threads when it loads a model.
"""

from faster_whisper import WhisperModel

from serve_app.errors import ModelUnavailable
from serve_app.stages.asr.recognizer import Recognizer

CPU_LANES = 2


def choose_compute_type(compute_type: str, device: str) -> str:
    """CTranslate2's name for "auto": int8 weights, with float16 arithmetic on a GPU."""
    if compute_type != "auto":
        return compute_type
    return "int8_float16" if device == "cuda" else "int8"


def load_recognizer(
    model: str,
    *,
    device: str,
    compute_type: str,
    threads: int,
    beam_size: int,
    compression_ratio_threshold: float = 2.4,
) -> Recognizer:
    """Loads a CTranslate2 Whisper from a directory or, by faster-whisper name or repository, the hub.

    Raises ModelUnavailable where that fails, whatever the reason.
    """
    lanes = 1 if device == "cuda" else min(threads, CPU_LANES)

    def load(threads: int, workers: int) -> WhisperModel:
        return WhisperModel(
            model,
            device=device,
            compute_type=choose_compute_type(compute_type, device),
            cpu_threads=threads,
            num_workers=workers,
        )

    try:
        whisper = load(threads // lanes, lanes + 1)  # the batcher's lanes; they share the weights
        wide = load(threads, 1).model if lanes > 1 else None
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ModelUnavailable(
            f"The Whisper model {model!r} could not be loaded ({reason}): `model` must be a CTranslate2 "
            "directory, a name such as small or large-v2, or a hub repository that this machine can reach, "
            "and `device` and `asr.compute_type` must be ones it has.",
            "model",
        ) from error
    return Recognizer(whisper, model, beam_size, compression_ratio_threshold, lanes=lanes, wide=wide)
