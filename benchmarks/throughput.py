"""`python -m benchmarks.throughput`: many clips at once, against plain whisperx one after the other.

With `--models real` both run Whisper `base` and CAM++ speakers, as serve_config.demo.yaml does. whisperx
aligns nothing where there is no wav2vec2 on this machine, while the service has word times by attention all
the same; so the clips go to a second service too, with `alignment.method: off`. With `--models random` both
have models of true dimensions with random weights: Whisper `base` (every window yields 56 tokens, 4 a second
of the mean clip), wav2vec2-base, ResNet34 speakers; the speech detection is the real one.

Clips are cut from recordings of real people. whisperx keeps its models warm and may use every core; the
service gets the same clips over HTTP all at once. First without speakers, then with. One JSON line on
standard output.
"""

import copy
import json
import os
import platform
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import torch
import typer
import whisperx
from rich.console import Console

from benchmarks import people
from benchmarks.plain_whisperx import PlainWhisperx, put_ffmpeg_on_path
from benchmarks.random_pyannote import save_with_real_segmentation
from benchmarks.random_wav2vec2 import save_transformers_base
from benchmarks.random_whisper import build_random_whisper
from benchmarks.systems import service, wav
from serve_app.cli import config_file
from serve_app.cli.launcher import free_port
from serve_app.models import names
from serve_app.settings import Settings
from serve_app.transcript import SAMPLE_RATE_HZ

CONFIG = Path(__file__).parents[1] / "serve_config.demo.yaml"
WITHOUT_ALIGNMENT = "/off"  # where the second service answers
BOOKABLE_CPUS = 4  # the replicas of both services book more than two cores; their threads are all cores
TEXT_TOKENS = 56

Weights = Literal["real", "random"]

say = Console(stderr=True, highlight=False, soft_wrap=True)


def config(weights: Weights, folder: Path) -> dict[str, Any]:
    """A config file's content; random models are made in the folder. Real ones have a second service."""
    raw = config_file.read(CONFIG)
    raw["http_options"]["port"] = free_port()
    (application,) = raw["applications"]
    if weights == "random":
        application["args"] = random_models(folder)
    else:
        second = copy.deepcopy(application) | {"name": "off", "route_prefix": WITHOUT_ALIGNMENT}
        second["args"]["alignment"] = {"method": "off"}
        raw["applications"].append(second)
    return raw


def random_models(folder: Path) -> dict[str, Any]:
    """The settings of a service with random weights, which are made here."""
    say.print("Making the models.")
    for part in ("whisper", "pyannote"):
        (folder / part).mkdir()
    save_transformers_base(folder / "wav2vec2")
    save_with_real_segmentation(folder / "pyannote")
    return {
        "model": str(build_random_whisper(folder / "whisper", "base", text_tokens=TEXT_TOKENS)),
        "device": "cpu",
        # Random text is unlikely: it would be decoded six times, and whisperx decodes once.
        "asr": {"temperature_fallback": [], "no_speech_threshold": 1},
        "alignment": {"models": {"en": str(folder / "wav2vec2")}},
        "diarization": {"model": str(folder / "pyannote")},
    }


def load_plain(raw: dict[str, Any]) -> PlainWhisperx:
    """whisperx with the models of the first application, on every core."""
    cores = os.cpu_count() or 1
    torch.set_num_threads(cores)
    put_ffmpeg_on_path()
    chosen = names.resolve(Settings.model_validate(raw["applications"][0]["args"]))
    return PlainWhisperx.load(chosen, compute_type="int8", threads=cores)


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
    models: Annotated[Weights, typer.Option(help="Weights of both systems.")] = "real",
    clips: Annotated[int, typer.Option(help="Clips at once.")] = 32,
    recordings: Annotated[
        Path, typer.Option("--people", envvar="EVAL_PEOPLE", help="Folder of recordings with manifest.jsonl.")
    ] = people.FOLDER,
    seed: int = 1,
) -> None:
    chosen = list(islice(people.clips(people.found(recordings), seed), clips))
    seconds: dict[bool, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        raw = config(models, Path(folder))
        plain = load_plain(raw)
        paths = [Path(folder) / f"{number}.wav" for number in range(clips)]
        for path, clip in zip(paths, chosen, strict=True):
            path.write_bytes(wav(clip))
        with service(raw, num_cpus=BOOKABLE_CPUS) as system:
            urls = {"ours": system.url}
            if models == "real":
                urls["ours_without_alignment"] = system.url + WITHOUT_ALIGNMENT
            for diarize in (False, True):
                for url in urls.values():
                    at_once(url, paths[:1], diarize=diarize)  # warm
                one_by_one(plain, paths[:1], diarize=diarize)
                seconds[diarize] = {
                    **{name: at_once(url, paths, diarize=diarize) for name, url in urls.items()},
                    "whisperx": one_by_one(plain, paths, diarize=diarize),
                }
                say.print(f"speakers {diarize}: {seconds[diarize]} s")
    aligns = plain.aligner("en") is not None
    if not aligns:
        say.print("whisperx did not align: no English wav2vec2 is on this machine. The service did.")
    ratios = {
        diarize: {name: spent["whisperx"] / spent_s for name, spent_s in spent.items() if name != "whisperx"}
        for diarize, spent in seconds.items()
    }
    figures = {
        "throughput_ratio_cpu": ratios[True]["ours"],
        "throughput_ratio_cpu_asr": ratios[False]["ours"],
        "throughput_ratio_cpu_off": ratios[True].get("ours_without_alignment"),
        "throughput_ratio_cpu_asr_off": ratios[False].get("ours_without_alignment"),
        "with_speakers_s": seconds[True],
        "without_speakers_s": seconds[False],
        "models": models,
        "whisperx_aligns": aligns,
        "clips": clips,
        "audio_s": sum(map(len, chosen)) / SAMPLE_RATE_HZ,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    typer.run(main)
