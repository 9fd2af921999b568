"""CAM++, a network that turns a voice into 192 numbers, behind pyannote's Model interface; for inference.

Architecture: Wang et al., "CAM++: A Fast and Efficient Network for Speaker Verification Using Context-Aware
Masking", 2023, https://arxiv.org/abs/2303.00332. Weights: 3D-Speaker's `campplus_cn_en_common.pt`
(Apache-2.0, 6.9 M parameters, trained on Chinese and English voices), whose names the modules have.

The network's masks look at all that it is given, so a speaker's frames are cut out before it: otherwise
others who speak in the same window would colour them.
"""

from functools import partial
from pathlib import Path

import torch
from pyannote.audio.core.model import Model
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.compliance import kaldi

MELS = 80
MIN_FRAMES = 30  # of 10 ms; a shorter piece of a voice says little about whose it is
ROUND_FRAMES = 10  # lengths of pieces are multiples of this, so that many have the same and form a batch

_CONTEXT_FRAMES = 100  # of 20 ms, which a mask looks at together
_BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers, dilation
_GROWTH, _BOTTLENECK, _FIRST, _DIMENSION = 32, 128, 128, 192


def _normalized(channels: int) -> nn.Sequential:
    layers = nn.Sequential()
    layers.add_module("batchnorm", nn.BatchNorm1d(channels))
    layers.add_module("relu", nn.ReLU())
    return layers


class _Residual(nn.Module):
    """Two convolutions and a way past them: (batch, 32, mels, frames), with `stride` 2 to half the mels."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, (stride, 1), 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            straight = nn.Conv2d(channels, channels, 1, (stride, 1), bias=False)
            self.shortcut = nn.Sequential(straight, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        deep = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(deep + self.shortcut(x))


class _Head(nn.Module):
    """Convolutions over mels and time: (batch, 80, frames) to (batch, 320, frames)."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.layer1 = nn.Sequential(_Residual(channels, 2), _Residual(channels, 1))
        self.layer2 = nn.Sequential(_Residual(channels, 2), _Residual(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, (2, 1), 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.out_channels = channels * MELS // 8

    def forward(self, mels: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(mels.unsqueeze(1))))
        x = functional.relu(self.bn2(self.conv2(self.layer2(self.layer1(x)))))
        return x.flatten(1, 2)


class _MaskedConvolution(nn.Module):
    """A convolution over time under a mask of the context: (batch, 128, frames) to (batch, 32, frames)."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.linear_local = nn.Conv1d(_BOTTLENECK, _GROWTH, 3, 1, dilation, dilation, bias=False)
        self.linear1 = nn.Conv1d(_BOTTLENECK, _BOTTLENECK // 2, 1)
        self.linear2 = nn.Conv1d(_BOTTLENECK // 2, _GROWTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        near = functional.avg_pool1d(x, _CONTEXT_FRAMES, _CONTEXT_FRAMES, ceil_mode=True)
        # One column for each context, as all its frames have the same mask.
        context = x.mean(-1, keepdim=True) + near
        mask = torch.sigmoid(self.linear2(functional.relu(self.linear1(context))))
        masked: Tensor = (
            self.linear_local(x) * mask.repeat_interleave(_CONTEXT_FRAMES, -1)[..., : x.shape[-1]]
        )
        return masked


class _DenseLayer(nn.Module):
    """32 channels more: (batch, channels, frames) to (batch, channels + 32, frames)."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.nonlinear1 = _normalized(channels)
        self.linear1 = nn.Conv1d(channels, _BOTTLENECK, 1, bias=False)
        self.nonlinear2 = _normalized(_BOTTLENECK)
        self.cam_layer = _MaskedConvolution(dilation)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))], 1)


class _Halving(nn.Module):
    """(batch, channels, frames) to (batch, channels / 2, frames)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.nonlinear = _normalized(channels)
        self.linear = nn.Conv1d(channels, channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.linear(self.nonlinear(x))
        return halved


class _First(nn.Module):
    """(batch, channels, frames of 10 ms) to (batch, 128, frames of 20 ms)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(channels, _FIRST, 5, 2, 2, bias=False)
        self.nonlinear = _normalized(_FIRST)

    def forward(self, x: Tensor) -> Tensor:
        halved: Tensor = self.nonlinear(self.linear(x))
        return halved


