"""Train the recogniser on windows of synthesized speech.

Run as two processes of one thread each (`torch.distributed`): two threads in one process were slower here.
"""

import math
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from tools.demo_models.batches import FRAMES_PER_S, IGNORED, Alphabet, Batch, make_batch
from tools.demo_models.corpus import Corpus
from tools.demo_models.muon import Muon
from tools.demo_models.recogniser import Recogniser, Size

# The share of the whole training at which a stage begins, and the longest windows it draws, in seconds.
STAGES = [(0.0, (2, 3)), (0.15, (2, 3, 4, 6)), (0.35, (3, 4, 6, 8)), (0.6, (4, 6, 6, 8, 10))]
SPEECH_PER_STEP_S = 16  # for each process
LOWEST_RATE = 2e-5
WARM_UP_STEPS = 100
AVERAGE_MEMORY = 0.998  # per step, of the averaged weights that are kept
HEADS_GUIDED = 3  # of four; the last is left alone
CHECKPOINT_S = 240
REPORT_STEPS = 50


@dataclass(frozen=True)
class Plan:
    corpus: Path
    checkpoints: Path
    hours: float
    rate: float = 4e-3


def train(plan: Plan, alphabet: Alphabet, rank: int, processes: int) -> None:
    """Train for `plan.hours` and leave checkpoint-NNN.pt files; the last is written at the end."""
    torch.set_num_threads(1)
    torch.manual_seed(1)
    if processes > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29655")
        dist.init_process_group("gloo", rank=rank, world_size=processes)
    rng = random.Random(rank)
    corpus = Corpus(plan.corpus)
    model = new_model(alphabet)
    averaged = {name: value.clone() for name, value in model.state_dict().items()}
    optimizers = optimizers_of(model)
    started = saved = time.monotonic()
    losses: list[list[float]] = []
    step, clock = 0, 0.0
    while clock < 1:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = _rate(plan, step, clock)
        longest = rng.choice([lengths for begin, lengths in STAGES if clock >= begin][-1])
        batch = make_batch(corpus, alphabet, rng, max(1, round(SPEECH_PER_STEP_S / longest)), longest)
        parts = losses_of(model, batch)
        model.zero_grad()
        total_loss(parts).backward()
        clock = _share_gradients(model, (time.monotonic() - started) / 3600 / plan.hours, processes)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        memory = min(AVERAGE_MEMORY, step / (step + 20))
        for name, value in model.state_dict().items():
            averaged[name].lerp_(value, 1 - memory)
        losses.append([float(loss) for loss in parts])
        if rank:
            continue
        if step % REPORT_STEPS == 0:
            _report(step, clock, losses[-REPORT_STEPS:], time.monotonic() - started)
            corpus.refresh()
        if time.monotonic() - saved > CHECKPOINT_S or clock >= 1:
            saved = time.monotonic()
            save(averaged, model.size, alphabet, plan.checkpoints / f"checkpoint-{step:06d}.pt")


def new_model(alphabet: Alphabet) -> Recogniser:
    return Recogniser(Size(len(alphabet.used), len(alphabet.word_number), len(alphabet.phone_number)))


def optimizers_of(model: Recogniser) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    chosen = {id(matrix) for matrix in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [Muon(matrices, lr=0), torch.optim.AdamW(others, lr=0, betas=(0.9, 0.98), weight_decay=0.01)]


def _rate(plan: Plan, step: int, clock: float) -> float:
    return (
        plan.rate * min(1, (step + 1) / WARM_UP_STEPS) * (0.5 + 0.5 * math.cos(math.pi * min(1, clock)))
        + LOWEST_RATE
    )


def losses_of(model: Recogniser, batch: Batch) -> tuple[Tensor, ...]:
    """Tokens; word and phone of each frame; where the first layers look, where the last looks.

    The synthesizer's timing is what a model this small needs: without the frame losses and the guidance it
    learned nothing in an hour. The earlier decoder layers find the word just read, the last the word to come.
    """
    heard, before_last, bias = model.encoder(batch.mel)
    logits, looks = model.decoder(batch.tokens, heard, bias)
    frames = batch.words.shape[1]
    tokens = functional.cross_entropy(
        logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, label_smoothing=0.03
    )
    words = functional.cross_entropy(model.word_head(heard[:, :frames]).flatten(0, 1), batch.words.flatten())
    phones = functional.cross_entropy(
        model.phone_head(before_last[:, :frames]).flatten(0, 1), batch.phones.flatten()
    )
    reading = torch.stack([_missed(weights, batch.read_span) for weights in looks[:-1]]).mean()
    return tokens, words, phones, reading, _missed(looks[-1], batch.next_span)


def _missed(weights: Tensor, span: Tensor) -> Tensor:
    """Minus the log of the attention that falls into the span, over all tokens that have one."""
    times = torch.arange(weights.shape[-1]) / FRAMES_PER_S
    inside = (times >= span[..., :1] - 0.04) & (times <= span[..., 1:] + 0.02)
    caught = (weights[:, :HEADS_GUIDED].mean(1) * inside).sum(-1)
    return -(caught[span[..., 1] > 0] + 1e-4).log().mean()


def total_loss(parts: tuple[Tensor, ...]) -> Tensor:
    tokens, words, phones, reading, coming = parts
    return tokens + 0.5 * words + phones + 0.5 * reading + 0.5 * coming


def _share_gradients(model: Recogniser, clock: float, processes: int) -> float:
    """Average gradients and the clock over the processes, so that all of them stop at the same step."""
    if processes == 1:
        return clock
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([clock])])
    dist.all_reduce(flat)
    flat /= processes
    first = 0
    for gradient in gradients:
        gradient.copy_(flat[first : first + gradient.numel()].view_as(gradient))
        first += gradient.numel()
    return float(flat[-1])


def _report(step: int, progress: float, losses: list[list[float]], seconds: float) -> None:
    means = [sum(column) / len(column) for column in zip(*losses, strict=True)]
    named = zip(("tokens", "words", "phones", "reading", "coming"), means, strict=True)
    figures = " ".join(f"{name} {value:.3f}" for name, value in named)
    print(f"step {step} at {progress:.3f}: {figures}, {step / seconds:.2f} steps/s", flush=True)


def save(weights: dict[str, Tensor], size: Size, alphabet: Alphabet, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights, "size": size.as_dict(), "used": alphabet.used}, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
