"""`python -m benchmarks.scheduling`: what the scheduling is worth, on simulated T4s.

The real graph on a local Ray, called through its handle, with models that only take time
(benchmarks/simulated.py). One JSON line on standard output:

- burst: 32 clips of 3 to 25 s sent at once to one T4, against the same clips one after the other as
  whisperx would take them on it: it reads each file for real, the rest is simulated (throughput_ratio_sim,
  and throughput_bound_sim if nothing were lost). Each graph has served as many before, unmeasured
- saturation: clients that always have another 90 s file waiting, from the end of one batch to the end of
  another (occupancy_sim, busy_sim, and overhead_sim: wall time over what the GPU needs for full batches)
- company: clips of 10 s, one after the other, alone (short_slower_than_whisperx_s: than whisperx, which
  reads the file, too: short_whisperx_reading_s) and beside a file of 3 hours, all without speakers: their
  one call for the whole file is not scheduled in windows (short_beside_long_p95_ratio,
  long_beside_short_ratio, first_segment_fraction)
- scaling: the file of 3 hours on 1, 2 and 4 GPUs, without speakers, on several the median of three runs
  (scaling_2, scaling_4; all of them in long_4_runs_s and so on): how evenly the GPUs end is chance. As an MP3
  file, too, which takes time to decode (mp3_4_s, mp3_first_segment_fraction_4 and so on)
"""

import asyncio
import json
import math
import os
import platform
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import imageio_ffmpeg
import numpy as np
import typer
from ray import serve
from rich.console import Console

from benchmarks.plain_whisperx import put_ffmpeg_on_path
from benchmarks.simulated import Gpu, align_s, asr_s, detect_s, diarize_s, gpus_in, run_like_whisperx
from benchmarks.systems import wav
from serve_app.app import ALIGN_BATCH, MAX_BATCH_SIZE
from serve_app.cli.launcher import free_port, running
from serve_app.deployments.replica import BOOKED_CPUS
from serve_app.transcript import SAMPLE_RATE_HZ

BATCH = MAX_BATCH_SIZE["cuda"]
WINDOW_S = 30.0
FILE_S = 90.0  # three windows
CLIPS = 32
CLIP_S = (3.0, 25.0)
SHORT_S = 10.0
PAUSE_S = 5.0  # between two clips; one alone takes a third of a second of the GPU
LONG_S = 3 * 3600.0
LONG_RUNS = 3  # on several GPUs

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Simulation:
    """The running application, its simulated GPUs, and what happened meanwhile."""

    handle: Any
    transcriber: Any
    gpus: tuple[Gpu, ...]
    options: dict[str, Any] = field(default_factory=dict)

    async def transcribe(self, clip: bytes) -> float:
        """Seconds until the answer."""
        begun_s = time.monotonic()
        await self.handle.transcribe.remote(clip, language="en", **self.options)
        return time.monotonic() - begun_s

    async def counters(self) -> dict[str, float]:
        found: dict[str, float] = await self.transcriber.counters.remote()
        return found


def graph_on_gpus(folder: Path, gpu_count: int) -> dict[str, Any]:
    """A config file's content: a Transcriber and an Aligner on each GPU; the others share the first one."""
    recognise = {"max_batch_size": BATCH}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [
            {
                "name": "simulated",
                "route_prefix": "/",
                "import_path": "benchmarks.simulated:build",
                "args": {"folder": str(folder), "gpu_count": gpu_count},
                "deployments": [
                    {"name": "Transcriber", "num_replicas": gpu_count, "user_config": recognise},
                    {"name": "Aligner", "num_replicas": gpu_count, "user_config": ALIGN_BATCH["cuda"]},
                    # A short file need not wait for the speakers of a long one.
                    {"name": "Diarizer", "num_replicas": 2},
                ],
            }
        ],
    }


def cpus_for(gpu_count: int) -> int:
    """What its replicas book: two on each GPU, and five."""
    return math.ceil(BOOKED_CPUS * (2 * gpu_count + 5))


@contextmanager
def simulation(gpu_count: int) -> Iterator[Simulation]:
    """That graph while it runs."""
    with tempfile.TemporaryDirectory() as folder:
        raw = graph_on_gpus(Path(folder), gpu_count)
        with running(raw, show_logs=False, num_cpus=cpus_for(gpu_count)):
            signal.signal(signal.SIGINT, signal.default_int_handler)
            handle = serve.get_app_handle("simulated")
            transcriber = serve.get_deployment_handle("Transcriber", "simulated")
            yield Simulation(handle, transcriber, gpus_in(Path(folder), gpu_count))


def silence(seconds: float) -> bytes:
    """A WAV file; what is in it does not matter to a simulated model."""
    return wav(np.zeros(int(seconds * SAMPLE_RATE_HZ), np.int16))


