"""Runs the applications of a config file on a local Ray: starts, waits until ready, drains and stops them."""

import asyncio
import logging
import os
import random
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import ApplicationStatus, ProxyStatus, ServeDeploySchema, TracingConfig

from serve_app.cli import GRACE_S, CommandFailed, note
from serve_app.cli.config_file import settings_of
from serve_app.cli.doctor.checks import State
from serve_app.cli.doctor.devices import Devices, ask_driver
from serve_app.cli.doctor.weights import memory
from serve_app.cli.local_ray import local_ray, logs_folder, on_signals
from serve_app.deployments.calls import ray_private
from serve_app.errors import ModelUnavailable
from serve_app.jobs.places import JobsUnusable, kept_from_others, prepare
from serve_app.models import hub
from serve_app.models import names as model_names
from serve_app.models.names import Models
from serve_app.settings import Settings

PORTS = range(20_000, 32_000)  # outgoing connections use higher ports, Ray's workers lower ones


def url_of(raw: dict[str, Any]) -> str:
    """The URL of the service of this config file."""
    http = ServeDeploySchema.model_validate(raw).http_options
    return f"http://{http.host.replace('0.0.0.0', '127.0.0.1')}:{http.port}"  # noqa: S104  (a text, no socket)


def free_port() -> int:
    """A loopback port that nobody listens on and no outgoing connection will be given."""
    for port in random.sample(PORTS, len(PORTS)):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise CommandFailed("There is no free port on 127.0.0.1.")


