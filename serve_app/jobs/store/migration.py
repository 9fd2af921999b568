"""The version of the database's tables: migrating them, and refusing those of another version."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import sqlalchemy as sa

from serve_app.jobs.store.database import Database, sqlite_file

if TYPE_CHECKING:
    from alembic.config import Config

VERSION_TABLE = "job_store_version"  # not Alembic's default: other users of Alembic may share the database
MIGRATE = "whisperx-serve jobs migrate CONFIG"
LOCK_ID = 0x77686A6F  # of PostgreSQL's advisory lock: two processes that migrate do it one after the other

T = TypeVar("T")


class SchemaMismatch(Exception):
    """The tables are not those of this version; the message says in one sentence what to do."""


class NotMigrated(SchemaMismatch):
    """There are no tables yet, or those of an older version."""


class SchemaTooNew(SchemaMismatch):
    """A newer version of the service has migrated the tables."""


async def migrate(url: str, revision: str = "head") -> None:
    """Creates or upgrades the tables, all or nothing. Raises SchemaTooNew, StoreBusy."""
    from alembic import command

    file = sqlite_file(url)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file.touch(mode=0o600)  # SQLite would make it readable to all

    def upgrade(connection: sa.Connection) -> None:
        config = _config()
        config.attributes["connection"] = connection
        _refuse_newer(_revision(connection))
        command.upgrade(config, revision)

    database = Database(url)
    try:
        async with database.write() as connection:
            if not database.is_sqlite:
                await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK_ID)))
            await connection.run_sync(upgrade)
    finally:
        await database.close()


async def check(url: str) -> None:
    """Raises NotMigrated or SchemaTooNew where the tables are not those of this version, or StoreBusy."""
    file = sqlite_file(url)
    revision = await _read(url, _revision) if file is None or file.exists() else None
    _refuse_newer(revision)
    if revision != _script_revisions()[0]:
        state = "has no tables" if revision is None else "has the tables of an older version"
        raise NotMigrated(f"The job store {state}; run `{MIGRATE}` first.")


async def prepare(url: str) -> None:
    """Creates the tables of a SQLite file that is new or has none, as after a kill; else as `check`."""
    file = sqlite_file(url)
    if file is not None and not (file.exists() and await _read(url, _has_tables)):
        await migrate(url)
    await check(url)


async def _read(url: str, question: Callable[[sa.Connection], T]) -> T:
    database = Database(url)
    try:
        async with database.read() as connection:
            return await connection.run_sync(question)
    finally:
        await database.close()


def _has_tables(connection: sa.Connection) -> bool:
    return bool(sa.inspect(connection).get_table_names())


def _refuse_newer(revision: str | None) -> None:
    if revision is not None and revision not in _script_revisions():
        raise SchemaTooNew(
            f"The job store has tables of a newer version ({revision}); start that version, or a newer one."
        )


def _config() -> "Config":
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["version_table"] = VERSION_TABLE
    return config


def _script_revisions() -> list[str]:
    """Newest first."""
    from alembic.script import ScriptDirectory

    return [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()]


def _revision(connection: sa.Connection) -> str | None:
    from alembic.migration import MigrationContext

    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()
