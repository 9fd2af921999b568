"""`whisperx-serve prefetch`: fetches models before they are needed, lists and checks them."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from serve_app.cli import CommandFailed, note
from serve_app.errors import ModelUnavailable

if TYPE_CHECKING:
    from serve_app.models.store import Store

LIST_COLUMNS = 1000  # at most, where standard output is no terminal


def prefetch(
    models: Annotated[
        list[str] | None, typer.Argument(help="Names of models, such as base, tiny.en or speakers.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option(help="Folder for the models. Without it, $MODELS_DIR or ~/.cache.")
    ] = None,
    language: Annotated[
        list[str] | None, typer.Option(help="Also the model for word times of this language, such as de.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Also all models of this config file."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the files that are there; exit 1 if one is damaged.")
    ] = False,
    show_list: Annotated[
        bool, typer.Option("--list", help="Only list the models that can be fetched.")
    ] = False,
) -> None:
    """Downloads models ahead of time, so that the service starts without a network."""
    from serve_app.models.store import open_store

    of_config, folders = _of_config(config) if config else ([], {None})
    if len(folders) > 1 and not to:
        raise CommandFailed(f"{config}: its services have several models_dir; name each of them with --to.")
    store = open_store(str(to) if to else folders.pop())
    if show_list:
        Console(width=None if Console().is_terminal else LIST_COLUMNS).print(_table(store))
        return
    asked = [*(models or ()), *(f"wav2vec2-{code}" for code in language or ()), *of_config]
    names = [model.name if (model := store.catalogue.get(name)) else name for name in asked]
    if check:
        there = [model.name for model in store.catalogue if (store.root / model.name).exists()]
        if not names and not there:
            raise CommandFailed(f"there is no model in {store.root}.")
        _check(store, names or there)
    elif names:
        _fetch(store, names)
    else:
        raise CommandFailed(
            "name models, such as base and speakers, or use --language, --config, --check or --list."
        )


def _of_config(config: Path) -> tuple[list[str], set[str | None]]:
    """The models of the catalogue and the hub that the file's services load at start, and their folders."""
    from serve_app.cli import config_file
    from serve_app.models import names

    found: list[str] = []
    settings = config_file.settings_of(config_file.read(config))
    try:
        for each in settings:
            needed = names.resolve(each, may_fetch=False).needed(each.alignment.preload)
            for name in needed:
                found += [*names.PARTS.get(name, ()), name]
    except ModelUnavailable as error:
        raise CommandFailed(error.message) from None
    fetchable = [name for name in found if not Path(name).expanduser().is_dir()]
    return [*dict.fromkeys(fetchable)], {each.models_dir for each in settings} or {None}


def _is_repository(name: str, store: "Store") -> bool:
    """Whether this is a repository of the hub that the catalogue does not have."""
    return "/" in name and not store.catalogue.get(name)


def _fetch(store: "Store", names: list[str]) -> None:
    from serve_app.models.prefetch import fetch, fetch_repository

    failures = []
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=note) as progress:
        for name in names:
            task = progress.add_task(name, total=None)
            report = partial(_show, progress, task)
            try:
                if _is_repository(name, store):
                    place = fetch_repository(name)
                    outside = f"{name} is in the hub client's cache (HF_HOME), not in {store.root}: "
                    outside += "to move the models, copy both folders."
                    progress.console.print(outside, markup=False)
                else:
                    place = fetch(name, store, report, reads_all=True)
            except ModelUnavailable as error:
                failures.append(error.message)
                progress.remove_task(task)
            else:
                size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
                report(size, size)
                progress.console.print(f"{name}: {place}", markup=False)
    if failures:
        raise CommandFailed("\n".join(failures))


def _show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


def _check(store: "Store", names: list[str]) -> None:
    from serve_app.models.hub import is_cached

    wrong = []
    for name in names:
        if _is_repository(name, store):
            damaged = [] if is_cached(name) else ["not in the hub client's cache"]
        else:
            damaged = store.damaged(name)
        if damaged:
            wrong.append(f"{name} ({', '.join(damaged)})")
        else:
            note.print(f"{name} is complete.", markup=False)
    if wrong:
        raise CommandFailed(
            f"missing or damaged in {store.root}: {', '.join(wrong)}; prefetch with their names mends them."
        )


def _table(store: "Store") -> Table:
    table = Table("name", "MB", "licence", "author", Column("where it is", overflow="fold"), box=None)
    for model in store.catalogue:
        place, record = store.find(model.name), store.record(model.name)
        licence = record.licence if record else model.licence
        where = str(place or "not here")
        names = " or ".join((model.name, *model.aliases))
        table.add_row(names, f"{model.size / 1e6:.0f}", licence, model.author, where)
    return table
