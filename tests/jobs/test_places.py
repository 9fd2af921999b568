"""Where jobs are kept, and how a server says in one sentence that they cannot be kept there."""

import asyncio
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from job_stores import new_job, submit, using

from benchmarks.private_postgres import Postgres
from serve_app.jobs.places import (
    JobsUnusable,
    kept_from_others,
    prepare,
    spool_url,
    state_directory,
    store_url,
)
from serve_app.jobs.store.database import parsed_url
from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.migration import MIGRATE, VERSION_TABLE, migrate
from serve_app.settings.jobs import JobsSettings


def settings(folder: Path, **changes: Any) -> JobsSettings:
    return JobsSettings.model_validate({"state_dir": str(folder / "state"), **changes})


def refused(found: JobsSettings) -> str:
    """The sentence with which the server refuses these settings."""
    with pytest.raises(JobsUnusable) as caught:
        asyncio.run(prepare(found))
    message = str(caught.value)
    assert "\n" not in message
    assert "hidden" not in message
    return message


def test_a_new_sqlite_file_is_made(tmp_path: Path) -> None:
    """Its folder is closed to other users, and a server that starts again finds its jobs."""
    found = settings(tmp_path)
    url = store_url(found)
    assert url is not None
    asyncio.run(prepare(found))
    using(url, lambda store: submit(store, new_job()))
    asyncio.run(prepare(found))
    assert len(using(url, lambda store: store.list_jobs("alice"))) == 1
    assert state_directory(found).stat().st_mode & 0o777 == 0o700
    assert (state_directory(found) / "jobs.db").stat().st_mode & 0o777 == 0o600


def test_a_sqlite_file_that_was_just_begun_is_made(tmp_path: Path) -> None:
    """A server that is killed at its first start leaves a header and no tables."""
    file = tmp_path / "jobs.db"
    with closing(sqlite3.connect(file)) as begun:
        begun.execute("PRAGMA journal_mode=WAL")
    assert file.stat().st_size
    found = settings(tmp_path, store=f"sqlite:///{file}")
    asyncio.run(prepare(found))
    asyncio.run(prepare(found))


@pytest.mark.parametrize("off", ["off", False])
def test_jobs_that_are_off_leave_nothing(off: object, tmp_path: Path) -> None:
    """YAML reads an `off` without quotes as false."""
    asyncio.run(prepare(settings(tmp_path, store=off)))
    assert list(tmp_path.iterdir()) == []


def test_tables_of_a_newer_version_are_refused(empty_url: str, tmp_path: Path) -> None:
    """The server does not start with them."""
    asyncio.run(migrate(empty_url))

    async def upgrade(store: JobStore) -> None:
        async with store.write() as connection:
            await connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")

    using(empty_url, upgrade)
    assert "newer version (9999)" in refused(settings(tmp_path, store=empty_url))


def test_a_sqlite_file_that_is_not_new_is_migrated_by_an_operator(tmp_path: Path) -> None:
    """It may be somebody else's; the server names the command."""
    url = f"sqlite:///{tmp_path}/others.db"

    async def create(store: JobStore) -> None:
        async with store.write() as connection:
            await connection.exec_driver_sql("CREATE TABLE others (something INTEGER)")

    using(url, create)
    assert MIGRATE in refused(settings(tmp_path, store=url))


def test_a_postgresql_is_migrated_by_an_operator(postgres: Postgres, tmp_path: Path) -> None:
    """Other nodes may be at work on it; the server names the command."""
    url = postgres.new_database()
    assert f"run `{MIGRATE}` first" in refused(settings(tmp_path, store=url))
    asyncio.run(migrate(url))
    asyncio.run(prepare(settings(tmp_path, store=url)))
    missing = parsed_url(url).set(database="nowhere").render_as_string(hide_password=False)
    assert re.search("cannot be used .*nowhere", refused(settings(tmp_path, store=missing)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"store": "postgresql+asyncpg://jobs:hidden@127.0.0.1:1/jobs"}, "cannot be used"),
        ({"store": "mysql://jobs:hidden@localhost/jobs"}, "sqlite:////a/file or postgresql"),
        ({"store": "jobs.db"}, "sqlite:////a/file or postgresql"),
        ({"store": "sqlite:///{folder}/file/jobs.db"}, "jobs.state_dir"),
        ({"store": "sqlite:///{folder}/file"}, "not a database"),
        ({"state_dir": "{folder}/file"}, "jobs.state_dir"),
        ({"spool": "nosuch://bucket/folder"}, "jobs.spool"),
        ({"key_file": "{folder}/file"}, "no key of jobs"),
    ],
)
def test_places_that_cannot_be_used(changes: dict[str, str], says: str, tmp_path: Path) -> None:
    """The sentence says which setting it is about, and shows no password."""
    (tmp_path / "file").write_text("a file that is neither a folder nor a database, nor a key" * 10)
    given = {name: value.format(folder=tmp_path) for name, value in changes.items()}
    assert says in refused(settings(tmp_path, **given))


def test_two_servers_do_not_share_a_sqlite_file(tmp_path: Path, postgres: Postgres) -> None:
    """The second one, which may have another model, is told so; a PostgreSQL is there to be shared."""
    asyncio.run(prepare(settings(tmp_path)))
    with (
        kept_from_others(settings(tmp_path)),
        pytest.raises(JobsUnusable, match="state_dir"),
        kept_from_others(settings(tmp_path)),
    ):
        pytest.fail("it shares the file")
    with kept_from_others(settings(tmp_path)):
        pass
    shared = settings(tmp_path, store=postgres.new_database())
    with kept_from_others(shared), kept_from_others(shared):
        pass


def test_each_store_has_a_spool_of_its_own(tmp_path: Path) -> None:
    """Else one would remove the other's uploads. Another login at the same database has the same spool."""
    found = settings(tmp_path)
    stores = ["sqlite:////a/jobs.db", "sqlite:////b/jobs.db"]
    stores += [f"postgresql+asyncpg://db.internal/{name}" for name in ("one", "two")]
    assert len({spool_url(found, store) for store in stores}) == 4
    logins = ("", "jobs:old@", "jobs:new@")
    assert len({spool_url(found, f"postgresql+asyncpg://{login}db/one") for login in logins}) == 1
