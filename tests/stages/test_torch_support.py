"""The share of a GPU that torch is told; without a GPU here, what torch does with it is not tested."""

import pytest
import torch

from serve_app.stages.torch_support import limit_gpu_memory


@pytest.mark.parametrize(("device", "told"), [("cuda", [0.3]), ("cpu", [])])
def test_a_stage_on_a_gpu_is_bounded_to_its_share(
    monkeypatch: pytest.MonkeyPatch, device: str, told: list[float]
) -> None:
    """The share that Ray books is the fraction that torch may take; on a CPU nothing is touched."""
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    limit_gpu_memory(0.3, device)
    assert fractions == told