@contextmanager
def running(
    raw: dict[str, Any],
    *,
    show_logs: bool,
    num_cpus: int | None = None,
    grace_s: float = GRACE_S,
    metrics_port: int = 0,
) -> Iterator[threading.Event]:
    """Runs the applications of `raw`, a config file's content, on a local Ray; drains and stops them.

    Yields, once they are ready, the event that SIGTERM and SIGINT set. `num_cpus` is what replicas can book
    (None: the machine's cores), `grace_s` how long running requests may take to end, `metrics_port` where
    Ray's exporter gives metrics to Prometheus (0: a free one). Raises CommandFailed.
    """
    raw.setdefault("logging_config", {"log_level": "WARNING"})  # at INFO Serve logs every inner call
    schema = ServeDeploySchema.model_validate(raw)
    names = [application.name for application in schema.applications]
    _refuse_unknown_ray()
    _refuse_taken_port(schema.http_options.host, schema.http_options.port, "http_options.port")
    _refuse_taken_port("", metrics_port, "--metrics-port")
    _go_offline_if_the_hub_is_silent()
    settings = settings_of(raw)
    _refuse_missing_models(settings)
    _say_if_offline()
    with ExitStack() as held:
        held.enter_context(_usable_jobs(settings))
        note.print("Starting Ray and the graph.")
        _trace_in_the_proxy(schema.tracing_config)
        stop = held.enter_context(
            local_ray(show_logs=show_logs, num_cpus=num_cpus, metrics_port=metrics_port)
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _start_serve(schema)
        _wait_until_running(names, stop)
        yield stop
        try:
            with on_signals(signal.default_int_handler):
                _drain(names, grace_s)
        except KeyboardInterrupt:
            note.print("Second signal: running requests are cut off.")


def _trace_in_the_proxy(config: TracingConfig | None) -> None:
    """Ray 2.60 gives tracing_config to the replicas alone; its HTTP proxy knows only these variables."""
    if config and config.enabled:
        os.environ.setdefault("RAY_SERVE_TRACING_EXPORTER_IMPORT_PATH", config.exporter_import_path)
        os.environ.setdefault("RAY_SERVE_TRACING_SAMPLING_RATIO", str(config.sampling_ratio))


def _start_serve(schema: ServeDeploySchema) -> None:
    try:
        with suppress(TimeoutError):  # a proxy that takes over a minute is waited for later
            serve.start(
                proxy_location=schema.proxy_location,
                http_options=schema.http_options.model_dump(),
                logging_config=schema.logging_config,
            )
    except RayError as error:
        last_line = str(error).strip().splitlines()[-1].strip(" .")
        message = (
            f"Serve or its HTTP proxy did not start: {last_line}; its logs are in {logs_folder()}/serve."
        )
        raise CommandFailed(message) from error
    ray_private.deploy(schema)


def _refuse_missing_models(settings: list[Settings]) -> None:
    """Says which models run. The builder checks this too, but only after Ray has started."""
    try:
        for each in settings:
            _say_what_runs(each, model_names.resolve(each))
            is_on_cpu = each.device == "cpu" or (each.device == "auto" and not ask_driver().driver_gpus)
            if is_on_cpu and (found := memory(Devices(), each)).state == State.ERROR:
                note.print(found.message)
    except ModelUnavailable as error:
        raise CommandFailed(error.message) from None


@contextmanager
def _usable_jobs(settings: list[Settings]) -> Iterator[None]:
    """Creates missing job stores, refuses unusable ones, and keeps other servers out meanwhile."""
    with ExitStack() as held:
        try:
            for each in settings:
                asyncio.run(prepare(each.jobs))
                held.enter_context(kept_from_others(each.jobs))
        except JobsUnusable as error:
            raise CommandFailed(str(error)) from None
        yield


def _say_what_runs(settings: Settings, models: Models) -> None:
    times = "wav2vec2 or attention" if models.aligners else "attention"
    if settings.alignment.method in ("off", "wav2vec2"):
        times = settings.alignment.method
    others = "".join(f", {name}" for name in models.others)
    note.print(f"Model: {models.name}{others}. Word times: {times}. Speakers: {models.diarization or 'off'}.")


def _go_offline_if_the_hub_is_silent() -> None:
    """Keeps this process and its children from asking the hub again, which takes seconds each time."""
    if not hub.answers(hub.endpoint()):
        os.environ[hub.OFFLINE] = "1"


def _say_if_offline() -> None:
    if not hub.answers(hub.endpoint()):
        note.print(f"Offline: {hub.endpoint()} does not answer, so only models on this machine are used.")


def _refuse_unknown_ray() -> None:
    try:
        ray_private.check()
    except ray_private.UnknownRay as error:
        raise CommandFailed(str(error)) from None


def _refuse_taken_port(host: str, port: int, setting: str) -> None:
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise CommandFailed(f"cannot listen on {host}:{port} ({reason}); set {setting}.") from None


def _wait_until_running(names: list[str], stop: threading.Event) -> None:
    with note.status("Starting Serve") as status:
        while not stop.wait(0.2):
            now = serve.status()
            applications = [now.applications[name] for name in names]
            for application in applications:
                if application.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
                    details = (deployment.message for deployment in application.deployments.values())
                    raise CommandFailed(_reason("\n".join([*details, application.message])))
            has_proxies = all(proxy == ProxyStatus.HEALTHY for proxy in now.proxies.values())
            if has_proxies and all(one.status == ApplicationStatus.RUNNING for one in applications):
                return
            deployments = [pair for application in applications for pair in application.deployments.items()]
            late = [name for name, deployment in deployments if deployment.status != "HEALTHY"]
            status.update(f"Starting {', '.join(late) or 'the graph'}")
    raise CommandFailed("stopped before the service was ready.")


def _reason(message: str) -> str:
    """This project's own sentence at the end of a traceback, or the whole message if there is none."""
    names = "ModelUnavailable: |UnknownRay: |JobsUnusable: |StoreUnreachable: |StoreTooNew: |Value error, "
    own = re.search(f"(?:{names})(.*)", message)
    return own[1] if own else f"the graph did not start.\n{message}"


def _drain(names: list[str], grace_s: float) -> None:
    """Makes every Ingress refuse new requests and end those it has; reports each that fails."""
    for name in names:
        try:
            drain = serve.get_app_handle(name).drain
            # A call through the router first: it waits until replicas are known, which a broadcast does not.
            drain.remote(0.0).result(timeout_s=min(GRACE_S, grace_s))
            results = drain.broadcast("drain", grace_s).results(timeout_s=grace_s + 5, return_exceptions=True)
        except Exception as error:  # noqa: BLE001  (nothing may keep the server from stopping)
            results = [error]
        for result in results:
            if result is False or isinstance(result, TimeoutError):
                note.print(f"{name}: some requests were still running after {grace_s:g} s.")
            elif isinstance(result, BaseException):
                note.print(f"{name}: an Ingress could not end its requests ({type(result).__name__}).")
