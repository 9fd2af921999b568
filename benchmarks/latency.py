"""`python -m benchmarks.latency`: one file with nobody else there, against whisperx called directly.

The models of benchmarks/throughput.py, every stage on all cores in both systems, from a WAV file to segments,
without speakers and with. A clip of 5 s shows what the graph costs (HTTP and five processes), 5 minutes what
it gains to work on windows side by side, and with real models what word times by attention cost, against a
second service with `alignment.method: off`. The systems take turns. One JSON line on standard output, in
seconds, all medians.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import whisperx
from rich.console import Console

from benchmarks import people
from benchmarks.plain_whisperx import BATCH_SIZE, PlainWhisperx
from benchmarks.systems import service, wav
from benchmarks.throughput import BOOKABLE_CPUS, WITHOUT_ALIGNMENT, Weights, config, load_plain

SHORT_S, LONG_S = 5, 300

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Run:
    """Seconds until the segments were there, and each stage's (the service's overlap)."""

    wall_s: float
    stages_s: dict[str, float]


def ours(client: httpx.Client, path: Path, *, diarize: bool, prefix: str = "") -> Run:
    files, data = {"file": path.read_bytes()}, {"language": "en", "diarize": str(diarize).lower()}
    begun_s = time.monotonic()
    response = client.post(f"{prefix}/predict", files=files, data=data)
    wall_s = time.monotonic() - begun_s
    response.raise_for_status()
    return Run(wall_s, response.json()["timings"])


def direct(plain: PlainWhisperx, path: Path, *, diarize: bool) -> Run:
    """Whisperx's documented order; speech detection is a part of its `asr`."""
    clock_s = [time.monotonic()]
    audio = whisperx.load_audio(str(path))
    clock_s.append(time.monotonic())
    result = plain.asr.transcribe(audio, batch_size=BATCH_SIZE, language="en")
    clock_s.append(time.monotonic())
    aligned = plain.align(result["segments"], audio, "en")
    clock_s.append(time.monotonic())
    if diarize:
        assert plain.diarization is not None
        whisperx.assign_word_speakers(plain.diarization(audio), aligned)
        clock_s.append(time.monotonic())
    stages = zip(("decode", "asr", "alignment", "diarization"), pairwise(clock_s), strict=False)
    return Run(clock_s[-1] - clock_s[0], {stage: ended - begun for stage, (begun, ended) in stages})


def medians(systems: dict[str, Callable[[], Run]], runs: int) -> dict[str, Any]:
    """The systems take turns; seconds of each, and the stages of its last run."""
    found: dict[str, list[Run]] = {name: [] for name in systems}
    for _ in range(runs):
        for name, run in systems.items():
            found[name].append(run())
    return {
        "wall_s": {name: statistics.median(run.wall_s for run in done) for name, done in found.items()},
        "stages_s": {name: done[-1].stages_s for name, done in found.items()},
    }


def main(
    models: Annotated[Weights, typer.Option(help="Weights of both systems.")] = "real",
    runs: Annotated[int, typer.Option(help="Runs of the short clip by each system.")] = 7,
    long_runs: Annotated[int, typer.Option(help="Runs of the long file by each system.")] = 3,
    long_s: Annotated[int, typer.Option(help="Length of the long file, in seconds.")] = LONG_S,
) -> None:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder) / "short.wav", Path(folder) / "long.wav"
        short.write_bytes(wav(people.speech(SHORT_S)))
        long.write_bytes(wav(people.speech(long_s)))
        raw = config(models, Path(folder))
        plain = load_plain(raw)
        with (
            service(raw, num_cpus=BOOKABLE_CPUS) as system,
            httpx.Client(base_url=system.url, timeout=3600) as client,  # a new one would cost some 20 ms
        ):

            def systems(path: Path, diarize: bool) -> dict[str, Callable[[], Run]]:
                chosen: dict[str, Callable[[], Run]] = {
                    "ours": partial(ours, client, path, diarize=diarize),
                    "whisperx": partial(direct, plain, path, diarize=diarize),
                }
                if models == "real":
                    off = partial(ours, client, path, diarize=diarize, prefix=WITHOUT_ALIGNMENT)
                    chosen["ours_without_alignment"] = off
                return chosen

            for name, diarize in (("without_speakers", False), ("with_speakers", True)):
                medians(systems(short, diarize), 1)  # warm
                clip = medians(systems(short, diarize), runs)
                file = medians(systems(long, diarize), long_runs)
                wall_s = file["wall_s"]
                figures[name] = {
                    "lone_clip_slower_s": clip["wall_s"]["ours"] - clip["wall_s"]["whisperx"],
                    "lone_file_ratio": wall_s["whisperx"] / wall_s["ours"],
                    "lone_clip": clip,
                    "lone_file": file,
                }
                if off_s := wall_s.get("ours_without_alignment"):
                    figures[name]["lone_file_over_off"] = wall_s["ours"] / off_s
                say.print(f"{name}: {json.dumps(figures[name])}")
    aligns = plain.aligner("en") is not None
    figures |= {"models": models, "whisperx_aligns": aligns, "lone_file_s": long_s}
    print(json.dumps({**figures, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}))


if __name__ == "__main__":
    typer.run(main)
