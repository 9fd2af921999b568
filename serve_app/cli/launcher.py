"""Runs the applications of a config file on a local Ray: starts, waits until ready, drains and stops them."""

import fcntl
import io
import logging
import os
import random
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema
from rich.console import Console

from serve_app.cli.config_file import IMPORT_PATH, CommandFailed
from serve_app.errors import ModelUnavailable
from serve_app.models import hub
from serve_app.models import names as model_names
from serve_app.models.names import Models
from serve_app.proxy import AT_PROXY_START, PROXY_HOOK
from serve_app.settings import Settings

SPILL_PREFIX = "whisperx-serve-spill-"
PORTS = range(20_000, 32_000)  # above are ports of outgoing connections, below those of Ray's workers
GRACE_S = 30.0  # how long running requests may take to end after SIGTERM

# Set for the local Ray unless the operator has set them; docs/deploy.md gives the reasons.
ENVIRONMENT = {
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    "MALLOC_ARENA_MAX": "1",
    PROXY_HOOK: AT_PROXY_START,
}

note = Console(stderr=True, highlight=False, soft_wrap=True)


def url_of(raw: dict[str, Any]) -> str:
    """Where the service of this config file answers."""
    http = ServeDeploySchema.model_validate(raw).http_options
    return f"http://{http.host.replace('0.0.0.0', '127.0.0.1')}:{http.port}"  # noqa: S104  (shown, not bound)