def mp3(seconds: float) -> bytes:
    """One of stereo noise at 44.1 kHz and 128 kbit/s: a minute of it, again and again."""
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error"]
    noise = ["-f", "lavfi", "-t", "60", "-i", "anoisesrc=sample_rate=44100:seed=1"]
    as_mp3 = ["-ac", "2", "-b:a", "128k"]
    with tempfile.TemporaryDirectory() as folder:
        minute, target = Path(folder, "minute.mp3"), Path(folder, "target.mp3")
        subprocess.run([*ffmpeg, *noise, *as_mp3, str(minute)], check=True)
        again = ["-stream_loop", "-1", "-i", str(minute), "-t", str(seconds), "-c", "copy", str(target)]
        subprocess.run([*ffmpeg, *again], check=True)
        return target.read_bytes()


def like_whisperx(file: str, duration_s: float, gpu: Gpu, *, diarize: bool = True) -> float:
    """What whisperx does with one file, by its own function for reading it; seconds that this took."""
    import whisperx

    begun_s = time.monotonic()
    whisperx.load_audio(file)
    reading_s = time.monotonic() - begun_s
    run_like_whisperx(duration_s, gpu, diarize=diarize)
    return reading_s


@contextmanager
def as_files(clips: list[bytes]) -> Iterator[list[str]]:
    """Their paths, for whisperx; it has read the first one once, so that its packages are loaded."""
    import whisperx

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{number}.wav") for number in range(len(clips))]
        for path, clip in zip(paths, clips, strict=True):
            path.write_bytes(clip)
        whisperx.load_audio(str(paths[0]))
        yield [str(path) for path in paths]


async def warm_up(graph: Simulation, rng: random.Random) -> None:
    """Every process of the graph has done all it does."""
    clips = [silence(rng.uniform(*CLIP_S)) for _ in range(CLIPS)]
    await asyncio.gather(*(graph.transcribe(clip) for clip in clips))


async def burst(graph: Simulation, rng: random.Random) -> dict[str, float]:
    """Clips sent at once, and the same clips one after the other through whisperx's stages."""
    lengths_s = [rng.uniform(*CLIP_S) for _ in range(CLIPS)]
    clips = [silence(length_s) for length_s in lengths_s]
    before, begun_s = await graph.counters(), time.monotonic()
    latencies_s = await asyncio.gather(*(graph.transcribe(clip) for clip in clips))
    ended_s = time.monotonic()
    ours_s, busy_s, after = ended_s - begun_s, graph.gpus[0].busy_s(begun_s, ended_s), await graph.counters()
    with as_files(clips) as files:
        begun_s = time.monotonic()
        reading_s = [
            await asyncio.to_thread(like_whisperx, file, length_s, graph.gpus[0])
            for file, length_s in zip(files, lengths_s, strict=True)
        ]
        whisperx_s = time.monotonic() - begun_s
    return {
        "throughput_ratio_sim": whisperx_s / ours_s,
        "throughput_bound_sim": whisperx_s / _least_s(lengths_s),
        "burst_overhead_sim": ours_s / _least_s(lengths_s),
        "burst_busy_sim": busy_s / ours_s,
        "burst_occupancy_sim": (after["items"] - before["items"]) / (after["slots"] - before["slots"]),
        "burst_ours_s": ours_s,
        "burst_whisperx_s": whisperx_s,
        "burst_whisperx_reading_s": sum(reading_s),
        "burst_first_answer_s": min(latencies_s),
    }


def _least_s(lengths_s: list[float]) -> float:
    """Seconds that the GPU needs for these clips in full batches, with nothing lost between them."""
    in_order = sorted(lengths_s)
    recognition_s = sum(asr_s(in_order[first : first + BATCH]) for first in range(0, len(in_order), BATCH))
    return recognition_s + sum(detect_s(s) + align_s(s) + diarize_s(s) for s in lengths_s)


async def saturation(graph: Simulation, clients: int, files: int) -> dict[str, float]:
    """So many clients, each with one file of three full windows under way."""
    clip, left = silence(FILE_S), files
    warm, emptied = asyncio.Event(), asyncio.Event()

    async def client() -> None:
        nonlocal left
        while left:
            left -= 1
            if left <= files - 2 * clients:  # everybody has had an answer or so
                warm.set()
            await graph.transcribe(clip)
        warm.set()
        emptied.set()

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    await warm.wait()
    ends: list[tuple[float, dict[str, float]]] = []  # of batches: the clock and the counters
    while not emptied.is_set():
        now = await graph.counters()
        if not ends or now["batches"] > ends[-1][1]["batches"]:
            ends.append((time.monotonic(), now))
        await asyncio.sleep(0.02)
    await asyncio.gather(*tasks)
    if len(ends) < 3:  # the first is no batch's end
        raise typer.BadParameter("too few files to see one batch end after another: give more --files")
    (begun_s, first), (ended_s, last) = ends[1], ends[-1]
    items = last["items"] - first["items"]
    ideal_s = items / BATCH * asr_s([WINDOW_S] * BATCH)
    ideal_s += items * WINDOW_S / FILE_S * (detect_s(FILE_S) + align_s(FILE_S) + diarize_s(FILE_S))
    return {
        "clients": clients,
        "occupancy_sim": (last["items"] - first["items"]) / (last["slots"] - first["slots"]),
        "busy_sim": graph.gpus[0].busy_s(begun_s, ended_s) / (ended_s - begun_s),
        "overhead_sim": (ended_s - begun_s) / ideal_s,
        "windows": items,
        "batches": last["batches"] - first["batches"],
    }


