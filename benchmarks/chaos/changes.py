"""Settings that change while requests run: a new deployment, and batch sizes in place."""

import time
from typing import Any

from ray.serve.schema import ApplicationStatus
from rich.console import Console

from benchmarks.chaos.faults import CLIENTS, counts
from benchmarks.chaos.load import Load
from benchmarks.chaos.running_graph import Graph, wait_for

BETWEEN_S = 1.0  # of undisturbed load before each change, so that requests of the old settings are under way

say = Console(stderr=True, highlight=False, soft_wrap=True)


def broken_update(
    graph: Graph, load: Load, clients: int = CLIENTS, *, until_given_up: bool = True
) -> dict[str, Any]:
    """An update to a version whose recogniser does not start, and back: no request may notice.

    Serve tries for minutes before it gives up; without `until_given_up` its first failure is enough.
    The Transcriber must have two replicas, or room for one more: Serve stops one before it starts another.
    """
    load.learn()
    old = {process.pid for process in graph.replicas()["Transcriber"]}
    with load.steady(clients) as outcomes:
        time.sleep(BETWEEN_S)
        begun_s = time.monotonic()
        graph.application["args"]["is_broken"] = True
        graph.apply()
        failed = (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY)
        given_up_s = wait_for(
            lambda: (
                graph.status in failed
                or (not until_given_up and "failed to start" in graph.says("Transcriber"))
            ),
            "Serve gives the new version up",
        )
        say.print(f"  given up after {given_up_s:.1f} s, {len(outcomes)} requests so far")
        before = len(outcomes)
        time.sleep(10 * BETWEEN_S)
        answered = len(outcomes) - before
        kept = old & {process.pid for process in graph.replicas()["Transcriber"]}
        graph.application["args"]["is_broken"] = False
        graph.redeploy()
        time.sleep(BETWEEN_S)
    return {
        **counts(outcomes),
        "old_transcribers_kept": len(kept),
        "answered_while_broken": answered,
        "given_up_after_s": given_up_s,
        "took_s": time.monotonic() - begun_s,
        "slowest_request_s": max(outcome.wall_s for outcome in outcomes),
    }


def deploy(graph: Graph, load: Load, clients: int = CLIENTS, *, replace: bool = True) -> dict[str, Any]:
    """Batch size in place, then more replicas, then other settings for all of them: no request may notice.

    Without `replace`, the first two.
    """
    load.learn()
    transcriber = graph.deployment("Transcriber")
    took_s: dict[str, float] = {}
    with load.steady(clients) as outcomes:
        time.sleep(BETWEEN_S)

        def apply(what: str) -> None:
            begun_s = time.monotonic()
            graph.redeploy()
            took_s[what] = time.monotonic() - begun_s
            say.print(f"  {what}: {took_s[what]:.1f} s, {len(outcomes)} requests so far")
            time.sleep(BETWEEN_S)

        before = graph.replicas()
        transcriber["user_config"] = {"max_batch_size": 2}
        apply("user_config")
        in_place = graph.replicas() == before

        transcriber["num_replicas"] = 1 + len(before["Transcriber"])
        apply("num_replicas")
        grown = len(graph.replicas()["Transcriber"]) - len(before["Transcriber"])

        if replace:
            graph.settings["windows_in_flight"] = 16
            apply("settings")
        same = {process for processes in before.values() for process in processes}
        replaced = not same & {process for found in graph.replicas().values() for process in found}
    return {
        **counts(outcomes),
        "batch_size_in_place": float(in_place),
        "replicas_added": grown,
        "all_replaced": float(replaced),
        "slowest_request_s": max(outcome.wall_s for outcome in outcomes),
        "took_s": took_s,
    }
