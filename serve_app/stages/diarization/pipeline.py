"""pyannote's pipeline: the bundled one, one in a directory, or one from the hub."""

import inspect
import logging
import os
import re
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from serve_app import bundled
from serve_app.errors import ModelUnavailable

PYANNOTE_TRIED = "4.0.7"

_BUNDLED_PARAMETERS = {  # tuned on two synthesized voices, see MODEL_CARD.md
    "segmentation": {"threshold": 0.5, "min_duration_off": 0.2},
    "clustering": {"method": "average", "min_cluster_size": 8, "threshold": 0.6},
}


def load_pipeline(model: str, *, device: str, token: str | None) -> Any:
    """pyannote's pipeline as it is; `device` is "cpu" or "cuda".

    `model` is "bundled", a directory with config.yaml, or a hub name (`token`: HF_TOKEN's value).
    Raises ModelUnavailable with one sentence that says what to do. A model's files are pickles:
    trust them or do not load them.
    """
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # else every call reports duration and speakers home
    with warnings.catch_warnings():
        # Files are decoded elsewhere, so a broken torchcodec is none of pyannote's business here.
        warnings.filterwarnings("ignore", r"\s*torchcodec is not installed correctly", UserWarning)
        import torch
        from pyannote.audio import Pipeline
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it advises to upgrade others' files

    check_pyannote()
    try:
        pipeline = _bundled_pipeline() if model == "bundled" else Pipeline.from_pretrained(model, token=token)
        pipeline.to(torch.device(device))
    except Exception as error:
        raise ModelUnavailable(
            why_unavailable(model, token, error), None, "diarization_unavailable"
        ) from error
    return pipeline


def check_pyannote() -> None:
    """Raises ModelUnavailable where pyannote is not inside as the stages expect that replace parts of it."""
    from pyannote.audio import Audio
    from pyannote.audio.models.embedding.wespeaker import BaseWeSpeakerResNet
    from pyannote.audio.pipelines import SpeakerDiarization
    from pyannote.audio.pipelines.clustering import VBxClustering
    from pyannote.audio.pipelines.speaker_verification import PyannoteAudioPretrainedSpeakerEmbedding

    uses = [
        (SpeakerDiarization, "__init__", "_segmentation _embedding _audio clustering klustering"),
        (SpeakerDiarization, "apply", "get_embeddings clustering"),
        (PyannoteAudioPretrainedSpeakerEmbedding, "__init__", "model_"),
    ]
    takes = [
        (SpeakerDiarization, "get_embeddings", "self file binary_segmentations exclude_overlap hook"),
        (VBxClustering, "filter_embeddings", "self embeddings segmentations min_active_ratio"),
        (
            VBxClustering,
            "__call__",
            "self embeddings segmentations num_clusters min_clusters max_clusters kwargs",
        ),
        (BaseWeSpeakerResNet, "compute_fbank", "self waveforms"),
        (BaseWeSpeakerResNet, "forward_frames", "self waveforms"),
        (BaseWeSpeakerResNet, "forward_embedding", "self frames weights"),
        (Audio, "crop", "self file segment mode"),
    ]
    lacks = [
        f"{owner.__name__}.{name} that uses {', '.join(names.split())}"
        for owner, name, names in uses
        if not set(names.split()) <= set(getattr(owner, name).__code__.co_names)
    ] + [
        f"{owner.__name__}.{name}({', '.join(parameters.split())})"
        for owner, name, parameters in takes
        if not hasattr(owner, name)
        or [*inspect.signature(getattr(owner, name)).parameters] != parameters.split()
    ]
    if lacks:
        raise ModelUnavailable(
            f"pyannote.audio {metadata.version('pyannote.audio')} has no {lacks[0]}; install pyannote.audio "
            f"{PYANNOTE_TRIED}, with which diarization was tried.",
            None,
            "diarization_unavailable",
        )


def why_unavailable(model: str, token: str | None, error: Exception) -> str:
    """One sentence: what went wrong with loading `model` and what to do about it."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    here = f"The diarization model {model!r}"
    if Path(model).is_dir() and not (Path(model) / "config.yaml").is_file():
        return f"{here} is a directory without config.yaml; name the directory that holds it."
    if isinstance(error, HFValidationError):
        return f"{here} is neither 'bundled' nor an existing directory nor a hub name."
    gated = re.search(r"https://[^/\s]+/([^/\s]+/[^/\s]+)/resolve/", str(error))  # may be a part of the model
    page = f"https://huggingface.co/{gated[1] if gated else model}"
    if isinstance(error, HfHubHTTPError) and not isinstance(error, LocalEntryNotFoundError):
        remedy = "check its name and HF_TOKEN" if token else "set HF_TOKEN to a token of huggingface.co"
        return f"{here} was refused: {remedy}, and accept the conditions on {page} as the token's owner."
    if isinstance(error, OSError) and not Path(model).exists():
        remedy = "" if token else f", accept the conditions on {page} and set HF_TOKEN"
        return f"{here} could not be downloaded: check its name and the network{remedy}, or name a directory."
    reason = str(error).strip().partition("\n")[0]
    return f"{here} could not be loaded ({type(error).__name__}: {reason}); check its files and versions."


def _bundled_pipeline() -> Any:
    """pyannote's pipeline around the segmentation model in the whisperx wheel and our embedding."""
    import whisperx
    from pyannote.audio import Model
    from pyannote.audio.core.plda import PLDA
    from pyannote.audio.pipelines import SpeakerDiarization

    from serve_app.bundled.speaker_embedding import load_speaker_embedding

    pipeline = SpeakerDiarization(
        segmentation=Model.from_pretrained(Path(whisperx.__file__).parent / "assets" / "pytorch_model.bin"),
        segmentation_batch_size=8,
        embedding=load_speaker_embedding(bundled.SPEAKER_EMBEDDING),
        embedding_batch_size=8,
        embedding_exclude_overlap=True,
        plda=PLDA.__new__(PLDA),  # unused by this clustering; the default asks a gated hub repository
        clustering="AgglomerativeClustering",
    )
    pipeline.instantiate(_BUNDLED_PARAMETERS)
    return pipeline
