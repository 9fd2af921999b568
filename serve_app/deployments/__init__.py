"""Where the stages run: thin Ray Serve classes in the order of a request. No algorithms here.

Each model class gets a loader (a function of no arguments) and calls it in its constructor, so that tests
pass fake models and no process imports a model package that it does not need.
"""

from serve_app.deployments.aligner import Aligner, AlignerConfig
from serve_app.deployments.audio_loader import AudioLoader
from serve_app.deployments.diarizer import Diarizer
from serve_app.deployments.ingress import Ingress
from serve_app.deployments.job_runner import JobRunner
from serve_app.deployments.replica import BatchConfig
from serve_app.deployments.speech_detector import SpeechDetector
from serve_app.deployments.transcriber import Transcriber
from serve_app.deployments.watchdog import CallTimeout

# What `user_config` of each deployment in a config file may hold; other models' is the Transcriber's.
USER_CONFIGS: dict[str, type[BatchConfig] | None] = {
    "Ingress": None,
    "AudioLoader": None,
    "SpeechDetector": None,
    "Transcriber": BatchConfig,
    "Aligner": AlignerConfig,
    "Diarizer": None,
    "JobRunner": None,
}

__all__ = [
    "Ingress",
    "AudioLoader",
    "SpeechDetector",
    "Transcriber",
    "Aligner",
    "Diarizer",
    "JobRunner",
    "AlignerConfig",
    "BatchConfig",
    "CallTimeout",
    "USER_CONFIGS",
]
