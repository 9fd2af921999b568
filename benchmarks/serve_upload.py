"""`python -m benchmarks.serve_upload` measures the memory of large uploads in the Ingress and Serve's proxy.

The graph with simulated models gets files of 200 MiB that cannot be decoded: at some rates, alone and four at
once, and as fast as a client can send. The memory is how far each process's RssAnon rose, sampled 50 times a
second. Prints one JSON line.
"""

import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import typer
from rich.console import Console

from benchmarks.scheduling import cpus_for, graph_on_gpus
from benchmarks.systems import service

FILE_BYTES = 200 << 20
PIECE_BYTES = 64 << 10
RUNS = ((50.0, 1), (100.0, 1), (25.0, 4), (float("inf"), 1))  # megabytes a second of each client, clients

say = Console(stderr=True, highlight=False, soft_wrap=True)


def body(megabytes_per_s: float) -> Iterator[bytes]:
    """A form with the file in it, no faster than that."""
    begun_s, sent_bytes = time.monotonic(), 0
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.bin"\r\n\r\n'
    while sent_bytes < FILE_BYTES:
        yield bytes(PIECE_BYTES)
        sent_bytes += PIECE_BYTES
        time.sleep(max(0.0, sent_bytes / (megabytes_per_s * 1e6) - (time.monotonic() - begun_s)))
    yield b"\r\n--b--\r\n"


def process_named(part: str) -> psutil.Process:
    """The first descendant of this process whose command line contains `part`."""
    descendants = psutil.Process().children(recursive=True)
    return next(process for process in descendants if part in " ".join(process.cmdline()))


def anonymous_mib(process: psutil.Process) -> float:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        raw = graph_on_gpus(Path(folder), 1)
        with service(raw, num_cpus=cpus_for(1)) as system:
            processes = {"ingress": process_named("simulated:Ingress"), "proxy": process_named("ProxyActor")}

            def post(megabytes_per_s: float) -> None:
                headers = {"Content-Type": "multipart/form-data; boundary=b"}
                url, content = f"{system.url}/predict", body(megabytes_per_s)
                response = httpx.post(url, content=content, headers=headers, timeout=600)
                assert response.status_code == 422, response.text

            def grown_mib(megabytes_per_s: float, clients: int) -> dict[str, float]:
                rest = {name: anonymous_mib(process) for name, process in processes.items()}
                most = dict.fromkeys(rest, 0.0)
                stop = threading.Event()

                def watch() -> None:
                    while not stop.wait(0.02):
                        for name, process in processes.items():
                            most[name] = max(most[name], anonymous_mib(process) - rest[name])

                watcher = threading.Thread(target=watch)
                watcher.start()
                try:
                    with ThreadPoolExecutor(clients) as pool:
                        list(pool.map(post, [megabytes_per_s] * clients))
                finally:
                    stop.set()
                    watcher.join()
                say.print(f"{clients} at {megabytes_per_s:g} MB/s: {most}")
                return most

            post(RUNS[0][0])  # loads what the first request loads
            figures: list[dict[str, Any]] = [
                {"megabytes_per_s": str(rate), "clients": clients, "grown_mib": grown_mib(rate, clients)}
                for rate, clients in RUNS
            ]
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(json.dumps({"file_bytes": FILE_BYTES, "runs": figures, "machine": machine}))


if __name__ == "__main__":
    typer.run(main)
