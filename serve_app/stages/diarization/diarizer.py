"""Who speaks when, in a whole file, by pyannote's speaker diarization.

Pipelines get waveforms in memory, never paths. Importing this module is light: pyannote (15 s,
0.9 GB) is imported by the loader, with its telemetry off.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from serve_app.errors import ModelUnavailable
from serve_app.request.known_speakers import no_voice, no_voices_to_compare
from serve_app.stage_settings import ComputeType
from serve_app.stages.diarization.embeddings import share_trunk
from serve_app.stages.diarization.pipeline import load_pipeline
from serve_app.stages.diarization.voices import match, rename
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, KnownSpeaker, Samples, Turn

logger = logging.getLogger(__name__)

# Windows that (the segmentation, the embedding) network takes at once. On a CPU ResNet34 is a third faster
# one by one than eight by eight, in a quarter of the memory; the segmentation is not. On a GPU a replica may
# run two files at a time, and 16 windows fill it.
_BATCH_WINDOWS = {"cuda": (16, 16), "cpu": (8, 1)}

# Cosine distance from which on two voices are not the same. For pyannote's WeSpeaker a usual value, not
# measured here. With the bundled embedding 400 clips were at most 0.17 from their speaker, 0.19 in noise,
# 0.26 as MP3 of little bandwidth (at 8 kHz it knows nobody), and of 4,400 pairs of different voices 1.6 %
# were below 0.3, all of them voices that sound alike.
MAX_VOICE_DISTANCE, BUNDLED_MAX_VOICE_DISTANCE = 0.5, 0.3
SHORTEST_VOICE_S = 1.0  # spoken in a reference


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


class Diarizer:
    """One pyannote pipeline, made cheaper but with the same turns. Not thread-safe: pyannote keeps state."""

    def __init__(
        self,
        pipeline: Any,
        *,
        device: str = "cpu",
        compute_type: ComputeType = "auto",
        batch_windows: int | None = None,
        max_voice_distance: float = MAX_VOICE_DISTANCE,
    ) -> None:
        """Takes the pipeline over; `device` is where it is, `batch_windows` None is right for the device.

        The embedding is computed in `compute_type`, the segmentation, which costs little, in float32. Raises
        ModelUnavailable for half precision around an embedding that is not known to bear it.

        A known speaker's reference and a speaker are one voice below `max_voice_distance` (cosine).
        """
        self._pipeline = pipeline
        self._max_voice_distance = max_voice_distance
        segmentation, embedding = _BATCH_WINDOWS[device]
        pipeline.segmentation_batch_size = batch_windows or segmentation
        pipeline.embedding_batch_size = batch_windows or embedding
        self._takes_int16 = share_trunk(
            pipeline, pad_batches=device == "cuda", compute_type=compute_type, device=device
        )
        if compute_type in ("float16", "bfloat16") and not self._takes_int16:
            raise ModelUnavailable(
                f"diarization.compute_type: {compute_type} is for pyannote's WeSpeaker embeddings and the "
                "bundled one, and this pipeline has another; use auto or float32."
            )
        _bound_clusters(pipeline)

    def diarize(
        self,
        samples: Samples,
        *,
        num_speakers: int | None = None,
        min_speakers: int | None = None,
        max_speakers: int | None = None,
        known: Sequence[KnownSpeaker] = (),
    ) -> Diarization:
        """The turns of a whole file, times in seconds; none for silence or no samples.

        Speakers are SPEAKER_00, SPEAKER_01, ... as pyannote names them, and those whose voices are known
        have their names. Numbers of speakers are wishes: a clip too short for that many gives fewer.

        Raises InvalidRequest for a known speaker's clip without a voice.
        """
        voices = [self._voice(speaker.clip, number) for number, speaker in enumerate(known)]
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
        found = Diarization(turns, exclusive_turns(turns) if exclusive is None else _turns(exclusive))
        if not known:
            return found
        # A row for each label, in their order.
        matches = match(np.stack(voices), output.speaker_embeddings, self._max_voice_distance)
        labels = output.speaker_diarization.labels()
        names = {labels[speaker]: known[voice].name for speaker, voice in matches.items()}
        return rename(found, names, [speaker.name for speaker in known])

    def _voice(self, clip: Samples, number: int) -> Any:
        """The embedding (dimension,) of what is spoken in a clip, its pauses left out."""
        import torch

        heard = self._within_memory(
            {"waveform": self._waveform(clip), "sample_rate": SAMPLE_RATE_HZ}, num_speakers=1
        )
        embedding = getattr(self._pipeline, "_embedding", None)
        if embedding is None or getattr(heard, "speaker_embeddings", None) is None:
            raise no_voices_to_compare()
        spoken = np.zeros(len(clip), bool)
        for turn in _turns(heard.speaker_diarization):
            spoken[round(turn.start_s * SAMPLE_RATE_HZ) : round(turn.end_s * SAMPLE_RATE_HZ)] = True
        if spoken.sum() < SHORTEST_VOICE_S * SAMPLE_RATE_HZ:
            raise no_voice(number)
        waveform = np.multiply(clip[spoken], 1 / 32768, dtype=np.float32)
        return embedding(torch.from_numpy(waveform)[None, None])[0]

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
    model: str,
    *,
    device: str,
    token: str | None,
    compute_type: ComputeType = "auto",
    batch_windows: int | None = None,
    max_voice_distance: float | None = None,
) -> Diarizer:
    """A Diarizer around `load_pipeline`'s pipeline; None is right for the device, and for the model."""
    pipeline = load_pipeline(model, device=device, token=token)
    if max_voice_distance is None:
        max_voice_distance = BUNDLED_MAX_VOICE_DISTANCE if model == "bundled" else MAX_VOICE_DISTANCE
    return Diarizer(
        pipeline,
        device=device,
        compute_type=compute_type,
        batch_windows=batch_windows,
        max_voice_distance=max_voice_distance,
    )
