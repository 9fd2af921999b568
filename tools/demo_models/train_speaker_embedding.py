"""Train the speaker embedding to tell the corpus's voices apart; at another speed a voice is another."""

import math
import random
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from serve_app.bundled.speaker_embedding import TinyXVector
from tools.demo_models.corpus import Corpus
from tools.demo_models.synthesis import SAMPLE_RATE

SPEEDS = (0.84, 0.92, 1.0, 1.09, 1.19)
CROPS, CROP_S = 32, (1.0, 3.0)  # for each step
RATE, LOWEST_RATE, WARM_UP_STEPS = 3e-3, 1e-5, 50
MARGIN, MARGIN_STEPS, SCALE = 0.2, 200, 20
PAUSE_S = (0.05, 0.5)
NOISE_DECIBELS = (35, 65)


def train(corpus_folder: Path, out: Path, hours: float) -> None:
    """Train for `hours` on one thread and write the weights to `out` (safetensors)."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    rng = random.Random(1)
    corpus = Corpus(corpus_folder)
    spoken = defaultdict(list)
    for number in range(len(corpus)):
        spoken[corpus[number].voice].append(number)
    voices = sorted(spoken)
    model = TinyXVector().train()
    centres = nn.Parameter(torch.randn(len(voices) * len(SPEEDS), model.dimension) * 0.1)
    optimizer = torch.optim.AdamW([*model.parameters(), centres], weight_decay=1e-3)
    started, step, clock = time.monotonic(), 0, 0.0
    while clock < 1:
        clock = (time.monotonic() - started) / 3600 / hours
        for group in optimizer.param_groups:
            warm = min(1, (step + 1) / WARM_UP_STEPS)
            group["lr"] = RATE * warm * (0.5 + 0.5 * math.cos(math.pi * min(1, clock))) + LOWEST_RATE
        labels = [rng.randrange(len(centres)) for _ in range(CROPS)]
        length = int(rng.uniform(*CROP_S) * SAMPLE_RATE)
        crops = []
        for label in labels:
            voice, speed = divmod(label, len(SPEEDS))
            crops.append(_crop(corpus, rng, spoken[voices[voice]], SPEEDS[speed], length))
        embeddings = model(torch.from_numpy(np.stack(crops))[:, None])
        loss = _margin_loss(embeddings, centres, torch.tensor(labels), MARGIN * min(1, step / MARGIN_STEPS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(
                f"speaker embedding step {step} at {clock:.3f}: loss {float(loss.detach()):.3f}", flush=True
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.eval().state_dict(), out)


def _crop(
    corpus: Corpus, rng: random.Random, numbers: list[int], speed: float, length: int
) -> NDArray[np.float32]:
    """`length` samples of one voice at one speed, with some noise."""
    loudness, parts, total = 10 ** rng.uniform(-1, 0), [], 0
    while total < length:
        source = corpus[rng.choice(numbers)].samples.astype(np.float32)
        samples = np.interp(np.arange(int(len(source) / speed)) * speed, np.arange(len(source)), source)
        pause = np.zeros(int(rng.uniform(*PAUSE_S) * SAMPLE_RATE))
        parts += [samples * loudness / max(1e-3, np.abs(samples).max()), pause]
        total += len(samples) + len(pause)
    first = rng.randrange(total - length + 1)
    noise = np.random.default_rng(rng.randrange(2**32)).standard_normal(length)
    crop = np.concatenate(parts)[first : first + length] + noise * loudness * 10 ** (
        -rng.uniform(*NOISE_DECIBELS) / 20
    )
    return crop.astype(np.float32)


def _margin_loss(embeddings: Tensor, centres: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Additive-margin softmax over cosines."""
    cosines = functional.normalize(embeddings) @ functional.normalize(centres).T
    return functional.cross_entropy(
        SCALE * (cosines - margin * functional.one_hot(labels, len(centres))), labels
    )
