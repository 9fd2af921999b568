"""The Muon optimizer (Keller Jordan, 2024), scaled to AdamW's step size (Moonshot AI, 2025)."""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as published


class Muon(torch.optim.Optimizer):
    """Momentum whose matrix is made orthogonal before it is applied: every direction learns alike.

    For two-dimensional weights only; embeddings, norms, biases and convolutions stay with AdamW. Processes of
    one training (`torch.distributed`) share the work: each makes some of the matrices orthogonal.
    """

    def __init__(
        self, weights: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    by_shape[weight.shape].append(weight)
            for weights in by_shape.values():
                self._step_alike(weights, group["lr"], group["momentum"], group["weight_decay"])

    def _step_alike(self, weights: list[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        """Matrices of one shape, together in one batched product."""
        directions = []
        for weight in weights:
            assert weight.grad is not None
            average = self.state[weight].setdefault("average", torch.zeros_like(weight))
            average.lerp_(weight.grad, 1 - momentum)
            directions.append(weight.grad.lerp(average, momentum))
        updates = _shared_out(torch.stack(directions))
        scale = 0.2 * max(weights[0].shape) ** 0.5
        for weight, update in zip(weights, updates, strict=True):
            weight.mul_(1 - lr * weight_decay).add_(update, alpha=-lr * scale)


def _shared_out(matrices: Tensor) -> Tensor:
    if not dist.is_initialized():
        return orthogonal(matrices)
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    updates = torch.zeros_like(matrices)
    updates[mine] = orthogonal(matrices[mine])
    dist.all_reduce(updates)
    return updates


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """(n, rows, columns): each with its singular values near one, by Newton and Schulz's iteration."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
