"""The graph that is to suffer: started, its processes found, changed while it runs, and what it holds."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from serve_app.cli.launcher import free_port, running, url_of

STAGES = {  # deployments, and what their retries are counted as
    "AudioLoader": "loader",
    "SpeechDetector": "speech",
    "Transcriber": "asr",
    "Aligner": "alignment",
    "Diarizer": "diarization",
}
SETTLE_S = 300.0  # within which everything must be well again
MIB = 1 << 20


def config(
    models: str = "fakes",
    *,
    application: str = "chaos",
    route_prefix: str = "/",
    settings: dict[str, Any] | None = None,
    args: dict[str, Any] | None = None,
    deployments: dict[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """A config file's content. `settings` are the service's own, `args` those of the fake models."""
    ours = {"device": "cpu", "intake": {"allowed_hosts": ["127.0.0.1"]}, "jobs": {"store": "off"}}
    chosen = {**ours, **(settings or {})}
    if models == "fakes":
        where = {"import_path": "benchmarks.chaos.models:build"}
        arguments = {"settings": {"model": "fakes", **chosen}, **(args or {})}
    else:
        where = {"import_path": "serve_app.app:build"}
        arguments = {"model": "tiny.en", "diarization": {"model": "campplus"}, **chosen}
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [
            {
                "name": application,
                "route_prefix": route_prefix,
                **where,
                "args": arguments,
                "deployments": [{"name": name, **chosen} for name, chosen in (deployments or {}).items()],
            }
        ],
    }


@dataclass
class Graph:
    """A running application. Everything about processes is about those of this process's Ray."""

    raw: dict[str, Any]
    url: str

    @property
    def application(self) -> dict[str, Any]:
        found: dict[str, Any] = self.raw["applications"][0]
        return found

    @property
    def settings(self) -> dict[str, Any]:
        """The service's own settings as they were given; to be changed in place before `redeploy`."""
        args: dict[str, Any] = self.application["args"]
        found: dict[str, Any] = args.get("settings", args)
        return found

    def deployment(self, name: str) -> dict[str, Any]:
        """Its entry in the config file; to be changed in place before `redeploy`."""
        entries: list[dict[str, Any]] = self.application["deployments"]
        if name not in [entry["name"] for entry in entries]:
            entries.append({"name": name})
        return next(entry for entry in entries if entry["name"] == name)

    def redeploy(self) -> None:
        """Applies the config as it is now, and waits until it is in force."""
        self.apply()
        self.settle()

    def apply(self) -> None:
        """Applies the config as it is now, as `serve deploy` does, and waits until Serve is at it."""
        client: Any = _get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate(self.raw))
        begun_s = time.monotonic()
        while self.status == ApplicationStatus.RUNNING and time.monotonic() < begun_s + 5:
            time.sleep(0.05)

    def replicas(self) -> dict[str, list[psutil.Process]]:
        """The processes of each deployment, titled ray::ServeReplica:application:deployment.method by Ray."""
        start = f"ray::ServeReplica:{self.application['name']}:"
        found: dict[str, list[psutil.Process]] = {}
        for title, process in _ray_processes():
            if title.startswith(start):
                found.setdefault(title.removeprefix(start).partition(".")[0], []).append(process)
        return found

    def settle(self, gone: psutil.Process | None = None) -> float:
        """Waits until every deployment has all its replicas, and `gone` is none of them; seconds waited."""

        def settled() -> bool:
            try:
                replicas, status = self.replicas(), self._status()
            except RayActorError:  # the controller itself is gone
                return False
            return (
                status.status == ApplicationStatus.RUNNING
                and not any(gone in processes for processes in replicas.values())
                and all(
                    deployment.status == "HEALTHY"
                    and deployment.replica_states == {"RUNNING": len(replicas.get(name, ()))}
                    for name, deployment in status.deployments.items()
                )
            )

        return wait_for(settled, "the graph is whole again")

    def handle(self, name: str) -> Any:
        return serve.get_deployment_handle(name, self.application["name"])

    def retries(self) -> dict[str, int]:
        """What has been done again since the Ingress started, by "stage/cause"."""
        found: dict[str, int] = self.handle("Ingress").retries.remote().result(timeout_s=60)
        return found

    @property
    def status(self) -> ApplicationStatus:
        found: ApplicationStatus = self._status().status
        return found

    def says(self, deployment: str) -> str:
        """Serve's message about it; nothing while a new version of the application is being built."""
        found: str = getattr(self._status().deployments.get(deployment), "message", "")
        return found

    def _status(self) -> Any:
        return serve.status().applications[self.application["name"]]


def serves_own(name: str) -> list[psutil.Process]:
    """The processes of a part of Serve: ProxyActor, ServeController."""
    return [process for title, process in _ray_processes() if title.startswith(f"ray::{name}")]


def _ray_processes() -> Iterator[tuple[str, psutil.Process]]:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, IndexError):  # it has just ended
            if (title := process.cmdline()[0]).startswith("ray::") and process.parent().name() == "raylet":
                yield title, process


def object_store_mib() -> float:
    total, free = ray.cluster_resources(), ray.available_resources()
    return float(total["object_store_memory"] - free.get("object_store_memory", 0.0)) / MIB


def spooled_bytes(process: psutil.Process) -> int:
    """What is in the nameless files that this process has open."""
    total = 0
    folder = f"/proc/{process.pid}/fd"
    for descriptor in os.listdir(folder):
        with suppress(OSError):
            path = os.readlink(f"{folder}/{descriptor}")
            if path.endswith("(deleted)") and path.startswith("/tmp/"):
                total += os.stat(f"{folder}/{descriptor}").st_size
    return total


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = SETTLE_S) -> float:
    """Seconds until it holds; raises TimeoutError."""
    begun_s = time.monotonic()
    while not condition():
        if time.monotonic() > begun_s + timeout_s:
            raise TimeoutError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - begun_s


@contextmanager
def started(raw: dict[str, Any], num_cpus: int = 4) -> Iterator[Graph]:
    """This graph on a Ray of its own. Ctrl-C ends it."""
    with running(raw, show_logs=False, num_cpus=num_cpus):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        yield Graph(raw, url_of(raw))


@contextmanager
def deployed(raw: dict[str, Any], url: str) -> Iterator[Graph]:
    """This graph on the Ray that runs already and listens at `url`."""
    name = raw["applications"][0]["name"]
    client: Any = _get_global_client()
    client.deploy_apps(ServeDeploySchema.model_validate(raw))
    graph = Graph(raw, url)
    try:
        wait_for(lambda: name in serve.status().applications, "the application is known")
        graph.settle()
        yield graph
    finally:
        serve.delete(name)
