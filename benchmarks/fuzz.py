"""`python -m benchmarks.fuzz` sends malformed requests and counts the answers by status.

schemathesis makes half of the requests, valid and invalid ones, from the service's own OpenAPI document. The
other half are valid requests with random damage to the file, the body, its type, its length and the cuts
between its chunks; some of these clients leave early. The application decodes files for real and fails every
fetch. Prints one JSON line with the statuses and what was left behind: descriptors, child processes and names
in the temporary directory, which must be zero each. The exit code is 1 if an answer was a 5xx or anything was
left.
"""

import asyncio
import base64
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated, Any

import schemathesis
import typer
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.console import Console
from schemathesis.core.result import Ok

from benchmarks.decoding import decode_whole
from benchmarks.hostile_files import mutated, whole_files
from benchmarks.malformed import leftovers
from serve_app.audio import Source
from serve_app.errors import SourceUnavailable
from serve_app.http.app import create_app
from serve_app.options import Options
from serve_app.settings.access import AccessSettings
from serve_app.transcript import Transcript

MAX_BYTES = 1 << 20
CONTENT_TYPES = ("application/json", "multipart/form-data; boundary=x", "multipart/form-data", "audio/wav")
FORM_START = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
FORM_OPTION = b'\r\n--x\r\nContent-Disposition: form-data; name="language"\r\n\r\nen'

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Request:
    """A body in chunks, its headers, and whether the client leaves after the last chunk."""

    headers: dict[str, str]
    chunks: tuple[bytes, ...]
    leaves: bool = False


async def transcribe(source: Source, options: Options, report: object = None) -> Transcript:
    """Decodes the file; every URL is one that cannot be fetched."""
    if source.file is None:
        raise SourceUnavailable("No network here.", "audio_file")
    info, _ = await decode_whole(source.file, max_audio_s=60.0, timeout_s=30.0)
    return Transcript((), "en", info.end_s, "none", warnings=info.warnings)


async def readiness() -> dict[str, bool]:
    return {}


def application() -> FastAPI:
    anyone = AccessSettings(public_without_keys=True)
    return create_app(transcribe, readiness, model="none", max_bytes=MAX_BYTES, access=anyone)


ATTEMPTS = 20  # schemathesis may make fewer requests than asked for


def from_schema(app: FastAPI, count: int, number: int) -> Counter[int]:
    """Statuses of `count` requests, half of which fit the OpenAPI document."""
    statuses: Counter[int] = Counter()
    document = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [found.ok() for found in document.get_all_operations() if isinstance(found, Ok)]
    posts = [operation for operation in operations if operation.method.lower() == "post"]
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    kinds = [(operation, mode) for operation in posts for mode in modes]
    share = max(1, count // len(kinds))
    for operation, mode in kinds:
        before = statuses.total()
        for attempt in range(ATTEMPTS):
            left = share - (statuses.total() - before)
            if left <= 0:
                break

            @seed(number + attempt)
            @settings(
                max_examples=left,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                deadline=None,
                database=None,
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                statuses[case.call().status_code] += 1

            try:
                ask()
            except ValueError as error:
                if "Unsupported type: 'Binary'" not in str(error):  # a form that schemathesis cannot write
                    raise
    return statuses


def accidents(count: int, number: int) -> Iterator[Request]:
    """Valid requests with random damage."""
    random = Random(number)
    files = list(whole_files().values())
    for _ in range(count):
        file = mutated(files, random) if random.random() < 0.5 else random.choice(files)
        kind, body = random.choice(_bodies(file))
        if random.random() < 0.7:
            body = mutated([body, *(other for _, other in _bodies(file[:100]))], random)
        if random.random() < 0.1:
            kind = random.choice(CONTENT_TYPES)
        if random.random() < 0.1:
            kind = mutated([kind.encode()], random).decode("latin-1")
        headers = {"content-type": kind}
        if random.random() < 0.3:
            headers["content-length"] = random.choice((str(len(body)), "0", "x", "-1", "9" * 5000))
        cut = sorted(random.randrange(len(body) + 1) for _ in range(random.randrange(4)))
        chunks = tuple(body[start:end] for start, end in zip([0, *cut], [*cut, len(body)], strict=True))
        yield Request(headers, chunks, leaves=random.random() < 0.1)


def _bodies(file: bytes) -> list[tuple[str, bytes]]:
    text = base64.b64encode(file)
    return [
        ("application/json", b'{"audio_file": "https://example.com/a.mp3", "headers": {"a": "b"}}'),
        ("application/json", b'{"audio_b64": "' + text + b'", "num_speakers": 2, "diarize": true}'),
        ("application/json", b'{"language": "en", "audio_b64": "' + text.replace(b"/", rb"\/") + b'"}'),
        ("application/json", b'{"audio_b64": "data:audio/wav;base64,' + base64.encodebytes(file) + b'"}'),
        ("multipart/form-data; boundary=x", FORM_START + file + FORM_OPTION + b"\r\n--x--\r\n"),
    ]


async def answer(app: FastAPI, request: Request) -> int:
    """The status; it is also 500 for an exception that the application did not handle."""
    chunks = iter(request.chunks)
    status = 500

    async def receive() -> dict[str, Any]:
        for chunk in chunks:
            return {"type": "http.request", "body": chunk, "more_body": True}
        ends: dict[str, Any] = {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.disconnect"} if request.leaves else ends

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    headers = [(name.encode(), value.encode("latin-1")) for name, value in request.headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": headers}
    try:
        await app(scope, receive, send)
    except Exception as error:  # noqa: BLE001  (any exception is a finding)
        say.print(f"{error!r} by {request.headers}, {len(request.chunks)} chunks")
        return 500
    return status


def fuzz(count: int, number: int) -> tuple[Counter[int], dict[str, int]]:
    """The answers by status, and what was left behind."""
    app = application()

    async def all_accidents(count: int) -> Counter[int]:
        return Counter([await answer(app, request) for request in accidents(count, number)])

    with temporary_directory() as folder:
        # First let the application make what it makes once: the document, the path of ffmpeg, threads.
        asyncio.run(all_accidents(4))
        from_schema(app, 4, number)
        before = leftovers()
        statuses = asyncio.run(all_accidents(count - count // 2)) + from_schema(app, count // 2, number)
        after = leftovers()
        names = len(list(folder.iterdir()))
    left = {"descriptors": after[0] - before[0], "children": len(after[1] - before[1]), "names": names}
    return statuses, left


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A temporary directory for this process alone, so that it made whatever appears there."""
    usual = tempfile.tempdir
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        try:
            yield Path(folder)
        finally:
            tempfile.tempdir = usual


def main(
    requests: Annotated[int, typer.Option(help="How many.")] = 10_000,
    number: Annotated[int, typer.Option("--seed", help="Seed of the random damage.")] = 0,
) -> None:
    begun_s = time.monotonic()
    statuses, left = fuzz(requests, number)
    figures = {"statuses": dict(sorted(statuses.items())), "left": left, "seed": number}
    print(json.dumps({"requests": statuses.total(), **figures, "wall_s": round(time.monotonic() - begun_s)}))
    if any(status >= 500 for status in statuses) or any(left.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
