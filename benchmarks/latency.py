"""`python -m benchmarks.latency`: one file with nobody else there, against whisperx called directly.

The models of benchmarks/throughput.py, without speakers, every stage on all cores in both systems, from a WAV
file to segments. A clip of 5 s shows what the graph costs (HTTP and five processes), 5 minutes what it gains
to work on windows side by side. The two systems take turns. One JSON line on standard output, in seconds:
medians for the clip, a single run for the file.
"""

import json
import os
import platform
import statistics
import tempfile
import time
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
from serve_app import models
from serve_app.settings import Settings

SHORT_S, LONG_S = 5, 300

say = Console(stderr=True, highlight=False, soft_wrap=True)


def ours(url: str, path: Path) -> tuple[float, dict[str, float]]:
    """Seconds for the answer, and the service's own wall times of its stages."""
    file, data = path.read_bytes(), {"language": "en", "diarize": "false"}
    begun_s = time.monotonic()
    response = httpx.post(f"{url}/predict", files={"file": file}, data=data, timeout=3600)
    wall_s = time.monotonic() - begun_s
    response.raise_for_status()
    return wall_s, response.json()["timings"]


def direct(plain: PlainWhisperx, path: Path) -> tuple[float, dict[str, float]]:
    """The same for whisperx; speech detection is a part of its `asr`."""
    begun_s = time.monotonic()
    audio = whisperx.load_audio(str(path))
    decoded_s = time.monotonic()
    result = plain.asr.transcribe(audio, batch_size=BATCH_SIZE, chunk_size=plain.chunk_size, language="en")
    heard_s = time.monotonic()
    whisperx.align(result["segments"], plain.aligner, plain.aligner_metadata, audio, "cpu")
    ended_s = time.monotonic()
    return ended_s - begun_s, {
        "decode": decoded_s - begun_s,
        "asr": heard_s - decoded_s,
        "alignment": ended_s - heard_s,
    }


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
        with service(raw, diarizes=True) as system:
            ours(system.url, short)
            direct(plain, short)
            shorts = [(ours(system.url, short), direct(plain, short)) for _ in range(runs)]
            longs = (ours(system.url, long), direct(plain, long))
    figures: dict[str, Any] = {
        "lone_clip_slower_s": statistics.median(mine[0] for mine, _ in shorts)
        - statistics.median(its[0] for _, its in shorts),
        "lone_clip_ours_s": statistics.median(mine[0] for mine, _ in shorts),
        "lone_clip_whisperx_s": statistics.median(its[0] for _, its in shorts),
        "lone_clip_stages_s": {"ours": shorts[-1][0][1], "whisperx": shorts[-1][1][1]},
        "lone_file_ratio": longs[1][0] / longs[0][0],
        "lone_file_s": long_s,
        "lone_file_ours_s": longs[0][1],
        "lone_file_whisperx_s": longs[1][1] | {"total": longs[1][0]},
        "machine": f"{platform.machine()}, {cores} cores",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
