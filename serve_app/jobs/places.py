"""Where jobs are kept: the store, the spool and the key file, as the settings say or by default."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from serve_app.errors import StoreBusy
from serve_app.jobs.secrets import FetchSecrets
from serve_app.jobs.spool import Spool
from serve_app.jobs.store import migration
from serve_app.jobs.store.database import parsed_url, sqlite_file
from serve_app.jobs.store.migration import SchemaMismatch, SchemaTooNew
from serve_app.jobs.webhooks.signatures import UnusableSecrets, read_secrets
from serve_app.settings.jobs import JobsSettings

OFF = "off"


def state_directory(settings: JobsSettings) -> Path:
    """The folder of what must survive a restart; it may not exist yet."""
    if settings.state_dir:
        return Path(settings.state_dir).expanduser()
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "whisperx-serve"


def store_url(settings: JobsSettings) -> str | None:
    """The URL of the store; None where jobs are off."""
    if settings.store == OFF:
        return None
    return settings.store or f"sqlite:///{state_directory(settings) / 'jobs.db'}"


def spool_url(settings: JobsSettings, store: str) -> str:
    """The folder or fsspec URL of uploads; by default one that no other store has."""
    if settings.spool:
        return settings.spool
    if file := sqlite_file(store):
        return f"{file}.spool"
    without_login = parsed_url(store).set(username="", password="")
    name = hashlib.sha256(str(without_login).encode()).hexdigest()[:8]
    return str(state_directory(settings) / "spool" / name)


def key_file(settings: JobsSettings) -> Path:
    """The file of the key that encrypts what fetches a job's audio."""
    return (
        Path(settings.key_file).expanduser() if settings.key_file else state_directory(settings) / "jobs.key"
    )


class JobsUnusable(Exception):
    """Jobs cannot be kept as the settings say; the message is one sentence that says what to do."""


class StoreUnreachable(JobsUnusable):
    """The database does not answer, or is busy; it may answer later."""


class StoreTooNew(JobsUnusable):
    """A newer version of the service has migrated the tables."""


async def prepare(settings: JobsSettings) -> None:
    """Unless jobs are off, creates a missing key and missing tables of SQLite, and checks the other places.

    Raises JobsUnusable.
    """
    with _refusing(settings):
        url = store_url(settings)
        if url is not None:
            read_secrets(settings.webhooks.secrets_file)
            Spool(spool_url(settings, url))
            FetchSecrets(key_file(settings))
            await migration.prepare(url)


async def migrate(settings: JobsSettings) -> str:
    """Creates or upgrades the tables of the store; gives its URL without a password.

    Raises JobsUnusable, among them StoreUnreachable and StoreTooNew.
    """
    with _refusing(settings):
        url = store_url(settings)
        if url is None:
            raise JobsUnusable("Jobs are off (jobs.store), so there is nothing to migrate.")
        await migration.migrate(url)
        return _shown(url)


@contextmanager
def kept_from_others(settings: JobsSettings) -> Iterator[None]:
    """Keeps other servers of this machine away from a store in SQLite: they may have other models.

    Raises JobsUnusable where another one has it.
    """
    url = store_url(settings)
    file = sqlite_file(url) if url else None
    with ExitStack() as held:
        try:
            if file is not None:
                held.enter_context(FileLock(f"{file}.lock", timeout=0))
        except Timeout:
            raise JobsUnusable(
                f"Another server keeps its jobs in {file}; set jobs.state_dir to another folder, or "
                "jobs.store to off."
            ) from None
        yield


@contextmanager
def _refusing(settings: JobsSettings) -> Iterator[None]:
    try:
        yield
    except JobsUnusable:
        raise
    except SchemaTooNew as error:
        raise StoreTooNew(str(error)) from None
    except (ValueError, SchemaMismatch, UnusableSecrets) as error:
        raise JobsUnusable(str(error)) from None
    except OSError as error:
        raise JobsUnusable(
            f"{error.filename}: {error.strerror}; set jobs.state_dir to a folder that can be written to, or "
            "jobs.store to off."
        ) from None
    except Exception as error:  # each database driver has errors of its own
        url = store_url(settings)
        assert url is not None
        reason = error.__cause__ or error
        first_line = str(getattr(reason, "orig", None) or reason).partition("\n")[0]
        message = f"The job store {_shown(url)} cannot be used ({first_line.rstrip('.')})"
        if isinstance(error, StoreBusy):
            raise StoreUnreachable(f"{message}; have it running, or set jobs.store.") from error
        raise JobsUnusable(f"{message}; correct that, or set jobs.store.") from error


def _shown(url: str) -> str:
    return parsed_url(url).render_as_string(hide_password=True)
