"""What tests of jobs share: a private PostgreSQL, a clock that tests move, and jobs to submit."""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import pytest

from serve_app.jobs.migration import migrate
from serve_app.jobs.records import ClaimedJob, NewJob
from serve_app.jobs.store import JobStore, open_store

T = TypeVar("T")

LEASE_S = 60.0


class Clock:
    """Time stands still until a test moves it."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, by_s: float) -> None:
        self.now_s += by_s


def using(url: str, story: Callable[[JobStore], Awaitable[T]], clock: Callable[[], float] | None = None) -> T:
    """Runs a story on the store at `url`, which is closed after it."""

    async def opened() -> T:
        store = open_store(url, clock=clock)
        try:
            return await story(store)
        finally:
            await store.close()

    return asyncio.run(opened())


def new_job(**changes: Any) -> NewJob:
    """A job of one key, kept for an hour."""
    values = {"key": "alice", "request": '{"language": "en"}', "body_hash": "a", "keep_s": 3600.0}
    return NewJob(**{**values, **changes})


async def claimed(store: JobStore, worker: str = "worker") -> ClaimedJob:
    """The next job, which must be there."""
    job = await store.claim(worker, LEASE_S)
    assert job is not None
    return job


async def finished(store: JobStore, **changes: Any) -> str:
    """The id of a new job that has succeeded; no other may be waiting."""
    await store.submit(new_job(**changes))
    held = await claimed(store)
    assert await store.finish(held.job.id, held.job.attempt, b"{}")
    return held.job.id


class Postgres:
    """A PostgreSQL of the tests alone: on a Unix socket, run by somebody who is not root."""

    def __init__(self, programs: Path, directory: Path, user: str | None) -> None:
        self._programs, self._directory, self._user = programs, directory, user
        self._databases = 0

    def run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments],
            user=self._user,
            cwd=self._directory,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=120,
        )

    def start(self) -> None:
        options = f"-k {self._directory} -c listen_addresses= -c fsync=off"
        log = str(self._directory / "log")
        self.run("pg_ctl", "-D", self._data, "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        """As when it crashes: nobody is waited for."""
        self.run("pg_ctl", "-D", self._data, "-w", "-m", "immediate", "stop")

    def create(self) -> None:
        self.run("initdb", "-D", self._data, "-U", "jobs", "-A", "trust", "-E", "UTF8", "--no-sync")

    def new_database(self) -> str:
        """The URL of one that has no tables."""
        self._databases += 1
        name = f"jobs_{self._databases}"
        self.run("createdb", "-h", str(self._directory), "-U", "jobs", "-T", "template0", name)
        return self._url(name)

    @cached_property
    def _shared(self) -> str:
        self.run("createdb", "-h", str(self._directory), "-U", "jobs", "-T", "template0", "shared")
        asyncio.run(migrate(self._url("shared")))
        return self._url("shared")

    def emptied_database(self) -> str:
        """The URL of a migrated one that tests use one after the other: a new one takes half a second."""
        url = self._shared
        self.run(
            "psql", "-h", str(self._directory), "-U", "jobs", "-q", "-c", "TRUNCATE jobs CASCADE", "shared"
        )
        return url

    def _url(self, name: str) -> str:
        return f"postgresql+asyncpg://jobs@/{name}?host={self._directory}"

    @property
    def _data(self) -> str:
        return str(self._directory / "data")


@contextmanager
def private_postgres() -> Iterator[Postgres]:
    """A running one; skips the test where there can be none."""
    found = shutil.which("initdb") or max(
        map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=""
    )
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    user = None
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        user = next((one.pw_name for one in pwd.getpwall() if one.pw_name in {"postgres", "nobody"}), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or nobody.")
    directory = Path(tempfile.mkdtemp(prefix="jobs-"))
    if user is not None:
        shutil.chown(directory, user)
    server = Postgres(Path(found).resolve().parent, directory, user)
    try:
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
