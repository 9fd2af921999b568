"""Durable jobs: requests that outlive connections, processes and machines, in SQLite or PostgreSQL."""
