"""`whisperx-serve jobs`: maintains the store of jobs.

A new SQLite file gets its tables from the server. An operator migrates a PostgreSQL database, which
several nodes share, and tables of an older version: only they know whether older servers still run.

A command prints what it has done in one line, or in one sentence why it failed.
"""

import asyncio
from typing import Annotated

import typer

from serve_app.cli import CommandFailed, ConfigPath, note


class CannotMigrateNow(CommandFailed):
    """The database is away, or a newer version of the service has its tables."""

    exit_code = 3


jobs = typer.Typer(no_args_is_help=True, help="Maintains the store of jobs of a service.")


@jobs.callback()
def _group() -> None:
    """Makes typer ask for the name of a command: without a callback it does not where there is only one."""


@jobs.command()
def migrate(
    config: ConfigPath,
    wait_s: Annotated[
        float, typer.Option(min=0, help="How long to try again while the database does not answer.")
    ] = 0.0,
) -> None:
    """Creates the tables of the store of jobs, or upgrades them to those of this version.

    Running it again changes nothing. The exit code is 3 where the database is away, or has the tables of a
    newer version already, and 1 for any other failure.
    """
    from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

    from serve_app.cli.config_file import read, settings_of
    from serve_app.jobs import places

    found = settings_of(read(config))
    if not found:
        raise CommandFailed(f"{config} has no application of this service.")
    trying = Retrying(
        retry=retry_if_exception_type(places.StoreUnreachable),
        stop=stop_after_delay(wait_s),
        wait=wait_fixed(2.0),
        reraise=True,
    )
    for settings in found:
        try:
            url = trying(lambda jobs=settings.jobs: asyncio.run(places.migrate(jobs)))
        except (places.StoreUnreachable, places.StoreTooNew) as error:
            raise CannotMigrateNow(str(error)) from None
        except places.JobsUnusable as error:
            raise CommandFailed(str(error)) from None
        note.print(f"The job store {url} has the tables of this version.", markup=False)
