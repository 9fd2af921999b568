"""Where jobs are kept: the folder, the key, the tables, the uploads, and the secrets of webhooks."""

import asyncio
from pathlib import Path
from shutil import disk_usage

from filelock import FileLock, Timeout

from serve_app.cli.doctor.checks import Check, Finding, Subject, fine, skipped, warning, wrong
from serve_app.cli.doctor.machine import GB, nearest, why_not_writable
from serve_app.errors import StoreBusy
from serve_app.jobs import places
from serve_app.jobs.secrets import FetchSecrets
from serve_app.jobs.spool import Spool
from serve_app.jobs.store import migration
from serve_app.jobs.store.database import sqlite_file
from serve_app.jobs.store.migration import SchemaMismatch
from serve_app.jobs.webhooks.signatures import UnusableSecrets, read_secrets
from serve_app.settings.jobs import JobsSettings

OFF = "jobs.store: off keeps no jobs."


def checks(subject: Subject) -> list[Check]:
    return [
        Check("Job folders", lambda: job_folders(subject.settings.jobs, subject.settings.intake.max_bytes)),
        Check("Job store", lambda: job_store(subject.settings.jobs)),
    ]


def job_folders(settings: JobsSettings, max_bytes: int) -> Finding:
    """The folders of the state and of the uploads can be written; the key and the secrets can be read."""
    try:
        url = places.store_url(settings)
        if url is None:
            return skipped(OFF)
        spool = places.spool_url(settings, url)
        Spool(spool)
        file = sqlite_file(url)
        key = places.key_file(settings)
        read_secrets(settings.webhooks.secrets_file)
        if key.exists():
            FetchSecrets(key)
    except (ValueError, UnusableSecrets) as error:
        return wrong(str(error))
    except OSError as error:
        return wrong(f"{error.filename}: {error.strerror}; let the service's user read it.")
    is_local = "://" not in spool or spool.startswith("file://")
    uploads = Path(spool.removeprefix("file://"))
    folders = {"jobs.state_dir": file.parent if file else key.parent}
    folders |= {"jobs.key_file": key.parent} | ({"jobs.spool": uploads} if is_local else {})
    for setting, folder in folders.items():
        if why := why_not_writable(folder):
            return wrong(f"{folder} cannot be written ({why}); make it writable, or set {setting}.")
    free = disk_usage(nearest(uploads)).free if is_local else 0
    if is_local and free < max_bytes:
        return warning(
            f"{uploads} has {free / GB:.1f} GB free, and one upload may have {max_bytes / GB:.1f} GB "
            "(intake.max_bytes); free some, or set jobs.spool to a folder on another disk."
        )
    room = f", with {free / GB:.0f} GB free for uploads" if is_local else ""
    return fine(f"{folders['jobs.state_dir']} can be written{room}.")


def job_store(settings: JobsSettings) -> Finding:
    """The database answers and has the tables of this version; a new SQLite file is made at the start."""
    try:
        url = places.store_url(settings)
        if url is None:
            return skipped(OFF)
        file = sqlite_file(url)
        if file is not None and not file.exists():
            return fine(f"{file} is made when the service first starts.")
        asyncio.run(migration.check(url))
    except (ValueError, SchemaMismatch) as error:
        return wrong(str(error))
    except StoreBusy:
        return wrong("The job store cannot be reached or is busy; have it running, or set jobs.store.")
    except Exception as error:  # noqa: BLE001  (each driver has its own, whose text may show an address)
        return wrong(
            f"The job store cannot be used ({type(error).__name__}); check the login and the address in "
            "jobs.store."
        )
    if file is not None and _is_held(Path(f"{file}.lock")):
        return warning(f"A server keeps its jobs in {file} now; stop it before another one starts.")
    return fine(f"{file or 'The database'} has the tables of this version.")


def _is_held(lock: Path) -> bool:
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except (Timeout, OSError):
        return True
