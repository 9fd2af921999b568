"""`make eval`: words, word times and speakers of the service on real people, beside plain whisperx.

It starts the graph of a config file, sends it recordings of real people and traps made from them over HTTP,
does so again with the other method of speech detection, and gives the same to plain whisperx with the same
models. It prints Markdown tables and writes them to out/eval.md, all figures to out/eval.json.
docs/accuracy.md says what each figure means.
"""

import copy
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks import people, traps
from benchmarks.people import Recording
from benchmarks.plain_whisperx import PlainWhisperx
from benchmarks.scoring import (
    TimeErrors,
    WordErrors,
    diarization_errors,
    percentile,
    time_errors,
    untimed_words,
    word_errors,
)
from benchmarks.systems import Plain, System, service
from serve_app.cli import CommandFailed, config_file
from serve_app.cli.launcher import free_port
from serve_app.models import names as models
from serve_app.settings import Settings
from serve_app.stages.devices import choose_compute_type

PROJECT = Path(__file__).parents[1]
AT_ONCE = 4  # recordings sent to the service at the same time
SAMPLE = "sample"  # pyannote's, by name
SPONTANEOUS = "spontaneous"  # the group whose word times an aligner made; all others are hand-labelled

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Outcome:
    """One system's answer about one recording, judged. None where the truth is not known."""

    name: str
    group: str
    text: str
    language: str | None  # the true one
    heard_language: str | None
    words: WordErrors | None
    times: TimeErrors
    untimed: int
    all_words: int
    wrong_turns_s: float | None = None
    spoken_s: float = 0.0


@dataclass
class Result:
    """One system's figures."""

    name: str
    outcomes: list[Outcome]
    cpu_s: dict[str, float]  # of the transcriptions, by part of the system
    wall_s: float

    def where(self, which: Callable[[Outcome], bool]) -> "Result":
        """The figures of some recordings; wall and CPU time stay those of all."""
        return replace(self, outcomes=[outcome for outcome in self.outcomes if which(outcome)])

    def of(self, group: str) -> "Result":
        return self.where(lambda o: o.group == group)

    @property
    def people(self) -> "Result":
        return self.where(lambda o: o.group != traps.GROUP)

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(outcome.group for outcome in self.outcomes))

    @property
    def words(self) -> WordErrors:
        return sum((o.words for o in self.outcomes if o.words), WordErrors())

    @property
    def times(self) -> TimeErrors:
        return sum((o.times for o in self.outcomes), TimeErrors())

    @property
    def untimed(self) -> int:
        return sum(o.untimed for o in self.outcomes)

    @property
    def all_words(self) -> int:
        return sum(o.all_words for o in self.outcomes)

    @property
    def languages(self) -> tuple[int, int]:
        """Recordings whose language was detected rightly, and all whose language is known."""
        known = [o for o in self.outcomes if o.language]
        return sum(o.language == o.heard_language for o in known), len(known)

    @property
    def der(self) -> float | None:
        wrong_s = sum(o.wrong_turns_s or 0.0 for o in self.outcomes)
        spoken_s = sum(o.spoken_s for o in self.outcomes)
        return wrong_s / spoken_s if spoken_s else None


def main(
    config: Annotated[Path, typer.Option(help="Config file of the graph to measure.")] = PROJECT
    / "serve_config.demo.yaml",
    folder: Annotated[
        Path, typer.Option("--people", envvar="EVAL_PEOPLE", help="Folder of recordings with manifest.jsonl.")
    ] = people.FOLDER,
    plain: Annotated[bool, typer.Option(help="Measure plain whisperx too.")] = True,
    compare_vad: Annotated[bool, typer.Option(help="Measure the other speech.method too.")] = True,
    only: Annotated[str, typer.Option(help="Only recordings and traps of this name, such as 'ami-*'.")] = "*",
    out: Annotated[Path, typer.Option(help="Where the figures are written as JSON, and as .md.")] = PROJECT
    / "out"
    / "eval.json",
) -> None:
    raw = config_file.read(config)
    settings = Settings.model_validate(raw["applications"][0].get("args") or {})
    names = models.resolve(settings)
    recordings = _recordings(folder, only)
    diarizes = names.diarization is not None
    results = list[Result]()

    def add(result: Result) -> None:
        results.append(result)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(_as_json(results, names.name), indent=1, ensure_ascii=False) + "\n")

    try:
        with service(_at_free_port(raw)) as system:
            add(measure("service", system, recordings, at_once=AT_ONCE, diarizes=diarizes))
        if compare_vad:
            other = "silero" if settings.speech.method == "pyannote" else "pyannote"
            with service(_at_free_port(_with_vad(raw, other))) as system:
                add(measure(other, system, recordings, at_once=AT_ONCE))
    except CommandFailed as error:
        say.print(f"error: {error}", markup=False)
        raise typer.Exit(1) from None
    if plain:
        import torch

        device = "cuda" if torch.cuda.is_available() and settings.device != "cpu" else "cpu"
        say.print(f"Loading plain whisperx on {device}, with its own defaults but for precision and windows.")
        loaded = PlainWhisperx.load(
            names,
            compute_type=choose_compute_type(settings.asr.compute_type, device),
            threads=len(os.sched_getaffinity(0)),
            device=device,
        )
        add(measure("whisperx", Plain(loaded), recordings, diarizes=diarizes))
    shown = _tables(results, recordings, names.name, settings.speech.method)
    with out.with_suffix(".md").open("w") as file:
        for console in (Console(width=170), Console(file=file, width=170)):
            for each in shown:
                console.print(each)
    print(json.dumps(summary(results)))


