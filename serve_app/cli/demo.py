"""What `make demo` shows: the sample served over HTTP, its URL posted to the graph, a table and the JSON."""

import asyncio
import json
import socket
import sys
import threading
import time
from typing import Any

import aiohttp
from aiohttp import web
from rich.console import Console
from rich.table import Table

from serve_app import bundled

PROGRESS_S = 2.0  # waits longer than this are explained

note = Console(stderr=True, highlight=False, soft_wrap=True)


class DemoFailed(Exception):
    """The graph answered the sample with an error."""


class Waiting:
    """Says on stderr what is being waited for, as soon as it takes over two seconds, and when it changes."""

    def __init__(self) -> None:
        self._begun_s = time.monotonic()
        self._said_s = self._begun_s
        self._said: str | None = None

    def on(self, what: str) -> None:
        now_s = time.monotonic()
        overdue = now_s - self._said_s >= (PROGRESS_S if what != self._said else 5 * PROGRESS_S)
        if now_s - self._begun_s >= PROGRESS_S and overdue:
            note.print(f"  {now_s - self._begun_s:3.0f} s  waiting for {what}")
            self._said, self._said_s = what, now_s


async def predict_sample(
    listener: socket.socket, url: str, sample_url: str, stop: threading.Event
) -> dict[str, Any]:
    """Serves the sample over HTTP and posts its URL to the graph; raises DemoFailed, also when stopped."""

    async def sample(_: web.Request) -> web.FileResponse:
        return web.FileResponse(bundled.SAMPLE)

    site = web.Application()
    site.router.add_get(f"/{bundled.SAMPLE.name}", sample)
    runner = web.AppRunner(site)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    body = {"audio_file": f"{sample_url}/{bundled.SAMPLE.name}"}
    note.print(f"POST {url}/predict {json.dumps(body)}")
    waiting = Waiting()
    try:
        async with aiohttp.ClientSession() as session:
            request = asyncio.create_task(_post(session, f"{url}/predict", body))
            while not (await asyncio.wait([request], timeout=0.2))[0]:
                waiting.on("the answer")
                if stop.is_set():
                    request.cancel()
                    raise DemoFailed("stopped before the answer was there.")
            return request.result()
    except (aiohttp.ClientError, asyncio.TimeoutError) as error:
        raise DemoFailed(f"the graph does not answer ({type(error).__name__}).") from None
    finally:
        await runner.cleanup()


async def _post(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    async with session.post(url, json=body) as response:
        answer: dict[str, Any] = await response.json()
        if response.status != 200:
            raise DemoFailed(f"{response.status}: {answer['error']['message']}")
        return answer


def show(answer: dict[str, Any]) -> None:
    table = Table("start", "end", "speaker", "text", title="Gettysburg Address, two synthesized voices")
    for segment in answer["model_output"]:
        table.add_row(
            f"{segment['start']:.2f}",
            f"{segment['end']:.2f}",
            segment["speaker"] or "",
            segment["text"].strip(),
        )
    output = Console(file=sys.stdout)
    output.print(table)
    output.print(
        "These are the bundled demo models: small, trained on synthesized speech, with wrong words. "
        "The README says how to use real ones.\n"
    )
    print(json.dumps(answer, indent=2, ensure_ascii=False))
