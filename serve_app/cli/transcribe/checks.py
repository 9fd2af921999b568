"""What a command line of `transcribe` asks for, checked before any work is done."""

import os
import re
from pathlib import Path
from typing import Any

import typer

from serve_app.cli import CommandFailed
from serve_app.cli.transcribe.inputs import hash_of, in_words, url_name
from serve_app.cli.transcribe.wanted import SHOWN_WITH_WORDS
from serve_app.cli.transcribe.writers import ALL, WRITERS
from serve_app.client.calls import is_url

FORMATS = (*WRITERS, "rttm", "words")
SEVERAL_LANGUAGES = ("auto", "multiple")  # for --language: the service chooses among --languages
SPEAKERS = ("num_speakers", "min_speakers", "max_speakers")


def formats(asked: list[str]) -> tuple[str, ...]:
    formats: list[str] = []
    for one in (each.strip() for given in asked for each in given.split(",")):
        if one != "all" and one not in FORMATS:
            choices = ", ".join(("all", *FORMATS))
            raise typer.BadParameter(f"--output_format: unknown format {one!r}; choose from {choices}.")
        formats += ALL if one == "all" else (one,)
    return tuple(dict.fromkeys(formats))


def settings(config: Path | None, chosen: dict[str, Any]) -> dict[str, str]:
    """The settings of a service that is started for this run, as a part of the mark of each file."""
    values = {name: str(each.absolute() if isinstance(each, Path) else each) for name, each in chosen.items()}
    if config:
        values["config"] = hash_of(str(config.absolute()), config.read_text(errors="replace"))
    return values


def make_folder(output_dir: Path) -> None:
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandFailed(f"--output_dir: the folder cannot be made ({in_words(error)}).") from None
    if not os.access(output_dir, os.W_OK):
        raise CommandFailed(f"--output_dir: nothing can be written to {output_dir}.")


def refuse_what_is_not_there(path: str) -> None:
    if not is_url(path):
        if not os.path.exists(path):
            raise typer.BadParameter(f"{path}: there is no such file or folder.")
        return
    try:
        url_name(path)
    except ValueError:
        shown = re.sub("//[^/]*@", "//", path)  # without what may be a password
        raise typer.BadParameter(f"{shown} is not a URL.") from None


def refuse_contradictions(given: dict[str, Any], formats: tuple[str, ...]) -> None:
    if not (given["paths"] or given["watch"]):
        raise typer.BadParameter("name files, URLs or folders, or a folder to --watch.")
    for name in SPEAKERS:
        if given[name] and not given["diarize"]:
            raise typer.BadParameter(f"--{name} needs --diarize.")
    if given["embeddings"] and not (given["diarize"] and "json" in formats):
        raise typer.BadParameter("--speaker_embeddings needs --diarize, and json among the formats.")
    if given["languages"] and (given["language"] or "auto").strip().lower() not in SEVERAL_LANGUAGES:
        raise typer.BadParameter("give --language for one, or --languages for several, not both.")
    if "rttm" in formats and not (given["diarize"] or given["channels"] == "speakers"):
        raise typer.BadParameter("--output_format rttm needs --diarize, or --channels speakers.")
    if given["max_line_count"] and not given["max_line_width"]:
        raise typer.BadParameter("--max_line_count needs --max_line_width.")
    if given["max_line_count"] and given["max_segment_s"]:
        raise typer.BadParameter("--max_segment_s cannot be combined with --max_line_count.")
    _refuse_what_words_cannot_show(given, formats)


def _refuse_what_words_cannot_show(given: dict[str, Any], formats: tuple[str, ...]) -> None:
    for name in SHOWN_WITH_WORDS:
        if given[name] and not {"json", "words"} & {*formats}:
            raise typer.BadParameter(f"--{name} needs json or words among the formats.")
    without_words = {"--task translate": given["task"] == "translate", "--no_align": given["no_align"]}
    for flag in (flag for flag, is_given in without_words.items() if is_given):
        for name in ("max_line_width", "highlight_words", *SHOWN_WITH_WORDS):
            if given[name]:
                raise typer.BadParameter(f"--{name} needs word times, which {flag} does not give.")
        if "words" in formats:
            raise typer.BadParameter(f"--output_format words needs word times, which {flag} does not give.")
