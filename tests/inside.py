"""What tests see and do inside the cluster's own processes."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfDiskError
from ray.serve._private.http_util import ASGIReceiveProxy

from serve_app.http.forms import FormBody
from serve_app.stages.audio import decode

PROXY = "SERVE_PROXY_ACTOR"
INGRESS = "whisperx#Ingress#"
LOADER = "whisperx#AudioLoader#"


def within(actor: str, function: Callable[..., Any], *args: Any) -> Any:
    """The result of the function in the one process of Serve whose name contains this."""
    names = [found["name"] for found in ray.util.list_named_actors(all_namespaces=True)]
    (name,) = [name for name in names if actor in name]
    return ray.get(ray.get_actor(name, namespace="serve").__ray_call__.remote(function, *args), timeout=60)


def unread_in_proxy(proxy: Any) -> list[int]:
    """For each request, the bytes that no replica has fetched."""
    queues = proxy.http_proxy.asgi_receive_queues.values()
    return [sum(len(message.get("body", b"")) for message in queue._message_queue) for queue in queues]


def unread_in_replica(_: Any) -> int:
    """Bytes that Serve has fetched and the application has not taken."""
    receives: Any = [found for found in gc.get_objects() if type(found) is ASGIReceiveProxy]
    unread = [message for receive in receives for message in receive.queue._queue]
    return sum(len(message.get("body", b"")) for message in unread if isinstance(message, dict))  # or errors


def hang_disk(_: Any, gate: Path) -> None:
    """While the file `gate` exists, no part of a body is written."""
    write = FormBody.write

    def write_later(*args: Any) -> None:
        while gate.exists():
            time.sleep(0.01)
        write(*args)

    setattr(FormBody, "write", write_later)  # noqa: B010  (mypy forbids assigning to a method)


def fill_object_store(_: Any, gate: Path) -> None:
    """While the file `gate` exists, decoded audio fails as if Ray's object store were full."""
    module: Any = decode
    check = module.raise_for_failure

    def check_or_fail(*args: Any) -> None:
        if gate.exists():
            raise OutOfDiskError
        check(*args)

    module.raise_for_failure = check_or_fail


def processes_with(mark: str) -> list[int]:
    """Processes that have the mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended, or belongs to another user
    return found
