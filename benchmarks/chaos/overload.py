"""Ten times more than the graph can do, and a house full of long files."""

import math
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.chaos.load import Clip, Load, Outcome, failures
from benchmarks.chaos.running_graph import Graph, object_store_mib, serves_own, wait_for
from benchmarks.memory import ALL, parts_mib, watched

FACTOR = 10
CLIENTS = 10  # enough to keep the recogniser busy, too few to be refused
IDLE_CLIPS = 9
RECOVERED = 1.5  # times the idle latency
RECOVER_S = 120.0
SHORT_S = 10.0

say = Console(stderr=True, highlight=False, soft_wrap=True)


def overload(
    graph: Graph, load: Load, capacity_s: float, overload_s: float, rng: random.Random
) -> dict[str, Any]:
    """Open-loop arrivals at ten times the capacity measured just before."""
    load.learn()
    idle_s = _idle_s(load)
    begun_s = time.monotonic()
    with load.steady(CLIENTS) as outcomes:
        time.sleep(capacity_s)  # the time over which capacity is measured
        ended_s = time.monotonic()
    warm_s = begun_s + capacity_s / 4
    capacity = _audio_per_s(outcomes, warm_s, ended_s)
    usual_s = statistics.fmean(clip.audio_s for clip in load.clips)
    say.print(f"  capacity: {capacity:.1f} s of audio a second; {failures(outcomes) or 'none'} failed")

    rest_mib, cpu_s = parts_mib()[ALL], _front_cpu_s(graph)
    begun_s = time.monotonic()
    with watched(lambda: {ALL: parts_mib()[ALL], "store": object_store_mib()}) as most:
        outcomes = load.arriving(FACTOR * capacity / usual_s, overload_s, rng)
    ended_s = begun_s + overload_s
    goodput = _audio_per_s(outcomes, begun_s + overload_s / 10, ended_s)
    cpu_s = _front_cpu_s(graph) - cpu_s
    recovered_s = wait_for(lambda: _idle_s(load) < RECOVERED * idle_s, "latency as before", RECOVER_S)
    refused = [outcome for outcome in outcomes if outcome.status in (429, 503)]
    told = told_over_true(outcomes)
    say.print(f"  overload: {len(outcomes)} requests, {len(refused)} refused")
    return {
        "capacity_audio_s_per_s": capacity,
        "requests": len(outcomes),
        "refused": len(refused),
        "overload_factor": len(outcomes) / overload_s * usual_s / capacity,
        "goodput_ratio": goodput / capacity,
        "refused_without_retry_after": sum(outcome.retry_after_s is None for outcome in refused),
        "refused_p95_s": float(np.percentile([outcome.wall_s for outcome in refused] or [0.0], 95)),
        "retry_after_ratio": statistics.median(told or [math.nan]),
        "failed_otherwise": sum(outcome.status not in (200, 429, 503) for outcome in outcomes),
        "changed_transcripts": sum(outcome.changed for outcome in outcomes),
        "short_over_long_admitted": _admitted(outcomes, short=True) / _admitted(outcomes, short=False),
        "grown_mib": most[ALL] - rest_mib,
        "object_store_mib": most["store"],
        "front_cpu_ms_per_request": 1000 * cpu_s / len(outcomes),
        "idle_latency_s": idle_s,
        "latency_recovered_s": recovered_s,
        "failures": failures([outcome for outcome in outcomes if outcome.status not in (429, 503)]),
    }


def full_house(load: Load, long_clip: Clip, long_files: int) -> dict[str, Any]:
    """More long files than the graph takes; every short clip must get in beside them."""
    with ThreadPoolExecutor(long_files) as pool:
        running = [pool.submit(load.send, long_clip) for _ in range(long_files)]
        wait_for(lambda: any(future.done() for future in running), "one long file too many")
        shorts: list[Outcome] = []
        while not all(future.done() for future in running):
            shorts.append(load.send(load.clips[len(shorts) % len(load.clips)]))
        longs = [future.result() for future in running]
    say.print(f"  full house: {len(longs)} long files, {len(shorts)} short ones beside them")
    return {
        "long_refused": sum(outcome.status == 503 for outcome in longs),
        "long_done": sum(outcome.status == 200 for outcome in longs),
        "long_retry_after_ratio": statistics.median(told_over_true(longs) or [math.nan]),
        "short_beside": len(shorts),
        "short_not_served": sum(not outcome.ok for outcome in shorts),
        "short_median_s": statistics.median(outcome.wall_s for outcome in shorts),
        "house_failures": failures([*longs, *shorts]),
    }


def _idle_s(load: Load) -> float:
    """The median latency of a clip on an idle graph."""
    return statistics.median(load.send(load.clips[0]).wall_s for _ in range(IDLE_CLIPS))


def _front_cpu_s(graph: Graph) -> float:
    """Processor time of what every request passes, refused or not: Serve's proxy and the Ingress."""
    front = [*serves_own("ProxyActor"), *graph.replicas()["Ingress"]]
    return float(sum(sum(process.cpu_times()[:2]) for process in front))


def _audio_per_s(outcomes: list[Outcome], from_s: float, to_s: float) -> float:
    """Seconds of audio finished a second; a request that spans a border counts by its part inside."""
    audio_s = 0.0
    for outcome in outcomes:
        if outcome.status == 200:
            inside_s = min(outcome.ended_s, to_s) - max(outcome.begun_s, from_s)
            audio_s += outcome.clip.audio_s * max(0.0, inside_s) / outcome.wall_s
    return audio_s / (to_s - from_s)


def _admitted(outcomes: list[Outcome], *, short: bool) -> float:
    """The share of short or of longer clips that was let in."""
    kind = [outcome for outcome in outcomes if (outcome.clip.audio_s <= SHORT_S) == short]
    return sum(outcome.status == 200 for outcome in kind) / len(kind) if kind else float("nan")


def told_over_true(outcomes: list[Outcome]) -> list[float]:
    """Of every refusal, what it told over the time until half of the requests held then had really ended."""
    done = sorted((o for o in outcomes if o.status == 200), key=lambda outcome: outcome.ended_s)
    ratios = []
    for refused in outcomes:
        if refused.retry_after_s is None:
            continue
        ends_s = [o.ended_s for o in done if o.begun_s < refused.ended_s < o.ended_s]
        true_s = ends_s[(len(ends_s) - 1) // 2] - refused.ended_s if ends_s else 0.0
        ratios.append(refused.retry_after_s / max(1.0, true_s))  # whole seconds, one at least
    return ratios
