"""Starts a separate Ray for the service, keeps its files private, and stops it with all its processes."""

import fcntl
import io
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from time import monotonic
from types import FrameType

import psutil
import ray
from ray import serve
from tenacity import Retrying, retry_if_exception_message, stop_after_attempt

from serve_app.cli import CommandFailed, note
from serve_app.proxy import AT_PROXY_START, PROXY_HOOK

SPILL_PREFIX = "whisperx-serve-spill-"
START_TRIES = 4
START_MARK = "WHISPERX_SERVE_START"
PROGRESS_S = 20.0  # between lines that say that Ray is still starting

# Set for the local Ray unless the operator has set them; docs/deploy.md gives the reasons.
ENVIRONMENT = {
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "2",
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "MALLOC_ARENA_MAX": "1",
    PROXY_HOOK: AT_PROXY_START,
}


@contextmanager
def local_ray(*, show_logs: bool, num_cpus: int | None, metrics_port: int = 0) -> Iterator[threading.Event]:
    """Starts a separate Ray, even if RAY_ADDRESS names one: stopping it must not stop somebody else's.

    Its exporter of metrics listens on `metrics_port` (0: a free one), on all interfaces as all of Ray does.
    Yields the event that SIGTERM and SIGINT set. Raises CommandFailed when Ray cannot start.
    """
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    _hide_ray_token()
    with ExitStack() as stack:
        with _failing_in_one_sentence():
            _refuse_without_loopback()
            _start(stack.enter_context(spill_folder()), show_logs, num_cpus, metrics_port)
        stop = threading.Event()
        with on_signals(lambda *_: stop.set()):  # after ray.init, which sets handlers of its own
            try:
                yield stop
            finally:
                # Ray prints errors about its controller, which it has just killed; they would mislead users.
                with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                    serve.shutdown()
                    ray.shutdown()


@contextmanager
def on_signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Makes `handler` handle SIGTERM and SIGINT until the block ends."""
    before = {signum: signal.signal(signum, handler) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, previous in before.items():
            signal.signal(signum, previous)


def metrics_url() -> str:
    """The address of the exporter of this process's Ray, for clients on this machine."""
    (node,) = ray.nodes()
    return f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"


def _start(spill_to: str, show_logs: bool, num_cpus: int | None, metrics_port: int) -> None:
    """Starts Ray, several times on a slow machine: a raylet gives up when its agents take over 15 s."""
    attempts = Retrying(
        retry=retry_if_exception_message(match=".*timed out during startup"),
        stop=stop_after_attempt(START_TRIES),
        before_sleep=lambda state: note.print(
            f"Starting it again ({state.attempt_number + 1} of {START_TRIES})."
        ),
        reraise=True,
    )
    for attempt in attempts:
        with attempt, _killing_leftovers():
            ray.init(
                address="local",
                namespace="serve",
                logging_level=logging.ERROR,
                log_to_driver=show_logs,
                include_dashboard=False,  # with Ray's token one can run code through it
                num_cpus=num_cpus,
                object_spilling_directory=spill_to,
                _metrics_export_port=metrics_port or None,
            )


@contextmanager
def _killing_leftovers() -> Iterator[None]:
    """Kills the processes that a failed start leaves behind; others on this machine would connect to them.

    They are known by a mark in their environment, because some have lost their parent process.
    """
    os.environ[START_MARK] = mark = uuid.uuid4().hex
    try:
        yield
    except BaseException:  # also Ctrl-C during the start
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has ended, or is another user's
                if process.environ().get(START_MARK) == mark:
                    process.kill()
                    process.wait()
        ray.shutdown()
        raise


@contextmanager
def _failing_in_one_sentence() -> Iterator[None]:
    """Turns errors of the start into one sentence, and reports while the start takes long."""
    started, begun_s = threading.Event(), monotonic()

    def say_that_it_takes_long() -> None:
        while not started.wait(PROGRESS_S):
            note.print(
                f"Ray has not started after {monotonic() - begun_s:.0f} s: this machine is slow or busy."
            )

    thread = threading.Thread(target=say_that_it_takes_long)
    thread.start()
    try:
        yield
    except CommandFailed:
        raise
    except Exception as error:  # ray.init raises RuntimeError, ValueError, OSError, and errors of gRPC's
        raise CommandFailed(f"Ray cannot start: {_reason(error)}") from error
    finally:
        started.set()
        thread.join()


def logs_folder() -> Path:
    """Where the processes of the last Ray that this machine started write their logs."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray/session_latest/logs"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        places = "to /tmp, or to a folder with a short name that RAY_TMPDIR and TMPDIR give, and to ~/.ray"
        return f"{error}; it must be able to write {places}."
    if "timed out during startup" in str(error):
        message = f"its raylet did not come up in {START_TRIES} tries, so this machine is too slow or busy"
        return f"{message}, or something ends it; raylet.err in {logs_folder()} may say what."
    first_line = str(error).strip().partition("\n")[0]
    return f"{first_line.rstrip('.')}; its logs are in {logs_folder()}."


def _refuse_without_loopback() -> None:
    """Refuses at once; Ray would try for a quarter of an hour."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            socket.create_connection(listener.getsockname(), timeout=5).close()
    except OSError as error:
        message = f"127.0.0.1 does not answer ({error.strerror}); Ray needs it, so bring the interface lo up."
        raise CommandFailed(message) from None


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


def _hide_ray_token() -> None:
    """Closes the folder of Ray's token to other users; Ray makes the file readable for everybody."""
    folder = Path.home() / ".ray"
    with suppress(OSError):  # a home that cannot be written to holds no token either
        folder.mkdir(exist_ok=True)
        folder.chmod(0o700)