def _recordings(folder: Path, only: str) -> list[Recording]:
    """People and traps."""
    found = people.found(folder)
    if not folder.is_dir():
        say.print(f"There is no {folder}: only pyannote's packaged sample, 30 s of two people, is measured.")
    made, missing = traps.make(found)
    if missing:
        say.print(f"Traps left out, for want of recordings: {', '.join(missing)}.")
    return [recording for recording in [*found, *made] if fnmatch(recording.name, only)]


def _at_free_port(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "http_options": {**(raw.get("http_options") or {}), "port": free_port()}}


def _with_vad(raw: dict[str, Any], method: str) -> dict[str, Any]:
    """The config file's content with another `speech.method` and without diarization."""
    changed = copy.deepcopy(raw)
    args = changed["applications"][0].setdefault("args", {})
    args["speech"] = {**(args.get("speech") or {}), "method": method}
    args["diarization"] = {"model": "off"}
    return changed


def measure(
    name: str,
    system: System,
    recordings: Sequence[Recording],
    *,
    at_once: int = 1,
    diarizes: bool = False,
) -> Result:
    """Gives the system all recordings, `at_once` at a time, and then those with known turns once more."""
    begun_s, cpu_before_s = time.monotonic(), system.cpu_s()

    def judged(recording: Recording) -> Outcome:
        answer = system.answer(recording.samples)
        say.print(f"{name}: {recording.name}: {answer.text}", markup=False)
        for warning in answer.warnings:
            say.print(f"  warning: {warning}", markup=False)
        untimed, all_words = untimed_words(answer.segments)
        # Traps may hold two languages; the English normaliser does for both.
        language = "en" if recording.group == traps.GROUP else recording.language
        return Outcome(
            name=recording.name,
            group=recording.group,
            text=answer.text,
            language=recording.language,
            heard_language=answer.language,
            words=None if recording.text is None else word_errors(recording.text, answer.text, language),
            times=time_errors(recording.words, answer.segments) if recording.words else TimeErrors(),
            untimed=untimed,
            all_words=all_words,
        )

    with ThreadPoolExecutor(at_once) as pool:
        outcomes = list(pool.map(judged, recordings))
    cpu_s = {part: spent - cpu_before_s.get(part, 0.0) for part, spent in system.cpu_s().items()}
    for recording, outcome in zip(recordings, outcomes, strict=True):
        if diarizes and recording.turns:
            turns = system.turns(recording.samples)
            outcome.wrong_turns_s, outcome.spoken_s = diarization_errors(
                recording.turns, turns, recording.duration_s
            )
            say.print(f"{name}: turns of {recording.name}")
    return Result(name, outcomes, cpu_s, time.monotonic() - begun_s)


def summary(results: Sequence[Result]) -> dict[str, float | None]:
    """The figures to compare before and after a change."""
    ours = results[0]
    plain = next((result for result in results if result.name == "whisperx"), None)
    hand = ours.where(lambda o: o.group != SPONTANEOUS).times
    spontaneous = ours.of(SPONTANEOUS).times
    right, known = ours.languages
    trapped = ours.of(traps.GROUP).words
    plain_trapped = plain.of(traps.GROUP).words if plain else None
    return {
        "wer_real": ours.people.words.rate,
        "wer_real_whisperx": plain.people.words.rate if plain else None,
        "word_start_median_ms": percentile(hand.start_ms, 50),
        "word_start_p95_ms": percentile(hand.start_ms, 95),
        "word_start_spontaneous_p95_ms": percentile(spontaneous.start_ms, 95),
        "der_sample": ours.where(lambda o: o.name == SAMPLE).der,
        "der_meetings": ours.where(lambda o: o.name != SAMPLE).der,
        "languages_right": right / known if known else None,
        "invented_words": trapped.invented,
        "invented_words_whisperx": plain_trapped.invented if plain_trapped else None,
        "lost_words": trapped.lost,
        "lost_words_whisperx": plain_trapped.lost if plain_trapped else None,
    }


