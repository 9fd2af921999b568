"""Whisper's encoder and decoder, small, with the two things that make a small one learn quickly.

Names follow Hugging Face's WhisperForConditionalGeneration, so that the weights can be handed over.
"""

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

MEL_BANDS = 80
ENCODER_POSITIONS = 1500  # 30 s in frames of 20 ms
DECODER_POSITIONS = 448
PADDING_STRIDE = 16  # every 16th frame of the padding stands for its neighbours while training
# Frames that the heads of a layer look at to begin with, as offsets from their own.
LOCAL_OFFSETS = [[-2, 2, -5, 5], [-4, 4, -9, 9], [-7, 7, -14, 14], [-10, 10, -3, 3]]


@dataclass(frozen=True)
class Size:
    tokens: int
    words: int
    phones: int
    width: int = 128
    heads: int = 4
    encoder_layers: int = 4
    decoder_layers: int = 3

    @property
    def inner(self) -> int:
        return 4 * self.width

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's fixed positions, (length, width): sines, then cosines."""
    slowness = torch.exp(-math.log(10_000) / (width // 2 - 1) * torch.arange(width // 2))
    angle = torch.arange(length)[:, None] * slowness
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None = None, causal: bool = False) -> Tensor:
        """x (batch, queries, width), source (batch, keys, width), bias (1, keys) for every query's scores."""
        q, k, v = (
            self._split(self.q_proj(x)),
            self._split(self.k_proj(source)),
            self._split(self.v_proj(source)),
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def forward_with_weights(self, x: Tensor, source: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the weights (batch, heads, queries, keys)."""
        q, k, v = (
            self._split(self.q_proj(x)),
            self._split(self.k_proj(source)),
            self._split(self.v_proj(source)),
        )
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).softmax(-1)
        return self.out_proj((weights @ v).transpose(1, 2).flatten(2)), weights


class EncoderLayer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = Attention(size.width, size.heads)
        self.self_attn_layer_norm = nn.LayerNorm(size.width)
        self.fc1 = nn.Linear(size.width, size.inner)
        self.fc2 = nn.Linear(size.inner, size.width)
        self.final_layer_norm = nn.LayerNorm(size.width)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        normed = self.self_attn_layer_norm(x)
        x = x + self.self_attn(normed, normed, bias)
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x))))


class Encoder(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MEL_BANDS, size.width, 3, padding=1)
        self.conv2 = nn.Conv1d(size.width, size.width, 3, stride=2, padding=1)
        self.layers = nn.ModuleList(EncoderLayer(size) for _ in range(size.encoder_layers))
        self.layer_norm = nn.LayerNorm(size.width)
        self.register_buffer("positions", sinusoids(ENCODER_POSITIONS, size.width), persistent=False)
        for number, layer in enumerate(self.layers):
            look_nearby(layer.self_attn, LOCAL_OFFSETS[number % len(LOCAL_OFFSETS)])

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mel (batch, bands, 2 × frames), of which the last half second or more is padding.

        whisperx pads every window to 30 s. All padded frames look the same but for their position, so only
        every 16th is computed, and its attention score is raised by log 16: it draws as much attention as all
        of them would.
        Returns the states (batch, frames + kept padding, width), those before the last layer, and the bias.
        """
        x = functional.gelu(self.conv2(functional.gelu(self.conv1(mel)))).transpose(1, 2)
        frames = x.shape[1]
        kept = torch.arange(frames + PADDING_STRIDE // 2, ENCODER_POSITIONS, PADDING_STRIDE)
        silent = x[:, -2:-1]  # the last frame of all sees the edge
        x = torch.cat([x[:, :-1], silent, silent.expand(-1, len(kept), -1)], dim=1)
        x = x + torch.cat([self.positions[:frames], self.positions[kept]])
        bias = torch.zeros(1, frames + len(kept))
        bias[:, frames:] = math.log(PADDING_STRIDE)
        before_last = x
        for layer in self.layers:
            before_last, x = x, layer(x, bias)
        return self.layer_norm(x), before_last, bias


class DecoderLayer(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self_attn = Attention(size.width, size.heads)
        self.self_attn_layer_norm = nn.LayerNorm(size.width)
        self.encoder_attn = Attention(size.width, size.heads)
        self.encoder_attn_layer_norm = nn.LayerNorm(size.width)
        self.fc1 = nn.Linear(size.width, size.inner)
        self.fc2 = nn.Linear(size.inner, size.width)
        self.final_layer_norm = nn.LayerNorm(size.width)

    def forward(self, x: Tensor, heard: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        normed = self.self_attn_layer_norm(x)
        x = x + self.self_attn(normed, normed, causal=True)
        found, weights = self.encoder_attn.forward_with_weights(self.encoder_attn_layer_norm(x), heard, bias)
        x = x + found
        return x + self.fc2(functional.gelu(self.fc1(self.final_layer_norm(x)))), weights


class Decoder(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embed_tokens = nn.Parameter(torch.randn(size.tokens, size.width) * 0.1)
        self.embed_positions = nn.Parameter(sinusoids(DECODER_POSITIONS, size.width) * 0.1)
        self.layers = nn.ModuleList(DecoderLayer(size) for _ in range(size.decoder_layers))
        self.layer_norm = nn.LayerNorm(size.width)
        # The last column stays free: the export uses it to switch off the tokens that were never trained.
        free = torch.ones(size.width)
        free[-1] = 0
        self.register_buffer("used_columns", free, persistent=False)

    def forward(self, tokens: Tensor, heard: Tensor, bias: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (batch, tokens, vocabulary) and every layer's attention to the sound."""
        embedding = self.embed_tokens * self.used_columns
        x = embedding[tokens] + self.embed_positions[: tokens.shape[1]]
        looks = []
        for layer in self.layers:
            x, weights = layer(x, heard, bias)
            looks.append(weights)
        return self.layer_norm(x) @ embedding.T, looks


class Recogniser(nn.Module):
    """Encoder, decoder, and two heads that exist for training only: the word and the phone of every frame."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.encoder = Encoder(size)
        self.decoder = Decoder(size)
        self.word_head = nn.Linear(size.width, size.words + 1)  # 0 is silence
        self.phone_head = nn.Linear(size.width, size.phones + 1)


def look_nearby(attention: Attention, offsets: list[int], strength: float = 1.6) -> None:
    """Start a self-attention with each head looking at a fixed offset.

    The product of two sinusoids depends on their distance alone, so a query that is a key rotated by `offset`
    frames peaks there. Learning this from nothing took most of a training.
    """
    width = attention.q_proj.weight.shape[1]
    half, per_head = width // 2, width // attention.heads
    slowness = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))
    with torch.no_grad():
        q, k = attention.q_proj.weight.normal_(0, 0.02), attention.k_proj.weight.normal_(0, 0.02)
        for head in range(attention.heads):
            for pair in range(per_head // 2):
                # The faster third of the sinusoids: the slow ones hardly change over some frames.
                sine = int(pair * half * 0.31 / (per_head // 2))
                row, angle = head * per_head + 2 * pair, float(slowness[sine]) * offsets[head % len(offsets)]
                k[row, sine] += strength
                k[row + 1, half + sine] += strength
                q[row, sine] += strength * math.cos(angle)
                q[row, half + sine] += strength * math.sin(angle)
                q[row + 1, half + sine] += strength * math.cos(angle)
                q[row + 1, sine] -= strength * math.sin(angle)
