"""The command line: `python -m serve_app serve | check | key | demo`.

`serve` does what `serve run` does, and more: it checks the whole file, says in one sentence why it
cannot start, and on SIGTERM or Ctrl-C finishes running requests before it stops.
"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from serve_app import bundled
from serve_app.cli import config_file
from serve_app.cli.demo import DemoFailed, note, predict_sample, show
from serve_app.cli.launcher import GRACE_S, CannotStart, free_port, running, url_of
from serve_app.deployments import USER_CONFIGS
from serve_app.http.auth import new_key
from serve_app.settings import ApiKey

DEMO_CONFIG = Path(__file__).parent.parent / "serve_config.demo.yaml"

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

ConfigPath = Annotated[Path, typer.Argument(help="A Serve config file, such as serve_config.yaml.")]


@cli.command()
def check(config: ConfigPath) -> None:
    """Checks a config file key by key, without starting anything."""
    _read(config)
    note.print(f"{config} is fine.")


@cli.command(name="serve")
def serve_forever(
    config: ConfigPath,
    grace_s: Annotated[
        float, typer.Option(min=1, help="Seconds that running requests have to end when it is stopped.")
    ] = GRACE_S,
) -> None:
    """Starts the graph and keeps it up until SIGTERM or Ctrl-C; running requests get their answers."""
    raw = _read(config)
    with _running(raw, show_logs=True, grace_s=grace_s) as stop:
        url = url_of(raw)
        note.print(f"Ready on {url} (stop with Ctrl-C). Try it:\n")
        note.print(f"  curl -s {url}/predict -F file=@{_shown(bundled.SAMPLE)}\n")
        stop.wait()
        note.print("Stopping: running requests get their answers, new ones a 503.")


@cli.command()
def key(name: Annotated[str, typer.Argument(help="Whose key it is; shown in logs.")]) -> None:
    """Makes an API key and prints it once, with the lines that make a server accept it."""
    secret, sha256 = new_key()
    try:
        ApiKey(name=name, sha256=sha256)
    except ValidationError:
        raise _failed(f"{name}: a name has 1 to 64 letters, digits, dots, dashes and underscores.") from None
    note.print("The key, which stands nowhere else:\n")
    print(secret)
    note.print(
        "\nIts lines for the config file, in args: (add max_requests or max_audio_s_per_minute to limit it)\n"
    )
    print(f'access:\n  keys:\n    - name: "{name}"\n      sha256: "{sha256}"')


@cli.command()
def demo() -> None:
    """Starts the graph on the bundled models, transcribes a sample by URL over HTTP, and stops."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = _read(DEMO_CONFIG)
        sample_host = f"127.0.0.1:{listener.getsockname()[1]}"
        raw["applications"][0]["args"]["intake"] = {"allowed_hosts": [sample_host]}
        raw["http_options"]["port"] = free_port()
        with _running(raw, show_logs=False) as stop:
            try:
                answer = asyncio.run(predict_sample(listener, url_of(raw), f"http://{sample_host}", stop))
            except DemoFailed as error:
                raise _failed(str(error)) from None
    show(answer)


def _read(config: Path) -> dict[str, Any]:
    try:
        return config_file.read(config, ServeDeploySchema, USER_CONFIGS)
    except config_file.ConfigError as error:
        raise _failed(str(error)) from None


@contextmanager
def _running(raw: dict[str, Any], *, show_logs: bool, grace_s: float = GRACE_S) -> Iterator[threading.Event]:
    try:
        with running(raw, show_logs=show_logs, grace_s=grace_s) as stop:
            yield stop
    except CannotStart as error:
        raise _failed(str(error)) from None


def _failed(sentence: str) -> typer.Exit:
    note.print(f"error: {sentence}", markup=False)
    return typer.Exit(1)


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    cli()
