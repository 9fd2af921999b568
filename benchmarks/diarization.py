"""Diarization compared with pyannote's pipeline: `python -m benchmarks.diarization` prints one line of JSON.

Both get the same audio and the same weights, each in its own process, and run alternately. The segmentation
is the real one of the whisperx wheel; the embedding is a ResNet34 of community-1's size with random weights.
So the costs are real, and so is the comparison of the turns, but the turns themselves mean nothing.
"""

import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks import people
from serve_app.transcript import SAMPLE_RATE_HZ, Diarization, Turn

Samples = NDArray[np.int16]


@dataclass(frozen=True)
class Run:
    """One file diarized."""

    found: Diarization
    wall_s: float
    cpu_s: float
    peak_rss_mib: int  # of the process so far


class System:
    """One of the two in its own process, which loads its models once."""

    def __init__(self, load: Callable[[], Callable[[Samples], Diarization]], threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._process = ProcessPoolExecutor(1, spawn, initializer=_start, initargs=(load, threads))
        self.loaded_rss_mib = self._process.submit(_peak_rss_mib).result()
        self.runs: list[Run] = []

    def diarize(self, samples: Samples) -> None:
        self.runs.append(self._process.submit(_run, samples).result())

    def close(self) -> None:
        self._process.shutdown()

    def figures(self, name: str) -> dict[str, Any]:
        """The seconds of the fastest run, which is the least disturbed one."""
        return {
            f"{name}_s": round(min(run.wall_s for run in self.runs), 2),
            f"{name}_cpu_s": round(min(run.cpu_s for run in self.runs), 2),
            f"{name}_loaded_rss_mib": self.loaded_rss_mib,
            f"{name}_peak_rss_mib": self.runs[-1].peak_rss_mib,
        }


def main(
    audio_s: Annotated[float, typer.Option(help="Seconds of audio.")] = 300,
    rounds: Annotated[int, typer.Option(help="How often each diarizes it.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads of each.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    stock_batch: Annotated[int, typer.Option(help="pyannote's embedding batch; 32 is what it ships.")] = 32,
) -> None:
    samples = people.speech(audio_s)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "pipeline")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            process.submit(_save, model).result()
        stock = System(partial(_load_stock, str(model), device, stock_batch), threads)
        ours = System(partial(_load_ours, str(model), device), threads)
        for _ in range(rounds):
            stock.diarize(samples)
            ours.diarize(samples)
    expected = stock.runs[0].found
    found = stock.figures("stock") | ours.figures("ours")
    summary = {
        "diarize_ratio": round(found["stock_s"] / found["ours_s"], 2),
        "diarize_cpu_ratio": round(found["stock_cpu_s"] / found["ours_cpu_s"], 2),
        "identical_turns": all(run.found == expected for run in stock.runs + ours.runs),
        "turns": len(expected.turns),
        "speakers": len({turn.speaker for turn in expected.turns}),
        **found,
        "stock_embedding_batch": stock_batch,
        "audio_s": round(len(samples) / SAMPLE_RATE_HZ, 2),
        "rounds": rounds,
        "threads": threads,
        "device": device,
        "machine": f"{platform.machine()}, {multiprocessing.cpu_count()} CPUs, {platform.system()}",
    }
    print(json.dumps(summary))
    stock.close()
    ours.close()


def _save(directory: Path) -> None:
    _quietly()
    from benchmarks.random_pyannote import save_with_real_segmentation

    save_with_real_segmentation(directory)


def _load_stock(model: str, device: str, embedding_batch: int) -> Callable[[Samples], Diarization]:
    import torch

    from serve_app.stages.diarization.pipeline import load_pipeline

    pipeline = load_pipeline(model, device=device, token=None)
    pipeline.embedding_batch_size = embedding_batch

    def diarize(samples: Samples) -> Diarization:
        waveform = torch.from_numpy(samples.astype(np.float32) / 32768)[None]  # as whisperx does it
        output = pipeline({"waveform": waveform, "sample_rate": SAMPLE_RATE_HZ})
        return Diarization(_turns(output.speaker_diarization), _turns(output.exclusive_speaker_diarization))

    return diarize


def _load_ours(model: str, device: str) -> Callable[[Samples], Diarization]:
    from serve_app.stages.diarization.diarizer import load_pyannote

    return load_pyannote(model, device=device, token=None).diarize


def _turns(annotation: Any) -> tuple[Turn, ...]:
    tracks = annotation.itertracks(yield_label=True)
    return tuple(Turn(span.start, span.end, speaker) for span, _, speaker in tracks)


# What runs in each system's process.

_diarize: Callable[[Samples], Diarization]


def _start(load: Callable[[], Callable[[Samples], Diarization]], threads: int) -> None:
    global _diarize  # noqa: PLW0603  (the process holds its models between calls)
    _quietly()
    import torch

    torch.set_num_threads(threads)
    _diarize = load()


def _quietly() -> None:
    import warnings

    warnings.simplefilter("ignore")  # pyannote's and torch's advice; stderr is for what goes wrong
    os.dup2(2, 1)  # pyannote's clustering prints, and standard output is one line of JSON


def _run(samples: Samples) -> Run:
    started = time.perf_counter(), time.process_time()
    found = _diarize(samples)
    wall_s, cpu_s = time.perf_counter() - started[0], time.process_time() - started[1]
    return Run(found, wall_s, cpu_s, _peak_rss_mib())


def _peak_rss_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    typer.run(main)
