"""`make chaos`: kills, hangs, overload, updates and a thousand requests; a table, and out/chaos.json.

The real graph on a Ray of its own, in every scenario anew, behind HTTP, around models whose answers are
checksums of what they heard (`--models real`: Whisper tiny.en and CAM++, which are slow and real).
Exit status 1 when a goal is missed.
"""

import json
import math
import os
import platform
import random
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.bench import PROJECT, Goal
from benchmarks.chaos.changes import broken_update, deploy
from benchmarks.chaos.faults import front, hang, kills
from benchmarks.chaos.job_kills import job_hang, job_kills
from benchmarks.chaos.load import Clip, Load, mixed_clips
from benchmarks.chaos.nodes import lose_nodes, scene_of_nodes
from benchmarks.chaos.overload import full_house, overload
from benchmarks.chaos.running_graph import Graph, config, started
from benchmarks.chaos.soak import soak
from benchmarks.systems import wav
from serve_app.transcript import SAMPLE_RATE_HZ

LENGTHS_S = (1.0, 130.0, 5.0, 20.0, 2.5, 35.0, 10.0, 3.0, 8.0, 45.0)
SLOW = 0.15  # seconds of device for a second of audio: the recogniser and not this machine is what is full
MEDIUM = 0.03
FAST = 0.01
BUSY = 0.005  # of every other stage, and of URLs' servers: a kill hits a call, and hardly one call five times
HANG_LIMIT_S = 60.0
REQUESTS_IN_FLIGHT = 16
LONG_S = 660.0
AUDIO_IN_FLIGHT_S = 1600.0  # two such files, and some clips

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    models: str = "fakes"
    kills: int = 20
    overload_s: float = 60.0
    requests: int = 1000
    seed: int = 1

    @property
    def lengths_s(self) -> list[float]:
        """The real models are slow, so they get shorter clips."""
        return [length_s if self.models == "fakes" else length_s / 4 for length_s in LENGTHS_S]


@contextmanager
def scene(plan: Plan, source_pace: float = 0.0, **chosen: Any) -> Iterator[tuple[Graph, Load, random.Random]]:
    """The graph, clients and chance of one scenario."""
    rng = random.Random(plan.seed)
    if plan.models != "fakes":
        chosen.pop("args", None)
    with started(config(plan.models, **chosen)) as graph:
        load = Load(graph.url, mixed_clips(plan.lengths_s, rng), source_pace)
        try:
            yield graph, load, rng
        finally:
            load.close()


def run_kills(plan: Plan) -> dict[str, Any]:
    with scene(plan, BUSY, args={"asr": FAST, "others": BUSY}) as (graph, load, rng):
        return kills(graph, load, plan.kills, rng)


