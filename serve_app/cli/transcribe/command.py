"""The command `transcribe`, with the flags of whisperx's command line."""

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from serve_app.cli import note
from serve_app.cli.transcribe.batch import Interrupted, transcribe_all
from serve_app.cli.transcribe.own_service import SETTINGS, own_service
from serve_app.cli.transcribe.wanted import Wanted, done_before
from serve_app.cli.transcribe.writers import ALL, WRITERS, Layout
from serve_app.client.calls import is_url

FORMATS = (*WRITERS, "rttm", "words")
INTERRUPTED = 130

# Of the service.
SPEAKERS = ("num_speakers", "min_speakers", "max_speakers")
OPTIONS = ("language", "task", "diarize", *SPEAKERS, "initial_prompt", "hotwords", "temperature")

_LOCAL, _ALL_FILES, _SUBTITLES = "Without --server", "What is heard", "Subtitles"


def _option(*names: str, panel: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, **more)


def transcribe(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files, URLs, and folders, of which all audio is taken.")
    ] = None,
    server: Annotated[
        str | None,
        _option("--server", envvar="WHISPERX_URL", help="URL of a service. Else one is started meanwhile."),
    ] = None,
    api_key: Annotated[
        str | None, _option("--api-key", envvar="WHISPERX_API_KEY", help="Its API key, if it has any.")
    ] = None,
    output_format: Annotated[
        str, _option("--output_format", "-f", help=f"Some of {', '.join(FORMATS)}, or all: {', '.join(ALL)}.")
    ] = "all",
    output_dir: Annotated[Path, _option("--output_dir", "-o", help="Where the files are written.")] = Path(),
    jobs: Annotated[int, _option("--jobs", min=1, max=256, help="Files at work at once.")] = 4,
    watch: Annotated[
        Path | None,
        _option("--watch", exists=True, file_okay=False, help="Goes on with what comes into this folder."),
    ] = None,
    task: Annotated[
        Literal["transcribe", "translate"], _option("--task", panel=_ALL_FILES, help="Into English?")
    ] = "transcribe",
    language: Annotated[
        str | None, _option("--language", panel=_ALL_FILES, help="Code or name. Else it is detected.")
    ] = None,
    diarize: Annotated[bool, _option("--diarize", panel=_ALL_FILES, help="Label speakers.")] = False,
    num_speakers: Annotated[int | None, _option("--num_speakers", panel=_ALL_FILES, min=1)] = None,
    min_speakers: Annotated[int | None, _option("--min_speakers", panel=_ALL_FILES, min=1)] = None,
    max_speakers: Annotated[int | None, _option("--max_speakers", panel=_ALL_FILES, min=1)] = None,
    initial_prompt: Annotated[
        str | None, _option("--initial_prompt", panel=_ALL_FILES, help="Text whose style is followed.")
    ] = None,
    hotwords: Annotated[str | None, _option("--hotwords", panel=_ALL_FILES, help="Words to expect.")] = None,
    temperature: Annotated[float | None, _option("--temperature", panel=_ALL_FILES, min=0, max=1)] = None,
    max_line_width: Annotated[
        int | None, _option("--max_line_width", panel=_SUBTITLES, min=1, help="Characters in a line.")
    ] = None,
    max_line_count: Annotated[
        int | None, _option("--max_line_count", panel=_SUBTITLES, min=1, help="Lines of a subtitle.")
    ] = None,
    highlight_words: Annotated[
        bool, _option("--highlight_words", panel=_SUBTITLES, help="Underline words as they are spoken.")
    ] = False,
    config: Annotated[
        Path | None, _option("--config", panel=_LOCAL, help="Config file. Else that of the demo.")
    ] = None,
    no_align: Annotated[bool, _option("--no_align", panel=_LOCAL, help="No word times.")] = False,
    model: Annotated[str | None, _option("--model", panel=_LOCAL)] = None,
    model_dir: Annotated[Path | None, _option("--model_dir", panel=_LOCAL)] = None,
    device: Annotated[str | None, _option("--device", panel=_LOCAL)] = None,
    compute_type: Annotated[str | None, _option("--compute_type", panel=_LOCAL)] = None,
    beam_size: Annotated[int | None, _option("--beam_size", panel=_LOCAL)] = None,
    chunk_size: Annotated[float | None, _option("--chunk_size", panel=_LOCAL)] = None,
    vad_method: Annotated[str | None, _option("--vad_method", panel=_LOCAL)] = None,
    vad_onset: Annotated[float | None, _option("--vad_onset", panel=_LOCAL)] = None,
    vad_offset: Annotated[float | None, _option("--vad_offset", panel=_LOCAL)] = None,
    diarize_model: Annotated[str | None, _option("--diarize_model", panel=_LOCAL)] = None,
) -> None:
    """Transcribes files as the command `whisperx` does; run again, it goes on where it was.

    Exit codes: 0 all done, 1 some failed, 2 wrong usage, 130 stopped.
    """
    given = dict(locals())
    chosen = {name: given[name] for name in SETTINGS if given[name] is not None}
    formats = _formats(output_format)
    _refuse_contradictions(given, formats)
    for name in ("config", *(("no_align",) if no_align else ()), *chosen):
        if server and given[name]:
            raise typer.BadParameter(f"--{name} is for a service that is started here; leave out --server.")
    for path in paths or ():
        if not is_url(path) and not Path(path).exists():
            raise typer.BadParameter(f"{path}: there is no such file or folder.")
    options = {name: given[name] for name in OPTIONS if given[name] is not None}
    layout = Layout(max_line_width, max_line_count, highlight_words)
    wanted = Wanted(
        options, formats, layout, output_dir, jobs, has_words=task == "transcribe" and not no_align
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    tally = None if watch else done_before(wanted, paths or ())
    try:
        if tally:
            pass
        elif server:
            tally = asyncio.run(transcribe_all(server, api_key, wanted, paths or (), watch))
        else:
            own = own_service(config, chosen, is_aligning=not no_align, is_diarizing=diarize, jobs=jobs)
            with own as (url, stop):
                tally = asyncio.run(transcribe_all(url, None, wanted, paths or (), watch, stop))
    except (Interrupted, KeyboardInterrupt):
        note.print("Stopped. The same command goes on from here.")
        raise typer.Exit(INTERRUPTED) from None
    note.print(tally.summary())
    raise typer.Exit(1 if tally.failed else 0)


def _formats(asked: str) -> tuple[str, ...]:
    formats = tuple(dict.fromkeys(ALL if asked == "all" else (one.strip() for one in asked.split(","))))
    for one in formats:
        if one not in FORMATS:
            raise typer.BadParameter(f"--output_format: {one!r} is none of all, {', '.join(FORMATS)}.")
    return formats


def _refuse_contradictions(given: dict[str, Any], formats: tuple[str, ...]) -> None:
    if not (given["paths"] or given["watch"]):
        raise typer.BadParameter("name files, URLs or folders, or a folder to --watch.")
    for name in SPEAKERS:
        if given[name] and not given["diarize"]:
            raise typer.BadParameter(f"--{name} needs --diarize.")
    if "rttm" in formats and not given["diarize"]:
        raise typer.BadParameter("--output_format rttm needs --diarize.")
    if given["max_line_count"] and not given["max_line_width"]:
        raise typer.BadParameter("--max_line_count needs --max_line_width.")
    for flag in ("--task translate", "--no_align"):
        if not (given["no_align"] if flag == "--no_align" else given["task"] == "translate"):
            continue
        for name in ("max_line_width", "highlight_words"):
            if given[name]:
                raise typer.BadParameter(f"--{name} needs word times, which {flag} does not give.")
        if "words" in formats:
            raise typer.BadParameter(f"--output_format words needs word times, which {flag} does not give.")
