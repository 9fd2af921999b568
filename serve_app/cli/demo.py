"""What `make demo` shows: the service fetches the sample by URL, then a table and the JSON of its answer."""

import asyncio
import json
import socket
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from rich.console import Console
from rich.table import Table

from serve_app.cli import CommandFailed, note


def sample() -> Path:
    """A recording of two real people on the telephone, 30 s, from pyannote's package (MIT)."""
    package = find_spec("pyannote.audio")
    if package is None or package.origin is None:
        raise CommandFailed("pyannote.audio is not installed.")
    return Path(package.origin).parent / "sample" / "sample.wav"


async def predict_sample(
    listener: socket.socket, url: str, sample_url: str, stop: threading.Event
) -> dict[str, Any]:
    """Serves the sample over HTTP and posts its URL to the service. Raises CommandFailed."""
    site = web.Application()
    site.router.add_static("/", sample().parent)
    runner = web.AppRunner(site)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    request = asyncio.create_task(_post(f"{url}/predict", {"audio_file": f"{sample_url}/{sample().name}"}))
    try:
        with note.status("Waiting for the answer"):
            while not (await asyncio.wait([request], timeout=0.2))[0]:
                if stop.is_set():
                    request.cancel()
                    raise CommandFailed("stopped before the answer arrived.")
        return request.result()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise CommandFailed(f"the service does not answer ({type(error).__name__}).") from None
    finally:
        await runner.cleanup()


async def _post(url: str, body: dict[str, str]) -> dict[str, Any]:
    note.print(f"POST {url} {json.dumps(body)}")
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        answer: dict[str, Any] = await response.json()
        if response.status != 200:
            raise CommandFailed(f"{response.status}: {answer['error']['message']}")
        return answer


def show(answer: dict[str, Any]) -> None:
    """Prints the answer as a table, then as JSON."""
    table = Table("start", "end", "speaker", "text", title="Two people on the telephone")
    for segment in answer["model_output"]:
        start, end = f"{segment['start']:.2f}", f"{segment['end']:.2f}"
        table.add_row(start, end, segment["speaker"] or "", segment["text"].strip())
    Console().print(table)
    print()
    print(json.dumps(answer, indent=2, ensure_ascii=False))
