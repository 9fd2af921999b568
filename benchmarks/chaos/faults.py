"""Processes that are killed or hang while requests run."""

import random
import signal
import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import psutil
from rich.console import Console

from benchmarks.chaos.load import Load, Outcome, failures
from benchmarks.chaos.running_graph import STAGES, Graph, serves_own, wait_for

CLIENTS = 6
BETWEEN_S = (1.0, 3.0)  # the graph is whole, until the next blow: a call is not to be hit five times
LATE_S = 0.2  # a request begun so long after a kill was not open then

say = Console(stderr=True, highlight=False, soft_wrap=True)


def kills(graph: Graph, load: Load, times: int, rng: random.Random, clients: int = CLIENTS) -> dict[str, Any]:
    """SIGKILL of one replica of each stage in turn: no request may notice."""
    load.learn()
    recovered_s: dict[str, list[float]] = {stage: [] for stage in STAGES}
    with load.steady(clients) as outcomes:
        for stage in STAGES:
            for _ in range(times):
                time.sleep(rng.uniform(*BETWEEN_S))
                recovered_s[stage].append(_kill_one_of(graph, [stage], rng))
            medians = f"{statistics.median(recovered_s[stage]):.1f} s"
            say.print(f"  {stage}: {times} killed, back after {medians}; {_so_far(outcomes)}")
        time.sleep(1.0)  # requests begun after the last blow count, too
    every_s = [seconds for found in recovered_s.values() for seconds in found]
    retries = graph.retries()
    retries_of = {stage: _own_retries(retries, counted_as) for stage, counted_as in STAGES.items()}
    return {
        **counts(outcomes),
        "kills": len(every_s),
        "recover_s": statistics.median(every_s),
        "recover_max_s": max(every_s),
        "recover_median_s_of": {stage: statistics.median(found) for stage, found in recovered_s.items()},
        "slowest_request_s": max(outcome.wall_s for outcome in outcomes),
        "retries": retries,
        "retries_of": retries_of,
        "retries_least": min(retries_of.values()),
    }


def kill_together(graph: Graph, load: Load, rng: random.Random, clients: int = CLIENTS) -> dict[str, Any]:
    """SIGKILL of one replica of every stage at once: no request may notice."""
    load.learn()
    with load.steady(clients) as outcomes:
        time.sleep(BETWEEN_S[0])  # so that every stage has work
        recover_s = _kill_one_of(graph, STAGES, rng)
    return {**counts(outcomes), "recover_s": recover_s, "retries": graph.retries()}


def _kill_one_of(graph: Graph, stages: Iterable[str], rng: random.Random) -> float:
    """Seconds until the graph is whole again."""
    replicas = graph.replicas()
    victims = [rng.choice(replicas[stage]) for stage in stages]
    for victim in victims:
        victim.kill()
    return sum(graph.settle(victim) for victim in victims)


def _own_retries(retries: dict[str, int], stage: str) -> int:
    """Without those of a stage that has found a killed loader's audio lost."""
    causes = {what: times for what, times in retries.items() if what.partition("/")[0] == stage}
    return sum(
        times for what, times in causes.items() if stage == "loader" or not what.endswith("/audio_lost")
    )


def front(
    graph: Graph,
    load: Load,
    times: int,
    rng: random.Random,
    clients: int = CLIENTS,
    parts: Sequence[str] = ("ingress", "proxy", "controller"),
) -> dict[str, Any]:
    """SIGKILL of the Ingress, of Serve's proxy and controller: only requests open there fail, and audibly."""
    load.learn()
    figures: dict[str, Any] = {}
    for name in parts:
        killed: list[tuple[float, float]] = []  # and when all was well again
        with load.steady(clients, load.send_until_answered) as outcomes:
            for _ in range(times):
                time.sleep(rng.uniform(*BETWEEN_S))
                (victim,) = _in_front(graph, name)
                killed_s = time.monotonic()
                victim.kill()
                wait_for(partial(_replaced, graph, name, victim), f"another {name}")
                graph.settle(victim)
                load.send_until_answered(load.clips[0])  # the new one listens
                killed.append((killed_s, time.monotonic()))
        figures |= {f"{name}_{key}": value for key, value in _front_counts(outcomes, killed, name).items()}
        say.print(f"  {name}: {times} killed; {_so_far(outcomes)}")
    return {**figures, "never_answered": load.gave_up}


