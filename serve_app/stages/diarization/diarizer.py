"""Who speaks when in a whole file, by pyannote's speaker diarization.

Pipelines get waveforms in memory, never paths. Importing this module is cheap: the loader imports pyannote
(15 s, 0.9 GB), with its telemetry off.
"""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import count
from typing import Any, Protocol

import numpy as np

from serve_app.errors import InvalidRequest, ModelUnavailable
from serve_app.settings import DiarizationSettings
from serve_app.stages.diarization.embeddings import cut_voices, match_voices, share_trunk, voices_of
from serve_app.stages.diarization.pipeline import limit_clusters, load_pipeline
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, KnownSpeaker, Samples, SpeakerBounds, Turn

logger = logging.getLogger(__name__)

REFERENCES = "known_speaker_references"  # the option with the clips of known speakers

# Windows per batch of the segmentation and of the embedding network. On a CPU ResNet34 is a third faster
# with one window than with eight, and takes a quarter of the memory; the segmentation network is not faster.
# On a GPU a replica may run a short and a long file at once, and 16 windows fill it.
_BATCH_WINDOWS = {"cuda": (16, 16), "cpu": (8, 1)}

# Cosine distance at which two voices count as different, where the embedding network does not say itself:
# a usual value for pyannote's WeSpeaker, not measured here.
MAX_VOICE_DISTANCE = 0.5
MIN_VOICE_S = 1.0  # of speech in a known speaker's clip

_DEFAULTS, _ANY_NUMBER = DiarizationSettings(), SpeakerBounds()


class DiarizationModel(Protocol):
    """A diarization model: to use another one, implement this and load it in `models/loaders.py`.

    A replica loads it twice, so that short files need not wait for long ones.
    """

    def diarize(
        self, samples: Samples, *, bounds: SpeakerBounds, known: Sequence[KnownSpeaker]
    ) -> Diarization:
        """The turns of a whole file; a speaker with the voice of a known one has that name.

        A model that makes vectors of voices gives them too. Raises `reference_error` for a known speaker's
        clip that has no voice.
        """


def reference_error(number: int, what: str, code: str | None = None) -> InvalidRequest:
    """The error for one known speaker's clip, counted from 0."""
    return InvalidRequest(f"{REFERENCES}[{number}]: {what}.", REFERENCES, code)


def rename_speakers(diarization: Diarization, names: Mapping[str, str], given: Sequence[str]) -> Diarization:
    """The same turns and voices, with `names` in place of the labels that they have.

    Other speakers keep their labels, except where a label reads like one of the `given` names: it is
    replaced by the first SPEAKER_00, SPEAKER_01, ... that is free.
    """
    voices = diarization.voices
    labels = dict.fromkeys(turn.speaker for turn in (*diarization.turns, *diarization.exclusive_turns))
    labels |= dict.fromkeys(voices.vectors if voices else ())
    taken = {*labels, *given}
    unused = (label for label in map("SPEAKER_{:02d}".format, count()) if label not in taken)
    renamed = {label: names.get(label) or (next(unused) if label in given else label) for label in labels}

    def rename(turns: Sequence[Turn]) -> tuple[Turn, ...]:
        return tuple(replace(turn, speaker=renamed[turn.speaker]) for turn in turns)

    if voices:
        voices = replace(voices, vectors={renamed[label]: vector for label, vector in voices.vectors.items()})
    return Diarization(rename(diarization.turns), rename(diarization.exclusive_turns), voices)


def _turns(annotation: Any) -> tuple[Turn, ...]:
    tracks = annotation.itertracks(yield_label=True)
    return tuple(Turn(float(span.start), float(span.end), str(speaker)) for span, _, speaker in tracks)


