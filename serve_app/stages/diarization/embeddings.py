"""pyannote's speaker embeddings with each window through the network once.

pyannote embeds every (window, local speaker) pair by itself, but only the pooling at the end of the
network looks at the speaker's mask. With three local speakers all before it, the trunk, is computed
three times over, and it is most of what diarization costs.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.stage_settings import ComputeType
from serve_app.transcript import SAMPLE_RATE_HZ


def share_trunk(
    pipeline: Any, *, pad_batches: bool, compute_type: ComputeType = "float32", device: str = "cpu"
) -> bool:
    """Makes `pipeline` embed as `embed` does; True where it could, False where `pipeline` stays as it was.

    It can for pyannote's own pipeline around one of its WeSpeaker ResNets (community-1, 3.1) or our
    TinyXVector, and then computes the trunk in `compute_type` on `device`. From then on the pipeline takes
    int16 waveforms too, so that nobody needs hours of audio as float32.
    """
    if not _is_known(pipeline):
        return False
    pipeline._segmentation.model.register_forward_pre_hook(lambda _, inputs: (to_float(inputs[0]),))
    trunk = _trunk(pipeline._embedding.model_, compute_type, device)
    # Hides the method.
    vars(pipeline)["get_embeddings"] = partial(embed, pipeline, trunk, pad_batches=pad_batches)
    return True


def _is_known(pipeline: Any) -> bool:
    from pyannote.audio.models.embedding.wespeaker import BaseWeSpeakerResNet
    from pyannote.audio.pipelines import SpeakerDiarization
    from pyannote.audio.pipelines.speaker_verification import PyannoteAudioPretrainedSpeakerEmbedding

    from serve_app.bundled.speaker_embedding import TinyXVector

    if type(pipeline) is not SpeakerDiarization:
        return False
    embedding: Any = getattr(pipeline, "_embedding", None)
    return (
        type(embedding) is PyannoteAudioPretrainedSpeakerEmbedding
        and isinstance(embedding.model_, BaseWeSpeakerResNet | TinyXVector)
        and embedding.sample_rate == pipeline._segmentation.model.audio.sample_rate == SAMPLE_RATE_HZ
    )


def _trunk(model: Any, compute_type: ComputeType, device: str) -> Callable[[Any], Any]:
    """(batch, 1, samples) to frames: the model's own `forward_frames`, the network in `compute_type`."""
    import torch

    from serve_app.stages.torch_support import choose_precision

    precision = choose_precision(compute_type, device)
    if precision.dtype is None:
        forward_frames: Callable[[Any], Any] = model.forward_frames
        return forward_frames
    resnet = getattr(model, "resnet", None)
    features, network = (
        (model.features, model.net) if resnet is None else (model.compute_fbank, resnet.forward_frames)
    )
    if resnet is not None:
        resnet.to(memory_format=torch.channels_last)  # as tensor cores take it

    def frames(waveforms: Any) -> Any:
        computed = features(waveforms)  # outside: power spectra are beyond what float16 holds
        return precision.run(lambda: network(computed))

    return frames


def embed(
    pipeline: Any,
    trunk: Callable[[Any], Any],
    file: Any,
    binary_segmentations: Any,
    exclude_overlap: bool = False,
    hook: Callable[..., None] | None = None,
    *,
    pad_batches: bool,
) -> NDArray[np.float32]:
    """The numbers of pyannote 4.0.7's SpeakerDiarization.get_embeddings: (windows, speakers, dimension).

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
    # As many frames as the shortest waveform that the network takes.
    least_frames = (
        math.ceil(n_frames * embedding.min_num_samples / (windows.duration * SAMPLE_RATE_HZ))
        if exclude_overlap
        else None
    )
    spoken = (active > 0).any(axis=(1, 2))
    to_do = np.flatnonzero(spoken)
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
            weights = torch.from_numpy(pooling_masks(active[batch], least_frames)).to(device)
            embeddings[batch] = model.forward_embedding(frames, weights=weights).cpu().numpy()
            if hook is not None:
                hook("embeddings", embeddings[batch], total=len(to_do), completed=done + len(batch))
        if not spoken.all():
            # Under a mask of zeros the statistics are zero whatever the frames are.
            frames = model.forward_frames(torch.zeros(1, 1, SAMPLE_RATE_HZ // 2, device=device))
            nobody = torch.zeros(1, n_speakers, n_frames, device=device)
            embeddings[~spoken] = model.forward_embedding(frames, weights=nobody).cpu().numpy()
    return embeddings


def pooling_masks(active: NDArray[Any], least_frames: int | None) -> NDArray[np.float32]:
    """(windows, frames, speakers) to pyannote's weights of each frame, (windows, speakers, frames).

    With `least_frames`, frames where several people speak do not count, unless that leaves a speaker
    of the window no more than so many.
    """
    masks = np.nan_to_num(active)  # pyannote stitches with NaN
    if least_frames is not None:
        alone = np.nan_to_num(active * (active.sum(axis=2, keepdims=True) < 2))
        masks = np.where(alone.sum(axis=1, keepdims=True) > least_frames, alone, masks)
    return np.ascontiguousarray(masks.transpose(0, 2, 1), dtype=np.float32)


def to_float(waveforms: Any) -> Any:
    """int16 samples as float32 in [-1, 1), whisperx's numbers; float samples as they are."""
    return waveforms if waveforms.is_floating_point() else waveforms.float() / 32768
