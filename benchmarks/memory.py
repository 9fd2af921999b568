"""`python -m benchmarks.memory`: what the graph, longer files and more clips cost in memory.

The graph of a config file (default: serve_config.demo.yaml), 64 clips at once, then files of several lengths
one after the other (last, because the object store keeps the pages that a long file once needed). With
`--simulated` its models only take time (benchmarks/simulated.py, four GPUs): minutes show what everything
around the models holds for hours of audio. Memory is the proportional set size (PSS) of all the graph's
processes together, object store included, sampled twice a second; every peak is counted from the rest state
before the clips. The slope is a least-squares line through the files' peaks. For every deployment there are
PSS and resident set size (RSS, which counts shared pages in each process) of its replicas, at rest and at
most while the clips run. One JSON line on standard output.
"""

import json
import os
import platform
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks import people
from benchmarks.scheduling import cpus_for, graph_on_gpus
from benchmarks.systems import Service, deployment_of, service, wav
from serve_app.cli import config_file
from serve_app.cli.launcher import free_port

PROJECT = Path(__file__).parents[1]
CLIP_S = 10
MIB = 1 << 20
ALL = "all PSS"

say = Console(stderr=True, highlight=False, soft_wrap=True)


def parts_mib() -> dict[str, float]:
    """PSS and RSS of each deployment's replicas, and of all else: Ray, Serve, the object store."""
    total: dict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has just ended
            name, now = deployment_of(process) or "else", process.memory_full_info()
            total[f"{name} PSS"] += now.pss / MIB
            total[f"{name} RSS"] += now.rss / MIB
            total[ALL] += now.pss / MIB
    return dict(total)


@contextmanager
def watched(figures: Callable[[], dict[str, float]]) -> Iterator[dict[str, float]]:
    """The most that each figure has been, looked at twice a second."""
    most, stop = figures(), threading.Event()

    def watch() -> None:
        while not stop.wait(0.5):
            for name, value in figures().items():
                most[name] = max(most.get(name, 0.0), value)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        stop.set()
        thread.join()


def _graph(config: Path, folder: Path, simulated: bool) -> AbstractContextManager[Service]:
    if simulated:
        raw = graph_on_gpus(folder, 4)
        return service(raw, num_cpus=cpus_for(4))
    raw = config_file.read(config)
    raw["http_options"] = {**(raw.get("http_options") or {}), "port": free_port()}
    return service(raw)


def main(
    config: Annotated[Path, typer.Option(help="Config file of the graph.")] = PROJECT
    / "serve_config.demo.yaml",
    minutes: Annotated[
        str, typer.Option(help="Lengths of the files, separated by commas; may be empty.")
    ] = "10,60,180",
    clips: Annotated[int, typer.Option(help="Clips of 10 s sent at once.")] = 64,
    simulated: Annotated[bool, typer.Option(help="Simulated models instead of the config file's.")] = False,
) -> None:
    lengths_min = [float(length) for length in minutes.split(",") if length]
    figures: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory() as folder, _graph(config, Path(folder), simulated) as system:

        def post(file: bytes) -> None:
            data = {"language": "en"}
            httpx.post(
                f"{system.url}/predict", files={"file": file}, data=data, timeout=36000
            ).raise_for_status()

        clip = wav(people.speech(CLIP_S))
        post(clip)  # warm
        rest, grown = parts_mib(), list[float]()
        with watched(parts_mib) as most, ThreadPoolExecutor(clips) as pool:
            list(pool.map(post, [clip] * clips))
        table = Table("", "at rest, MiB", f"at most, {clips} clips")
        for name in sorted(most):
            table.add_row(name, f"{rest.get(name, 0):.0f}", f"{most[name]:.0f}")
        say.print(table)
        rest_mib = rest[ALL]
        clips_grown_mib = most[ALL] - rest_mib
        for length_min in lengths_min:
            file = wav(people.speech(length_min * 60))
            with watched(parts_mib) as longest:
                post(file)
            grown.append(longest[ALL] - rest_mib)
            say.print(f"{length_min:g} min: {rest_mib:.0f} MiB at rest, {grown[-1]:.0f} MiB more")
        rest_after_mib = parts_mib()[ALL]
    slope, base = np.polyfit(np.array(lengths_min) / 60, grown, 1) if len(grown) > 1 else (None, None)
    figures |= {
        "grown_mib": dict(zip(lengths_min, grown, strict=True)),
        "slope_mib_per_hour": slope,
        "base_mib": base,
        "clips": clips,
        "clips_grown_mib": clips_grown_mib,
        "rest_mib": rest,
        "clips_most_mib": most,
        "rest_before_mib": rest_mib,
        "rest_after_mib": rest_after_mib,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
