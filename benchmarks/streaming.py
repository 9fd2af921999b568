"""`python -m benchmarks.streaming`: how soon the first text of a long file is there, over HTTP.

Five minutes of people on the telephone through the graph of CONFIG, streamed as OpenAI's clients do. One
JSON line on standard output: seconds to the first delta and to the end, and their ratio. Exit status 1 where
that is over GOAL, or where the deltas are not the text.
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
import yaml
from rich.console import Console

from benchmarks import people
from benchmarks.systems import service, wav

GOAL = 0.5  # first_delta_fraction, at most

say = Console(stderr=True, highlight=False, soft_wrap=True)


def stream(url: str, file: bytes, response_format: str) -> dict[str, Any]:
    """One streamed request: when each delta came, and whether they are the text together."""
    data = {"model": "whisper-1", "stream": "true", "response_format": response_format}
    times_s, text, done = [], "", ""
    begun_s = time.monotonic()
    with httpx.stream(
        "POST", f"{url}/v1/audio/transcriptions", files={"file": file}, data=data, timeout=3600
    ) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            if event["type"] == "transcript.text.delta":
                times_s.append(time.monotonic() - begun_s)
                text += event["delta"]
            elif event["type"] == "transcript.text.done":
                done = event["text"]
    total_s = time.monotonic() - begun_s
    return {
        "first_delta_s": times_s[0],
        "median_delta_s": times_s[len(times_s) // 2],
        "total_s": total_s,
        "first_delta_fraction": times_s[0] / total_s,
        "deltas": len(times_s),
        "deltas_are_the_text": text == done,
    }


def good(found: dict[str, Any]) -> bool:
    """Whether what `stream` found is as it should be."""
    return bool(found["deltas_are_the_text"]) and found["first_delta_fraction"] <= GOAL


def main(
    config: Annotated[Path, typer.Option(help="Of the graph.")] = Path("serve_config.demo.yaml"),
    seconds: Annotated[int, typer.Option(help="Length of the file.")] = 300,
) -> None:
    raw = yaml.safe_load(config.read_text())
    with service(raw) as system:
        say.print("A short file first, so that every stage has run once.")
        stream(system.url, wav(people.speech(20)), "diarized_json")
        file = wav(people.speech(seconds))
        figures = {kind: stream(system.url, file, kind) for kind in ("json", "diarized_json")}
    print(
        json.dumps(
            {**figures, "seconds": seconds, "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
        )
    )
    if not all(good(found) for found in figures.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
