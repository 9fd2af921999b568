"""What is measured side by side: the service over HTTP, and plain whisperx in this process."""

import io
import signal
import time
import wave
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import numpy as np
import psutil
import ray
from numpy.typing import NDArray
from ray import serve

from benchmarks.people import Turn
from benchmarks.plain_whisperx import PlainWhisperx
from serve_app.cli.launcher import running, url_of
from serve_app.deployments.calls.audio_ref import AudioSlice
from serve_app.request.calls import DiarizeCall
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization

REPLICA = "ray::ServeReplica:"  # a process is called this, application:deployment, and what it runs


def deployment_of(process: psutil.Process) -> str | None:
    """The deployment that a process is a replica of, or None. Raises psutil.Error."""
    title = " ".join(process.cmdline())
    return title.split(":")[4].split(".")[0].strip() if title.startswith(REPLICA) else None


@dataclass(frozen=True)
class Answer:
    """One system's answer for one recording."""

    segments: list[dict[str, Any]]  # with `words`, where the language can be aligned
    language: str | None
    warnings: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return " ".join(segment["text"].strip() for segment in self.segments)


class System(Protocol):
    """Detects the language itself, as no caller names it here."""

    def answer(self, samples: NDArray[np.int16]) -> Answer: ...

    def turns(self, samples: NDArray[np.int16]) -> tuple[Turn, ...]: ...

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by part of the system."""


@dataclass
class Service:
    """The graph over HTTP, and its diarizer's turns through the deployment handle."""

    url: str
    application: str

    def answer(self, samples: NDArray[np.int16]) -> Answer:
        response = httpx.post(
            f"{self.url}/predict",
            files={"file": wav(samples)},
            data={"word_timestamps": "true", "diarize": "false"},
            timeout=3600,
        )
        response.raise_for_status()
        body = response.json()
        warnings = tuple(f"{w['stage']}: {w['message']}" for w in body["warnings"])
        return Answer(body["model_output"], body["language"], warnings)

    def turns(self, samples: NDArray[np.int16]) -> tuple[Turn, ...]:
        diarizer = serve.get_deployment_handle("Diarizer", self.application)
        call = DiarizeCall(audio=AudioSlice([[ray.put(samples)]], 0.0), request_id="eval")
        found: Diarization = diarizer.diarize.remote(call).result()
        return tuple(Turn(turn.start_s, turn.end_s, turn.speaker) for turn in found.turns)

    def cpu_s(self) -> dict[str, float]:
        spent = Counter[str]()
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has just ended
                name, times = deployment_of(process), process.cpu_times()
                if name:
                    spent[name] += times.user + times.system
        return dict(spent)


@dataclass
class Plain:
    """Plain whisperx in this process."""

    whisperx: PlainWhisperx

    def answer(self, samples: NDArray[np.int16]) -> Answer:
        result = self.whisperx.recognize(_float32(samples))
        return Answer(result["segments"], result["language"])

    def turns(self, samples: NDArray[np.int16]) -> tuple[Turn, ...]:
        assert self.whisperx.diarization is not None
        found = self.whisperx.diarization(_float32(samples))
        return tuple(Turn(row.start, row.end, row.speaker) for row in found.itertuples())

    def cpu_s(self) -> dict[str, float]:
        return {"whisperx": time.process_time()}


def _float32(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    return np.divide(samples, 32768, dtype=np.float32)


@contextmanager
def service(raw: dict[str, Any], *, num_cpus: int | None = None) -> Iterator[Service]:
    """Runs the graph of a config file's content while entered; raises CannotStart. Ctrl-C ends it."""
    with running(raw, show_logs=False, num_cpus=num_cpus):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield Service(url_of(raw), raw["applications"][0]["name"])


def wav(samples: NDArray[np.int16]) -> bytes:
    """A mono 16 kHz WAV file of the samples."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE_HZ)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()
