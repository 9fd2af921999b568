"""What the torch stages share: half precision, and pyannote without its telemetry."""

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from serve_app.settings import ComputeType

logger = logging.getLogger("ray.serve")

WHISPERX_SEGMENTATION = Path(str(files("whisperx"))) / "assets" / "pytorch_model.bin"  # pyannote's


def import_pyannote() -> None:
    """Imports pyannote.audio (15 s, 0.9 GB), with its telemetry off."""
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # else each file's duration and speakers go to its makers
    with warnings.catch_warnings():
        # pyannote decodes no files here, so a broken torchcodec does not matter.
        warnings.filterwarnings("ignore", r"\s*torchcodec is not installed correctly", UserWarning)
        import pyannote.audio  # noqa: F401
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it advises to upgrade others' files


@dataclass(frozen=True)
class Precision:
    """The type in which a network is computed; `dtype` None is float32.

    Half precision is several times as fast on a GPU's tensor cores: for a T4 NVIDIA gives 420 images a second
    in float32 and 1128 in mixed precision (DeepLearningExamples, ResNet-50 v1.5 for PyTorch, inference, 32
    at a time). torch's autocast keeps weights in float32 and computes softmax and most norms in it. Compute
    features outside: float16 cannot hold power spectra.
    """

    device: str
    dtype: torch.dtype | None = None

    def run(self, network: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `network` returns, as float32; on overflow it is computed again in float32."""
        if self.dtype is None:
            return network()
        with torch.autocast(self.device, self.dtype):
            computed = network().float()
        if torch.isfinite(computed).all():
            return computed
        _warn_once(self.dtype)
        return network()


@cache
def _warn_once(dtype: torch.dtype) -> None:
    logger.warning("A batch overflowed in %s; such batches are computed again in float32.", dtype)


def choose_precision(compute_type: ComputeType, device: str) -> Precision:
    """For "auto" float16 on a GPU, as CTranslate2 chooses there, and float32 on a CPU."""
    if compute_type == "auto":
        compute_type = "float16" if device == "cuda" else "float32"
    return Precision(device, None if compute_type == "float32" else getattr(torch, compute_type))
