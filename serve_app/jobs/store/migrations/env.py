"""Alembic runs this file: the migrations, in the transaction of the caller."""

from alembic import context

from serve_app.jobs.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=context.config.attributes["version_table"],
)
with context.begin_transaction():
    context.run_migrations()
