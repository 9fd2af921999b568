"""What the torch stages share: half precision, and pyannote without its telemetry."""

import logging
import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path

import torch

from serve_app.settings.types import ComputeType

_warn_once = cache(logging.getLogger("ray.serve").warning)

WHISPERX_SEGMENTATION = Path(str(files("whisperx"))) / "assets" / "pytorch_model.bin"  # pyannote's


def import_pyannote() -> None:
    """Imports pyannote.audio (15 s, 0.9 GB), with its telemetry off."""
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # else each file's duration and speakers go to its makers
    with warnings.catch_warnings():
        # pyannote decodes no files here, so a broken torchcodec does not matter.
        warnings.filterwarnings("ignore", r"\s*torchcodec is not installed correctly", UserWarning)
        import pyannote.audio  # noqa: F401
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # it advises to upgrade others' files


def limit_gpu_memory(gpu_share: float, device: str) -> None:
    """Bounds torch's memory in this process to its share of a GPU; does nothing on "cpu".

    Ray books shares of a GPU and enforces none. A stage that outgrows its share then runs out of memory
    itself, which it survives, and takes nothing from the others. CUDA's own context, some 0.4 GB a process,
    and CTranslate2 are not bounded by this.
    """
    if device == "cuda":
        torch.cuda.set_per_process_memory_fraction(gpu_share)


class Precision:
    """The type in which a network is computed: for "auto" float16 on a GPU, float32 on a CPU.

    Half precision is several times as fast on a GPU's tensor cores: for a T4 NVIDIA gives 420 images a second
    in float32 and 1128 in mixed precision (DeepLearningExamples, ResNet-50 v1.5 for PyTorch, inference, 32
    at a time). torch's autocast keeps weights in float32 and computes softmax and most norms in it. Compute
    features outside: float16 cannot hold power spectra.
    """

    def __init__(self, compute_type: ComputeType, device: str) -> None:
        if compute_type == "auto":
            compute_type = "float16" if device == "cuda" else "float32"
        self.dtype = None if compute_type == "float32" else getattr(torch, compute_type)
        self._device = device
        if device == "cuda":
            # From Ampere on torch lets cuDNN round to TensorFloat-32, with 10 bits, unless it is told not to;
            # cuBLAS only if it is told to, as in NVIDIA's containers. It holds for the whole process.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False

    def run(self, network: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `network` returns, as float32; on overflow it is computed again in float32."""
        if self.dtype is None:
            return network()
        with torch.autocast(self._device, self.dtype):
            computed = network().float()
        if torch.isfinite(computed).all():
            return computed
        _warn_once("A batch overflowed in %s; such batches are computed again in float32.", self.dtype)
        return network()