@dataclass
class LongFile:
    """What became of one."""

    wall_s: float = 0.0
    first_segment_s: float = float("nan")


async def long_file(graph: Simulation, clip: bytes) -> LongFile:
    """The 3-hour file, without speakers: their one call of minutes is no matter of scheduling windows."""
    result, begun_s = LongFile(), time.monotonic()
    reports: AsyncIterator[dict[str, Any]] = graph.handle.options(stream=True).stream.remote(
        clip, language="en", diarize=False
    )
    async for report in reports:
        if report.get("segments") and np.isnan(result.first_segment_s):
            result.first_segment_s = time.monotonic() - begun_s
    result.wall_s = time.monotonic() - begun_s
    return result


async def company(graph: Simulation, clip: bytes, idle_runs: int) -> dict[str, float]:
    """Short clips with nobody else there, then as many as fit in beside the long file."""
    graph.options = {"diarize": False}
    short = silence(SHORT_S)
    await graph.transcribe(short)
    idle_s, direct_s, reading_s = [], [], []
    with as_files([short]) as (file,):
        for _ in range(idle_runs):
            idle_s.append(await graph.transcribe(short))
            begun_s = time.monotonic()
            read_s = await asyncio.to_thread(like_whisperx, file, SHORT_S, graph.gpus[0], diarize=False)
            reading_s.append(read_s)
            direct_s.append(time.monotonic() - begun_s)
    alone = await long_file(graph, clip)
    together = asyncio.create_task(long_file(graph, clip))
    beside_s = []
    await asyncio.sleep(0.1 * alone.wall_s)  # until it is well under way
    while not together.done():
        beside_s.append(await graph.transcribe(short))
        await asyncio.sleep(PAUSE_S)
    busy = await together
    graph.options = {}
    return {
        "short_slower_than_whisperx_s": float(np.median(idle_s) - np.median(direct_s)),
        "short_whisperx_reading_s": float(np.median(reading_s)),
        "short_idle_p95_s": float(np.percentile(idle_s, 95)),
        "short_beside_long_p95_s": float(np.percentile(beside_s, 95)),
        "short_beside_long_p95_ratio": float(np.percentile(beside_s, 95) / np.percentile(idle_s, 95)),
        "shorts_beside_long": len(beside_s),
        "long_beside_short_ratio": busy.wall_s / alone.wall_s,
        "first_segment_fraction": alone.first_segment_s / alone.wall_s,
        "long_1_s": alone.wall_s,
    }


def main(
    long_s: Annotated[float, typer.Option(help="Length of the long file, in seconds.")] = LONG_S,
    clients: Annotated[int, typer.Option(help="Clients at saturation.")] = 32,
    files: Annotated[int, typer.Option(help="Files they send altogether.")] = 160,
    gpu_counts: Annotated[str, typer.Option(help="GPUs of the scaling runs, first 1.")] = "1,2,4",
    seed: int = 1,
) -> None:
    counts = [int(count) for count in gpu_counts.split(",")]
    if counts[0] != 1:
        raise typer.BadParameter("the first number of GPUs must be 1, which the others are compared with")
    figures: dict[str, Any] = {}
    put_ffmpeg_on_path()
    long_clip, compressed = silence(long_s), mp3(long_s)
    for count in counts:
        say.print(f"{count} simulated GPU{'s' * (count > 1)}")
        with simulation(count) as graph:
            asyncio.run(warm_up(graph, random.Random(seed)))
            if count == 1:
                figures |= asyncio.run(burst(graph, random.Random(seed)))
                say.print(json.dumps(figures))
                figures |= asyncio.run(saturation(graph, clients, files))
                say.print(json.dumps(figures))
                figures |= asyncio.run(company(graph, long_clip, idle_runs=20))
            else:
                runs_s = [asyncio.run(long_file(graph, long_clip)).wall_s for _ in range(LONG_RUNS)]
                figures[f"long_{count}_runs_s"] = runs_s
                figures[f"long_{count}_s"] = float(np.median(runs_s))
                figures[f"scaling_{count}"] = figures["long_1_s"] / figures[f"long_{count}_s"]
            result = asyncio.run(long_file(graph, compressed))
            figures[f"mp3_{count}_s"] = result.wall_s
            figures[f"mp3_first_segment_fraction_{count}"] = result.first_segment_s / result.wall_s
        say.print(json.dumps(figures))
    figures |= {
        "long_s": long_s,
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
