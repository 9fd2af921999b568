"""`python -m benchmarks.throughput`: many clips at once, against plain whisperx one after the other.

Models of true dimensions with random weights, the same for both: Whisper `base` (int8; every window yields
56 tokens, 4 a second of the mean clip), wav2vec2-base, ResNet34 speaker embedding; the speech detection is
the real one. Clips are cut from benchmarks/recordings. whisperx keeps its models warm and may use every core;
the service gets the same clips over HTTP all at once. First without speakers, then with. One JSON line on
standard output.
"""

import json
import os
import platform
import random
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import numpy as np
import typer
import whisperx
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import truth
from benchmarks.plain_whisperx import PlainWhisperx, put_ffmpeg_on_path
from benchmarks.random_pyannote import save_with_real_segmentation
from benchmarks.random_wav2vec2 import save_transformers_base
from benchmarks.random_whisper import build_random_whisper
from benchmarks.systems import service, wav
from benchmarks.truth import SAMPLE_RATE_HZ
from serve_app.cli.launcher import free_port
from serve_app.models import names as models
from serve_app.settings import Settings

RECORDINGS = Path(__file__).parent / "recordings" / "ten-minutes"
CLIP_S = (3.0, 25.0)
TEXT_TOKENS = 56

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Measured:
    """Seconds for all clips; the first run of each system is thrown away."""

    ours_s: float
    whisperx_s: float

    @property
    def ratio(self) -> float:
        return self.whisperx_s / self.ours_s


def config(folder: Path) -> dict[str, Any]:
    """A config file's content with the models in `folder`, which are made here."""
    for part in ("whisper", "pyannote"):
        (folder / part).mkdir()
    save_transformers_base(folder / "wav2vec2")
    save_with_real_segmentation(folder / "pyannote")
    args = {
        "model": str(build_random_whisper(folder / "whisper", "base", text_tokens=TEXT_TOKENS)),
        "device": "cpu",
        # Random text is unlikely: it would be decoded six times, and whisperx decodes once.
        "asr": {"temperature_fallback": [], "no_speech_threshold": 1},
        "alignment": {"models": {"en": str(folder / "wav2vec2")}},
        "diarization": {"model": str(folder / "pyannote")},
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [
            {"name": "whisperx", "route_prefix": "/", "import_path": "serve_app.app:build", "args": args}
        ],
    }


def clips(count: int, seed: int) -> list[NDArray[np.int16]]:
    (recording,) = truth.load_folder(RECORDINGS)
    rng = random.Random(seed)
    cut = []
    for _ in range(count):
        length = int(rng.uniform(*CLIP_S) * SAMPLE_RATE_HZ)
        first = rng.randrange(len(recording.samples) - length)
        cut.append(recording.samples[first : first + length])
    return cut


def at_once(url: str, paths: list[Path], *, diarize: bool) -> float:
    """Seconds until every clip, all sent at the same time, has its answer."""

    def post(path: Path) -> None:
        files, data = {"file": path.read_bytes()}, {"language": "en", "diarize": str(diarize).lower()}
        httpx.post(f"{url}/predict", files=files, data=data, timeout=3600).raise_for_status()

    begun_s = time.monotonic()
    with ThreadPoolExecutor(len(paths)) as pool:
        list(pool.map(post, paths))
    return time.monotonic() - begun_s


def one_by_one(plain: PlainWhisperx, paths: list[Path], *, diarize: bool) -> float:
    begun_s = time.monotonic()
    for path in paths:
        plain.transcribe(whisperx.load_audio(str(path)), language="en", diarize=diarize)
    return time.monotonic() - begun_s


def main(
    asr_clips: Annotated[int, typer.Option(help="Clips of the run without speakers.")] = 32,
    diarized_clips: Annotated[int, typer.Option(help="Clips of the run with speakers.")] = 32,
    seed: int = 1,
) -> None:
    import torch

    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    put_ffmpeg_on_path()
    chosen = {False: clips(asr_clips, seed), True: clips(diarized_clips, seed)}
    measured: dict[bool, Measured] = {}
    with tempfile.TemporaryDirectory() as folder:
        say.print("Making the models.")
        raw = config(Path(folder))
        names = models.resolve(Settings.model_validate(raw["applications"][0]["args"]))
        plain = PlainWhisperx.load(names, compute_type="int8", threads=cores)
        with service(raw) as system:
            for diarize, samples in chosen.items():
                paths = [Path(folder) / f"{number}.wav" for number in range(len(samples))]
                for path, clip in zip(paths, samples, strict=True):
                    path.write_bytes(wav(clip))
                at_once(system.url, paths[:1], diarize=diarize)
                one_by_one(plain, paths[:1], diarize=diarize)
                ours_s = at_once(system.url, paths, diarize=diarize)
                measured[diarize] = Measured(ours_s, one_by_one(plain, paths, diarize=diarize))
                say.print(f"speakers {diarize}: {measured[diarize]}")
    print(
        json.dumps(
            {
                "throughput_ratio_cpu": measured[True].ratio,
                "throughput_ratio_cpu_asr": measured[False].ratio,
                "with_speakers_s": vars(measured[True]),
                "without_speakers_s": vars(measured[False]),
                "clips": {"with_speakers": diarized_clips, "without_speakers": asr_clips},
                "audio_s": {
                    "with_speakers": sum(map(len, chosen[True])) / SAMPLE_RATE_HZ,
                    "without_speakers": sum(map(len, chosen[False])) / SAMPLE_RATE_HZ,
                },
                "machine": f"{platform.machine()}, {cores} cores",
            }
        )
    )


if __name__ == "__main__":
    typer.run(main)
