"""Settings of jobs that outlive their requests: `jobs` in `args:`."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from serve_app.settings.types import Host, Seconds, Strict

MAX_DELAY_S = 24 * 3600

# Those that the specification of Standard Webhooks proposes: ten tries in 75 hours.
_RETRY_DELAYS_S = (5.0, 300.0, 1800.0, *(hours * 3600.0 for hours in (2, 5, 10, 14, 20, 24)))


def _off(store: object) -> object:
    return "off" if store is False else store  # what YAML reads where `off` stands without quotes


class WebhookSettings(Strict):
    """How callers are told that a job has ended."""

    secrets_file: str | None = Field(
        None,
        description="File of the secrets that sign webhooks, one a line, the newest first. Empty: those in "
        "$WEBHOOK_SECRETS, with spaces between them. `whisperx-serve webhook-secret` makes one.",
    )
    timeout_s: float = Field(20, gt=0, le=30, description="Longest time of a try, until the answer's status.")
    retry_delays_s: tuple[Annotated[float, Field(gt=0, le=MAX_DELAY_S)], ...] = Field(
        _RETRY_DELAYS_S,
        description="Seconds from each failed try to the next; up to a tenth is added at random.",
    )
    allowed_hosts: tuple[Host, ...] = Field(
        (),
        description="host or host:port that webhooks may go to although private, without TLS or on an "
        "unusual port.",
    )


class JobsSettings(Strict):
    """Jobs and their webhooks."""

    store: Annotated[str | None, BeforeValidator(_off)] = Field(
        None,
        description="`sqlite:////a/file`, or for several nodes `postgresql+asyncpg://user@host/database`. "
        "Empty: a SQLite file in state_dir. off: no jobs.",
    )
    state_dir: Annotated[str, Field(pattern="^[/~]")] | None = Field(
        None,
        description="Folder of what must survive a restart. Empty: $XDG_STATE_HOME/whisperx-serve, else "
        "~/.local/state/whisperx-serve.",
    )
    spool: str | None = Field(
        None,
        description="Where uploads of waiting jobs lie, and those of no other store: a folder, or for "
        "several nodes one that all share or an fsspec URL (`s3://bucket/folder`, with the package s3fs). "
        "Empty: beside SQLite's file, else in state_dir.",
    )
    key_file: str | None = Field(
        None,
        description="File of the key that encrypts the addresses and headers of waiting jobs; nodes that "
        "share a store share it. Empty: one in state_dir, made at first start.",
    )
    concurrency: int = Field(
        4,
        ge=1,
        le=256,
        description="Jobs that one JobRunner runs at once; up to twice as many after another one died.",
    )
    timeout_s: Seconds = Field(24 * 3600, description="Longest time of an attempt at a job.")
    lease_s: float = Field(
        15, ge=2, le=60, description="A job whose JobRunner was silent for so long is given to another."
    )
    keep_s: Seconds = Field(7 * 24 * 3600, description="How long a job is kept after its end.")
    max_queued: int = Field(10_000, ge=1, description="Jobs of one API key that may wait; more get 429.")
    webhooks: WebhookSettings = WebhookSettings()
