"""`make eval`: word errors, word times and speaker errors of the service, compared with plain whisperx.

It starts the graph of a config file, sends it every recording of benchmarks/recordings over HTTP, gives the
same recordings to plain whisperx with the same models, prints one table and writes out/eval.json.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import truth
from benchmarks.accuracy import Score, diarization_errors, score, total
from benchmarks.decoding import decode_whole
from benchmarks.plain_whisperx import PlainWhisperx
from benchmarks.systems import Answer, Plain, System, service
from benchmarks.truth import Recording, TrueTurn
from serve_app import bundled
from serve_app.cli import config_file
from serve_app.cli.config_file import CommandFailed
from serve_app.cli.launcher import free_port
from serve_app.models import names as models
from serve_app.settings import Settings
from serve_app.stages.asr.recognizer import choose_compute_type

PROJECT = Path(__file__).parents[1]
RECORDINGS = Path(__file__).parent / "recordings"
REAL_SPEECH = PROJECT.parent / "shared" / "data" / "speech"  # real meetings, if the folder exists
NOISE_DB = 20
SHORT_PAUSE_S = 0.1
AT_ONCE = 4  # recordings sent to the service at the same time

say = Console(stderr=True, highlight=False, soft_wrap=True)

# What the table calls the folders of benchmarks/recordings.
GROUPS = {
    "seen": "seen voices",
    "seen-noisy": f"seen voices, noise at {NOISE_DB} dB",
    "seen-hasty": f"seen voices, {SHORT_PAUSE_S} s between turns",
    "unseen": "unseen voices",
    "three-speakers": "three speakers",
    "half-minute": "30 s files",
    "ten-minutes": "10 min file",
    "demo": "the demo's sample",
}


@dataclass
class Result:
    """One system's figures."""

    name: str
    scores: dict[str, list[Score]] = field(default_factory=lambda: defaultdict(list))  # group -> recordings'
    real_der: dict[str, tuple[float, float]] = field(default_factory=dict)  # file -> (seconds wrong, spoken)
    wall_s: float = 0.0


def main(
    config: Annotated[Path, typer.Option(help="Config file of the graph to measure.")] = PROJECT
    / "serve_config.demo.yaml",
    plain: Annotated[bool, typer.Option(help="Measure plain whisperx too.")] = True,
    out: Annotated[Path, typer.Option(help="Where the figures are written as JSON.")] = PROJECT
    / "out"
    / "eval.json",
) -> None:
    raw = config_file.read(config)
    raw["http_options"] = {**(raw.get("http_options") or {}), "port": free_port()}
    settings = Settings.model_validate(raw["applications"][0].get("args") or {})
    names = models.resolve(settings)
    groups, real = read_recordings(), read_real_speech()
    try:
        with service(raw, diarizes=names.diarization is not None) as system:
            results = [measure("service", system, groups, real, at_once=AT_ONCE)]
    except CommandFailed as error:
        say.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(as_json(results, names.name), indent=1) + "\n")
    if plain:
        import torch

        device = "cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu"
        say.print(f"Loading plain whisperx on {device}, with its own defaults but for precision and windows.")
        compute_type = choose_compute_type(settings.asr.compute_type, device)
        loaded = PlainWhisperx.load(names, compute_type=compute_type, device=device)
        results.append(measure("whisperx", Plain(loaded), groups, real))
        out.write_text(json.dumps(as_json(results, names.name), indent=1) + "\n")
    show(results, names.name)
    say.print(f"Written to {out}.")


def read_recordings() -> dict[str, list[Recording]]:
    groups = {name: truth.load_folder(RECORDINGS / name) for name in GROUPS if (RECORDINGS / name).is_dir()}
    noisy = [truth.with_noise(recording, NOISE_DB, seed) for seed, recording in enumerate(groups["seen"])]
    hasty = [truth.without_pauses(recording, SHORT_PAUSE_S) for recording in groups["seen"]]
    groups |= {"seen-noisy": noisy, "seen-hasty": hasty, "demo": [truth.load(bundled.SAMPLE)]}
    return {name: groups[name] for name in GROUPS}


def read_real_speech() -> list[Recording]:
    """pyannote's sample, and four minutes of meetings if the folder exists: turns without words."""
    from pyannote.database.util import load_rttm

    package = find_spec("pyannote.audio")
    assert package is not None
    assert package.origin is not None
    sample = Path(package.origin).parent / "sample"
    files = [(sample / "sample.wav", sample / "sample.rttm", "sample")]
    files += [
        (path, REAL_SPEECH / "ami.rttm", path.stem.removeprefix("ami_"))
        for path in sorted(REAL_SPEECH.glob("ami_*.wav"))
    ]
    found = []
    for path, rttm, uri in files:
        with path.open("rb") as file:
            _, samples = asyncio.run(decode_whole(file, max_audio_s=600, timeout_s=60))
        tracks = load_rttm(str(rttm))[uri].itertracks(yield_label=True)
        turns = tuple(TrueTurn(span.start, span.end, str(label)) for span, _, label in tracks)
        found.append(Recording(path.stem, samples, (), turns))
    return found