def _as_json(results: Sequence[Result], model: str) -> dict[str, Any]:
    return {
        "model": model,
        "summary": summary(results),
        "systems": {
            result.name: {
                "wall_s": result.wall_s,
                "cpu_s": result.cpu_s,
                "groups": {group: _figures(result.of(group)) for group in result.groups},
                "people": _figures(result.people),
                "recordings": [asdict(outcome) for outcome in result.outcomes],
            }
            for result in results
        },
    }


def _figures(result: Result) -> dict[str, Any]:
    times = result.times
    return {
        **asdict(result.words),
        "wer": result.words.rate,
        "word_start_median_ms": percentile(times.start_ms, 50),
        "word_start_p95_ms": percentile(times.start_ms, 95),
        "word_end_median_ms": percentile(times.end_ms, 50),
        "word_end_p95_ms": percentile(times.end_ms, 95),
        "timed_words_compared": len(times.start_ms),
        "words_without_a_time": result.untimed,
        "words_said": result.all_words,
        "der": result.der,
        "languages_right": list(result.languages),
    }


def _tables(results: Sequence[Result], recordings: Sequence[Recording], model: str, vad: str) -> list[Any]:
    """Markdown, ready for docs/accuracy.md."""
    compared = [result for result in results if result.name in ("service", "whisperx")]
    systems = " / ".join(result.name for result in compared)
    return [
        f"### {model}: people ({systems})\n",
        _people_table(compared, recordings),
        f"\n### {model}: traps, invented + lost + wrong words ({systems})\n",
        _trap_table(compared, recordings),
        f"\n### {model}: speech detection\n",
        _vad_table(results, vad),
    ]


def _people_table(results: Sequence[Result], recordings: Sequence[Recording]) -> Table:
    titles = (
        "group",
        "s",
        "words",
        "WER",
        "start med, p95 ms",
        "end med, p95 ms",
        "DER",
        "language",
        "untimed",
    )
    table = Table(*titles, box=box.MARKDOWN)
    chosen = [(group, [r.of(group) for r in results]) for group in results[0].people.groups]
    for title, parts in [*chosen, ("all", [result.people for result in results])]:
        names = {outcome.name for outcome in parts[0].outcomes}
        starts, ends = ([getattr(part.times, of) for part in parts] for of in ("start_ms", "end_ms"))
        table.add_row(
            title,
            f"{sum(r.duration_s for r in recordings if r.name in names):.0f}",
            str(parts[0].words.words),
            _cells(_percent(part.words.rate) for part in parts),
            _cells(
                f"{_round(percentile(ms, 50))}, {_round(percentile(ms, 95))}" if ms else "-" for ms in starts
            ),
            _cells(
                f"{_round(percentile(ms, 50))}, {_round(percentile(ms, 95))}" if ms else "-" for ms in ends
            ),
            _cells(_percent(part.der) for part in parts),
            _cells(f"{part.languages[0]} of {part.languages[1]}" for part in parts),
            _cells(f"{part.untimed} of {part.all_words}" for part in parts),
        )
    return table


def _trap_table(results: Sequence[Result], recordings: Sequence[Recording]) -> Table:
    table = Table("trap", "s", "words", *(result.name for result in results), box=box.MARKDOWN)
    for recording in recordings:
        if recording.group == traps.GROUP:
            found = [o.words for r in results for o in r.outcomes if o.name == recording.name and o.words]
            cells = (f"{words.invented} + {words.lost} + {words.wrong}" for words in found)
            table.add_row(recording.name, f"{recording.duration_s:.0f}", str(found[0].words), *cells)
    whole = [result.of(traps.GROUP).words for result in results]
    cells = (f"{words.invented} + {words.lost} + {words.wrong}" for words in whole)
    table.add_row("all", "", str(whole[0].words), *cells)
    return table


def _vad_table(results: Sequence[Result], vad: str) -> Table:
    """What decides between the methods of speech detection."""
    titles = (
        "method",
        "WER",
        "invented",
        "lost",
        "invented (traps)",
        "lost (traps)",
        "CPU s",
        "of them detector",
    )
    table = Table(*titles, box=box.MARKDOWN)
    for result in results:
        if result.name != "whisperx":
            spoken, trapped = result.people.words, result.of(traps.GROUP).words
            table.add_row(
                f"{vad} (the config file's)" if result.name == "service" else result.name,
                _percent(spoken.rate),
                *(str(count) for count in (spoken.invented, spoken.lost, trapped.invented, trapped.lost)),
                f"{sum(result.cpu_s.values()):.0f}",
                f"{result.cpu_s.get('SpeechDetector', 0.0):.0f}",
            )
    return table


def _cells(values: Iterable[str]) -> str:
    return " / ".join(values)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _round(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


if __name__ == "__main__":
    typer.run(main)