class _Last(nn.Module):
    """Mean and deviation over time, then one linear layer: (batch, channels, frames) to (batch, 192)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(2 * channels, _DIMENSION, 1, bias=False)
        self.nonlinear = nn.Sequential()
        self.nonlinear.add_module("batchnorm", nn.BatchNorm1d(_DIMENSION, affine=False))

    def forward(self, x: Tensor) -> Tensor:
        statistics = torch.cat([x.mean(-1), x.std(-1)], 1)
        embedding: Tensor = self.nonlinear(self.linear(statistics.unsqueeze(-1)).squeeze(-1))
        return embedding


class CAMPlusPlus(Model):  # type: ignore[misc]  # pyannote is untyped here
    """Waveforms (batch, 1, samples) at 16 kHz, and which frames count (batch, frames), to (batch, 192)."""

    network_name = "campplus"
    # Cosine distance at which two voices count as different. Clips of 2 to 10 s of 25 voices: of 661 pairs of
    # one voice in two recordings 11 % are farther apart, most of them clips of 3 s or of one who has a cold;
    # of 19,322 pairs of two voices 0.13 % are nearer.
    max_voice_distance = 0.55

    def __init__(self, sample_rate: int = 16_000, num_channels: int = 1, task: None = None) -> None:
        super().__init__(sample_rate=sample_rate, num_channels=num_channels, task=task)
        self.head = _Head()
        layers: list[tuple[str, nn.Module]] = [("tdnn", _First(self.head.out_channels))]
        channels = _FIRST
        for number, (depth, dilation) in enumerate(_BLOCKS, 1):
            block = nn.Sequential()
            for layer in range(depth):
                block.add_module(f"tdnnd{layer + 1}", _DenseLayer(channels + layer * _GROWTH, dilation))
            channels += depth * _GROWTH
            layers += [(f"block{number}", block), (f"transit{number}", _Halving(channels))]
            channels //= 2
        layers += [("out_nonlinear", _normalized(channels)), ("dense", _Last(channels))]
        self.xvector = nn.Sequential()
        for name, module in layers:
            self.xvector.add_module(name, module)

    @property
    def dimension(self) -> int:
        return _DIMENSION

    def num_frames(self, num_samples: int) -> int:
        """How many frames of 10 ms a waveform has; each looks at 25 ms."""
        return (num_samples - 400) // 160 + 1

    def features(self, waveforms: Tensor) -> Tensor:
        """(batch, 1, samples) to log-mels (batch, frames, 80)."""
        mels: Tensor = torch.vmap(partial(kaldi.fbank, num_mel_bins=MELS, dither=0.0))(waveforms)
        return mels

    def embed(self, mels: Tensor) -> Tensor:
        """Log-mels of one voice (batch, frames, 80) to (batch, 192)."""
        centred = mels - mels.mean(1, keepdim=True)
        embedding: Tensor = self.xvector(self.head(centred.transpose(1, 2)))
        return embedding

    def forward(self, waveforms: Tensor, weights: Tensor | None = None) -> Tensor:
        """Embeddings of the frames with a weight over 0.5; NaN where there are less than MIN_FRAMES.

        Without weights all frames count, and too few of them are a ValueError, by which pyannote finds out
        how much the network needs.
        """
        mels = self.features(waveforms)
        if weights is None:
            if mels.shape[1] < MIN_FRAMES:
                raise ValueError(f"{mels.shape[1]} frames are too few for an embedding")
            return self.embed(mels)
        embeddings = mels.new_full((len(mels), _DIMENSION), torch.nan)
        for row, (window, chosen) in enumerate(zip(mels, voice_frames(weights, mels.shape[1]), strict=True)):
            if chosen.any():
                embeddings[row] = self.embed(window[chosen][None])[0]
        return embeddings


def voice_frames(weights: Tensor, frames: int) -> Tensor:
    """Which of a window's frames the network gets: weights (rows, any number) to booleans (rows, frames).

    A multiple of ROUND_FRAMES in each row, the last ones being left out, or none if they are too few.
    """
    chosen = functional.interpolate(weights[None].float(), frames, mode="nearest")[0] > 0.5
    counts = chosen.sum(1, keepdim=True)
    kept = torch.where(counts < MIN_FRAMES, 0, counts // ROUND_FRAMES * ROUND_FRAMES)
    voice: Tensor = chosen & (chosen.cumsum(1, dtype=torch.int16) <= kept)
    return voice


def load_campplus(path: Path) -> CAMPlusPlus:
    """The network with the weights in this file, which is read without running pickled code."""
    model = CAMPlusPlus()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model.eval()
    return model