def _in_front(graph: Graph, name: str) -> list[psutil.Process]:
    if name == "ingress":
        return graph.replicas().get("Ingress", [])
    return serves_own({"proxy": "ProxyActor", "controller": "ServeController"}[name])


def _replaced(graph: Graph, name: str, victim: psutil.Process) -> bool:
    now = _in_front(graph, name)
    return bool(now) and victim not in now


def _front_counts(outcomes: list[Outcome], killed: list[tuple[float, float]], name: str) -> dict[str, Any]:
    failed = [outcome for outcome in outcomes if outcome.status != 200]

    def open_then(outcome: Outcome) -> bool:
        return any(outcome.begun_s <= at_s + LATE_S and outcome.ended_s >= at_s for at_s, _ in killed)

    def nobody_listened(outcome: Outcome) -> bool:  # without a proxy there is no port to connect to
        return outcome.status is None and any(
            at_s <= outcome.ended_s and outcome.begun_s <= well_s for at_s, well_s in killed
        )

    return {
        "requests": len(outcomes),
        "failed_open": sum(open_then(outcome) for outcome in failed),
        "failed_otherwise": sum(
            not (open_then(outcome) or (name == "proxy" and nobody_listened(outcome))) for outcome in failed
        ),
        "wrong_status": sum(outcome.status not in (None, 503) for outcome in failed),
        "changed_transcripts": sum(outcome.changed for outcome in outcomes),
        "recover_max_s": max(well_s - at_s for at_s, well_s in killed),
        "failures": failures(outcomes),
    }


def hang(graph: Graph, load: Load, limit_s: float, clients: int = CLIENTS) -> dict[str, Any]:
    """SIGSTOP of one of two Transcribers: requests end on the other one within `limit_s`.

    Serve's health check kills the replica, and its calls are made again.
    """
    load.learn()
    before = graph.retries()
    with load.steady(clients) as outcomes:
        wait_for(lambda: len(outcomes) >= clients, "the load runs")
        victim = graph.replicas()["Transcriber"][0]
        victim.suspend()
        stopped_s = time.monotonic()
        try:
            # Serve needs three failed health checks. If it went on before, its calls would just be late.
            wait_for(
                lambda: victim not in graph.replicas().get("Transcriber", []),
                "the hung replica is replaced",
                limit_s * 3,
            )
        finally:
            with suppress(psutil.NoSuchProcess):  # Serve has replaced it
                victim.send_signal(signal.SIGCONT)
        graph.settle()
    after = [outcome for outcome in outcomes if outcome.ended_s > stopped_s]
    retries = {what: times - before.get(what, 0) for what, times in graph.retries().items()}
    calls_hit = retries.get("asr/replica_died", 0)
    say.print(f"  retries asr/replica_died {calls_hit}; {_so_far(outcomes)}")
    return {
        **counts(outcomes),
        "requests_during": len(after),
        "slowest_request_s": max(outcome.wall_s for outcome in after),
        "limit_s": limit_s,
        "calls_hit": calls_hit,
        "retries": retries,
    }


def counts(outcomes: list[Outcome]) -> dict[str, Any]:
    return {
        "requests": len(outcomes),
        "failed_requests": sum(outcome.status != 200 for outcome in outcomes),
        "changed_transcripts": sum(outcome.changed for outcome in outcomes),
        "failures": failures(outcomes),
        "changes": [outcome.detail for outcome in outcomes if outcome.changed][:3],
    }


def _so_far(outcomes: list[Outcome]) -> str:
    found = counts(list(outcomes))
    return (
        f"{found['requests']} requests, {found['failed_requests']} failed, "
        f"{found['changed_transcripts']} changed"
    )
