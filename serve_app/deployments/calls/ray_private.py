"""Every name of Ray on which the service leans and which Ray does not promise to keep.

(Those of Serve's proxy, without which the service works too, are in `serve_app.ray_patches.body_queues`.)
"""

import asyncio
import inspect
import logging
import os
import pkgutil
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import ray

logger = logging.getLogger("ray.serve")

TRIED = "2.60.0"

# Each with the arguments that it is given here, and whether it is awaited.
KUBERAY = "ray.autoscaler._private.kuberay"
LEANS_ON: list[tuple[str, tuple[str, ...], bool]] = [
    ("ray:ObjectRefGenerator._get_next_ref_n", ("int",), False),
    ("ray:ObjectRef._on_ready", ("callback",), False),
    ("ray.serve.handle:DeploymentResponse._to_object_ref", (), True),
    ("ray.serve.handle:DeploymentResponseGenerator._to_object_ref_gen", (), True),
    ("ray._private.state:GlobalState.get_max_resources_from_cluster_config", (), False),
    (f"{KUBERAY}.node_provider:KubernetesHttpApiClient.__init__", ("namespace",), False),
    (f"{KUBERAY}.node_provider:KubernetesHttpApiClient.get", ("path",), False),
    (f"{KUBERAY}.autoscaling_config:_generate_available_node_types_from_ray_cr_spec", ("spec",), False),
]

NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")  # in every pod


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


async def taken(response: Any) -> None:
    """Waits until a replica has taken a call of a handle."""
    await response._to_object_ref()


def gpus_may_join() -> bool | None:
    """Whether the cluster's autoscaler may add a node with a GPU; None where that is not known.

    KubeRay's RayCluster says it, and an autoscaler that reports to Ray what nodes it may start.
    """
    most = ray._private.state.state.get_max_resources_from_cluster_config() or {}
    if most.get("GPU", 0) > 0:
        return True
    name = os.environ.get("RAY_CLUSTER_NAME")  # KubeRay's operator sets it in every pod
    if not name:
        return False
    try:
        spec = _ray_cluster(name)["spec"]
    except OSError as error:  # also what `requests` raises
        logger.warning("Whether GPU nodes may join is not known: RayCluster %s: %s", name, error)
        return None
    from ray.autoscaler._private.kuberay.autoscaling_config import (
        _generate_available_node_types_from_ray_cr_spec,
    )

    groups = _generate_available_node_types_from_ray_cr_spec(spec).values()
    return bool(spec.get("enableInTreeAutoscaling")) and any(
        group["max_workers"] > 0 and group["resources"].get("GPU", 0) > 0 for group in groups
    )


def _ray_cluster(name: str) -> dict[str, Any]:
    """The RayCluster that this pod belongs to; the head's service account may read it."""
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    namespace = os.environ.get("RAY_CLUSTER_NAMESPACE") or NAMESPACE_FILE.read_text()
    cluster: dict[str, Any] = KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    return cluster


def check() -> None:
    """Raises UnknownRay where a name that is used here has gone or takes other arguments."""
    for name, arguments, is_async in LEANS_ON:
        shown = name.partition(":")[2]
        given = ("self", *arguments) if "." in shown else arguments
        try:
            function = pkgutil.resolve_name(name)
            inspect.signature(function).bind(*given)
            is_known = inspect.iscoroutinefunction(function) == is_async
        except (ImportError, AttributeError, TypeError, ValueError):
            is_known = False
        if not is_known:
            raise UnknownRay(
                f"Ray {ray.__version__} has no {shown}({', '.join(arguments)}); this service was tried with "
                f"Ray {TRIED}."
            )
