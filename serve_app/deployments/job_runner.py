"""The deployment that runs jobs: a Runner in a replica, on the same graph as requests."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextvars import Context
from time import monotonic
from types import MappingProxyType
from typing import Any

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from serve_app.deployments.calls.graph import Graph
from serve_app.deployments.calls.handles import invoke
from serve_app.deployments.calls.ray_private import log_as
from serve_app.deployments.metrics import JobMetrics, log_errors_in_one_line
from serve_app.deployments.replica import OPTIONS
from serve_app.errors import Overloaded
from serve_app.http.responses import answer
from serve_app.jobs.places import prepare
from serve_app.jobs.runner import Runner
from serve_app.jobs.service import Jobs
from serve_app.jobs.store.database import Database
from serve_app.request.quotas import AudioQuotas
from serve_app.settings import Settings

logger = logging.getLogger("ray.serve")

LOOK_TIMEOUT_S, LOOK_MEMORY_S = 5.0, 60.0
SHUTDOWN_S = 40.0  # longer than a webhook that is being sent may take; jobs are given back at once


class JobsElsewhere(Overloaded, code="jobs_elsewhere"):
    """The store of jobs is a file of another node."""


@serve.deployment(**OPTIONS, graceful_shutdown_timeout_s=SHUTDOWN_S, graceful_shutdown_wait_loop_s=0.1)
class JobRunner:
    """Jobs and their webhooks. It needs no calls: it looks into the store for work."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        settings: Settings,
        loader: DeploymentHandle[Any],
        detector: DeploymentHandle[Any],
        transcriber: DeploymentHandle[Any],
        aligner: DeploymentHandle[Any] | None,
        diarizer: DeploymentHandle[Any] | None,
        aligner_languages: Collection[str],
        *,
        other_transcribers: Mapping[str, DeploymentHandle[Any]] = MappingProxyType({}),
    ) -> None:
        log_errors_in_one_line()
        await prepare(settings.jobs)
        stages = (loader, detector, transcriber, aligner, diarizer)
        graph = Graph(
            settings,
            *stages,
            aligner_languages,
            other_transcribers=other_transcribers,
            limit_s=settings.jobs.timeout_s,
            kind="job",
        )
        jobs = Jobs(settings.jobs, settings.intake, AudioQuotas(settings.access).of)
        is_shared = settings.jobs.spool and settings.jobs.key_file
        if not (jobs.store.is_sqlite or is_shared):
            nodes = await asyncio.to_thread(ray.nodes)
            if sum(node["Alive"] for node in nodes) > 1:
                logger.warning(
                    "Ray has several nodes: set jobs.spool and jobs.key_file to what all of them share."
                )
        worker = serve.get_replica_context().replica_tag
        self._metrics = JobMetrics()
        counts = (self._metrics.counted, self._metrics.store_failed)
        self._runner = Runner(jobs, graph.run, answer, worker, *counts, log_as)
        self._running = Context().run(asyncio.create_task, self._runner.run())  # in no call's context

    async def check_health(self) -> None:
        """Raises where the runner has died, so that Serve replaces the replica. Sets the gauges."""
        self._metrics.show()
        if self._running.done():
            self._running.result()

    async def ready(self) -> bool:
        """Whether the replica works: it answers only after its constructor."""
        return True

    async def node_id(self) -> str:
        """The node of Ray that it runs on."""
        return str(ray.get_runtime_context().get_node_id())

    async def drain(self, timeout_s: float) -> bool:
        """Gives running jobs back and takes no more; True when that is done."""
        done, _ = await asyncio.wait([asyncio.create_task(self._runner.drain())], timeout=timeout_s)
        return bool(done)

    async def __del__(self) -> None:
        """Serve awaits this before it ends the replica."""
        await self.drain(SHUTDOWN_S)


def reachable(runner: DeploymentHandle[Any], store: Database) -> Callable[[], Awaitable[None]]:
    """A check that raises JobsElsewhere if the JobRunner would not find the jobs that this replica keeps.

    That is so with SQLite on two nodes. Jobs are kept for a JobRunner that does not answer.
    """
    known_until_s = 0.0

    async def check() -> None:
        nonlocal known_until_s
        if not store.is_sqlite or monotonic() < known_until_s:
            return
        here = ray.get_runtime_context().get_node_id()
        try:
            async with asyncio.timeout(LOOK_TIMEOUT_S):
                there = await invoke(runner.node_id)
        except Exception:  # noqa: BLE001  (it does not answer: jobs are kept for it)
            there = here
        if there != here:
            raise JobsElsewhere(
                "This server keeps jobs in SQLite on another node; its operator can set jobs.store to a "
                "PostgreSQL that all nodes share."
            )
        known_until_s = monotonic() + LOOK_MEMORY_S

    return check
