"""Every name of Ray on which the service leans and which Ray does not promise to keep.

(Those of Serve's proxy, without which the service works too, are in `serve_app.backpressure`.)
"""

import inspect
from collections.abc import AsyncGenerator
from typing import Any

import ray
from ray import ObjectRef, ObjectRefGenerator
from ray.serve.handle import DeploymentResponse, DeploymentResponseGenerator

TRIED = "2.60.0"


class UnknownRay(Exception):
    """The installed Ray lacks something that the service needs."""


async def references(arriving: Any) -> AsyncGenerator[Any, None]:
    """What Ray's generator of references gives, as it comes. An error is a reference, too.

    Only to iterate over it would bring each object to this node, and Ray's public way without that
    (`ray.wait` with `fetch_local=False`) would block a thread for each file that is loaded.
    """
    while True:
        (reference,) = arriving._get_next_ref_n(1)
        await reference._ready()
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


def check() -> None:
    """Raises UnknownRay where a name that is used here has gone or takes other arguments."""
    methods: list[tuple[type, str, tuple[str, ...], bool]] = [
        (ObjectRefGenerator, "_get_next_ref_n", ("int",), False),
        (ObjectRef, "_ready", (), True),
        (DeploymentResponse, "_to_object_ref", (), True),
        (DeploymentResponseGenerator, "_to_object_ref_gen", (), True),
    ]
    for owner, name, arguments, is_async in methods:
        method = getattr(owner, name, None)
        if not _takes(method, arguments) or inspect.iscoroutinefunction(method) != is_async:
            raise UnknownRay(
                f"Ray {ray.__version__} has no {owner.__name__}.{name}({', '.join(arguments)}); this service "
                f"was tried with Ray {TRIED}."
            )


def _takes(method: Any, arguments: tuple[str, ...]) -> bool:
    try:
        inspect.signature(method).bind("self", *arguments)
    except (TypeError, ValueError):
        return False
    return True
