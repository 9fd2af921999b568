"""The command line: `python -m serve_app serve | check | demo`.

`serve` does what `serve run` does, and more: it checks the whole file, says in one sentence why it
cannot start, and on SIGTERM or Ctrl-C finishes running requests before it stops.
"""

import asyncio
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import aiohttp
import ray
import typer
from aiohttp import web
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema
from rich.console import Console
from rich.table import Table

from serve_app import bundled, config_file, models
from serve_app.deployments import BatchConfig
from serve_app.errors import ModelUnavailable
from serve_app.settings import Settings

DEMO_CONFIG = Path(__file__).parent.parent / "serve_config.demo.yaml"
GRACE_S = 30.0  # how long running requests may take to end after SIGTERM
PROGRESS_S = 2.0  # waits longer than this are explained

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
note = Console(stderr=True, highlight=False, soft_wrap=True)

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
        with _graph(raw, show_logs=False):
            answer = asyncio.run(_predict_sample(listener, _url(raw), f"http://{sample_host}"))
    _show(answer)


def _read(config: Path) -> dict[str, Any]:
    try:
        return config_file.read(config, ServeDeploySchema, BatchConfig)
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


class _Waiting:
    """Says on stderr what is being waited for, as soon as it takes over two seconds, and when it changes."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._said_s = self._begun_s
        self._said: str | None = None

    def on(self, what: str) -> None:
        now_s = time.monotonic()
        overdue = now_s - self._said_s >= (PROGRESS_S if what != self._said else 5 * PROGRESS_S)
        if now_s - self._begun_s >= PROGRESS_S and overdue:
            note.print(f"  {now_s - self._begun_s:3.0f} s  waiting for {what}")
            self._said, self._said_s = what, now_s


@contextmanager
def _graph(raw: dict[str, Any], *, show_logs: bool) -> Iterator[threading.Event]:
    """Ray and the application up and ready; on leaving drained and gone. Yields the stop event."""
    stop = threading.Event()
    address = os.environ.get("RAY_ADDRESS", "local")
    # Serve logs every inner call at INFO; whoever wants that sets logging_config.
    raw.setdefault("logging_config", {"log_level": "WARNING"})
    schema = ServeDeploySchema.model_validate(raw)
    if address == "local":
        _refuse_missing_models(schema)
        note.print("Starting Ray and the graph.")
    else:
        note.print(f"Connecting to Ray at {address}.")
    ray.init(
        address=address,
        namespace="serve",
        logging_level=logging.ERROR,
        log_to_driver=show_logs,
        **({"include_dashboard": False} if address == "local" else {}),
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
        serve.shutdown()
        ray.shutdown()


def _refuse_missing_models(schema: ServeDeploySchema) -> None:
    """What the builder will find out too, before anything is started for it."""
    for application in schema.applications:
        try:
            models.resolve(Settings.model_validate(application.args))
        except ModelUnavailable as error:
            raise _failed(error.message) from None


def _wait_until_running(names: list[str], stop: threading.Event) -> None:
    waiting = _Waiting()
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


async def _predict_sample(listener: socket.socket, url: str, sample_url: str) -> dict[str, Any]:
    """Serves the sample over HTTP and posts its URL to the graph."""

    async def sample(_: web.Request) -> web.FileResponse:
        return web.FileResponse(bundled.SAMPLE)

    site = web.Application()
    site.router.add_get(f"/{bundled.SAMPLE.name}", sample)
    runner = web.AppRunner(site)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    body = {"audio_file": f"{sample_url}/{bundled.SAMPLE.name}"}
    note.print(f"POST {url}/predict {json.dumps(body)}")
    waiting = _Waiting()
    try:
        async with aiohttp.ClientSession() as session:
            request = asyncio.create_task(_post(session, f"{url}/predict", body))
            while not (await asyncio.wait([request], timeout=0.2))[0]:
                waiting.on("the answer")
            return request.result()
    finally:
        await runner.cleanup()


async def _post(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(url, json=body) as response:
        answer: dict[str, Any] = await response.json()
        if response.status != 200:
            raise _failed(f"{response.status}: {answer['error']['message']}")
        return answer


def _show(answer: dict[str, Any]) -> None:
    table = Table("start", "end", "speaker", "text", title="Gettysburg Address, two synthesized voices")
    for segment in answer["model_output"]:
        table.add_row(
            f"{segment['start']:.2f}",
            f"{segment['end']:.2f}",
            segment["speaker"] or "",
            segment["text"].strip(),
        )
    output = Console(file=sys.stdout)
    output.print(table)
    output.print(
        "These are the bundled demo models: small, trained on synthesized speech, with wrong words. "
        "The README says how to use real ones.\n"
    )
    print(json.dumps(answer, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    cli()
