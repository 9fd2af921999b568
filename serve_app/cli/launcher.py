"""A config file's graph on a local Ray of its own: started, waited for, drained and gone."""

import fcntl
import io
import logging
import os
import random
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from serve_app.cli.config_file import IMPORT_PATH
from serve_app.cli.demo import Waiting, note
from serve_app.errors import ModelUnavailable
from serve_app.ray_patches.body_queues import AT_PROXY_START, PROXY_HOOK
from serve_app.settings import Settings
from serve_app.stages import model_names as models

SPILL_PREFIX = "whisperx-serve-spill-"
NOT_EPHEMERAL = range(20_000, 32_000)  # above are ports of outgoing connections, below those of Ray's workers
GRACE_S = 30.0  # how long running requests may take to end after SIGTERM


class CannotStart(Exception):
    """The graph did not come up; the message is one sentence that says why."""


def url_of(raw: dict[str, Any]) -> str:
    """Where the graph of this config file answers."""
    http = raw.get("http_options") or {}
    host = http.get("host", "0.0.0.0")  # noqa: S104  (Serve's default, shown, not bound here)
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{http.get('port', 8000)}"  # noqa: S104


def free_port() -> int:
    """A loopback port that nobody listens on, and that nobody's outgoing connection gets meanwhile."""
    for port in random.sample(NOT_EPHEMERAL, len(NOT_EPHEMERAL)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise CannotStart("There is no free port on 127.0.0.1.")


@contextmanager
def running(
    raw: dict[str, Any], *, show_logs: bool, num_cpus: int | None = None, grace_s: float = GRACE_S
) -> Iterator[threading.Event]:
    """A local Ray and the application up and ready; on leaving drained and gone. Yields the stop event.

    `raw` is a config file's content. SIGTERM and SIGINT set the event. `num_cpus` is what
    replicas can book, None for what the machine has; `grace_s` how long running requests have to end when it
    is left. Raises CannotStart.
    """
    stop = threading.Event()
    # Serve logs every inner call at INFO; whoever wants that sets logging_config.
    raw.setdefault("logging_config", {"log_level": "WARNING"})
    schema = ServeDeploySchema.model_validate(raw)
    _refuse_missing_models(schema)
    _refuse_taken_port(schema.http_options.host, schema.http_options.port)
    note.print("Starting Ray and the graph.")
    # A replica that no longer answers cannot end its requests either: Serve need not give it time for that.
    os.environ.setdefault("RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS", "1")
    os.environ.setdefault(PROXY_HOOK, AT_PROXY_START)
    # How soon a proxy that was killed is missed: nobody listens until then. Serve's 10 s make half a minute.
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S", "2")
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")  # as in replicas: for the proxy and the controller
    _hide_ray_token()
    with spill_folder() as spilled:
        # A Ray of its own, whatever RAY_ADDRESS says: stopping it must not stop anybody else's.
        ray.init(
            address="local",
            namespace="serve",
            logging_level=logging.ERROR,
            log_to_driver=show_logs,
            include_dashboard=False,  # whoever reaches it with Ray's token can run code
            num_cpus=num_cpus,
            object_spilling_directory=spilled,
        )

        draining = False

        def on_signal(signum: int, frame: FrameType | None) -> None:
            if draining:
                raise KeyboardInterrupt  # whoever asks again does not want to wait for running requests
            stop.set()

        signals = (signal.SIGTERM, signal.SIGINT)  # after ray.init, which sets handlers of its own
        before = {signum: signal.signal(signum, on_signal) for signum in signals}
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
            draining = True
            try:
                _drain([application.name for application in schema.applications], grace_s)
            except KeyboardInterrupt:
                note.print("Asked again: running requests are cut off.")
        finally:
            draining = False
            # Ray prints errors about its own controller, which it has just killed; they are not for users.
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                serve.shutdown()
                ray.shutdown()
            for signum, handler in before.items():
                signal.signal(signum, handler)


@contextmanager
def spill_folder() -> Iterator[str]:
    """Where Ray keeps audio that does not fit in memory: no other user can look in, and it goes at the end.

    What servers that were killed have left is removed first; one that lives has its folder locked.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{SPILL_PREFIX}*"):
        with suppress(OSError), _locked(left):  # in use, or another user's
            shutil.rmtree(left)
    folder = tempfile.mkdtemp(prefix=SPILL_PREFIX)
    with _locked(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: str | Path) -> Iterator[None]:
    """Locked as long as this process lives, and to others in other containers, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _refuse_missing_models(schema: ServeDeploySchema) -> None:
    """What the builder will find out too, before anything is started for it."""
    for application in schema.applications:
        if application.import_path != IMPORT_PATH:
            continue
        try:
            models.resolve(Settings.model_validate(application.args))
        except ModelUnavailable as error:
            raise CannotStart(error.message) from None


def _refuse_taken_port(host: str, port: int) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise CannotStart(
            f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); set http_options.port."
        ) from None


def _hide_ray_token() -> None:
    """Ray's listeners ask for a token, and Ray keeps it in a file that all users of the machine may read."""
    folder = Path.home() / ".ray"
    with suppress(OSError):  # a home that cannot be written to holds no token either
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)


def _wait_until_running(names: list[str], stop: threading.Event) -> None:
    waiting = Waiting()
    while not stop.wait(0.2):
        applications = serve.status().applications
        missing = []
        for name in names:
            application = applications[name]
            if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                details = [deployment.message for deployment in application.deployments.values()]
                raise CannotStart(_reason([*details, application.message]))
            if application.status != ApplicationStatus.RUNNING:
                late = [n for n, d in application.deployments.items() if d.status != "HEALTHY"]
                missing += late or ["the graph to be built"]
        if not missing:
            return
        waiting.on(f"{', '.join(missing)} (models are being loaded)")
    raise CannotStart("stopped before the graph was up.")


def _reason(messages: list[str]) -> str:
    """Our own sentence where a traceback ends in one, else everything there is."""
    for line in "\n".join(messages).splitlines():
        for marker in ("ModelUnavailable: ", "Value error, "):
            if marker in line:
                return line.split(marker, 1)[1]
    return "the graph did not start.\n" + "\n".join(message for message in messages if message)


def _drain(names: list[str], grace_s: float) -> None:
    """All Ingresses refuse new requests and end those they have; one that is dead or deaf is no traceback."""
    for name in names:
        try:
            drain = serve.get_app_handle(name).drain
            # Through the router, which then knows of its replicas: a broadcast does not wait for any.
            drain.remote(0.0).result(timeout_s=min(GRACE_S, grace_s))
            ended = drain.broadcast("drain", grace_s).results(timeout_s=grace_s + 5, return_exceptions=True)
        except Exception as error:  # noqa: BLE001  (whatever it is, stopping goes on)
            ended = [error]
        if any(one is False or isinstance(one, TimeoutError) for one in ended):
            note.print(f"{name}: some requests were still running after {grace_s:g} s.")
        for one in ended:
            if isinstance(one, BaseException) and not isinstance(one, TimeoutError):
                note.print(f"{name}: an Ingress could not end its requests ({type(one).__name__}).")
