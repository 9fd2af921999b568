"""`whisperx-serve doctor`: the command, and how its results are shown."""

import json as json_format
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve_app.cli import CommandFailed, note
from serve_app.cli.doctor.checks import (
    TOTAL_S,
    Application,
    Check,
    Finding,
    Result,
    State,
    Subject,
    fine,
    known_finding,
    missing_package,
    run_all,
    wrong,
)
from serve_app.cli.doctor.devices import probing

LEAST_S = 5.0  # for the checks where importing the packages took all the time

COLOURS = {State.OK: "green", State.WARNING: "yellow", State.ERROR: "bold red", State.SKIPPED: "dim"}

# Modules with a function `checks`: those of the machine, and those of each application, in the order shown.
OF_MACHINE = ("packages", "machine")
OF_APPLICATION = ("gpu", "weights", "network", "job_store")


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(
            exists=True, dir_okay=False, help="Config file of the service. Without it, that of `demo`."
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of a table.")] = False,
    clock_url: Annotated[
        str | None,
        typer.Option(help="Address of a server whose clock is right. Without it, the hub's is asked."),
    ] = None,
    metrics_port: Annotated[
        int, typer.Option(min=0, max=65535, help="The one that `serve` will be given; 0: a free port.")
    ] = 0,
) -> None:
    """Checks whether this machine can run the service of a config file; starts and changes nothing.

    Ends with 1 where a check found an error, else with 0; wrong usage ends with 2.
    """
    if find_spec("ray") is None:
        raise ModuleNotFoundError("No module named 'ray'", name="ray")
    results = examine(config, clock_url, metrics_port)
    if json:
        typer.echo(json_format.dumps([asdict(result) for result in results], indent=2))
    else:
        _show(results)
    raise typer.Exit(int(any(result.state == State.ERROR for result in results)))


def examine(config: Path | None, clock_url: str | None = None, metrics_port: int = 0) -> list[Result]:
    """The results of all checks for this file."""
    until_s = monotonic() + TOTAL_S
    devices = probing()  # first, because it takes longest
    finding, applications = _read(config)
    subjects = [Subject(devices, clock_url, found, metrics_port) for found in applications.values() or [None]]
    checks = [known_finding("Config file", finding), *_checks(OF_MACHINE, subjects[0])]
    for name, subject in zip(applications or [""], subjects, strict=True):
        prefix = f"{name}: " if len(applications) > 1 else ""
        checks += [Check(prefix + check.name, check.run) for check in _checks(OF_APPLICATION, subject)]
    return run_all(checks, max(until_s, monotonic() + LEAST_S))


def _checks(modules: Sequence[str], subject: Subject) -> list[Check]:
    """The checks of these modules; one that a missing package keeps from being imported is an error."""
    found: list[Check] = []
    for name in modules:
        try:
            found += import_module(f"serve_app.cli.doctor.{name}").checks(subject)
        except ImportError as error:
            found.append(known_finding(name.replace("_", " ").capitalize(), missing_package(error)))
    return found


def _read(config: Path | None) -> tuple[Finding, dict[str, Application]]:
    """What is to be said about the file, and its applications of this service by name."""
    try:
        from serve_app.cli import config_file

        path = config or config_file.DEMO_CONFIG
        raw = config_file.read(path)
        settings = config_file.settings_of(raw)
    except CommandFailed as error:
        return wrong(str(error)), {}
    except ImportError as error:
        return missing_package(error), {}
    ours = config_file.own_applications(raw)
    if not ours:
        return wrong(f"{path} has no application of this service ({config_file.IMPORT_PATH})."), {}
    http = raw.get("http_options") or {}
    return fine(f"{path} is right."), {
        str(each.get("name", "")): Application(
            settings=its,
            deployments={one["name"]: one for one in each.get("deployments") or ()},
            host=http.get("host", "127.0.0.1"),
            port=http.get("port", 8000),
            has_proxy=raw.get("proxy_location") != "Disabled",
        )
        for each, its in zip(ours, settings, strict=True)
    }


def _show(results: Sequence[Result]) -> None:
    table: Any = Table("", "check", "", box=None, pad_edge=False, show_header=False)
    for result in results:
        colour = COLOURS[result.state]
        table.add_row(Text(result.state, colour), Text(result.name, "bold"), Text(result.message))
    Console(highlight=False).print(table)
    counts = [sum(result.state == state for result in results) for state in (State.ERROR, State.WARNING)]
    note.print(f"Of {len(results)} checks, errors: {counts[0]}, warnings: {counts[1]}.")
