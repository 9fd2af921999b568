"""Switches on the patches of Serve, in its HTTP proxy and in the Ingress, where PROXY_HOOK is set.

Serve's proxy calls the function that PROXY_HOOK names when it starts. `whisperx-serve serve` sets it; an
operator may set it on every node of a cluster (docs/deploy.md). The patches use private names of Serve: any
other Ray than the one that they were tried on stays as it is.
"""

import logging
import os

import ray
from starlette.middleware import Middleware

PROXY_HOOK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
AT_PROXY_START = "serve_app.proxy:at_start"
TRIED = "2.60.0"


def at_start() -> list[Middleware]:
    """Bounds the proxy's queues of uploads; returns the middlewares that it is to have, inner first."""
    if not _knows_ray():
        return []
    from ray.serve._private import proxy

    from serve_app.ray_patches.body_queues import BoundedQueue
    from serve_app.ray_patches.http10 import EndWithConnection
    from serve_app.ray_patches.proxy_errors import RewriteServe503

    proxy.MessageQueue = BoundedQueue  # type: ignore[attr-defined]
    return [Middleware(RewriteServe503), Middleware(EndWithConnection)]


def ingress_middlewares() -> list[Middleware]:
    """The middlewares that the Ingress is to have, outside of all others."""
    if os.environ.get(PROXY_HOOK) != AT_PROXY_START:
        message = "%s is not set: Serve keeps uploads in memory as fast as they come (docs/deploy.md)."
        logging.getLogger("ray.serve").warning(message, PROXY_HOOK)
        return []
    if not _knows_ray():
        return []
    from serve_app.ray_patches.body_queues import BoundedReceive

    return [Middleware(BoundedReceive)]


def _knows_ray() -> bool:
    if ray.__version__ != TRIED:
        message = "Ray %s: the patches of Serve are off, as they were tried on %s (docs/deploy.md)."
        logging.getLogger("ray.serve").warning(message, ray.__version__, TRIED)
    return ray.__version__ == TRIED
