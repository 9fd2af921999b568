"""The command `transcribe`, with the flags of whisperx's command line."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from serve_app.cli import note
from serve_app.cli.transcribe.batch import Interrupted, transcribe_all
from serve_app.cli.transcribe.checks import (
    FORMATS,
    SPEAKERS,
    formats,
    make_folder,
    refuse_contradictions,
    refuse_what_is_not_there,
    settings,
)
from serve_app.cli.transcribe.own_service import SETTINGS, models_beside, own_service
from serve_app.cli.transcribe.wanted import SHOWN_WITH_WORDS, Wanted, done_before
from serve_app.cli.transcribe.writers import ALL, Layout

INTERRUPTED = 130

# Flags that are options of the service's requests.
AUDIO = ("channels", "start_s", "end_s", "track", "encoding", "sample_rate", "channel_count")
DECODING = ("initial_prompt", "hotwords", "temperature", "temperature_inc", "beam_size", "suppress_numerals")
SEGMENTS = ("vad_onset", "vad_offset", "vad_min_silence_s", "max_segment_s")
OPTIONS = (
    "language",
    "languages",
    "task",
    *AUDIO,
    "diarize",
    *SPEAKERS,
    *DECODING,
    *SEGMENTS,
    *SHOWN_WITH_WORDS,
)


def _options_of(panel: str | None) -> Any:
    """Makes options of one panel of the help."""
    return partial(typer.Option, rich_help_panel=panel)


_general, _speech, _subtitles = _options_of(None), _options_of("Recognition"), _options_of("Subtitles")
_audio = _options_of("Audio")
_local = _options_of("The service that is started where no --server is given")


def transcribe(
    paths: Annotated[
        list[str] | None, typer.Argument(help="Files, URLs and folders; all audio and video in a folder.")
    ] = None,
    server: Annotated[
        str | None,
        _general(
            "--server",
            envvar="WHISPERX_URL",
            help="URL of a running service; without it, one is started for this run.",
        ),
    ] = None,
    api_key: Annotated[
        str | None, _general("--api-key", envvar="WHISPERX_API_KEY", help="API key of that service.")
    ] = None,
    output_format: Annotated[
        list[str] | None,
        _general(
            "--output_format",
            "-f",
            help=f"With commas: {', '.join(FORMATS)}; or all, the default: {', '.join(ALL)}.",
        ),
    ] = None,
    output_dir: Annotated[Path, _general("--output_dir", "-o", help="Folder for the outputs.")] = Path(),
    jobs: Annotated[
        int, _general("--jobs", min=1, max=256, help="How many files to transcribe at the same time.")
    ] = 4,
    watch: Annotated[
        Path | None,
        _general(
            "--watch",
            exists=True,
            file_okay=False,
            help="Keeps running and transcribes files added to this folder.",
        ),
    ] = None,
    task: Annotated[
        Literal["transcribe", "translate"], _speech("--task", help="translate: into English.")
    ] = "transcribe",
    language: Annotated[
        str | None,
        _speech(
            "--language",
            help="Code or name, such as de; multiple. Without it, it is detected.",
        ),
    ] = None,
    languages: Annotated[
        str | None, _speech("--languages", help="The only languages that are spoken, with commas: de,en.")
    ] = None,
    channels: Annotated[
        Literal["mix", "speakers"] | None, _audio("--channels", help="speakers: one in each channel.")
    ] = None,
    start_s: Annotated[float | None, _audio("--start_s", min=0, help="Where to begin, in seconds.")] = None,
    end_s: Annotated[float | None, _audio("--end_s", min=0, help="Where to end, in seconds.")] = None,
    track: Annotated[int | None, _audio("--track", min=0, help="Which sound track, from 0.")] = None,
    encoding: Annotated[
        str | None, _audio("--encoding", help="Of samples without a header, such as s16le.")
    ] = None,
    sample_rate: Annotated[int | None, _audio("--sample_rate", help="Of such samples, in Hz.")] = None,
    channel_count: Annotated[int | None, _audio("--channel_count", help="Of such samples.")] = None,
    diarize: Annotated[bool, _speech("--diarize", help="Label speakers.")] = False,
    num_speakers: Annotated[int | None, _speech("--num_speakers", min=1, help="Exactly this many.")] = None,
    min_speakers: Annotated[int | None, _speech("--min_speakers", min=1, help="At least this many.")] = None,
    max_speakers: Annotated[int | None, _speech("--max_speakers", min=1, help="At most this many.")] = None,
    embeddings: Annotated[
        bool, _speech("--speaker_embeddings", help="Add each speaker's voice as a vector to json.")
    ] = False,
    initial_prompt: Annotated[
        str | None, _speech("--initial_prompt", help="Text whose style and spellings are followed.")
    ] = None,
    hotwords: Annotated[str | None, _speech("--hotwords", help="Words to expect, such as names.")] = None,
    temperature: Annotated[
        float | None, _speech("--temperature", min=0, max=1, help="Above 0: sample instead of searching.")
    ] = None,
    temperature_inc: Annotated[
        float | None,
        _speech("--temperature_inc", min=0, max=1, help="Bad text is retried at so much more; 0: never."),
    ] = None,
    beam_size: Annotated[
        int | None, _speech("--beam_size", min=1, max=20, help="Beam width of the search for text.")
    ] = None,
    suppress_numerals: Annotated[
        bool | None,
        _speech("--suppress_numerals", help="Write numbers as words, without digits and % $ £ €."),
    ] = None,
    confidence: Annotated[
        bool | None, _speech("--confidence", help="Add the recogniser's confidence to words in json.")
    ] = None,
    vad_onset: Annotated[
        float | None, _speech("--vad_onset", help="Speech starts above this probability.")
    ] = None,
    vad_offset: Annotated[
        float | None, _speech("--vad_offset", help="Speech ends below this probability.")
    ] = None,
    vad_min_silence_s: Annotated[
        float | None,
        _speech("--vad_min_silence_s", min=0, help="Shorter silences do not end a stretch of speech."),
    ] = None,
    max_segment_s: Annotated[
        float | None, _speech("--max_segment_s", min=1, help="Longest segment, in seconds.")
    ] = None,
    no_align: Annotated[bool, _speech("--no_align", help="Leave out word times, which is faster.")] = False,
    char_timestamps: Annotated[
        bool | None,
        _speech(
            "--char_timestamps", "--return_char_alignments", help="Times of characters, as `chars` in json."
        ),
    ] = None,
    max_line_width: Annotated[
        int | None, _subtitles("--max_line_width", min=1, help="Longest line, in characters.")
    ] = None,
    max_line_count: Annotated[
        int | None, _subtitles("--max_line_count", min=1, help="Most lines; needs --max_line_width.")
    ] = None,
    highlight_words: Annotated[
        bool, _subtitles("--highlight_words", help="Underline each word while it is spoken.")
    ] = False,
    model: Annotated[
        str | None,
        _general(
            "--model",
            help="Whisper model: a name such as large-v3, or a folder; with --server, one that it has.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        _local("--config", exists=True, dir_okay=False, help="Config file. Without it, the demo's."),
    ] = None,
    model_dir: Annotated[Path | None, _local("--model_dir", help="Folder of the models.")] = None,
    device: Annotated[str | None, _local("--device", help="auto, cpu or cuda.")] = None,
    compute_type: Annotated[str | None, _local("--compute_type", help="int8, float16, float32, ...")] = None,
    chunk_size: Annotated[
        float | None, _local("--chunk_size", help="Longest piece of speech, in seconds.")
    ] = None,
    vad_method: Annotated[str | None, _local("--vad_method", help="pyannote or silero.")] = None,
    diarize_model: Annotated[
        str | None, _local("--diarize_model", help="Model for speakers: a name or a folder.")
    ] = None,
) -> None:
    """Transcribes files, URLs and folders into text and subtitles, with the flags of whisperx.

    A repeated run skips finished files and continues with the rest.

    Exit codes: 0 all done, 1 some failed, 2 wrong usage, 130 stopped.
    """
    given = dict(locals())
    chosen = {name: given[name] for name in SETTINGS if given[name] is not None}
    options = {name: given[name] for name in OPTIONS if given[name] is not None}
    options |= {"align": False} if no_align else {}
    options |= {"word_timestamps": True} if confidence or char_timestamps else {}  # what they need
    options |= {"embeddings": True} if embeddings else {}
    if model and (server or model in models_beside(config)):
        options["model"] = chosen.pop("model")
    wanted_formats = formats(output_format or ["all"])
    refuse_contradictions(given, wanted_formats)
    for_own_service = ["config"] * bool(config) + [*chosen]
    if server and for_own_service:
        name = for_own_service[0]
        raise typer.BadParameter(f"--{name} is for a service that is started here; leave out --server.")
    for path in paths or ():
        refuse_what_is_not_there(path)

    layout = Layout(max_line_width, max_line_count, highlight_words)
    wanted = Wanted(
        options,
        wanted_formats,
        layout,
        output_dir,
        jobs,
        has_words=task == "transcribe" and not no_align,
        settings=settings(config, chosen),
    )
    make_folder(output_dir)
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
