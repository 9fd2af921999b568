"""Switches on the patches of Serve's HTTP proxy.

When Serve's proxy starts, it calls the function that PROXY_HOOK names in its environment. `python -m
serve_app serve` sets the variable; an operator may set it on every node of a cluster (docs/deploy.md). The
Ingress loads the replica's half of a patch only where the variable is set.
"""

from typing import Any

PROXY_HOOK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
AT_PROXY_START = "serve_app.proxy:at_start"
REPLICA_PATCH = "serve_app.ray_patches.body_queues"  # its BoundedReceive is the replica's half


def at_start() -> list[Any]:
    """Bounds the proxy's queues of uploads; returns the middlewares that the proxy is to have."""
    from starlette.middleware import Middleware

    from serve_app.ray_patches.body_queues import bound_proxy_queues
    from serve_app.ray_patches.proxy_errors import RewriteServe503

    bound_proxy_queues()
    return [Middleware(RewriteServe503)]
