"""`python -m benchmarks.latency`: one file with nobody else there, against whisperx called directly.

The models of benchmarks/throughput.py, every stage on all cores in both systems, from a WAV file to segments,
without speakers and with. A clip of 5 s shows what the graph costs (HTTP and five processes), 5 minutes what
it gains to work on windows side by side. The two systems take turns. One JSON line on standard output, in
seconds: medians for the clip, a single run for the file.
"""

import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import whisperx
from rich.console import Console

from benchmarks import truth
from benchmarks.plain_whisperx import BATCH_SIZE, PlainWhisperx, put_ffmpeg_on_path
from benchmarks.systems import service, wav
from benchmarks.throughput import RECORDINGS, config
from benchmarks.truth import SAMPLE_RATE_HZ
from serve_app.models import names as models
from serve_app.settings import Settings

SHORT_S, LONG_S = 5, 300

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Run:
    """Seconds until the segments were there, and each stage's (the service's overlap)."""

    wall_s: float
    stages_s: dict[str, float]


def ours(client: httpx.Client, path: Path, *, diarize: bool) -> Run:
    files, data = {"file": path.read_bytes()}, {"language": "en", "diarize": str(diarize).lower()}
    begun_s = time.monotonic()
    response = client.post("/predict", files=files, data=data)
    wall_s = time.monotonic() - begun_s
    response.raise_for_status()
    return Run(wall_s, response.json()["timings"])


def direct(plain: PlainWhisperx, path: Path, *, diarize: bool) -> Run:
    """Whisperx's documented order; speech detection is a part of its `asr`."""
    clock_s = [time.monotonic()]
    audio = whisperx.load_audio(str(path))
    clock_s.append(time.monotonic())
    result = plain.asr.transcribe(audio, batch_size=BATCH_SIZE, chunk_size=plain.chunk_size, language="en")
    clock_s.append(time.monotonic())
    aligned = plain.align(result["segments"], audio, "en")
    clock_s.append(time.monotonic())
    if diarize:
        assert plain.diarization is not None
        whisperx.assign_word_speakers(plain.diarization(audio), aligned)
        clock_s.append(time.monotonic())
    stages = zip(("decode", "asr", "alignment", "diarization"), pairwise(clock_s), strict=False)
    return Run(clock_s[-1] - clock_s[0], {stage: ended - begun for stage, (begun, ended) in stages})


def compare(
    client: httpx.Client, plain: PlainWhisperx, short: Path, long: Path, runs: int, *, diarize: bool
) -> Any:
    ours(client, short, diarize=diarize)
    direct(plain, short, diarize=diarize)
    pairs = [
        (ours(client, short, diarize=diarize), direct(plain, short, diarize=diarize)) for _ in range(runs)
    ]
    mine = statistics.median(run.wall_s for run, _ in pairs)
    its = statistics.median(run.wall_s for _, run in pairs)
    file = ours(client, long, diarize=diarize), direct(plain, long, diarize=diarize)
    figures = {
        "lone_clip_slower_s": mine - its,
        "lone_clip_ours_s": mine,
        "lone_clip_whisperx_s": its,
        "lone_clip_stages_s": {"ours": pairs[-1][0].stages_s, "whisperx": pairs[-1][1].stages_s},
        "lone_file_ratio": file[1].wall_s / file[0].wall_s,
        "lone_file_wall_s": {"ours": file[0].wall_s, "whisperx": file[1].wall_s},
        "lone_file_stages_s": {"ours": file[0].stages_s, "whisperx": file[1].stages_s},
    }
    say.print(f"speakers {diarize}: {json.dumps(figures)}")
    return figures


def main(
    runs: Annotated[int, typer.Option(help="Runs of the short clip by each system.")] = 7,
    long_s: Annotated[int, typer.Option(help="Length of the long file, in seconds.")] = LONG_S,
) -> None:
    import torch

    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    (recording,) = truth.load_folder(RECORDINGS)
    put_ffmpeg_on_path()
    with tempfile.TemporaryDirectory() as folder:
        short, long = Path(folder) / "short.wav", Path(folder) / "long.wav"
        short.write_bytes(wav(recording.samples[: SHORT_S * SAMPLE_RATE_HZ]))
        long.write_bytes(wav(recording.samples[: long_s * SAMPLE_RATE_HZ]))
        say.print("Making the models.")
        raw = config(Path(folder))
        names = models.resolve(Settings.model_validate(raw["applications"][0]["args"]))
        plain = PlainWhisperx.load(names, compute_type="int8", threads=cores)
        with (
            service(raw) as system,
            httpx.Client(base_url=system.url, timeout=3600) as client,  # a new one would cost some 20 ms
        ):
            without, full = (
                compare(client, plain, short, long, runs, diarize=diarize) for diarize in (False, True)
            )
    figures: dict[str, Any] = {
        "without_speakers": without,
        "with_speakers": full,
        "lone_file_s": long_s,
        "machine": f"{platform.machine()}, {cores} cores",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
