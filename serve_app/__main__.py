"""The command line: `whisperx-serve`, or `python -m serve_app`.

The command `serve` does what Ray's `serve run` does, and more: it checks the whole file, prints in one
sentence why it cannot start, and finishes running requests when it is stopped.

`transcribe` works where only the base package is installed. The other commands need the extra `server`, and
import it when they run.
"""

import asyncio
import socket
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from serve_app.cli import GRACE_S, INSTALL, CommandFailed, ConfigPath, note
from serve_app.cli.doctor.command import doctor
from serve_app.cli.jobs import jobs
from serve_app.cli.prefetch import prefetch
from serve_app.cli.transcribe.command import transcribe
from serve_app.cli.transcribe.flags import WhisperxCommand

_USE, _RUN, _PREPARE = "Transcribe", "Run a service", "Set up and maintain a service"

_EXAMPLES = """Examples:

  whisperx-serve demo
  whisperx-serve transcribe talk.mp3 --diarize
  whisperx-serve serve serve_config.yaml
  whisperx-serve COMMAND --help"""

_OF_TRANSCRIBE = """Examples:

  whisperx-serve transcribe talk.mp3 --diarize
  whisperx-serve transcribe recordings/ -o texts/ -f srt,txt --server http://127.0.0.1:8000
  whisperx-serve transcribe --watch inbox/ -o texts/"""

_OF_DOCTOR = """Examples:

  whisperx-serve doctor serve_config.yaml
  whisperx-serve doctor serve_config.yaml --json"""

_OF_PREFETCH = """Examples:

  whisperx-serve prefetch base speakers
  whisperx-serve prefetch large-v3 --language de"""

cli = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Speech to text with word times and speakers: transcribes files, or runs WhisperX as a service.",
    epilog=_EXAMPLES,
)

cli.command(cls=WhisperxCommand, rich_help_panel=_USE, epilog=_OF_TRANSCRIBE)(transcribe)


@cli.command(name="serve", rich_help_panel=_RUN)
def serve_forever(
    config: ConfigPath,
    grace_s: Annotated[
        float, typer.Option(min=1, help="When it is stopped, running requests have this many seconds to end.")
    ] = GRACE_S,
    metrics_port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="For Prometheus, on all interfaces; 0: a free port."),
    ] = 0,
) -> None:
    """Starts the service and runs it until it is stopped, by Ctrl-C or SIGTERM.

    Requests that are running then still get their answers.
    """
    import ray

    from serve_app.cli import config_file
    from serve_app.cli.demo import sample
    from serve_app.cli.launcher import running, url_of
    from serve_app.cli.local_ray import metrics_url

    raw = config_file.read(config)
    with running(raw, show_logs=True, grace_s=grace_s, metrics_port=metrics_port) as stop:
        example = f"curl -s {url_of(raw)}/predict -F file=@{sample()}"
        address = ray.get_runtime_context().gcs_address
        note.print(f"Metrics: {metrics_url()}")
        note.print(f"Ready on {url_of(raw)}, Ray on {address} (stop with Ctrl-C). Try it:\n\n  {example}\n")
        stop.wait()
        note.print("Stopping: running requests get their answers, new ones a 503.")


@cli.command(rich_help_panel=_RUN)
def demo() -> None:
    """Tries the service out: starts a small one, transcribes a sample of half a minute, and stops.

    It needs no GPU, and downloads 180 MB of models if they are not on this machine yet.
    """
    from serve_app.cli import config_file
    from serve_app.cli.demo import predict_sample, show
    from serve_app.cli.launcher import free_port, running, url_of

    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = config_file.read(config_file.DEMO_CONFIG)
        sample_host = f"127.0.0.1:{listener.getsockname()[1]}"
        raw["applications"][0]["args"]["intake"] = {"allowed_hosts": [sample_host]}
        raw["applications"][0]["args"]["jobs"] = {"store": "off"}  # a demo keeps nothing
        raw["http_options"]["port"] = free_port()
        with running(raw, show_logs=False) as stop:
            answer = asyncio.run(predict_sample(listener, url_of(raw), f"http://{sample_host}", stop))
    show(answer)


@cli.command(rich_help_panel=_PREPARE)
def check(config: ConfigPath) -> None:
    """Checks a config file and names the first key that is wrong; starts nothing."""
    from serve_app.cli import config_file

    config_file.read(config)
    note.print(f"{config} is fine.")


cli.command(rich_help_panel=_PREPARE, epilog=_OF_DOCTOR)(doctor)


@cli.command(rich_help_panel=_PREPARE)
def settings() -> None:
    """Prints all settings of a config file, with their defaults, as a Markdown table."""
    from serve_app.cli import config_file

    print(config_file.settings_table())


@cli.command(rich_help_panel=_PREPARE)
def key(name: Annotated[str, typer.Argument(help="The user of the key; logs show this name.")]) -> None:
    """Makes an API key, and prints it with the lines for the config file that make a service accept it.

    The key itself is stored nowhere; the config file has its hash only.
    """
    from pydantic import ValidationError

    from serve_app.http.auth import new_key
    from serve_app.settings.access import ApiKey

    secret, sha256 = new_key()
    try:
        ApiKey(name=name, sha256=sha256)
    except ValidationError:
        raise typer.BadParameter("a name has 1 to 64 letters, digits, dots, dashes and underscores") from None
    note.print("The key; it is stored nowhere, so keep it:\n")
    print(secret)
    note.print("\nIts lines for args: in the config file (docs/deploy.md has limits that a key can have):\n")
    print(f'access:\n  keys:\n    - name: "{name}"\n      sha256: "{sha256}"')


@cli.command(rich_help_panel=_PREPARE)
def webhook_secret() -> None:
    """Makes a secret for signing webhooks, and prints it; it is stored nowhere."""
    from serve_app.jobs.webhooks.signatures import VARIABLE, new_secret

    note.print("The secret, for the server and for receivers; it is stored nowhere, so keep it:\n")
    print(new_secret())
    note.print(
        f"\nPut it into ${VARIABLE} of the server, in front of older ones, or first into the file "
        "that jobs.webhooks.secrets_file names."
    )


cli.command(rich_help_panel=_PREPARE, epilog=_OF_PREFETCH)(prefetch)
cli.add_typer(jobs, name="jobs", rich_help_panel=_PREPARE)


@cli.command(
    name="eval",
    rich_help_panel=_PREPARE,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def evaluate(context: typer.Context) -> None:
    """Measures the errors of a service next to those of plain whisperx.

    It needs a checkout of the project. `whisperx-serve eval --help` there lists its options.
    """
    if find_spec("benchmarks") is None:
        raise CommandFailed("eval needs the folder benchmarks of the project's repository; run it there.")
    measure = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    measure.command()(import_module("benchmarks.evaluate").main)
    measure(context.args, prog_name="whisperx-serve eval")


def main() -> None:
    """Runs a command; prints in one sentence why it cannot work."""
    exit_code = 1
    try:
        cli(prog_name="whisperx-serve")
    except CommandFailed as error:
        note.print(f"error: {error}", markup=False)
        exit_code = error.exit_code
    except ModuleNotFoundError as error:
        if find_spec("ray"):
            raise
        note.print(
            f"error: this command needs the server's packages ({error.name} is missing): {INSTALL}.",
            markup=False,
        )
    sys.exit(exit_code)


if __name__ == "__main__":
    main()
