"""Where the stages run: six thin Ray Serve classes in the order of a request. No algorithms here.

Each model class gets a loader (a function of no arguments) and calls it in its constructor, so that
tests pass fake models and no process imports a model package that it does not need.
"""

from serve_app.deployments.audio_loader import AudioLoader
from serve_app.deployments.batch_config import AlignerConfig, BatchConfig, TranscriberConfig
from serve_app.deployments.diarizer import Diarizer
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.models import Aligner, SpeechDetector, Transcriber
from serve_app.deployments.watchdog import Patience

# What `user_config` of each deployment in a config file may hold.
USER_CONFIGS: dict[str, type[BatchConfig] | None] = {
    "Ingress": None,
    "AudioLoader": None,
    "SpeechDetector": None,
    "Transcriber": TranscriberConfig,
    "Aligner": AlignerConfig,
    "Diarizer": None,
    # With cpu_when_gpu_is_full:
    "TranscriberOnCpu": TranscriberConfig,
    "AlignerOnCpu": AlignerConfig,
    "DiarizerOnCpu": None,
}

__all__ = [
    "Ingress",
    "AudioLoader",
    "SpeechDetector",
    "Transcriber",
    "Aligner",
    "Diarizer",
    "AlignerConfig",
    "BatchConfig",
    "TranscriberConfig",
    "Patience",
    "USER_CONFIGS",
]
