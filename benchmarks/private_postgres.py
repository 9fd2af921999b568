"""A private PostgreSQL from Debian's packages, for tests and benchmarks of jobs."""

import asyncio
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from serve_app.jobs.store.migration import migrate


class NoPostgres(Exception):
    """There can be no PostgreSQL here; the message says why."""


class Postgres:
    """A PostgreSQL of one run alone: on a Unix socket, run by somebody who is not root."""

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
    """A running one, removed at the end. Raises NoPostgres where there can be none."""
    found = shutil.which("initdb") or max(
        map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=""
    )
    if not found:
        raise NoPostgres("PostgreSQL is not installed: apt-get install postgresql")
    user = None
    if os.geteuid() == 0:  # PostgreSQL does not run as root
        user = next((one.pw_name for one in pwd.getpwall() if one.pw_name in {"postgres", "nobody"}), None)
        if user is None:
            raise NoPostgres("PostgreSQL does not run as root, and there is no user postgres or nobody.")
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
