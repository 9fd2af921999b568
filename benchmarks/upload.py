"""`python -m benchmarks.upload` measures the memory that uploads take in the HTTP application.

The application has a pipeline that only reads the file, and runs under uvicorn in a new process for each
case. Files are uploaded over loopback, as a form and as base64 in JSON, alone and eight at once. Prints one
JSON line. `peak_mib` is how far the process's resident memory (VmHWM) rose above what it was after an empty
file of each kind; `anonymous_mib` is the same for RssAnon, sampled. Neither contains the file, which is on
disk and in the kernel's page cache. A run ends with an error if a file does not arrive byte for byte.
"""

import asyncio
import base64
import hashlib
import json
import multiprocessing
import os
import platform
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import httpx
import typer
import uvicorn
from rich.console import Console

from serve_app.audio import Source
from serve_app.http.app import create_app
from serve_app.options import Options
from serve_app.transcript import Transcript

BLOCK = random.Random(0).randbytes(3_000_000)  # a multiple of 3: base64 of blocks can be joined
BLOCK_BASE64 = base64.b64encode(BLOCK)
JSON_BLOCKS = 16  # as base64 they are just under intake.max_json_bytes
FORM_TYPE = "multipart/form-data; boundary=x"
FORM_START = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'

say = Console(stderr=True, highlight=False, soft_wrap=True)


async def transcribe(source: Source, options: Options, report: object = None) -> Transcript:
    """Reads the file as the graph's ingress does, and answers its digest as the model's name."""
    assert source.file is not None
    return Transcript((), None, 0.0, await asyncio.to_thread(digest, source.file))


def digest(file: BinaryIO) -> str:
    hashed = hashlib.sha256()
    while piece := file.read(1 << 20):
        hashed.update(piece)
    return hashed.hexdigest()


async def readiness() -> dict[str, bool]:
    return {}


def serve(listener: socket.socket) -> None:
    app = create_app(transcribe, readiness, model="none", max_bytes=1 << 30)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])


@contextmanager
def application() -> Iterator[tuple[str, int]]:
    """The application's URL and the id of its process."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        process = multiprocessing.get_context("spawn").Process(target=serve, args=(listener,))
        process.start()
        assert process.pid is not None
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", process.pid
        finally:
            process.terminate()
            process.join()


def body(kind: str, blocks: int) -> tuple[dict[str, str], Iterator[bytes]]:
    """Headers and chunks of an upload with this many blocks."""
    if kind == "form":
        start, block, end, content_type = FORM_START, BLOCK, b"\r\n--x--\r\n", FORM_TYPE
    else:
        start, block, end, content_type = b'{"audio_b64": "', BLOCK_BASE64, b'"}', "application/json"
    length = len(start) + blocks * len(block) + len(end)

    def chunks() -> Iterator[bytes]:
        yield start
        for _ in range(blocks):
            yield block
        yield end

    return {"content-type": content_type, "content-length": str(length)}, chunks()


def upload(url: str, kind: str, blocks: int) -> str:
    """Uploads a file and returns the digest of what arrived."""
    headers, content = body(kind, blocks)
    response = httpx.post(f"{url}/predict", headers=headers, content=content, timeout=600)
    response.raise_for_status()
    return str(response.json()["model"])


def memory_mib(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(name)


@contextmanager
def sampled(pid: int, most: list[float]) -> Iterator[None]:
    """Appends the largest RssAnon during the context."""
    stop = threading.Event()

    def watch() -> None:
        peak = 0.0
        while not stop.wait(0.01):
            peak = max(peak, memory_mib(pid, "RssAnon"))
        most.append(peak)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(kind: str, clients: int, blocks: int) -> dict[str, float]:
    say.print(f"{clients} at once as {kind}")
    if kind == "json":
        blocks = min(blocks, JSON_BLOCKS)
    expected = hashlib.sha256(BLOCK * blocks).hexdigest()
    with application() as (url, pid), ThreadPoolExecutor(clients) as pool:
        for other in ("form", "json"):  # the first requests load code, which is no upload's memory
            upload(url, other, 0)
        rest_mib, rest_anonymous_mib = memory_mib(pid, "VmHWM"), memory_mib(pid, "RssAnon")
        most: list[float] = []
        begun_s = time.monotonic()
        with sampled(pid, most):
            arrived = list(pool.map(lambda _: upload(url, kind, blocks), range(clients)))
        wall_s = time.monotonic() - begun_s
        assert arrived == [expected] * clients
        return {
            "file_bytes": blocks * len(BLOCK),
            "peak_mib": round(memory_mib(pid, "VmHWM") - rest_mib, 1),
            "anonymous_mib": round(most[0] - rest_anonymous_mib, 1),
            "rest_mib": round(rest_mib, 1),
            "wall_s": round(wall_s, 2),
        }


def main(
    megabytes: Annotated[int, typer.Option(help="Size of each file, in millions of bytes.")] = 201,
    clients: Annotated[int, typer.Option(help="Uploads at once in the second half.")] = 8,
) -> None:
    blocks = max(1, megabytes * 1_000_000 // len(BLOCK))
    figures: dict[str, Any] = {
        f"{kind}_{count}": measure(kind, count, blocks) for count in (1, clients) for kind in ("form", "json")
    }
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    print(json.dumps({**figures, **machine}))


if __name__ == "__main__":
    typer.run(main)
