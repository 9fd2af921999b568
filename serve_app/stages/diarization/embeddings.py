"""Speaker embeddings: pyannote's, cheaper, and which known voice each speaker has.

pyannote runs its embedding network once for every (window, local speaker) pair, although only the pooling
at the end looks at the speaker's mask. With three local speakers the trunk, everything before the pooling
and most of what diarization costs, is computed three times. Here it is computed once for each window. CAM++
is given only the frames in which a speaker speaks, in batches of the same length.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.settings.types import ComputeType
from serve_app.transcript import SAMPLE_RATE_HZ, Voices


def share_trunk(
    pipeline: Any, pad_batches: bool, compute_type: ComputeType = "float32", device: str = "cpu"
) -> bool:
    """Makes `pipeline` use `embed`; returns False, and changes nothing, for an unknown kind of pipeline.

    Known is pyannote's own pipeline around one of its WeSpeaker ResNets (community-1, 3.1). It then computes
    the trunk in `compute_type` on `device` and takes int16 waveforms too, so that no float32 copy of hours of
    audio is needed.
    """
    from pyannote.audio.models.embedding.wespeaker import BaseWeSpeakerResNet
    from pyannote.audio.pipelines import SpeakerDiarization
    from pyannote.audio.pipelines.speaker_verification import PyannoteAudioPretrainedSpeakerEmbedding

    embedding: Any = pipeline._embedding
    if not (
        type(pipeline) is SpeakerDiarization
        and type(embedding) is PyannoteAudioPretrainedSpeakerEmbedding
        and isinstance(embedding.model_, BaseWeSpeakerResNet)
        and embedding.sample_rate == pipeline._segmentation.model.audio.sample_rate == SAMPLE_RATE_HZ
    ):
        return False
    pipeline._segmentation.model.register_forward_pre_hook(lambda _, inputs: (to_float(inputs[0]),))
    trunk = _trunk(embedding.model_, compute_type, device)
    # An attribute of the instance hides the method of the same name.
    vars(pipeline)["get_embeddings"] = partial(embed, pipeline, trunk, pad_batches=pad_batches)
    return True


def _trunk(model: Any, compute_type: ComputeType, device: str) -> Callable[[Any], Any]:
    """The model's `forward_frames`, (batch, 1, samples) to frames, with its network in `compute_type`."""
    import torch

    from serve_app.stages.torch_support import Precision

    precision = Precision(compute_type, device)
    if precision.dtype is not None:
        model.resnet.to(memory_format=torch.channels_last)  # the layout that tensor cores take

    def frames(waveforms: Any) -> Any:
        computed = model.compute_fbank(waveforms)  # in float32: float16 cannot hold power spectra
        return precision.run(lambda: model.resnet.forward_frames(computed))

    return frames


