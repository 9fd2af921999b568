"""`python -m benchmarks.autoscaling`: replicas under a day's load in minutes, then under one twice as steep.

The real graph on a local Ray, called through its handle, with models that only take time: the recogniser
that of simulated T4s (benchmarks/simulated.py), each replica on one of its own. The number of Transcribers
and Diarizers follows `ByAudio`, that of AudioLoaders and Ingresses Serve's own policy. Each window's text
is the checksum of its samples, so a lost or changed one shows.

A table on standard output, and out/autoscaling.json and .png. Ideal is what somebody would start who knows
the load: at each moment the fewest Transcribers whose full batches keep up with it. A Transcriber counts from
the moment Serve starts it until it has ended, whether it is loading, working or ending its calls.
"""

# No `from __future__ import annotations` here: Ray validates `args:` only when the annotation is a class.

import asyncio
import itertools
import json
import math
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from pydantic import BaseModel
from ray import serve
from ray.serve import Application
from rich.console import Console
from rich.table import Table

from benchmarks.bench import PROJECT, Goal
from benchmarks.chaos.models import checksum
from benchmarks.days import NIGHT, NOON, capacity, load
from benchmarks.simulated import (
    WINDOW_S,
    SimulatedDetector,
    SimulatedDiarizer,
    SimulatedRecognizer,
    asr_s,
    gpus_in,
)
from benchmarks.systems import wav
from serve_app.app import graph
from serve_app.cli.launcher import free_port, running
from serve_app.errors import NoRoom
from serve_app.models.loaders import Loaders
from serve_app.settings import Settings
from serve_app.settings.jobs import JobsSettings
from serve_app.stage_requests import AsrRequest
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, WindowText

BATCH = 4  # windows; with fewer, a day of minutes has enough batches
SLOWER = 2.0  # than a T4, so that two cores can feed several of them
FILE_S = 120.0
WITH_SPEAKERS = 0.2  # of the files by day
MAX_REPLICAS = 6
CAPACITY = capacity(BATCH, SLOWER)
STEPS_S = 1.0  # between two looks

# A day is minutes here, so are the delays; by day they are those of deploy/serve_config.autoscaling.yaml.
DELAYS = {"look_back_period_s": 20.0, "upscale_delay_s": 3.0, "downscale_delay_s": 15.0}
METRICS = {
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "1",
    "RAY_SERVE_AUTOSCALING_METRIC_RECORD_INTERVAL_FACTOR": "0.05",
}
GOALS = (
    Goal("refused", at_most=0),
    Goal("failed", at_most=0),
    Goal("changed", at_most=0),
    Goal("over_ideal", at_most=1.25),
    Goal("stopped", at_least=1),  # replicas, or nothing was shown of scaling down
    Goal("ready_at_zero", at_least=1),  # with no Diarizer, and without starting one
)

say = Console(stderr=True, highlight=False, soft_wrap=True)


class CheckingRecognizer(SimulatedRecognizer):
    """Hears the checksum of each window's samples, in the time that a batch takes."""

    def features(self, samples: Samples) -> npt.NDArray[np.float32]:
        heard = checksum(samples)
        return np.array([heard >> 16, heard & 0xFFFF, len(samples) / SAMPLE_RATE_HZ], np.float32)

    def transcribe(self, requests: Sequence[AsrRequest]) -> list[Any]:
        heard = [request.features for request in requests]
        self._gpu.run(SLOWER * asr_s([float(seconds) for _, _, seconds in heard]))
        return [
            WindowText(f"{int(high):04x}{int(low):04x}", "en", None, -0.1, 0.0, 1.0) for high, low, _ in heard
        ]


class Simulated(BaseModel):
    """`args:` of the application."""

    folder: Path  # of the GPUs' files