def run_front(plan: Plan) -> dict[str, Any]:
    with scene(plan, args={"asr": FAST}) as (graph, load, rng):
        return front(graph, load, max(1, plan.kills // 4), rng)


def run_hang(plan: Plan) -> dict[str, Any]:
    two, busy = (
        {"Transcriber": {"num_replicas": 2}},
        {"asr": 2 * MEDIUM},
    )  # else it may hang with nothing to do
    with scene(plan, deployments=two, args=busy) as (graph, load, _):
        return hang(graph, load, HANG_LIMIT_S if plan.models == "fakes" else 600.0)


def run_overload(plan: Plan) -> dict[str, Any]:
    settings = {"requests_in_flight": REQUESTS_IN_FLIGHT}
    with scene(plan, settings=settings, args={"asr": SLOW}) as (graph, load, rng):
        load.clips = [clip for clip in load.clips if clip.audio_s <= 35.0]
        return overload(graph, load, plan.overload_s / 2, plan.overload_s, rng)


def run_full_house(plan: Plan) -> dict[str, Any]:
    intake = {"allowed_hosts": ["127.0.0.1"], "audio_in_flight_s": AUDIO_IN_FLIGHT_S}
    with scene(plan, settings={"intake": intake}, args={"asr": MEDIUM}) as (_, load, _):
        load.clips = [clip for clip in load.clips if clip.audio_s <= 10.0]
        silence = wav(np.zeros(int(LONG_S * SAMPLE_RATE_HZ), np.int16))
        long_clip = Clip("long", LONG_S, silence, False, {"language": "en", "diarize": "false"})
        return full_house(load, long_clip, 4)


def run_deploy(plan: Plan) -> dict[str, Any]:
    with scene(plan, args={"asr": FAST}) as (graph, load, _):
        return deploy(graph, load)


def run_broken_update(plan: Plan) -> dict[str, Any]:
    two = {"Transcriber": {"num_replicas": 2}}
    with scene(replace(plan, models="fakes"), deployments=two, args={"asr": FAST}) as (graph, load, _):
        return broken_update(graph, load)


def run_nodes(plan: Plan) -> dict[str, Any]:
    rng = random.Random(plan.seed)
    with scene_of_nodes(mixed_clips(plan.lengths_s, rng), MEDIUM, BUSY) as (graph, load, nodes):
        return lose_nodes(graph, load, nodes)


def run_soak(plan: Plan) -> dict[str, Any]:
    with scene(plan, args={"asr": 0.001, "others": 0.0001}) as (graph, load, _):
        load.clips = [clip for clip in load.clips if clip.audio_s <= 20.0]
        return soak(graph, load, plan.requests)


def run_jobs(plan: Plan) -> dict[str, Any]:
    return job_kills(plan.kills // 2, random.Random(plan.seed))


def run_jobs_postgresql(plan: Plan) -> dict[str, Any]:
    return job_kills(plan.kills // 2 + 2, random.Random(plan.seed), store="postgresql", runners=2)


def run_jobs_hang(plan: Plan) -> dict[str, Any]:
    return job_hang(random.Random(plan.seed))


JOB_GOALS = (
    Goal("not_succeeded", at_most=0),
    Goal("changed_transcripts", at_most=0),
    Goal("results_missing", at_most=0),
    Goal("taken_again_max_s", at_most=60),
    Goal("webhooks_missing", at_most=0),
    Goal("webhooks_of_other_ids", at_most=0),
    Goal("webhooks_not_genuine", at_most=0),
)

# Scenario and its goals.
SCENARIOS = {
    "kills": (run_kills, (
        Goal("failed_requests", at_most=0),
        Goal("changed_transcripts", at_most=0),
        Goal("retries_least", at_least=1),
        Goal("recover_s", at_most=30),
        Goal("recover_max_s", at_most=90),
    )),
    "front": (run_front, (
        Goal("ingress_failed_otherwise", at_most=0),
        Goal("ingress_wrong_status", at_most=0),
        Goal("ingress_changed_transcripts", at_most=0),
        Goal("proxy_failed_otherwise", at_most=0),
        Goal("proxy_wrong_status", at_most=0),
        Goal("proxy_changed_transcripts", at_most=0),
        Goal("controller_failed_open", at_most=0),
        Goal("controller_failed_otherwise", at_most=0),
        Goal("never_answered", at_most=0),
    )),
    "hang": (run_hang, (
        Goal("failed_requests", at_most=0),
        Goal("changed_transcripts", at_most=0),
        Goal("slowest_request_s", at_most=HANG_LIMIT_S),
        Goal("calls_hit", at_least=1),
    )),
    "overload": (run_overload, (
        Goal("overload_factor", at_least=8),
        Goal("goodput_ratio", at_least=0.9),
        Goal("refused_without_retry_after", at_most=0),
        Goal("refused_p95_s", at_most=1),
        Goal("failed_otherwise", at_most=0),
        Goal("changed_transcripts", at_most=0),
        Goal("grown_mib", at_most=300),
        Goal("latency_recovered_s", at_most=30),
        Goal("short_over_long_admitted", at_least=0.8),
    )),
    "full_house": (run_full_house, (
        Goal("long_refused", at_least=1),
        Goal("short_not_served", at_most=0),
    )),
    "deploy": (run_deploy, (
        Goal("failed_requests", at_most=0),
        Goal("changed_transcripts", at_most=0),
        Goal("batch_size_in_place", at_least=1),
        Goal("all_replaced", at_least=1),
    )),
    "broken_update": (run_broken_update, (
        Goal("failed_requests", at_most=0),
        Goal("changed_transcripts", at_most=0),
        Goal("old_transcribers_kept", at_least=1),
        Goal("answered_while_broken", at_least=1),
    )),
    "nodes": (run_nodes, (
        Goal("failed_requests", at_most=0),
        Goal("changed_transcripts", at_most=0),
        Goal("open_at_each_kill", at_least=1),
        Goal("retries_of_lost_replicas", at_least=1),
    )),
    "soak": (run_soak, (
        Goal("failed_requests", at_most=0),
        Goal("changed_transcripts", at_most=0),
        Goal("rss_slope_high_max", at_most=200),
        Goal("descriptors_grown", at_most=1),
        Goal("children_grown", at_most=0),
        Goal("spooled_bytes", at_most=0),
        Goal("object_store_grown_mib", at_most=1),
    )),
    "jobs": (run_jobs, (*JOB_GOALS, Goal("kills_that_stopped_jobs", at_least=3))),
    "jobs_postgresql": (run_jobs_postgresql, (*JOB_GOALS, Goal("kills_that_stopped_jobs", at_least=3))),
    "jobs_hang": (run_jobs_hang, (
        *JOB_GOALS,
        Goal("kills_that_stopped_jobs", at_least=1),
        Goal("writes_refused", at_least=1),
    )),
}  # fmt: skip


def main(
    kills: Annotated[
        int,
        typer.Option(help="Kills of each stage; a quarter of Ingress and proxy; half as many under jobs."),
    ] = 20,
    overload_s: Annotated[float, typer.Option(help="How long ten times too much comes.")] = 60.0,
    requests: Annotated[int, typer.Option(help="Requests of the soak.")] = 1000,
    models: Annotated[str, typer.Option(help="fakes, or real.")] = "fakes",
    only: Annotated[str, typer.Option(help="Scenarios to run, separated by commas.")] = ",".join(SCENARIOS),
    out: Annotated[Path, typer.Option(help="Folder for chaos.json.")] = PROJECT / "out",
    seed: int = 1,
) -> None:
    begun_s = time.monotonic()
    plan = Plan(models, kills, overload_s, requests, seed)
    found: dict[str, dict[str, Any]] = {}
    for name in only.split(","):
        say.print(name)
        try:
            found[name] = SCENARIOS[name][0](plan)
        except Exception:  # noqa: BLE001  (the others still count, and none of its goals is met)
            found[name] = {"broke": traceback.format_exc()}
        say.print(f"  {json.dumps(found[name])}")
    rows = [
        (name, goal, float(found[name].get(goal.name, math.nan)))
        for name in found
        for goal in SCENARIOS[name][1]
    ]
    table = Table("scenario", "figure", "measured", "goal", "", title=f"{time.monotonic() - begun_s:.0f} s")
    for name, goal, value in rows:
        table.add_row(name, goal.name, f"{value:.4g}", str(goal), "" if goal.met(value) else "missed")
    Console().print(table)
    out.mkdir(exist_ok=True)
    summary = {
        **{
            name: sum(figures.get(name, 0) for figures in found.values())
            for name in ("failed_requests", "changed_transcripts")
        },
        "recover_s": found.get("kills", {}).get("recover_s"),
        "goals_missed": sum(not goal.met(value) for _, goal, value in rows),
    }
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    written = {"summary": summary, "machine": machine, "plan": vars(plan), "runs": found}
    (out / "chaos.json").write_text(json.dumps(written, indent=1) + "\n")
    say.print(f"Written to {out / 'chaos.json'}.")
    sys.exit(1 if summary["goals_missed"] else 0)


if __name__ == "__main__":
    typer.run(main)
