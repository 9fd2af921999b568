"""Who speaks when, in a whole file, by pyannote's speaker diarization.

Pipelines get waveforms in memory, never paths. Importing this module is light: pyannote (15 s,
0.9 GB) is imported by the loader, with its telemetry off.
"""

import logging
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from serve_app import bundled
from serve_app.errors import ModelUnavailable
from serve_app.stages.speaker_embeddings import share_trunk
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, Samples, Turn

logger = logging.getLogger(__name__)

# Windows that (the segmentation, the embedding) network takes at once. On a CPU ResNet34 is a third faster
# one by one than eight by eight, in a quarter of the memory; the segmentation is not.
_BATCH_WINDOWS = {"cuda": (32, 32), "cpu": (8, 1)}

_BUNDLED_PARAMETERS = {  # tuned on two synthesized voices, see MODEL_CARD.md
    "segmentation": {"threshold": 0.5, "min_duration_off": 0.2},
    "clustering": {"method": "average", "min_cluster_size": 8, "threshold": 0.6},
}


def exclusive_turns(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Turns of which no two overlap: who spoke first keeps the floor until the end of the turn.

    For pipelines that give no exclusive turns of their own.
    """
    exclusive: list[Turn] = []
    taken_until_s = float("-inf")
    for turn in sorted(turns, key=lambda turn: (turn.start_s, -turn.end_s)):
        if turn.end_s > taken_until_s:
            exclusive.append(replace(turn, start_s=max(turn.start_s, taken_until_s)))
            taken_until_s = turn.end_s
    return tuple(exclusive)


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


def _turns(annotation: Any) -> tuple[Turn, ...]:
    tracks = annotation.itertracks(yield_label=True)
    return tuple(Turn(float(span.start), float(span.end), str(speaker)) for span, _, speaker in tracks)


def _bound_clusters(pipeline: Any) -> None:
    """Makes `pipeline` ask for no more speakers than it has embeddings to cluster.

    Only the pipeline knows how many, between embedding and clustering. pyannote 4.0.7's default
    clustering asks KMeans all the same: "n_samples=3 should be >= n_clusters=8"; the other one does not.
    """
    if getattr(pipeline, "klustering", None) != "VBxClustering":
        return
    clustering: Any = pipeline.clustering

    def within_reach(
        embeddings: Any, segmentations: Any, num_clusters: int | None, min_clusters: int, **others: Any
    ) -> Any:
        usable, _, _ = clustering.filter_embeddings(embeddings, segmentations=segmentations)
        most = max(1, len(usable))
        return clustering(
            embeddings,
            segmentations=segmentations,
            num_clusters=num_clusters and min(num_clusters, most),
            min_clusters=min(min_clusters, most),
            **others,
        )

    vars(pipeline)["clustering"] = within_reach  # found before pyannote's own attribute of that name


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


class Diarizer:
    """One pyannote pipeline, made cheaper but with the same turns. Not thread-safe: pyannote keeps state."""

    def __init__(self, pipeline: Any, *, device: str = "cpu", batch_windows: int | None = None) -> None:
        """Takes the pipeline over; `device` is where it is, `batch_windows` None is right for the device."""
        self._pipeline = pipeline
        segmentation, embedding = _BATCH_WINDOWS[device]
        pipeline.segmentation_batch_size = batch_windows or segmentation
        pipeline.embedding_batch_size = batch_windows or embedding
        self._takes_int16 = share_trunk(pipeline, pad_batches=device == "cuda")
        _bound_clusters(pipeline)

    def diarize(
        self,
        samples: Samples,
        *,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
    ) -> Diarization:
        """The turns of a whole file, times in seconds; none for silence or no samples.

        Speakers are SPEAKER_00, SPEAKER_01, ... as pyannote names them. Numbers of speakers are
        wishes: a clip too short for that many gives fewer.
        """
        if not len(samples):
            return Diarization((), ())
        output = self._within_memory(
            {"waveform": self._waveform(samples), "sample_rate": SAMPLE_RATE_HZ},
            num_speakers=num_speakers,
            min_speakers=min(min_speakers, max_speakers) if min_speakers and max_speakers else min_speakers,
            max_speakers=max_speakers,
        )
        turns = _turns(getattr(output, "speaker_diarization", output))
        exclusive = getattr(output, "exclusive_speaker_diarization", None)
        return Diarization(turns, exclusive_turns(turns) if exclusive is None else _turns(exclusive))

    def _waveform(self, samples: Samples) -> Any:
        """(1, samples): the very samples where the pipeline takes int16, a float32 copy elsewhere."""
        import torch

        if not self._takes_int16:
            return torch.from_numpy(np.multiply(samples, 1 / 32768, dtype=np.float32))[None]
        with warnings.catch_warnings():
            # Samples from Ray's object store are read-only, and nothing here writes into them.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            return torch.from_numpy(samples)[None]

    def _within_memory(self, file: dict[str, Any], **bounds: int | None) -> Any:
        """The pipeline's output. Out of memory, it is run once more, from then on with half the batches."""
        import torch
        from lightning.pytorch.utilities.memory import is_oom_error

        pipeline = self._pipeline
        batches = pipeline.segmentation_batch_size, pipeline.embedding_batch_size
        try:
            return pipeline(file, **bounds)
        except (MemoryError, RuntimeError) as error:
            # pyannote's segmentation turns torch's error into a MemoryError; numpy's is of a subclass, and
            # clustering needs no less memory with smaller batches.
            if max(batches) == 1 or not (type(error) is MemoryError or is_oom_error(error)):
                raise
        # Outside the handler, whose error keeps the tensors of the failed run alive.
        torch.cuda.empty_cache()
        smaller = [max(1, batch // 2) for batch in batches]
        logger.warning("Out of memory with batches of %s windows; from now on %s.", batches, tuple(smaller))
        pipeline.segmentation_batch_size, pipeline.embedding_batch_size = smaller
        return pipeline(file, **bounds)


def load_diarizer(
    model: str, *, device: str, token: str | None, batch_windows: int | None = None
) -> Diarizer:
    """A Diarizer around `load_pipeline`'s pipeline; `batch_windows` None is right for the device."""
    pipeline = load_pipeline(model, device=device, token=token)
    return Diarizer(pipeline, device=device, batch_windows=batch_windows)


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

    try:
        pipeline = _bundled_pipeline() if model == "bundled" else Pipeline.from_pretrained(model, token=token)
        pipeline.to(torch.device(device))
    except Exception as error:
        raise ModelUnavailable(
            why_unavailable(model, token, error), None, "diarization_unavailable"
        ) from error
    return pipeline