def free_port() -> int:
    """A loopback port that nobody listens on and no outgoing connection will be given."""
    for port in random.sample(PORTS, len(PORTS)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise CommandFailed("There is no free port on 127.0.0.1.")


@contextmanager
def running(
    raw: dict[str, Any], *, show_logs: bool, num_cpus: int | None = None, grace_s: float = GRACE_S
) -> Iterator[threading.Event]:
    """Runs the applications of `raw`, a config file's content, on a local Ray; drains and stops them.

    Yields, once they are ready, the event that SIGTERM and SIGINT set. `num_cpus` is what replicas can book
    (None: the machine's cores), `grace_s` how long running requests may take to end. Raises CommandFailed.
    """
    raw.setdefault("logging_config", {"log_level": "WARNING"})  # at INFO Serve logs every inner call
    schema = ServeDeploySchema.model_validate(raw)
    names = [application.name for application in schema.applications]
    _refuse_taken_port(schema.http_options.host, schema.http_options.port)
    _go_offline_if_the_hub_is_silent()
    _refuse_missing_models(schema)
    note.print("Starting Ray and the graph.")
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    _hide_ray_token()
    with spill_folder() as folder, _local_ray(folder, show_logs, num_cpus) as stop:
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(
            proxy_location=schema.proxy_location,
            http_options=schema.http_options.model_dump(),
            logging_config=schema.logging_config,
        )
        client: Any = _get_global_client()
        client.deploy_apps(schema)
        _wait_until_running(names, stop)
        yield stop
        try:
            with _on_signals(signal.default_int_handler):
                _drain(names, grace_s)
        except KeyboardInterrupt:
            note.print("Second signal: running requests are cut off.")


@contextmanager
def _on_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {signum: signal.signal(signum, handler) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


@contextmanager
def _local_ray(spill_to: str, show_logs: bool, num_cpus: int | None) -> Iterator[threading.Event]:
    """Starts a Ray of its own, whatever RAY_ADDRESS says: stopping it must not stop anybody else's."""
    ray.init(
        address="local",
        namespace="serve",
        logging_level=logging.ERROR,
        log_to_driver=show_logs,
        include_dashboard=False,  # whoever reaches it with Ray's token can run code
        num_cpus=num_cpus,
        object_spilling_directory=spill_to,
    )
    stop = threading.Event()
    with _on_signals(lambda *_: stop.set()):  # after ray.init, which sets handlers of its own
        try:
            yield stop
        finally:
            # Ray prints errors about its controller, which it has just killed; they would mislead users.
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                serve.shutdown()
                ray.shutdown()


@contextmanager
def spill_folder() -> Iterator[str]:
    """A folder for audio that does not fit in Ray's memory; closed to other users, removed at the end.

    Folders of servers that were killed are removed first; a server that lives has its folder locked.
    """
    for abandoned in Path(tempfile.gettempdir()).glob(f"{SPILL_PREFIX}*"):
        with suppress(OSError), _locked(abandoned):  # OSError: in use, or another user's
            shutil.rmtree(abandoned)
    temporary = tempfile.TemporaryDirectory(prefix=SPILL_PREFIX, ignore_cleanup_errors=True)
    with temporary as folder, _locked(folder):
        yield folder


@contextmanager
def _locked(folder: str | Path) -> Iterator[None]:
    """Locks the folder while this process lives; the lock holds between containers too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _refuse_missing_models(schema: ServeDeploySchema) -> None:
    """Says which models run. The builder checks this too, but only after Ray has started."""
    try:
        for application in schema.applications:
            if application.import_path == IMPORT_PATH:
                settings = Settings.model_validate(application.args)
                _say_what_runs(settings, model_names.resolve(settings))
    except ModelUnavailable as error:
        raise CommandFailed(error.message) from None


def _say_what_runs(settings: Settings, models: Models) -> None:
    times = "wav2vec2 or attention" if models.aligners else "attention"
    if settings.alignment.method in ("off", "wav2vec2"):
        times = settings.alignment.method
    note.print(f"Model: {models.name}. Word times: {times}. Speakers: {models.diarization or 'off'}.")


def _go_offline_if_the_hub_is_silent() -> None:
    """Says so, and keeps this process and all that it starts from asking again."""
    if not hub.answers(hub.endpoint()):
        os.environ[hub.OFFLINE] = "1"
        note.print(f"Offline: {hub.endpoint()} does not answer, so only models on this machine are used.")


def _refuse_taken_port(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise CommandFailed(f"cannot listen on {host}:{port} ({reason}); set http_options.port.") from None


def _hide_ray_token() -> None:
    """Closes the folder of Ray's token to other users; Ray makes the file readable for everybody."""
    folder = Path.home() / ".ray"
    with suppress(OSError):  # a home that cannot be written to holds no token either
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)


def _wait_until_running(names: list[str], stop: threading.Event) -> None:
    with note.status("Starting Serve") as status:
        while not stop.wait(0.2):
            applications = [serve.status().applications[name] for name in names]
            for application in applications:
                if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                    details = (deployment.message for deployment in application.deployments.values())
                    raise CommandFailed(_reason("\n".join([*details, application.message])))
            if all(application.status == ApplicationStatus.RUNNING for application in applications):
                return
            deployments = [pair for application in applications for pair in application.deployments.items()]
            late = [name for name, deployment in deployments if deployment.status != "HEALTHY"]
            status.update(f"Starting {', '.join(late) or 'the graph'}")
    raise CommandFailed("stopped before the service was ready.")


def _reason(message: str) -> str:
    """Our own sentence at the end of a traceback, or the whole message where there is none."""
    own = re.search("(?:ModelUnavailable: |UnknownRay: |Value error, )(.*)", message)
    return own[1] if own else f"the graph did not start.\n{message}"


def _drain(names: list[str], grace_s: float) -> None:
    """Makes every Ingress refuse new requests and end those it has; one that is dead only gets a sentence."""
    for name in names:
        try:
            drain = serve.get_app_handle(name).drain
            # A call through the router first: it waits until replicas are known, which a broadcast does not.
            drain.remote(0.0).result(timeout_s=min(GRACE_S, grace_s))
            results = drain.broadcast("drain", grace_s).results(timeout_s=grace_s + 5, return_exceptions=True)
        except Exception as error:  # noqa: BLE001  (the server stops, whatever happens here)
            results = [error]
        for result in results:
            if result is False or isinstance(result, TimeoutError):
                note.print(f"{name}: some requests were still running after {grace_s:g} s.")
            elif isinstance(result, BaseException):
                note.print(f"{name}: an Ingress could not end its requests ({type(result).__name__}).")
