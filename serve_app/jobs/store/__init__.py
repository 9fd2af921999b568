"""The jobs in a database: tables, queue, leases, outbox of webhooks, migrations."""
