"""`python -m serve_app jobs`, and a server that cannot keep jobs."""

import asyncio
import socketserver
import struct
import time
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url
from typer.testing import CliRunner

from benchmarks.private_postgres import Postgres
from serve_app.__main__ import cli, main
from serve_app.cli import CommandFailed
from serve_app.cli.config_file import IMPORT_PATH
from serve_app.cli.launcher import _reason, free_port, running
from serve_app.jobs.places import JobsUnusable, StoreTooNew, StoreUnreachable
from serve_app.jobs.store.database import Database
from serve_app.jobs.store.migration import VERSION_TABLE, check
from serve_app.models import hub


def config(folder: Path, **jobs: Any) -> dict[str, Any]:
    arguments = {"model": str(folder), "device": "cpu", "diarization": {"model": "off"}, "jobs": jobs}
    application = {"name": "jobs", "route_prefix": "/", "import_path": IMPORT_PATH, "args": arguments}
    return {"http_options": {"host": "127.0.0.1", "port": free_port()}, "applications": [application]}


def migrate(folder: Path, raw: dict[str, Any], *options: str) -> Any:
    (folder / "config.yaml").write_text(yaml.safe_dump(raw))
    return CliRunner().invoke(cli, ["jobs", "migrate", str(folder / "config.yaml"), *options])


def test_the_store_that_a_config_file_names_is_migrated(empty_url: str, tmp_path: Path) -> None:
    """The first run and later ones print one line, without names of drivers."""
    for _ in range(2):
        done = migrate(tmp_path, config(tmp_path, store=empty_url, state_dir=str(tmp_path / "state")))
        assert (done.exit_code, done.output.count("\n")) == (0, 1)
        assert "has the tables of this version" in done.output
        asyncio.run(check(empty_url))


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"store": False}, "Jobs are off"),
        ({"store": "postgresql://jobs@127.0.0.1:1/jobs"}, "cannot be used"),
    ],
)
def test_a_store_that_cannot_be_migrated(raw: dict[str, Any], says: str, tmp_path: Path) -> None:
    """The command fails with a sentence."""
    done = migrate(tmp_path, config(tmp_path, **raw))
    assert isinstance(done.exception, CommandFailed)
    assert says in str(done.exception)


def test_the_program_ends_with_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens at the database's address."""
    (tmp_path / "config.yaml").write_text(
        yaml.safe_dump(config(tmp_path, store="postgresql://a@127.0.0.1:1/b"))
    )
    monkeypatch.setattr("sys.argv", ["whisperx-serve", "jobs", "migrate", str(tmp_path / "config.yaml")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3


def test_a_file_without_an_application_of_this_service(tmp_path: Path) -> None:
    """Without an application of this service there is no store to migrate."""
    done = migrate(tmp_path, {"applications": []})
    assert isinstance(done.exception, CommandFailed)
    assert "has no application of this service" in str(done.exception)


def test_a_server_that_cannot_keep_jobs_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command fails with that reason before Ray starts."""
    monkeypatch.setenv(hub.OFFLINE, "1")  # starting sets it where no hub answers, for all that comes after
    (tmp_path / "model.bin").touch()
    (tmp_path / "state").write_text("no folder")
    raw = config(tmp_path, state_dir=str(tmp_path / "state"))
    with pytest.raises(CommandFailed, match=r"jobs\.state_dir"), running(raw, show_logs=False):
        raise AssertionError("it runs")


@pytest.mark.parametrize("error", [JobsUnusable, StoreUnreachable, StoreTooNew])
def test_what_serve_says_of_such_a_server(error: type[Exception]) -> None:
    """The command finds this project's sentence at the end of Serve's traceback."""
    name = f"{error.__module__}.{error.__name__}"
    assert _reason(f"Traceback (most recent call last):\n  in build\n{name}: No store.") == "No store."


@pytest.mark.parametrize(("state", "exit_code"), [(b"57P03", 3), (b"28P01", 1), (b"3D000", 1), (b"42501", 1)])
def test_what_passes_has_an_exit_code_of_its_own(state: bytes, exit_code: int, tmp_path: Path) -> None:
    """A database that still starts is waited for; a wrong password or name, or a missing right, is not."""
    fields = b"SFATAL\0C" + state + b"\0Mrefused\0\0"

    class Refusing(socketserver.BaseRequestHandler):
        """PostgreSQL's side of a connection that it refuses."""

        def handle(self) -> None:
            self.request.recv(1024)
            self.request.sendall(b"E" + struct.pack("!i", len(fields) + 4) + fields)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        store = f"postgresql+asyncpg://jobs@127.0.0.1:{server.server_address[1]}/jobs?ssl=disable"
        done = migrate(tmp_path, config(tmp_path, store=store))
        server.shutdown()
    assert isinstance(done.exception, CommandFailed)
    assert "cannot be used (refused)" in str(done.exception)
    assert done.exception.exit_code == exit_code


def test_a_database_that_starts_late_is_waited_for(
    postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its address is in PostgreSQL's own variables, as on Kubernetes. Newer tables are not waited for."""
    address = make_url(postgres.new_database())
    monkeypatch.setenv("PGHOST", str(address.query["host"]))
    monkeypatch.setenv("PGUSER", str(address.username))
    monkeypatch.setenv("PGDATABASE", str(address.database))
    raw = config(tmp_path, store="postgresql+asyncpg://")
    postgres.stop()
    late = Timer(1.0, postgres.start)
    late.start()
    assert migrate(tmp_path, raw, "--wait-s", "60").exit_code == 0
    late.join()

    async def upgrade() -> None:
        database = Database(raw["applications"][0]["args"]["jobs"]["store"])
        async with database.write() as connection:
            await connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
        await database.close()

    asyncio.run(upgrade())
    started_s = time.monotonic()
    newer = migrate(tmp_path, raw, "--wait-s", "600").exception
    assert "newer version (9999)" in str(newer)
    assert newer.exit_code == 3
    assert time.monotonic() - started_s < 60
