"""Where jobs are kept: the store, the spool and the key file, as the settings say or by default."""

import os
from pathlib import Path

from serve_app.job_settings import JobsSettings

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


def spool_url(settings: JobsSettings) -> str:
    """The folder or fsspec URL of uploads."""
    return settings.spool or str(state_directory(settings) / "spool")


def key_file(settings: JobsSettings) -> Path:
    """The file of the key that encrypts what fetches a job's audio."""
    return (
        Path(settings.key_file).expanduser() if settings.key_file else state_directory(settings) / "jobs.key"
    )
