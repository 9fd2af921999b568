"""Shares of a GPU as torch is told of them; there is no GPU here, so what it does then is not tested."""

import pytest
import torch

from serve_app.stages.gpu_memory import keep_within_share


@pytest.mark.parametrize(("device", "told"), [("cuda", [0.3]), ("cpu", [])])
def test_a_stage_on_a_gpu_is_bounded_to_its_share(
    monkeypatch: pytest.MonkeyPatch, device: str, told: list[float]
) -> None:
    """The share that Ray books is the fraction that torch may take; on a CPU nothing is touched."""
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    keep_within_share(0.3, device)
    assert fractions == told
