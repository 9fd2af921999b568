"""The command line: `python -m serve_app serve | check | settings | prefetch | key | webhook-secret | jobs |
demo`.

`serve` does what `serve run` does, and more: it checks the whole file, says in one sentence why it cannot
start, and finishes running requests when it is stopped.
"""

import asyncio
import socket
import sys
from pathlib import Path
from typing import Annotated

import ray
import typer
from pydantic import ValidationError

from serve_app.cli import config_file, note
from serve_app.cli.demo import predict_sample, sample, show
from serve_app.cli.jobs import jobs
from serve_app.cli.launcher import GRACE_S, free_port, running, url_of
from serve_app.cli.prefetch import prefetch
from serve_app.http.auth import new_key
from serve_app.jobs.signatures import VARIABLE, new_secret
from serve_app.settings import ApiKey

DEMO_CONFIG = Path(__file__).parent.parent / "serve_config.demo.yaml"

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

cli.command()(prefetch)
cli.add_typer(jobs, name="jobs")

ConfigPath = Annotated[Path, typer.Argument(help="A Serve config file, such as serve_config.yaml.")]


@cli.command()
def check(config: ConfigPath) -> None:
    """Checks a config file key by key, without starting anything."""
    config_file.read(config)
    note.print(f"{config} is fine.")


@cli.command()
def settings() -> None:
    """Lists every setting of `args:` with its default and description, as a Markdown table."""
    print(config_file.settings_table())


@cli.command(name="serve")
def serve_forever(
    config: ConfigPath,
    grace_s: Annotated[
        float, typer.Option(min=1, help="How many seconds running requests may take to end when it stops.")
    ] = GRACE_S,
) -> None:
    """Starts the service and runs it until SIGTERM or Ctrl-C; running requests get their answers."""
    raw = config_file.read(config)
    with running(raw, show_logs=True, grace_s=grace_s) as stop:
        example = f"curl -s {url_of(raw)}/predict -F file=@{sample()}"
        address = ray.get_runtime_context().gcs_address
        note.print(f"Ready on {url_of(raw)}, Ray on {address} (stop with Ctrl-C). Try it:\n\n  {example}\n")
        stop.wait()
        note.print("Stopping: running requests get their answers, new ones a 503.")


@cli.command()
def key(name: Annotated[str, typer.Argument(help="Whose key it is; shown in logs.")]) -> None:
    """Makes an API key and prints it once, with the lines that make a server accept it."""
    secret, sha256 = new_key()
    try:
        ApiKey(name=name, sha256=sha256)
    except ValidationError:
        raise typer.BadParameter("a name has 1 to 64 letters, digits, dots, dashes and underscores") from None
    note.print("The key; it is stored nowhere, so keep it:\n")
    print(secret)
    note.print("\nIts lines for args: in the config file (docs/deploy.md has limits that a key can have):\n")
    print(f'access:\n  keys:\n    - name: "{name}"\n      sha256: "{sha256}"')


@cli.command()
def webhook_secret() -> None:
    """Makes a secret that signs webhooks, and prints it once."""
    note.print("The secret, for the server and for receivers; it is stored nowhere, so keep it:\n")
    print(new_secret())
    note.print(
        f"\nPut it into ${VARIABLE} of the server, in front of older ones, or first into the file "
        "that jobs.webhooks.secrets_file names."
    )


@cli.command()
def demo() -> None:
    """Starts the service with serve_config.demo.yaml, transcribes a sample by URL over HTTP, and stops."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = config_file.read(DEMO_CONFIG)
        sample_host = f"127.0.0.1:{listener.getsockname()[1]}"
        raw["applications"][0]["args"]["intake"] = {"allowed_hosts": [sample_host]}
        raw["applications"][0]["args"]["jobs"] = {"store": "off"}  # a demo keeps nothing
        raw["http_options"]["port"] = free_port()
        with running(raw, show_logs=False) as stop:
            answer = asyncio.run(predict_sample(listener, url_of(raw), f"http://{sample_host}", stop))
    show(answer)


if __name__ == "__main__":
    try:
        cli()
    except config_file.CommandFailed as error:
        note.print(f"error: {error}", markup=False)
        sys.exit(1)
