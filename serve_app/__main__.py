"""The command line: `python -m serve_app serve | check | demo`.

`serve` does what `serve run` does, and more: it checks the whole file, says in one sentence why it
cannot start, and on SIGTERM or Ctrl-C finishes running requests before it stops.
"""

import asyncio
import io
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import ray
import typer
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from serve_app import bundled, config_file, models
from serve_app.demo import DemoFailed, Waiting, note, predict_sample, show
from serve_app.deployments import USER_CONFIGS
from serve_app.errors import ModelUnavailable
from serve_app.settings import Settings

DEMO_CONFIG = Path(__file__).parent.parent / "serve_config.demo.yaml"
GRACE_S = 30.0  # how long running requests may take to end after SIGTERM

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

ConfigPath = Annotated[Path, typer.Argument(help="A Serve config file, such as serve_config.yaml.")]


@cli.command()
def check(config: ConfigPath) -> None:
    """Checks a config file key by key, without starting anything."""
    _read(config)
    note.print(f"{config} is fine.")


@cli.command(name="serve")
def serve_forever(config: ConfigPath) -> None:
    """Starts the graph and keeps it up until SIGTERM or Ctrl-C; running requests get their answers."""
    raw = _read(config)
    with _graph(raw, show_logs=True) as stop:
        url = _url(raw)
        note.print(f"Ready on {url} (stop with Ctrl-C). Try it:\n")
        note.print(f"  curl -s {url}/predict -F file=@{_shown(bundled.SAMPLE)}\n")
        stop.wait()
        note.print("Stopping: running requests get their answers, new ones a 503.")


@cli.command()
def demo() -> None:
    """Starts the graph on the bundled models, transcribes a sample by URL over HTTP, and stops."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        raw = _read(DEMO_CONFIG)
        sample_host = f"127.0.0.1:{listener.getsockname()[1]}"
        raw["applications"][0]["args"]["intake"] = {"allowed_hosts": [sample_host]}
        raw["http_options"]["port"] = _free_port()
        with _graph(raw, show_logs=False) as stop:
            try:
                answer = asyncio.run(predict_sample(listener, _url(raw), f"http://{sample_host}", stop))
            except DemoFailed as error:
                raise _failed(str(error)) from None
    show(answer)


def _read(config: Path) -> dict[str, Any]:
    try:
        return config_file.read(config, ServeDeploySchema, USER_CONFIGS)
    except config_file.ConfigError as error:
        raise _failed(str(error)) from None


def _failed(sentence: str) -> typer.Exit:
    note.print(f"error: {sentence}", markup=False)
    return typer.Exit(1)


def _url(raw: dict[str, Any]) -> str:
    http = raw.get("http_options") or {}
    host = http.get("host", "0.0.0.0")  # noqa: S104  (Serve's default, shown, not bound here)
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{http.get('port', 8000)}"  # noqa: S104


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextmanager
def _graph(raw: dict[str, Any], *, show_logs: bool) -> Iterator[threading.Event]:
    """A local Ray and the application up and ready; on leaving drained and gone. Yields the stop event."""
    stop = threading.Event()
    # Serve logs every inner call at INFO; whoever wants that sets logging_config.
    raw.setdefault("logging_config", {"log_level": "WARNING"})
    schema = ServeDeploySchema.model_validate(raw)
    _refuse_missing_models(schema)
    _refuse_taken_port(schema.http_options.host, schema.http_options.port)
    note.print("Starting Ray and the graph.")
    # A Ray of its own, whatever RAY_ADDRESS says: stopping it must not stop anybody else's.
    ray.init(
        address="local",
        namespace="serve",
        logging_level=logging.ERROR,
        log_to_driver=show_logs,
        include_dashboard=False,
    )

    def on_signal(signum: int, frame: FrameType | None) -> None:
        stop.set()

    for signum in (signal.SIGTERM, signal.SIGINT):  # after ray.init, which sets handlers of its own
        signal.signal(signum, on_signal)
    try:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(
            proxy_location=schema.proxy_location,
            http_options=schema.http_options.model_dump(),
            logging_config=schema.logging_config,
        )
        client = _get_global_client()
        assert client is not None
        client.deploy_apps(schema)
        _wait_until_running([application.name for application in schema.applications], stop)
        yield stop
        _drain([application.name for application in schema.applications])
    finally:
        # Ray prints errors about its own controller, which it has just killed; they are not for users.
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            serve.shutdown()
            ray.shutdown()


def _refuse_missing_models(schema: ServeDeploySchema) -> None:
    """What the builder will find out too, before anything is started for it."""
    for application in schema.applications:
        try:
            models.resolve(Settings.model_validate(application.args))
        except ModelUnavailable as error:
            raise _failed(error.message) from None


def _refuse_taken_port(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise _failed(
            f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); set http_options.port."
        ) from None


def _wait_until_running(names: list[str], stop: threading.Event) -> None:
    waiting = Waiting()
    while not stop.wait(0.2):
        applications = serve.status().applications
        missing = []
        for name in names:
            application = applications[name]
            if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                details = [deployment.message for deployment in application.deployments.values()]
                raise _failed(_reason([*details, application.message]))
            if application.status != ApplicationStatus.RUNNING:
                late = [n for n, d in application.deployments.items() if d.status != "HEALTHY"]
                missing += late or ["the graph to be built"]
        if not missing:
            return
        waiting.on(f"{', '.join(missing)} (models are being loaded)")
    raise _failed("stopped before the graph was up.")


def _reason(messages: list[str]) -> str:
    """Our own sentence where a traceback ends in one, else everything there is."""
    for line in "\n".join(messages).splitlines():
        for marker in ("ModelUnavailable: ", "Value error, "):
            if marker in line:
                return line.split(marker, 1)[1]
    return "the graph did not start.\n" + "\n".join(message for message in messages if message)


def _drain(names: list[str]) -> None:
    for name in names:
        handle = serve.get_app_handle(name)
        if not handle.drain.remote(GRACE_S).result(timeout_s=GRACE_S + 5):
            note.print(f"{name}: some requests were still running after {GRACE_S:g} s.")


if __name__ == "__main__":
    cli()
