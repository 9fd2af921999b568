"""Jobs, with requests, results and webhooks. Spelt out: schema.py moves on, this first version does not."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("body_hash", sa.Text, nullable=False),
        sa.Column("audio", sa.Text),
        sa.Column("secrets", sa.LargeBinary),
        sa.Column("input_ref", sa.Text),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("priority", sa.SmallInteger, nullable=False),
        sa.Column("created_at_s", sa.Double, nullable=False),
        sa.Column("run_at_s", sa.Double, nullable=False),
        sa.Column("expires_at_s", sa.Double),
        sa.Column("started_at_s", sa.Double),
        sa.Column("finished_at_s", sa.Double),
        sa.Column("keep_s", sa.Double, nullable=False),
        sa.Column("delete_at_s", sa.Double),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("deaths", sa.Integer, nullable=False),
        sa.Column("max_attempts", sa.Integer, nullable=False),
        sa.Column("initial_delay_s", sa.Double, nullable=False),
        sa.Column("max_delay_s", sa.Double, nullable=False),
        sa.Column("worker", sa.Text),
        sa.Column("lease_until_s", sa.Double),
        sa.Column("is_cancel_requested", sa.Boolean, nullable=False),
        sa.Column("progress", sa.Text, nullable=False),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("webhook_url", sa.Text),
        sa.Column("webhook_style", sa.String(12), nullable=False),
        sa.UniqueConstraint("key", "idempotency_key", name="jobs_idempotent"),
    )
    op.create_index("jobs_waiting", "jobs", ["status", "priority", "key", "id"])
    op.create_index("jobs_expiring", "jobs", ["status", "expires_at_s"])
    op.create_index("jobs_leased", "jobs", ["status", "lease_until_s"])
    op.create_index("jobs_served", "jobs", ["key", "started_at_s"])
    op.create_index("jobs_listed", "jobs", ["key", "id"])
    op.create_index("jobs_kept", "jobs", ["delete_at_s"])
    op.create_table(
        "job_requests",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("request", sa.Text, nullable=False),
    )
    op.create_table(
        "job_results",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "job_webhooks",
        sa.Column("job_id", sa.Text, sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("due_at_s", sa.Double, nullable=False),
        sa.Column("claim_no", sa.Integer, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("log", sa.Text, nullable=False),
    )
    op.create_index("job_webhooks_due", "job_webhooks", ["status", "due_at_s", "key"])
