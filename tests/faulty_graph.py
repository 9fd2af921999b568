"""A graph of fake models that wait where a test wants them to, built as `serve deploy` builds one."""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from fakes import FakeAligner, FakeDiarizer, FakeRecognizer, FakeSpeechModel, References, recording
from ray.serve import Application

from serve_app.app import graph
from serve_app.audio import AudioInfo
from serve_app.models.loaders import Loaders
from serve_app.settings import IntakeSettings, Settings
from serve_app.settings.jobs import JobsSettings
from serve_app.stage_requests import AlignRequest, AsrRequest, SpeechRequest
from serve_app.transcript import Diarization, Samples

PROBE_S = 1.0  # limit of a recogniser's health check; after three late ones it is replaced
LOAD_S = 4.0  # the load time of slow models, longer than readiness and health checks wait
MOST_ITEMS = 2  # the largest batch that fits in the device's memory, where that is scarce


@dataclass(frozen=True)
class Gates:
    """A gate for each stage; a model at a closed gate records its process and waits."""

    folder: Path

    def close(self, stage: str) -> None:
        (self.folder / f"{stage}.closed").touch()

    def open(self, stage: str) -> None:
        (self.folder / f"{stage}.closed").unlink()

    def waiting(self, stage: str) -> set[int]:
        """Processes that have come to the stage's gate while it was closed."""
        return {int(file.suffix[1:]) for file in self.folder.glob(f"{stage}.waits.*")}

    def go_through(self, stage: str) -> None:
        while (self.folder / f"{stage}.closed").exists():
            (self.folder / f"{stage}.waits.{os.getpid()}").touch()
            time.sleep(0.01)

    def load(self, stage: str) -> None:
        (self.folder / f"{stage}.loads.{os.getpid()}").touch()
        if (self.folder / "slow load").exists():
            time.sleep(LOAD_S)


class GatedSpeech(FakeSpeechModel):
    def __init__(self, gates: Gates) -> None:
        self._gates = gates

    def find_speech(self, requests: Sequence[SpeechRequest]) -> list[Any]:
        """The gate is behind the first part of a long file."""
        if any(request.start_s or request.is_last for request in requests):
            self._gates.go_through("speech")
        return super().find_speech(requests)


class GatedRecognizer(FakeRecognizer):
    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        gates.load("asr")

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[Any]:
        self._gates.go_through("asr")
        if (self._gates.folder / "scarce").exists() and len(requests) > MOST_ITEMS:
            raise RuntimeError("CUDA failed with error out of memory")
        if (self._gates.folder / "broken").exists():
            (self._gates.folder / "broken").unlink()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return [self.text(request) for request in requests]


class GatedAligner(FakeAligner):
    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        gates.load("alignment")

    def align(self, requests: Sequence[AlignRequest]) -> list[Any]:
        self._gates.go_through("alignment")
        return super().align(requests)


class GatedDiarizer(FakeDiarizer):
    def __init__(self, gates: Gates) -> None:
        self._gates = gates
        gates.load("diarization")

    def diarize(self, samples: Samples, **options: Any) -> Diarization:
        self._gates.go_through("diarization")
        return super().diarize(samples, **options)


def build(args: dict[str, str]) -> Application:
    """`gates` is a folder; Serve replaces every replica when `version` changes."""
    gates = Gates(Path(args["gates"]))
    settings = Settings(
        model=args["version"],
        device="cpu",
        call_timeout_s=float(args.get("call_timeout_s", 120)),
        call_timeout_per_audio_s=0.0,
        intake=IntakeSettings(allowed_hosts=("127.0.0.1",)),
        jobs=JobsSettings(store="off"),
    )
    loaders = Loaders(
        partial(GatedSpeech, gates),
        partial(GatedRecognizer, gates),
        partial(GatedAligner, gates),
        partial(GatedDiarizer, gates),
    )
    return graph(settings, loaders, "cpu")


@ray.remote(num_cpus=0)
class Owner:
    def put(self) -> list[Any]:
        return [ray.put(recording(9))]


class Orphan:
    """A loader's answer whose audio dies with the process that owns it."""

    def __init__(self) -> None:
        self._owner: Any = Owner.remote()  # type: ignore[attr-defined]  # Ray's decorator adds it

    async def _to_object_ref_gen(self) -> References:
        return References(self._references())

    async def _references(self) -> AsyncGenerator[Any, None]:
        (ref,) = await self._owner.put.remote()
        ray.kill(self._owner)
        with suppress(ray.exceptions.ObjectLostError):
            for _ in range(600):  # until this node knows that the owner is dead
                await ref
                await asyncio.sleep(0.1)
        yield ray.put(AudioInfo(0.0, 2.0, is_last=True, checksum=1))
        yield ref

    def cancel(self) -> None:
        """It has ended."""
