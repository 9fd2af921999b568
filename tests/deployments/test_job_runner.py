"""The JobRunner in front of a graph in this process: what holds for jobs as it does for requests."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_not_result,
    stop_after_delay,
    wait_fixed,
)
from test_ingress import FILE_S, Graph, Handle

from benchmarks.private_postgres import Postgres
from serve_app import deployments
from serve_app.audio import Source
from serve_app.errors import StoreBusy
from serve_app.jobs.service import Jobs, Submission
from serve_app.jobs.store.database import Database
from serve_app.jobs.store.records import Job
from serve_app.options import Options
from serve_app.settings import Settings

KEY = "acme"


class Service:
    """Jobs as a client with a key sees them, and a JobRunner that works on them."""

    def __init__(self, graph: Graph, folder: Path, **settings: Any) -> None:
        jobs = {"state_dir": str(folder), **settings.pop("jobs", {})}
        self.settings = Settings.model_validate({"model": "fake", "jobs": jobs, **settings})
        untyped: Any = deployments.JobRunner
        # Serve awaits __del__, Python would not.
        own_class: Any = type("JobRunner", (untyped.func_or_class,), {"__del__": lambda _: None})
        self.runner = own_class.__new__(own_class)
        self._handles = [Handle(graph)] * 4

    async def __aenter__(self) -> "Service":
        await self.runner.__init__(self.settings, *self._handles, None, ())
        self.jobs = Jobs(self.settings.jobs, self.settings.intake)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert await self.runner.drain(30)
        await self.jobs.store.close()

    async def submit(self, key: str = KEY) -> Job:
        ((job, _),) = await self.jobs.submit(
            key, [Submission(source=Source(file=io.BytesIO(b"x")), options=Options())]
        )
        return job

    async def until(self, job: Job, holds: Callable[[Job], Any]) -> Job:
        """The job, once this holds for it."""
        asking = AsyncRetrying(
            retry=retry_if_not_result(holds), wait=wait_fixed(0.02), stop=stop_after_delay(60), reraise=True
        )
        return await asking(self.jobs.get, job.id, job.key)


def _away(store: Database) -> Any:
    raise StoreBusy("The database is away.")


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Runs a story without a cluster."""
    monkeypatch.setattr(ray, "put", [].append)
    monkeypatch.setattr(serve, "get_replica_context", lambda: SimpleNamespace(replica_tag="runner"))

    def run(story: Callable[[Service, Graph], Awaitable[None]], **settings: Any) -> None:
        async def told() -> None:
            graph = Graph()
            async with Service(graph, tmp_path, **settings) as service:
                await story(service, graph)

        asyncio.run(told())

    return run


def test_jobs_have_more_time_than_requests(tell: Callable[..., None]) -> None:
    """Nobody holds a connection open for them; in the end they fail all the same."""

    async def story(service: Service, graph: Graph) -> None:
        graph.worked.clear()
        done = await service.until(await service.submit(), lambda job: job.is_final)
        assert done.error_code == "deadline_exceeded"
        assert "0.4 s" in (done.error_message or "")

    tell(story, request_timeout_s=0.01, jobs={"timeout_s": 0.4})


def test_jobs_count_on_the_audio_of_their_key(tell: Callable[..., None]) -> None:
    """A job of a key in debt waits until that is paid, which is no failed attempt; others' jobs run."""
    limited = {"name": KEY, "sha256": "0" * 64, "max_audio_s_per_minute": FILE_S / 2}
    access = {"keys": [limited, {**limited, "name": "other", "sha256": "1" * 64}]}

    async def story(service: Service, graph: Graph) -> None:
        first = await service.submit()
        assert (await service.until(first, lambda job: job.is_final)).status == "succeeded"
        second = await service.submit()
        waiting = await service.until(second, lambda job: job.attempt == 1 and job.status == "queued")
        assert waiting.failures == 0
        assert waiting.run_at_s - waiting.created_at_s > 30
        other = await service.submit("other")
        assert (await service.until(other, lambda job: job.is_final)).status == "succeeded"
        assert graph.loading == 2

    tell(story, access=access)


def test_a_store_that_is_away_is_counted_and_its_last_numbers_stay(
    tell: Callable[..., None], measured: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray forgets gauges that are not set, and an alert on the oldest job would end with the database."""

    async def until(service: Service, has: str) -> None:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(AssertionError), wait=wait_fixed(0.02), stop=stop_after_delay(60)
        ):
            with attempt:
                await service.runner.check_health()
                assert has in measured

    async def story(service: Service, graph: Graph) -> None:
        await until(service, "whisperx_jobs_oldest_queued_seconds")
        assert "whisperx_job_store_errors" not in measured
        with monkeypatch.context() as patched:
            patched.setattr(Database, "read", _away)
            await until(service, "whisperx_job_store_errors")
            measured.clear()  # as Ray forgets them
            await until(service, "whisperx_jobs_oldest_queued_seconds")

    tell(story)


@pytest.mark.parametrize(
    ("alive", "settings", "warns"),
    [
        ([True, True, False], {}, True),
        ([True, True], {"spool": "memory://bucket"}, True),
        ([True, True], {"spool": "memory://bucket", "key_file": "{folder}/key"}, False),
        ([True, False], {}, False),
    ],
)
def test_several_nodes_need_shared_places(
    alive: list[bool],
    settings: dict[str, str],
    warns: bool,
    tell: Callable[..., None],
    postgres: Postgres,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """PostgreSQL is shared, but by default each node has uploads and a key of its own: the log says so."""
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": is_alive} for is_alive in alive])
    places = {name: place.format(folder=tmp_path) for name, place in settings.items()}

    async def story(service: Service, graph: Graph) -> None:
        assert await service.runner.ready()

    tell(story, jobs={"store": postgres.emptied_database(), **places})
    assert ("Ray has several nodes: set jobs.spool and jobs.key_file" in caplog.text) == warns