def build(simulated: Simulated) -> Application:
    """The graph around these models. A replica that ends has its GPU until it has ended."""
    *gpus, detector, diarizer = gpus_in(simulated.folder, 2 * MAX_REPLICAS + 2)
    settings = Settings(model="simulated", device="cpu", jobs=JobsSettings(store="off"))
    loaders = Loaders(
        detector=partial(SimulatedDetector, detector),
        recognizer=partial(CheckingRecognizer, gpus),
        aligner=None,
        diarizer=partial(SimulatedDiarizer, diarizer),
    )
    return graph(settings, loaders, "cpu")


def config(folder: Path) -> dict[str, Any]:
    """A config file's content."""
    by_audio = "serve_app.deployments.autoscaling:ByAudio"
    transcriber = {"audio_s_per_replica": 2 * BATCH * WINDOW_S, "speed": CAPACITY}
    scaled: dict[str, dict[str, Any]] = {
        "Ingress": {"max_replicas": 2, "target_ongoing_requests": 64},
        "AudioLoader": {"max_replicas": 2, "target_ongoing_requests": 4},
        "Transcriber": {
            "max_replicas": MAX_REPLICAS,
            "policy": {"policy_function": by_audio, "policy_kwargs": transcriber},
        },
        "Diarizer": {
            "min_replicas": 0,
            "max_replicas": 2,
            "policy": {"policy_function": by_audio, "policy_kwargs": {"audio_s_per_replica": 600.0}},
        },
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [
            {
                "name": "autoscaling",
                "route_prefix": "/",
                "import_path": "benchmarks.autoscaling:build",
                "args": {"folder": str(folder)},
                "deployments": [
                    {
                        "name": name,
                        "graceful_shutdown_timeout_s": 120.0,
                        "autoscaling_config": {"min_replicas": 1, **DELAYS, **chosen},
                        **({"user_config": {"max_batch_size": BATCH}} if name == "Transcriber" else {}),
                    }
                    for name, chosen in scaled.items()
                ],
            }
        ],
    }


@dataclass(frozen=True)
class Day:
    """Load from night over noon to night."""

    name: str
    length_s: float

    def is_bright(self, at_s: float) -> bool:
        return load(at_s, self.length_s) > (NIGHT + NOON) / 2

    def arrivals(self, rng: random.Random) -> list[float]:
        """When files come: at random, as many as the load says, by thinning."""
        most_per_s, at_s, found = NOON * CAPACITY / FILE_S, 0.0, list[float]()
        while (at_s := at_s + rng.expovariate(most_per_s)) < self.length_s:
            if rng.random() < load(at_s, self.length_s) / NOON:
                found.append(at_s)
        return found


@dataclass
class Look:
    """What there is at one moment of a day."""

    at_s: float
    load: float
    ideal: int
    replicas: dict[str, int]  # also those that start or end
    working: int  # Transcribers that take calls
    open_files: int
    queued_audio_s: float  # of the Transcribers


@dataclass
class Found:
    """What became of a day."""

    looks: list[Look] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    open_files: int = 0


class Files:
    """Pieces of noise, no two alike, and the texts that are right for them."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._noise = np.random.default_rng(1).integers(
            -3000, 3000, int(10 * FILE_S) * SAMPLE_RATE_HZ, np.int16
        )

    def one(self) -> tuple[bytes, list[str]]:
        length = int(FILE_S) * SAMPLE_RATE_HZ
        first = self._rng.randrange(len(self._noise) - length)
        samples, step = self._noise[first : first + length], int(WINDOW_S) * SAMPLE_RATE_HZ
        return wav(samples), [f"{checksum(samples[at : at + step]):08x}" for at in range(0, length, step)]


async def run_day(day: Day, files: Files, rng: random.Random) -> Found:
    """Sends the day's files when they are due, and looks every second, until all have been answered."""
    handle, found = serve.get_app_handle("autoscaling"), Found()
    begun_s = time.monotonic()

    async def send(at_s: float) -> None:
        file, texts = files.one()
        diarize = day.is_bright(at_s) and rng.random() < WITH_SPEAKERS
        found.open_files += 1
        sent_s = time.monotonic()
        try:
            answer: Any = await handle.transcribe.remote(file, language="en", diarize=diarize)
        except Exception as error:  # noqa: BLE001  (any error counts as a failed file)
            is_refusal = isinstance(getattr(error, "cause", error), NoRoom)
            found.outcomes["refused" if is_refusal else "failed"] += 1
            say.print(f"  {type(error).__name__}: {str(error)[-200:]}")
        else:
            heard = [segment["text"] for segment in answer["model_output"]]
            lacks_speakers = diarize and not all(segment.get("speaker") for segment in answer["model_output"])
            found.outcomes["changed" if heard != texts or lacks_speakers else "right"] += 1
            found.latencies_s.append(time.monotonic() - sent_s)
        found.open_files -= 1

    looking = asyncio.create_task(_look(day, found, begun_s))
    sending = []
    for at_s in day.arrivals(rng):
        await asyncio.sleep(max(0.0, begun_s + at_s - time.monotonic()))
        sending.append(asyncio.create_task(send(at_s)))
    await asyncio.gather(*sending)
    await asyncio.sleep(max(0.0, begun_s + day.length_s - time.monotonic()))
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    return found


