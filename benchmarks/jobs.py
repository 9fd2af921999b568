"""What jobs cost: calls beside 1,000 queued jobs, and how much pollers slow down running work.

The real graph behind HTTP, with fake models where only the store and HTTP count. Prints a table and writes
out/jobs.json. `--models real` measures the slowdown with Whisper tiny.en and CAM++, which use all cores.
"""

import json
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import httpx
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import people
from benchmarks.bench import PROJECT
from benchmarks.chaos.running_graph import config, started
from benchmarks.systems import wav
from serve_app.transcript import SAMPLE_RATE_HZ

MAX_SLOWDOWN = 0.05
CLIP_S = 1.0
LONG_S = 1200.0  # of the job that keeps the only place of the JobRunner while the others wait
WORK_S = 20.0  # of the file whose time pollers may prolong

say = Console(stderr=True, highlight=False, soft_wrap=True)


def main(
    queued: Annotated[int, typer.Option(help="Jobs that wait.")] = 1000,
    times: Annotated[int, typer.Option(help="Calls of each kind.")] = 200,
    polls_per_s: Annotated[float, typer.Option(help="Polls a second beside running work.")] = 20.0,
    rounds: Annotated[int, typer.Option(help="Files with and without pollers, in turn.")] = 8,
    models: Annotated[str, typer.Option(help="fakes, or real, for the running work.")] = "fakes",
    out: Annotated[Path, typer.Option(help="Folder for jobs.json.")] = PROJECT / "out",
) -> None:
    """Measures all of it."""
    with TemporaryDirectory(prefix="jobs-") as folder:
        calls = _calls(Path(folder) / "queue", queued, times)
    with TemporaryDirectory(prefix="jobs-") as folder:
        slowdown = _slowdown(Path(folder), models, polls_per_s, rounds)
    table = Table("milliseconds", "idle p50", "p99", f"{queued} queued p50", "p99")
    for name, figures in calls.items():
        table.add_row(name, *(f"{value:.1f}" for value in figures))
    console = Console()
    console.print(table)
    verdict = "" if slowdown["slowdown"] <= MAX_SLOWDOWN else f", over {MAX_SLOWDOWN:.0%}"
    console.print(
        f"{polls_per_s:g} polls a second slow work ({models}) by {slowdown['slowdown']:.1%}{verdict}, "
        f"as many calls of /healthz by {slowdown['slowdown_by_healthz']:.1%}."
    )
    out.mkdir(exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    written = {"machine": machine, "queued": queued, "calls_ms": calls, "models": models, **slowdown}
    (out / "jobs.json").write_text(json.dumps(written, indent=1) + "\n")


def _calls(state_dir: Path, queued: int, times: int) -> dict[str, list[float]]:
    """For each call: p50 and p99 in ms on an idle server, then with jobs that wait."""
    settings = {"jobs": {"state_dir": str(state_dir), "concurrency": 1, "max_queued": 2 * queued}}
    with started(config(settings=settings, args={"asr": 1.0})) as graph, _client(graph.url) as client:
        clip = wav(people.speech(CLIP_S))
        idle = _timed(client, clip, times)
        long_job = _submit(client, wav(np.zeros(int(LONG_S * SAMPLE_RATE_HZ), np.int16)))
        _wait_for_status(client, long_job, "running")
        for _ in range(queued):
            _submit(client, clip)
        full = _timed(client, clip, times)
        client.delete(f"/v1/jobs/{long_job}").raise_for_status()
    return {name: [*idle[name], *full[name]] for name in idle}


def _timed(client: httpx.Client, clip: bytes, times: int) -> dict[str, list[float]]:
    ids: list[str] = []
    asked = {
        "GET /healthz": lambda: client.get("/healthz").raise_for_status(),
        "submit a file": lambda: ids.append(_submit(client, clip)),
        "poll": lambda: client.get(f"/v1/jobs/{ids[-1]}").raise_for_status(),
        "list 20": lambda: client.get("/v1/jobs").raise_for_status(),
    }
    found = {name: _p50_p99_ms(call, times) for name, call in asked.items()}
    found["delete"] = _p50_p99_ms(lambda: client.delete(f"/v1/jobs/{ids.pop()}").raise_for_status(), times)
    return found


def _p50_p99_ms(call: Callable[[], object], times: int) -> list[float]:
    took_ms = []
    for _ in range(times):
        begun_s = time.perf_counter()
        call()
        took_ms.append(1000 * (time.perf_counter() - begun_s))
    return [float(np.percentile(took_ms, share)) for share in (50, 99)]


def _slowdown(state_dir: Path, models: str, polls_per_s: float, rounds: int) -> dict[str, Any]:
    """How much longer a file takes beside pollers of a job, and beside as many calls of /healthz.

    The second says what any HTTP request costs on its way through Serve, before a job is looked at. The
    medians of files alone and beside each, in turn.
    """
    settings = {"jobs": {"state_dir": str(state_dir), "concurrency": 1}}
    work = wav(people.speech(WORK_S))
    with started(config(models, settings=settings, args={"asr": 0.1})) as graph, _client(graph.url) as client:
        job_id = _submit(client, wav(people.speech(CLIP_S)))
        _wait_for_status(client, job_id, "succeeded")
        paths = {"alone": None, "healthz": "/healthz", "polled": f"/v1/jobs/{job_id}"}
        took_s: dict[str, list[float]] = {name: [] for name in paths}
        for number in range(rounds + 1):
            for name, path in paths.items():
                with _polled(graph.url, path, polls_per_s):
                    begun_s = time.perf_counter()
                    client.post("/predict", files={"file": work}, data={"language": "en"}).raise_for_status()
                    wall_s = time.perf_counter() - begun_s
                if number:  # the first round warms up
                    took_s[name].append(wall_s)
    medians_s = {name: statistics.median(times_s) for name, times_s in took_s.items()}
    slowdowns = {name: median_s / medians_s["alone"] - 1 for name, median_s in medians_s.items()}
    return {
        "alone_s": medians_s["alone"],
        "slowdown": slowdowns["polled"],
        "slowdown_by_healthz": slowdowns["healthz"],
        "took_s": took_s,
    }


@contextmanager
def _polled(url: str, path: str | None, per_s: float) -> Iterator[None]:
    """Asks for the path so often while entered."""
    over = threading.Event()
    poller = threading.Thread(target=_poll, args=(url, path, per_s, over))
    if path:
        poller.start()
    try:
        yield
    finally:
        over.set()
        if path:
            poller.join()


def _poll(url: str, path: str, per_s: float, over: threading.Event) -> None:
    with _client(url) as client:
        due_s = time.monotonic()
        while not over.wait(max(0.0, due_s - time.monotonic())):
            client.get(path).raise_for_status()
            due_s += 1 / per_s


def _submit(client: httpx.Client, clip: bytes) -> str:
    answer = client.post("/v1/jobs", files={"file": clip}, data={"language": "en"})
    answer.raise_for_status()
    found: str = answer.json()["id"]
    return found


def _wait_for_status(client: httpx.Client, job_id: str, status: str) -> None:
    with suppress(httpx.RemoteProtocolError), client.stream("GET", f"/v1/jobs/{job_id}/events") as events:
        for line in events.iter_lines():
            if line.startswith("data: ") and json.loads(line.removeprefix("data: ")).get("status") == status:
                return
    raise RuntimeError(f"the job never was {status}")


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=600.0, trust_env=False)


if __name__ == "__main__":
    typer.run(main)
