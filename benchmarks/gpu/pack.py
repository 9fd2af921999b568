"""`python -m benchmarks.gpu.pack`: what a GPU machine without a network needs, in parts that can be carried.

Wheels for that machine's Python at the versions of requirements.lock, and the smallest trained models. Torch,
its companions and NVIDIA's libraries are not among them: the machine must have those.
"""

import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.bench import PROJECT
from serve_app.models.store import open_store

LOCK = PROJECT / "requirements.lock"
# What the stages import beyond what comes with torch, torchaudio, transformers and lightning.
PACKAGES = [
    "annotated-types", "asteroid-filterbanks", "colorlog", "ctranslate2", "faster-whisper",
    "googleapis-common-protos", "julius", "langcodes", "language-data", "marisa-trie", "nltk", "omegaconf",
    "opentelemetry-api", "opentelemetry-exporter-http-transport", "opentelemetry-exporter-otlp",
    "opentelemetry-exporter-otlp-common", "opentelemetry-exporter-otlp-proto-common",
    "opentelemetry-exporter-otlp-proto-grpc", "opentelemetry-exporter-otlp-proto-http",
    "opentelemetry-proto", "opentelemetry-sdk", "opentelemetry-semantic-conventions", "optuna", "primepy",
    "pyannote-audio", "pyannote-core", "pyannote-database", "pyannote-metrics", "pyannote-pipeline",
    "pyannoteai-sdk", "pydantic", "pydantic-core", "pytorch-metric-learning", "tenacity",
    "torch-audiomentations", "torch-pitch-shift", "typing-inspection", "whisperx",
]  # fmt: skip
MODELS = ("tiny.en", "campplus")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
MIB = 1 << 20


def pins(lock: str) -> list[str]:
    """`name==version` of each package, as the lock has them."""
    found = dict(re.findall(r"^([a-z0-9.-]+)==([^\s;\\]+)", lock, re.MULTILINE))
    return [f"{name}=={found[name]}" for name in PACKAGES]


def main(
    out: Annotated[Path, typer.Option(help="Folder, which git must ignore.")] = PROJECT / "out" / "gpu-pack",
    python: Annotated[str, typer.Option(help="Version of the GPU machine's Python.")] = "3.12",
    part_mib: Annotated[int, typer.Option(help="Size of each part.")] = 58,
) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    store = open_store(None)
    with tempfile.TemporaryDirectory() as folder:
        wheels, whole = Path(folder, "wheels"), Path(folder, "whole.tar")
        options = [
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--implementation=cp",
            "--dest",
            str(wheels),
        ]
        options += [f"--python-version={python}", *(f"--platform={name}_x86_64" for name in PLATFORMS)]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, *pins(LOCK.read_text())], check=True
        )
        with tarfile.open(whole, "w") as archive:
            archive.add(wheels, "wheels")
            for model in MODELS:
                if place := store.find(model):
                    archive.add(place, f"models/{model}")
                else:
                    print(f"Without {model}, which is not on this machine.")
        with whole.open("rb") as file:
            number = 0
            while part := file.read(part_mib * MIB):
                number += 1
                (out / str(number)).mkdir()
                (out / str(number) / f"part-{number:02}").write_bytes(part)
    print(f"{number} parts in {out}: benchmarks/README.md says how to use them.")


if __name__ == "__main__":
    typer.run(main)
