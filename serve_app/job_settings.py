"""Settings of jobs that outlive their requests: `jobs` in `args:`."""

from typing import Annotated

from pydantic import Field

from serve_app.setting_types import Host, Strict

MAX_DELAY_S = 24 * 3600

# Those that the specification of Standard Webhooks proposes: ten tries in 75 hours.
_RETRY_DELAYS_S = (5.0, 300.0, 1800.0, *(hours * 3600.0 for hours in (2, 5, 10, 14, 20, 24)))


class WebhookSettings(Strict):
    """How callers are told that a job has ended."""

    secrets_file: str | None = Field(
        None,
        description="File of the secrets that sign webhooks, one a line, the newest first. Empty: those in "
        "$WEBHOOK_SECRETS, with spaces between them. `python -m serve_app webhook-secret` makes one.",
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

    webhooks: WebhookSettings = WebhookSettings()
