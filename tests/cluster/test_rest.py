"""After many requests of all kinds the machine is as it was: descriptors, children, files, shared memory."""

import base64
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from clients import Upload, until
from fakes import recording
from loopback import Files
from ray import serve
from ray._private.internal_api import get_memory_info_reply
from ray._private.state import state
from sounds import wav

URL = "http://127.0.0.1:18000/predict"
ROUNDS = 4
AT_ONCE = 8

pytestmark = pytest.mark.usefixtures("app")


def requests(files: Files) -> list[Callable[[], int | None]]:
    """One of each kind: gives the status, None where the client did not stay for it."""
    good = wav(recording(1, 2, 3, *[0] * 27))  # 1 MB, more than Ray sends along with a call
    url = files.url("/rest.wav", good)
    encoded = base64.b64encode(good).decode()
    form = httpx.Request("POST", URL, files={"file": good})

    def post(**kwargs: object) -> int:
        return httpx.post(URL, timeout=60, **kwargs).status_code  # type: ignore[arg-type]

    def left(share: float) -> None:
        with Upload(URL, good) as upload:
            upload.send(int(share * len(upload.body)))

    return [
        partial(post, files={"file": good}),
        partial(post, json={"audio_b64": encoded}),
        partial(post, json={"audio_file": url}),
        partial(post, files={"file": b"<html></html>" * 100_000}),
        partial(post, files={"file": good}, data={"num_speakers": "many"}),
        partial(post, json={"audio_b64": encoded + "!"}),
        partial(post, content=form.read()[:-9], headers={"content-type": form.headers["content-type"]}),
        partial(post, json={"audio_file": f"http://{files.host}/lost.wav"}),
        partial(post, json={"audio_file": "http://127.0.0.1/blocked.wav"}),
        partial(left, 0.5),
        partial(left, 1.0),
    ]


def held(spool: Path) -> dict[str, int]:
    """What requests take: descriptors and children of the graph and Serve's proxy, files, shared memory."""
    store = get_memory_info_reply(state).store_stats
    processes = [found for found in psutil.Process().children(recursive=True) if serves(found)]
    return {
        # Ray writes what a process does now behind a dot.
        **{f"descriptors of {' '.join(p.cmdline()).partition('.')[0]}": p.num_fds() for p in processes},
        "children": sum(len(process.children()) for process in processes),
        "files": len(list(spool.iterdir())),
        "bytes in the object store": store.object_store_bytes_used,
        "objects in it": store.num_local_objects,
    }


def serves(process: psutil.Process) -> bool:
    return " ".join(process.cmdline()).startswith(("ray::ServeReplica:whisperx:", "ray::ProxyActor"))


def at_rest(spool: Path) -> dict[str, int]:
    """The same as soon as it has not changed for a second."""
    found, since_s = held(spool), time.monotonic()

    def unchanged() -> bool:
        nonlocal found, since_s
        if (now := held(spool)) != found:
            found, since_s = now, time.monotonic()
        return time.monotonic() - since_s > 1.0

    until(unchanged)
    return found


def left_over(before: dict[str, int], spool: Path) -> dict[str, int]:
    """What there is more of than before, and how much; waits up to a minute until it is nothing."""

    def more() -> dict[str, int]:
        return {
            name: now - before.get(name, 0) for name, now in held(spool).items() if now > before.get(name, 0)
        }

    with suppress(AssertionError):
        until(lambda: not more())
    return more()


def test_nothing_is_left_of_many_requests(files: Files, spool: Path) -> None:
    """Good, bad and abandoned ones by form, base64 and URL; the first of each kind may open what stays."""
    kinds = requests(files)

    def send(rounds: int) -> Counter[int | None]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return Counter(pool.map(lambda request: request(), kinds * rounds))

    send(2)
    before = at_rest(spool)
    ends = send(ROUNDS)
    assert ends == {200: 3 * ROUNDS, 400: 3 * ROUNDS, 422: ROUNDS, 424: 2 * ROUNDS, None: 2 * ROUNDS}
    assert left_over(before, spool) == {}


def test_audio_goes_with_the_client_that_leaves(closed_gate: Path, spool: Path) -> None:
    """What stages had begun with is in no memory any more, although no other request comes after it."""
    counters: Any = serve.get_deployment_handle("Transcriber", "whisperx").counters
    counters.remote().result(timeout_s=60)  # the connection stays
    before = at_rest(spool)
    with Upload(URL, wav(recording(*range(1, 31))), language="en") as upload:
        upload.send()
        until(lambda: counters.remote().result(timeout_s=60)["queued"] > 0)
        assert held(spool)["objects in it"] > before["objects in it"]
    closed_gate.unlink()
    assert left_over(before, spool) == {}