def embed(
    pipeline: Any,
    trunk: Callable[[Any], Any],
    file: Any,
    binary_segmentations: Any,
    exclude_overlap: bool = False,
    *,
    pad_batches: bool,
    **_: Any,
) -> NDArray[np.float32]:
    """The embeddings of pyannote 4.0.7's SpeakerDiarization.get_embeddings: (windows, speakers, dimension).

    `binary_segmentations` is a SlidingWindowFeature (windows, frames, speakers) of zeros and ones. With
    `pad_batches` every batch of a file has one shape, at most twice what the file needs: cuDNN chooses
    its algorithm by shape, and took 10.5 GiB for a last batch of 29 windows after 1.8 GiB for batches of
    32 (pyannote-audio issue 1963).
    """
    import torch

    embedding = pipeline._embedding
    model, device = embedding.model_, embedding.device
    windows, active = binary_segmentations.sliding_window, binary_segmentations.data
    n_windows, n_frames, n_speakers = active.shape
    min_frames = _min_frames(embedding, windows, n_frames) if exclude_overlap else None
    has_speech = (active > 0).any(axis=(1, 2))
    to_do = np.flatnonzero(has_speech)
    size = pipeline.embedding_batch_size
    if pad_batches:
        size = min(size, 1 << max(0, len(to_do) - 1).bit_length())
    embeddings = np.empty((n_windows, n_speakers, embedding.dimension), np.float32)
    with torch.inference_mode():
        for done in range(0, len(to_do), size):
            batch = to_do[done : done + size]
            cut = [pipeline._audio.crop(file, windows[int(window)], mode="pad")[0] for window in batch]
            if pad_batches:
                cut += [torch.zeros_like(cut[0])] * (size - len(batch))
            frames = trunk(to_float(torch.stack(cut).to(device)))[: len(batch)]
            weights = torch.from_numpy(pooling_masks(active[batch], min_frames)).to(device)
            embeddings[batch] = model.forward_embedding(frames, weights=weights).cpu().numpy()
        if not has_speech.all():
            # Under a mask of zeros the statistics are zero whatever the frames are.
            frames = model.forward_frames(torch.zeros(1, 1, SAMPLE_RATE_HZ // 2, device=device))
            no_mask = torch.zeros(1, n_speakers, n_frames, device=device)
            embeddings[~has_speech] = model.forward_embedding(frames, weights=no_mask).cpu().numpy()
    return embeddings


def cut_voices(pipeline: Any, compute_type: ComputeType = "float32", device: str = "cpu") -> bool:
    """Makes `pipeline` use `embed_pieces`; returns False, and changes nothing, unless its network is CAM++.

    It then takes int16 waveforms too, and computes the network in `compute_type` on `device`.
    """
    from serve_app.stages.diarization.campplus import CAMPlusPlus
    from serve_app.stages.torch_support import Precision

    model = getattr(pipeline._embedding, "model_", None)
    if not isinstance(model, CAMPlusPlus):
        return False
    precision = Precision(compute_type, device)
    pipeline._segmentation.model.register_forward_pre_hook(lambda _, inputs: (to_float(inputs[0]),))

    def network(mels: Any) -> Any:
        return precision.run(lambda: model.embed(mels))

    vars(pipeline)["get_embeddings"] = partial(embed_pieces, pipeline, network)
    return True


def embed_pieces(
    pipeline: Any,
    network: Callable[[Any], Any],
    file: Any,
    binary_segmentations: Any,
    exclude_overlap: bool = False,
    **_: Any,
) -> NDArray[np.float32]:
    """The embeddings of pyannote's get_embeddings with CAM++: (windows, speakers, dimension).

    A piece is what one speaker says in one window: pieces of the same length form a batch, and one that is
    too short has NaN. A window's log-mels, a twentieth of the cost, are computed for each of its speakers.
    """
    import torch

    from serve_app.stages.diarization.campplus import voice_frames

    embedding, size = pipeline._embedding, pipeline.embedding_batch_size
    model, device = embedding.model_, embedding.device
    windows, active = binary_segmentations.sliding_window, binary_segmentations.data
    n_windows, n_frames, n_speakers = active.shape
    min_frames = _min_frames(embedding, windows, n_frames) if exclude_overlap else None
    masks = torch.from_numpy(pooling_masks(active, min_frames)).flatten(0, 1)
    spoken = voice_frames(masks, model.num_frames(round(windows.duration * SAMPLE_RATE_HZ)))
    lengths = spoken.sum(1).numpy()
    embeddings = np.full((n_windows * n_speakers, embedding.dimension), np.nan, np.float32)
    with torch.inference_mode():
        for length in np.unique(lengths[lengths > 0]):
            same = np.flatnonzero(lengths == length)
            for done in range(0, len(same), size):
                batch = same[done : done + size]
                cut = [
                    pipeline._audio.crop(file, windows[int(piece) // n_speakers], mode="pad")[0]
                    for piece in batch
                ]
                mels = model.features(to_float(torch.stack(cut).to(device)))
                voices = mels[spoken[batch].to(device)].view(len(batch), int(length), -1)
                embeddings[batch] = network(voices).cpu().numpy()
    return embeddings.reshape(n_windows, n_speakers, -1)


def _min_frames(embedding: Any, windows: Any, n_frames: int) -> int:
    """How many of a window's `n_frames` the shortest waveform that the network takes would fill."""
    shortest: float = n_frames * embedding.min_num_samples / (windows.duration * SAMPLE_RATE_HZ)
    return math.ceil(shortest)


def pooling_masks(active: NDArray[Any], min_frames: int | None) -> NDArray[np.float32]:
    """pyannote's weight of each frame: (windows, frames, speakers) to (windows, speakers, frames).

    With `min_frames`, frames where several people speak do not count, unless the speaker has no more than
    that many frames alone.
    """
    masks = np.nan_to_num(active)  # pyannote stitches with NaN
    if min_frames is not None:
        alone = np.nan_to_num(active * (active.sum(axis=2, keepdims=True) < 2))
        masks = np.where(alone.sum(axis=1, keepdims=True) > min_frames, alone, masks)
    return np.ascontiguousarray(masks.transpose(0, 2, 1), dtype=np.float32)


def to_float(waveforms: Any) -> Any:
    """int16 samples as float32 in [-1, 1), as whisperx scales them; float samples unchanged."""
    return waveforms if waveforms.is_floating_point() else waveforms.float() / 32768


def network_name(pipeline: Any) -> str:
    """What the pipeline's embedding network is called; of a path on this machine only the last two parts."""
    given: Any = pipeline.embedding
    if isinstance(given, dict):
        given = "/".join(filter(None, [str(given["checkpoint"]), given.get("subfolder")]))
    if not isinstance(given, str | Path):
        return str(getattr(given, "network_name", type(given).__name__))
    return "/".join(Path(given).parts[-2:]) if Path(given).is_absolute() else str(given)


def voices_of(pipeline: Any, labels: Sequence[str], embeddings: NDArray[np.floating] | None) -> Voices | None:
    """The vectors of a file's speakers: None for NaN, and for zeros, which pyannote has where it has none."""
    if embeddings is None or not labels:
        return None
    is_usable = np.isfinite(embeddings).all(axis=1) & embeddings.any(axis=1)
    vectors = {
        label: tuple(round(float(value), 6) for value in vector) if usable else None
        for label, vector, usable in zip(labels, embeddings, is_usable, strict=True)
    }
    return Voices(network_name(pipeline), embeddings.shape[1], vectors)


def match_voices(
    references: NDArray[np.floating], speakers: NDArray[np.floating], max_distance: float
) -> dict[int, int]:
    """Row of `speakers` -> row of `references`, for each speaker who has a reference's voice.

    Both are (voices, dimension). Pairs are one to one, less than `max_distance` (cosine) apart and the
    nearest on the whole. One voice that diarization took for two speakers names only the nearer one, since
    they may be two people who sound alike. An embedding of zeros or NaN matches nothing.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    distances = np.nan_to_num(cdist(references, speakers, "cosine"), nan=2.0)
    # All pairs that are too far apart cost the same, so that they do not decide who gets a near one.
    pairs = zip(*linear_sum_assignment(np.minimum(distances, max_distance)), strict=True)
    return {int(speaker): int(name) for name, speaker in pairs if distances[name, speaker] < max_distance}
