"""What the service needs of Ray and Ray does not promise to keep (but for `ray_patches`), and of KubeRay."""

import asyncio
import inspect
import json
import logging
import os
import pkgutil
import ssl
import urllib.request
from collections.abc import AsyncGenerator
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.serve import context
from ray.serve.schema import ServeDeploySchema

from serve_app.proxy import TRIED

logger = logging.getLogger("ray.serve")

# Each with the arguments that it is given here, and whether it is awaited.
LEANS_ON: list[tuple[str, tuple[str, ...], bool]] = [
    ("ray:ObjectRefGenerator._get_next_ref_n", ("self", "int"), False),
    ("ray:ObjectRef._on_ready", ("self", "callback"), False),
    ("ray.serve.handle:DeploymentResponseGenerator._to_object_ref_gen", ("self",), True),
    ("ray.serve.context:_set_request_context", ("route", "request_id"), False),
    ("ray.serve.context:_get_global_client", (), False),
    ("ray.serve._private.client:ServeControllerClient.deploy_apps", ("self", "schema"), False),
]

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # in every pod of Kubernetes


class UnknownRay(Exception):
    """The installed Ray lacks something that the service needs."""


async def references(arriving: Any) -> AsyncGenerator[Any, None]:
    """What Ray's generator of references gives, as it comes. An error is a reference, too.

    Iterating over it alone would bring each object to this node. Ray's public way without that (`ray.wait`
    with `fetch_local=False`) would block a thread for each file that is loaded, and `ObjectRef._ready` keeps
    the object of a request whose client has left.
    """
    loop = asyncio.get_running_loop()
    while True:
        (reference,) = arriving._get_next_ref_n(1)
        is_there = asyncio.Event()
        stop_waiting = reference._on_ready(
            lambda _, is_there=is_there: loop.call_soon_threadsafe(is_there.set)
        )
        try:
            await is_there.wait()
        finally:
            stop_waiting()
        try:
            yield await anext(arriving)
        except StopAsyncIteration:
            return


async def generator_of(response: Any) -> Any:
    """Ray's generator behind a streaming call of a handle, once a replica has taken the call."""
    return await response._to_object_ref_gen()


def log_as(request_id: str) -> None:
    """From now on, Serve's calls and log lines of this task have this id: a job belongs to no request."""
    context._set_request_context("", request_id)


def deploy(schema: ServeDeploySchema) -> None:
    """Has Serve start the applications of a config file, as `serve deploy` does over HTTP."""
    client: Any = context._get_global_client()
    client.deploy_apps(schema)


def gpus_may_join() -> bool | None:
    """Whether KubeRay may add a node with a GPU; None where that is not known."""
    name = os.environ.get("RAY_CLUSTER_NAME")  # KubeRay's operator sets it in every pod
    if not name:
        return False
    try:
        namespace, token = ((ACCOUNT / file).read_text() for file in ("namespace", "token"))
        url = f"https://kubernetes.default/apis/ray.io/v1/namespaces/{namespace}/rayclusters/{name}"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        tls = ssl.create_default_context(cafile=ACCOUNT / "ca.crt")
        with urllib.request.urlopen(request, timeout=10, context=tls) as response:  # noqa: S310  (https)
            spec = json.load(response)["spec"]
    except OSError as error:
        logger.warning("Whether GPU nodes may join is not known: RayCluster %s: %s", name, error)
        return None
    groups = spec.get("workerGroupSpecs") or ()
    return bool(spec.get("enableInTreeAutoscaling")) and any(map(_may_add_gpus, groups))


def _may_add_gpus(group: dict[str, Any]) -> bool:
    """Whether nodes of this worker group have GPUs; Ray looks for them in the same places."""
    limits = group["template"]["spec"]["containers"][0].get("resources", {}).get("limits", {})
    counts = [group.get("resources", {}).get("GPU"), group.get("rayStartParams", {}).get("num-gpus")]
    counts += [count for name, count in limits.items() if name.endswith("gpu")]
    return group["maxReplicas"] > 0 and int(next(filter(None, counts), 0)) > 0


def check() -> None:
    """Raises UnknownRay where a name that is used here has gone or takes other arguments."""
    for name, arguments, is_async in LEANS_ON:
        with suppress(ImportError, AttributeError, TypeError, ValueError):
            function = pkgutil.resolve_name(name)
            inspect.signature(function).bind(*arguments)
            if inspect.iscoroutinefunction(function) == is_async:
                continue
        given = ", ".join(argument for argument in arguments if argument != "self")
        wanted = f"{name.partition(':')[2]}({given})"
        raise UnknownRay(f"Ray {ray.__version__} has no {wanted}; this service was tried with Ray {TRIED}.")