async def _states() -> dict[str, dict[str, int]]:
    """How many replicas each deployment has, by what they are at."""
    status: Any = await asyncio.to_thread(serve.status)
    deployments = status.applications["autoscaling"].deployments
    return {name: deployment.replica_states for name, deployment in deployments.items()}


async def is_ready_at_zero() -> bool:
    """Whether the service says that it is ready while it has no Diarizer, and still has none later."""
    handle: Any = serve.get_app_handle("autoscaling")
    for _ in range(5):
        stages = await handle.readiness.remote()
        await asyncio.sleep(1.0)
        replicas = (await _states())["Diarizer"]
        if not all(stages.values()) or any(replicas.values()):
            say.print(f"  not ready at zero: {stages}, {replicas}")
            return False
    return True


async def _look(day: Day, found: Found, begun_s: float) -> None:
    transcriber: Any = serve.get_deployment_handle("Transcriber", "autoscaling")
    await transcriber.ready.remote()  # it waits until replicas are known, as a broadcast does not
    while True:
        at_s = time.monotonic() - begun_s
        states = await _states()
        answers: list[Any] = []
        with suppress(TimeoutError):
            answers = await transcriber.broadcast("record_autoscaling_stats").results_async(
                timeout_s=5.0, return_exceptions=True
            )
        now = load(min(at_s, day.length_s), day.length_s)
        found.looks.append(
            Look(
                at_s,
                now,
                max(1, math.ceil(now)),
                {name: sum(of.values()) for name, of in states.items()},
                states["Transcriber"].get("RUNNING", 0),
                found.open_files,
                sum(answer["unfinished_audio_s"] for answer in answers if isinstance(answer, dict)),
            )
        )
        await asyncio.sleep(max(0.0, begun_s + at_s + STEPS_S - time.monotonic()))


def figures(day: Day, found: Found, *, ready_at_zero: bool) -> dict[str, Any]:
    by_day = [look for look in found.looks if look.at_s <= day.length_s]
    spans = np.diff([*(look.at_s for look in by_day), day.length_s])
    had_s = float(np.dot([look.replicas["Transcriber"] for look in by_day], spans))
    ideal_s = float(np.dot([look.ideal for look in by_day], spans))
    working = [look.working for look in found.looks]
    return {
        "files": found.outcomes.total(),
        **{what: found.outcomes[what] for what in ("refused", "failed", "changed")},
        "ready_at_zero": float(ready_at_zero),
        "replica_s": had_s,
        "ideal_s": ideal_s,
        "over_ideal": had_s / ideal_s,
        "always_max_s": MAX_REPLICAS * day.length_s,
        "most_replicas": max(working),
        "stopped": sum(max(0, before - after) for before, after in itertools.pairwise(working)),
        "most_queued_audio_s": max(look.queued_audio_s for look in found.looks),
        "latency_median_s": float(np.median(found.latencies_s)),
        "latency_p95_s": float(np.percentile(found.latencies_s, 95)),
        "latency_max_s": max(found.latencies_s),
        "diarizers": sorted({look.replicas.get("Diarizer", 0) for look in found.looks}),
        "ingresses": sorted({look.replicas["Ingress"] for look in found.looks}),
        "loaders": sorted({look.replicas["AudioLoader"] for look in found.looks}),
    }


