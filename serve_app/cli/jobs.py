"""`whisperx-serve jobs`: what operators do with the store of jobs.

A new SQLite file gets its tables from the server. A PostgreSQL, which several nodes share, and tables of an
older version are migrated by an operator, who knows whether older servers are still at work.

Commands say what they have done in one line, and why they cannot in one sentence.
"""

import asyncio

import typer

from serve_app.cli import CommandFailed, ConfigPath, note

jobs = typer.Typer(no_args_is_help=True, help="Maintains the store of jobs of a service.")


@jobs.callback()
def _group() -> None:
    """Has typer take the names of commands although there is one only."""


@jobs.command()
def migrate(config: ConfigPath) -> None:
    """Creates the tables of the store of jobs, or upgrades them to those of this version.

    Running it again changes nothing.
    """
    from serve_app.cli.config_file import read, settings_of
    from serve_app.jobs import places

    found = settings_of(read(config))
    if not found:
        raise CommandFailed(f"{config} has no application of this service.")
    for settings in found:
        try:
            url = asyncio.run(places.migrate(settings.jobs))
        except places.JobsUnusable as error:
            raise CommandFailed(str(error)) from None
        note.print(f"The job store {url} has the tables of this version.", markup=False)
