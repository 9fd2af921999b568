"""What runs inside Serve's HTTP proxy: it calls `at_start` when it starts.

`backpressure` has the variable that makes it do so. The launcher sets it; on a cluster that is already up it
must be in the environment of every node.
"""

from typing import Any

from starlette.middleware import Middleware

from serve_app.ray_patches.body_queues import bound_proxy
from serve_app.ray_patches.proxy_errors import InOurWords


def at_start() -> list[Any]:
    """Uploads wait for whoever reads them; gives the middlewares that the proxy is to have."""
    bound_proxy()
    return [Middleware(InOurWords)]