def measure(
    name: str,
    system: System,
    groups: dict[str, list[Recording]],
    real: Sequence[Recording],
    at_once: int = 1,
) -> Result:
    """Gives the system all recordings, `at_once` at a time."""
    result, begun_s = Result(name), time.monotonic()

    def answer(recording: Recording) -> Answer:
        found = system.answer(recording.samples)
        say.print(f"{name}: {recording.name}")
        for warning in found.warnings:
            say.print(f"  warning: {warning}")
        return found

    with ThreadPoolExecutor(at_once) as pool:
        answers = {group: pool.map(answer, recordings) for group, recordings in groups.items()}
        of_real = pool.map(answer, real)
        for group, recordings in groups.items():
            for recording, found in zip(recordings, answers[group], strict=True):
                result.scores[group].append(score(recording, found.segments, found.turns, found.unsplit))
        for recording, found in zip(real, of_real, strict=True):
            result.real_der[recording.name] = diarization_errors(
                recording.turns, found.turns, recording.duration_s
            )
    result.wall_s = time.monotonic() - begun_s
    return result


def summary(result: Result) -> dict[str, float | None]:
    """The figures to compare before and after a change."""
    seen, unseen = total(result.scores["seen"]), total(result.scores["unseen"])
    clean = total([*result.scores["seen"], *result.scores["unseen"]])
    hasty = total(result.scores["seen-hasty"])
    return {
        "wer_seen": seen.wer,
        "wer_unseen": unseen.wer,
        "word_start_median_ms": clean.start_ms(50),
        "word_start_p95_ms": clean.start_ms(95),
        "der_synthetic": clean.der,
        "der_real": _ratio(parts for name, parts in result.real_der.items() if name == "sample"),
        "der_meetings": _ratio(parts for name, parts in result.real_der.items() if name != "sample"),
        "wrong_speaker": clean.wrong_speaker,
        "wrong_speaker_hasty": hasty.wrong_speaker,
        "wrong_speaker_hasty_unsplit": hasty.wrong_speaker_unsplit,
    }


def _ratio(parts: Iterable[tuple[float, float]]) -> float | None:
    """The share of spoken seconds that is wrong; None if there is no recording."""
    sums = [sum(column) for column in zip(*parts, strict=True)]
    return float(sums[0] / sums[1]) if sums else None


def as_json(results: Sequence[Result], model: str) -> dict[str, Any]:
    return {
        "model": model,
        "summary": summary(results[0]),
        "systems": {
            result.name: {
                "summary": summary(result),
                "wall_s": result.wall_s,
                "groups": {group: _figures(total(scores)) for group, scores in result.scores.items()},
                "voices": _voices(result),
                "real_der": {name: _ratio([parts]) for name, parts in result.real_der.items()},
            }
            for result in results
        },
    }


def _figures(found: Score) -> dict[str, float]:
    return {
        "words": found.words.total(),
        "errors": found.errors.total(),
        "wer": found.wer,
        "word_start_median_ms": found.start_ms(50),
        "word_start_p95_ms": found.start_ms(95),
        "der": found.der,
        "wrong_speaker": found.wrong_speaker,
        "wrong_speaker_unsplit": found.wrong_speaker_unsplit,
    }


def _voices(result: Result) -> dict[str, float]:
    """The word error rate of each voice over the clean one-minute recordings."""
    clean = total([*result.scores["seen"], *result.scores["unseen"]])
    return {voice: clean.errors[voice] / clean.words[voice] for voice in sorted(clean.words)}


def show(results: Sequence[Result], model: str) -> None:
    """Prints the table: one row for each group of recordings, each figure once per system."""
    systems = " | ".join(result.name for result in results)
    columns = ("recordings", "words", "WER", "start median", "start p95", "DER", "wrong speaker", "unsplit")
    table = Table(*columns, title=f"{model}: {systems}")
    for group, title in GROUPS.items():
        totals = [total(result.scores[group]) for result in results]
        table.add_row(
            title,
            str(totals[0].words.total()),
            " | ".join(f"{found.wer:.1%}" for found in totals),
            " | ".join(f"{found.start_ms(50):.0f} ms" for found in totals),
            " | ".join(f"{found.start_ms(95):.0f} ms" for found in totals),
            " | ".join(f"{found.der:.1%}" for found in totals),
            " | ".join(f"{found.wrong_speaker:.1%}" for found in totals),
            f"{totals[0].wrong_speaker_unsplit:.1%}",
        )
    table.add_section()
    per_voice = [_voices(result) for result in results]
    unseen = set().union(*(found.words for found in results[0].scores["unseen"]))
    for voice in sorted(per_voice[0], key=lambda voice: (voice in unseen, voice)):
        rates = " | ".join(f"{voices[voice]:.1%}" for voices in per_voice)
        table.add_row(f"{voice}{' (unseen)' if voice in unseen else ''}", "", rates)
    table.add_section()
    for name in results[0].real_der:
        rates = " | ".join(f"{_ratio([result.real_der[name]]):.1%}" for result in results)
        table.add_row(f"real speech: {name}", "", "", "", "", rates)
    output = Console(width=150)
    output.print(table)
    output.print("DER: pyannote.metrics, collar 0.25 s, overlap counted, of the diarizer's turns.")
    output.print(
        "Wrong speaker: words in a segment of somebody else, with sentences split at speaker changes or not."
    )
    output.print(json.dumps(summary(results[0])), soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
