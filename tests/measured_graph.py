"""The graph of faulty_graph with jobs, and with faults that a test switches on by a file of their name.

It is built by `serve_app serve` from a config file; docs/operations.md is about what it then measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from fakes import FakeSpeechModel
from faulty_graph import GatedAligner, GatedDiarizer, GatedRecognizer, Gates
from ray.serve import Application

from serve_app.app import graph
from serve_app.models.loaders import Loaders
from serve_app.settings import IntakeSettings, Settings
from serve_app.settings.jobs import JobsSettings, WebhookSettings
from serve_app.stage_requests import AlignRequest, AsrRequest
from serve_app.stages import devices
from serve_app.transcript import Diarization, Samples, WindowText

UNLIKELY = 9  # the word that is heard well only at a higher temperature
REQUESTS = 4  # at once


@dataclass(frozen=True)
class Faults(Gates):
    """A stage fails, or its process dies, while the file is there."""

    def check(self, stage: str) -> None:
        if (self.folder / f"{stage}.fails").exists():
            raise ValueError(f"{stage} was told to fail")
        if (self.folder / f"{stage}.dies").exists():
            (self.folder / f"{stage}.dies").unlink()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")  # ends the process


class Recognizer(GatedRecognizer):
    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        faults.go_through("asr load")
        self._faults = faults
        devices.gpu_memory_bytes = lambda: 1 << 30  # as if torch had a GPU in this process

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[Any]:
        self._faults.check("asr")
        return super().transcribe(requests)

    def text(self, request: AsrRequest) -> WindowText:
        text = super().text(request)
        is_unlikely = int(request.features[0]) == UNLIKELY and not request.decoding.temperature
        return replace(text, avg_logprob=-2.0) if is_unlikely else text


class Aligner(GatedAligner):
    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        self._faults = faults

    def align(self, requests: Sequence[AlignRequest]) -> list[Any]:
        self._faults.check("alignment")
        return super().align(requests)


class Diarizer(GatedDiarizer):
    def __init__(self, faults: Faults) -> None:
        super().__init__(faults)
        self._faults = faults

    def diarize(self, samples: Samples, **options: Any) -> Diarization:
        self._faults.check("diarization")
        return super().diarize(samples, **options)


def build(args: dict[str, Any]) -> Application:
    """`folder` holds the faults, the jobs and the secrets of webhooks."""
    folder = Path(args["folder"])
    faults = Faults(folder / "faults")
    webhooks = WebhookSettings(
        secrets_file=str(folder / "secrets"), allowed_hosts=("127.0.0.1",), retry_delays_s=(1.0,) * 100
    )
    settings = Settings(
        model="fake",
        device="cpu",
        requests_in_flight=REQUESTS,
        intake=IntakeSettings(allowed_hosts=("127.0.0.1",)),
        jobs=JobsSettings(state_dir=str(folder / "state"), webhooks=webhooks, concurrency=1),
    )
    loaders = Loaders(
        FakeSpeechModel, partial(Recognizer, faults), partial(Aligner, faults), partial(Diarizer, faults)
    )
    return graph(settings, loaders, "cpu")


def write_config(folder: Path, port: int) -> Path:
    """A config file of this graph, with logs as JSON and every trace."""
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "logging_config": {"encoding": "JSON", "log_level": "INFO", "logs_dir": str(folder / "logs")},
        "tracing_config": {
            "enabled": True,
            "exporter_import_path": "serve_app.tracing:exporter",
            "sampling_ratio": 1.0,
        },
        "applications": [
            {
                "name": "whisperx",
                "route_prefix": "/",
                "import_path": "measured_graph:build",
                "args": {"folder": str(folder)},
            }
        ],
    }
    (folder / "faults").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder / "config.yaml"