class PyannoteDiarizer:
    """A pyannote pipeline, made cheaper, with the same turns. Not thread-safe: pyannote keeps state."""

    def __init__(
        self, pipeline: Any, *, device: str = "cpu", settings: DiarizationSettings = _DEFAULTS
    ) -> None:
        """Takes over the pipeline, which is on `device`.

        The embedding is computed in the settings' compute type, the segmentation, which costs little, in
        float32. Raises ModelUnavailable for half precision with an embedding that may not bear it.
        """
        self._pipeline = pipeline
        network = getattr(pipeline._embedding, "model_", None)
        by_network: float = getattr(network, "max_voice_distance", MAX_VOICE_DISTANCE)
        self._max_voice_distance = settings.known_speaker_threshold or by_network
        segmentation, embedding = _BATCH_WINDOWS[device]
        pipeline.segmentation_batch_size = settings.batch_windows or segmentation
        pipeline.embedding_batch_size = settings.batch_windows or embedding
        compute_type = settings.compute_type
        self._takes_int16 = cut_voices(pipeline, compute_type, device) or share_trunk(
            pipeline, device == "cuda", compute_type, device
        )
        if compute_type in ("float16", "bfloat16") and not self._takes_int16:
            raise ModelUnavailable(
                f"diarization.compute_type: {compute_type} is for CAM++ and pyannote's WeSpeaker embeddings, "
                "and this pipeline has another; use auto or float32."
            )
        limit_clusters(pipeline)

    def diarize(
        self, samples: Samples, *, bounds: SpeakerBounds = _ANY_NUMBER, known: Sequence[KnownSpeaker] = ()
    ) -> Diarization:
        """The turns of a whole file, times in seconds; none for silence or no samples.

        Speakers are SPEAKER_00, SPEAKER_01, ... as pyannote names them, or have the name of a known voice.
        `bounds` are wishes: a clip too short for that many speakers gives fewer.
        """
        voices = [self._voice(speaker.clip, number) for number, speaker in enumerate(known)]
        if not len(samples):
            return Diarization((), ())
        output = self._run(samples, **asdict(bounds))
        labels = output.speaker_diarization.labels()  # in the order of the embeddings' rows
        found = Diarization(
            _turns(output.speaker_diarization),
            _turns(output.exclusive_speaker_diarization),
            voices_of(self._pipeline, labels, output.speaker_embeddings),
        )
        if not known:
            return found
        matches = match_voices(np.stack(voices), output.speaker_embeddings, self._max_voice_distance)
        names = {labels[speaker]: known[voice].name for speaker, voice in matches.items()}
        return rename_speakers(found, names, [speaker.name for speaker in known])

    def _voice(self, clip: Samples, number: int) -> Any:
        """The embedding (dimension,) of the speech in a known speaker's clip, without its pauses."""
        import torch

        is_speech = np.zeros(len(clip), bool)
        for turn in _turns(self._run(clip, num_speakers=1).speaker_diarization):
            is_speech[round(turn.start_s * SAMPLE_RATE_HZ) : round(turn.end_s * SAMPLE_RATE_HZ)] = True
        if is_speech.sum() < MIN_VOICE_S * SAMPLE_RATE_HZ:
            what = "no voice is heard in it; send a clip in which the speaker speaks alone"
            raise reference_error(number, what, "no_voice")
        waveform = np.multiply(clip[is_speech], 1 / 32768, dtype=np.float32)
        return self._pipeline._embedding(torch.from_numpy(waveform)[None, None])[0]

    def _run(self, samples: Samples, **bounds: int | None) -> Any:
        """The pipeline's output. Out of memory, it runs once more, from then on with half the batches."""
        import torch
        from lightning.pytorch.utilities.memory import is_oom_error

        pipeline = self._pipeline
        if not self._takes_int16:
            samples = np.multiply(samples, 1 / 32768, dtype=np.float32)
        with warnings.catch_warnings(action="ignore"):
            # Samples from Ray's object store are read-only, and nothing here writes into them.
            file = {"waveform": torch.from_numpy(samples)[None], "sample_rate": SAMPLE_RATE_HZ}
        batches = pipeline.segmentation_batch_size, pipeline.embedding_batch_size
        try:
            return pipeline(file, **bounds)
        except (MemoryError, RuntimeError) as error:
            # pyannote's segmentation turns torch's error into a MemoryError. numpy raises a subclass of it
            # in clustering, which needs no less memory with smaller batches.
            if max(batches) == 1 or not (type(error) is MemoryError or is_oom_error(error)):
                raise
        # Outside the handler: its error keeps the tensors of the failed run alive.
        torch.cuda.empty_cache()
        smaller = [max(1, batch // 2) for batch in batches]
        logger.warning("Out of memory with batches of %s windows; from now on %s.", batches, tuple(smaller))
        pipeline.segmentation_batch_size, pipeline.embedding_batch_size = smaller
        return pipeline(file, **bounds)


def load_pyannote(
    model: str, *, device: str, token: str | None, settings: DiarizationSettings = _DEFAULTS
) -> PyannoteDiarizer:
    """A pipeline by its directory or hub name; raises ModelUnavailable."""
    pipeline = load_pipeline(model, device=device, token=token)
    return PyannoteDiarizer(pipeline, device=device, settings=settings)