def plot(days: dict[str, Found], path: Path) -> None:
    """Load, replicas and queue over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, len(days), squeeze=False, sharex="col")
    for (name, found), (upper, lower) in zip(days.items(), panels.T, strict=True):
        at_s = [look.at_s for look in found.looks]
        upper.plot(at_s, [look.load for look in found.looks], color="#888888", label="load, in full replicas")
        upper.step(at_s, [look.ideal for look in found.looks], color="#bbbbbb", where="post", label="ideal")
        alive = [look.replicas["Transcriber"] for look in found.looks]
        upper.step(at_s, alive, color="#b3462e", where="post", label="Transcribers, all")
        working = [look.working for look in found.looks]
        upper.step(at_s, working, color="#2a7f62", where="post", label="Transcribers that work")
        diarizers = [look.replicas.get("Diarizer", 0) for look in found.looks]
        upper.step(at_s, diarizers, color="#3b6ea5", where="post", label="Diarizers, all", linestyle=":")
        upper.set_title(f"{name} (simulated T4s, {SLOWER:g} times slower)")
        upper.legend(fontsize="small")
        lower.plot(at_s, [look.queued_audio_s for look in found.looks], color="#2a7f62")
        lower.set_ylabel("audio in Transcribers, s")
        lower.set_xlabel(f"s; {dict(found.outcomes)}")
    figure.savefig(path, dpi=120)


def main(
    day_s: Annotated[
        float, typer.Option(help="Length of the first day; the second is half as long.")
    ] = 300.0,
    out: Annotated[Path, typer.Option(help="Folder for autoscaling.json and .png.")] = PROJECT / "out",
    seed: int = 1,
) -> None:
    os.environ.update(METRICS)
    rng, days = random.Random(seed), dict[str, Found]()
    rows: dict[str, dict[str, Any]] = {}
    files = Files(rng)
    with (
        tempfile.TemporaryDirectory() as folder,
        running(config(Path(folder)), show_logs=False, num_cpus=8),
    ):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        ready_at_zero = asyncio.run(is_ready_at_zero())
        for day in (Day("day", day_s), Day("twice as steep", day_s / 2)):
            say.print(f"{day.name}: {day.length_s:g} s")
            days[day.name] = found = asyncio.run(run_day(day, files, rng))
            rows[day.name] = figures(day, found, ready_at_zero=ready_at_zero)
            say.print(f"  {json.dumps(rows[day.name])}")
            _write(out, days, rows)
    table = Table("figure (simulated)", *rows, "goal")
    goals = {goal.name: goal for goal in GOALS}
    for name in next(iter(rows.values())):
        shown = [str(round(v, 2)) if isinstance(v := row[name], float) else str(v) for row in rows.values()]
        table.add_row(name, *shown, str(goals.get(name, "")))
    Console().print(table)
    say.print(f"Written to {out / 'autoscaling.json'} and {out / 'autoscaling.png'}.")
    sys.exit(0 if all(goal.met(row[goal.name]) for row in rows.values() for goal in GOALS) else 1)


def _write(out: Path, days: dict[str, Found], rows: dict[str, dict[str, Any]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    written = {
        "simulated": True,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "capacity_audio_s_per_s": CAPACITY,
        "summary": rows,
        "looks": {name: [asdict(look) for look in found.looks] for name, found in days.items()},
    }
    (out / "autoscaling.json").write_text(json.dumps(written, indent=1) + "\n")
    plot(days, out / "autoscaling.png")


if __name__ == "__main__":
    typer.run(main)
