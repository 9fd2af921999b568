"""wav2vec2 over several windows in one pass, with the same numbers as for each window alone.

Windows of unequal length are padded with zeros, and the padding is kept out of the results: attention is
masked, frames beyond a window's end are cut off, and the group norm of wav2vec2-base's first layer, whose
mean the zeros would shift, sees each window's own frames only. What remains is the order of float32 sums:
log-probabilities agree with the window's own pass within 5e-6, relative or absolute. Half precision is much
coarser than that, with or without padding.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from serve_app.errors import ModelUnavailable
from serve_app.settings.types import ComputeType
from serve_app.stages.alignment.forced import Emission
from serve_app.stages.torch_support import Precision
from serve_app.transcript import SAMPLE_RATE_HZ, Samples

MIN_SAMPLES = 400  # one frame of wav2vec2; a shorter window is padded to it

Emissions = tuple[Emission, Emission]  # log-probabilities and probabilities, (frames, tokens) each


def group_by_length(lengths: Sequence[int], max_padded: int) -> list[list[int]]:
    """The indices of the windows of each pass; `lengths` and `max_padded` are in samples.

    A group is at most `max_padded` long with its padding, except for a single window that is longer. No
    window is padded by more than a third of its length or a second, whichever is more.
    """
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        fits = groups and (len(groups[-1]) + 1) * longest <= max_padded
        if fits and length >= MIN_SAMPLES and longest - length <= max(length / 3, SAMPLE_RATE_HZ):
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = length
    return groups


class _MaskedGroupNorm(nn.GroupNorm):
    """Group norm over only the first `frames[i]` frames of batch item i, or over all if `frames` is None."""

    frames: Sequence[int] | None = None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, channels, frames) to the same shape; overwrites its input if `frames` is set."""
        if self.frames is None:
            return super().forward(features)
        for item, n_frames in enumerate(self.frames):
            features[item : item + 1, :, :n_frames] = super().forward(features[item : item + 1, :, :n_frames])
        return features


class AcousticModel:
    """A wav2vec2 with a CTC head, of torchaudio or transformers. Not thread-safe."""

    def __init__(
        self, model: Any, from_torchaudio: bool, device: str, max_padded_s: float, compute_type: ComputeType
    ) -> None:
        """Takes over whisperx's `model`, which still works as before when it is called directly.

        `max_padded_s` is the most audio, padding included, in one pass; 0 = every window alone.
        """
        self.model = model
        self.from_torchaudio = from_torchaudio
        self._device = device
        self._precision = Precision(compute_type, device)
        # torchaudio's wrapper of its large models would normalize the batch as if it were one recording.
        self._normalizes = getattr(model, "normalize_waveform", False)
        self._inner = getattr(model, "model" if from_torchaudio else "wav2vec2", model)
        layers = self._inner.feature_extractor.conv_layers
        self._convolutions = [(layer.conv.kernel_size[0], layer.conv.stride[0]) for layer in layers]
        self._group_norm = _replace_group_norm(layers[0])
        # Adapters look beyond a window's end, and the star column of MMS_FA is made for one window.
        alone = getattr(model, "append_star", False) or (not from_torchaudio and model.config.add_adapter)
        self._max_padded = 0 if alone else int(max_padded_s * SAMPLE_RATE_HZ)

    def emissions(self, windows: Sequence[Samples]) -> list[Emissions | ModelUnavailable]:
        """The emissions of each window, in order, or ModelUnavailable if there was too little GPU memory."""
        found: dict[int, Emissions | ModelUnavailable] = {}
        for group in group_by_length([len(window) for window in windows], self._max_padded):
            found.update(zip(group, self._forward_or_halve([windows[i] for i in group]), strict=True))
        return [found[index] for index in range(len(windows))]

    def _forward_or_halve(self, windows: list[Samples]) -> list[Emissions | ModelUnavailable]:
        """One pass, or if that runs out of memory, one for each half, and so on."""
        try:
            return [*self._forward(windows)]
        except torch.OutOfMemoryError:
            if len(windows) == 1:
                return [
                    ModelUnavailable(
                        "The alignment model ran out of GPU memory on "
                        f"{len(windows[0]) / SAMPLE_RATE_HZ:.0f} s of audio: run less on the same GPU.",
                        None,
                        "alignment_out_of_memory",
                    )
                ]
        # Outside the handler: its error keeps the tensors of the failed pass alive.
        torch.cuda.empty_cache()
        half = len(windows) // 2
        return self._forward_or_halve(windows[:half]) + self._forward_or_halve(windows[half:])

    @torch.inference_mode()
    def _forward(self, windows: list[Samples]) -> list[Emissions]:
        lengths = [len(window) for window in windows]
        padded = torch.zeros(len(windows), max(*lengths, MIN_SAMPLES))
        for row, window in zip(padded, windows, strict=True):
            row[: len(window)] = torch.from_numpy(window.astype(np.float32) / 32768)
        waveforms = padded.to(self._device)
        if len(windows) == 1:
            logits = self._precision.run(lambda: self._alone(waveforms, lengths[0]))
            frames = [logits.shape[1]]
        else:
            frames = self._frames(lengths)
            if self._normalizes:
                for row, length in zip(waveforms, lengths, strict=True):
                    row[:length] = nn.functional.layer_norm(row[:length], (length,))
            logits = self._precision.run(lambda: self._padded(waveforms, lengths))
        log_probs = torch.log_softmax(logits, dim=-1).cpu()
        own = [log_probs[item, :n_frames] for item, n_frames in enumerate(frames)]
        return [(emission.numpy(), emission.exp().numpy()) for emission in own]

    def _alone(self, waveform: torch.Tensor, length: int) -> Any:
        """(1, samples) to logits (1, frames, tokens), by the same call as in whisperx."""
        if not self.from_torchaudio:
            return self.model(waveform).logits
        short = torch.as_tensor([length], device=self._device) if length < MIN_SAMPLES else None
        return self.model(waveform, lengths=short)[0]

    def _padded(self, waveforms: torch.Tensor, lengths: Sequence[int]) -> Any:
        """(batch, samples), normalized if the model needs that, to logits (batch, frames, tokens)."""
        if self._group_norm is not None:
            self._group_norm.frames = self._frames(lengths, layers=1)
        try:
            ends = torch.as_tensor(lengths, device=self._device)
            if self.from_torchaudio:
                return self._inner(waveforms, lengths=ends)[0]
            mask = torch.arange(waveforms.shape[1], device=self._device) < ends[:, None]
            return self.model(waveforms, attention_mask=mask.long()).logits
        finally:
            if self._group_norm is not None:
                self._group_norm.frames = None

    def _frames(self, lengths: Sequence[int], layers: int | None = None) -> list[int]:
        """The number of frames after the first `layers` convolutions (None: all) for each length."""
        frames = list(lengths)
        for kernel, stride in self._convolutions[:layers]:
            frames = [(n - kernel) // stride + 1 for n in frames]
        return frames


def _replace_group_norm(layer: Any) -> _MaskedGroupNorm | None:
    """Replaces the layer's group norm by ours with the same weights; returns None if it has none."""
    norm = getattr(layer, "layer_norm", None)
    if not isinstance(norm, nn.GroupNorm):
        return None
    ours = _MaskedGroupNorm(norm.num_groups, norm.num_channels, norm.eps)
    ours.weight, ours.bias = norm.weight, norm.bias
    layer.layer_norm = ours
    return ours
