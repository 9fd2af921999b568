"""The HTTP API in front of jobs. The test plays the client, and the runner if one is needed."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

import httpx

from serve_app.audio import Source
from serve_app.http.app import create_app
from serve_app.jobs.service import Jobs
from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.migration import migrate
from serve_app.jobs.store.records import ClaimedJob
from serve_app.jobs.stored import dump_transcript
from serve_app.options import Options
from serve_app.request.progress import Transcribe
from serve_app.settings import IntakeSettings
from serve_app.settings.access import AccessSettings, ApiKey
from serve_app.settings.jobs import JobsSettings
from serve_app.transcript import Transcript

T = TypeVar("T")

# The URL of the running test's PostgreSQL database, set by the fixture `each_store`; "" for SQLite.
POSTGRESQL = ContextVar("POSTGRESQL", default="")

URL = "https://example.com/talk.mp3"
ANN, BOB = ({"Authorization": f"Bearer wx_{name}"} for name in ("ann", "bob"))
MAX_BYTES = 1 << 20
LEASE_S = 60.0


def store_at(directory: Path) -> str:
    """The URL of the store of a test with this folder."""
    return POSTGRESQL.get() or f"sqlite:///{directory}/jobs.db"


async def _never(*_: object) -> Transcript:
    raise AssertionError("jobs are not run by the application")


async def _ready() -> dict[str, bool]:
    return {}


class Service:
    """The application, its jobs, and a client."""

    def __init__(
        self,
        directory: Path,
        *,
        with_keys: bool = False,
        is_public: bool = False,
        max_queued: int = 100,
        has_speakers: bool = True,
        transcribe: Transcribe = _never,
        limits: Mapping[str, float] = {},
        **more: Any,
    ) -> None:
        names = ("ann", "bob") if with_keys else ()
        keys = tuple(
            ApiKey.model_validate(
                {"name": name, "sha256": hashlib.sha256(f"wx_{name}".encode()).hexdigest(), **limits}
            )
            for name in names
        )
        self.spool = directory / "jobs.db.spool"
        self.database = directory / "jobs.db"
        settings = JobsSettings(state_dir=str(directory), max_queued=max_queued)
        self.jobs = Jobs(settings, IntakeSettings(), has_speakers=has_speakers, models=("none", "small"))
        # A test does not wait ten seconds for SQLite's lock.
        busy_timeout_s = 10.0 if POSTGRESQL.get() else 0.2
        self.jobs.store = JobStore(store_at(directory), busy_timeout_s=busy_timeout_s)
        self.app = create_app(
            transcribe,
            _ready,
            model="none",
            max_bytes=MAX_BYTES,
            access=AccessSettings(
                keys=keys, cors_origins=("https://page.example",), public_without_keys=is_public
            ),
            jobs=self.jobs,
            **more,
        )

    async def send(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **kwargs)

    async def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return await self.send("GET", path, **kwargs)

    async def post(self, path: str = "/v1/jobs", **kwargs: Any) -> httpx.Response:
        return await self.send("POST", path, **kwargs)

    async def ask(self, method: str, path: str, status: int = 200, **kwargs: Any) -> httpx.Response:
        """The answer, which must have this status."""
        answer = await self.send(method, path, **kwargs)
        assert answer.status_code == status, answer.text
        return answer

    async def submitted(self, headers: dict[str, str] | None = None, **fields: Any) -> str:
        """The path of a new job."""
        answer = await self.post(json={"audio_file": URL, **fields}, headers=headers)
        assert answer.status_code == 201, answer.text
        return answer.headers["location"]

    async def claimed(self) -> ClaimedJob:
        """The next job, as a runner holds it."""
        held = await self.jobs.store.claim("runner", LEASE_S)
        assert held is not None
        return held

    async def finished(self, transcript: Transcript, **fields: Any) -> str:
        """The path of a job that has succeeded; no other may be waiting."""
        path = await self.submitted(**fields)
        held = await self.claimed()
        assert await self.jobs.store.finish(held.job.id, held.job.attempt, dump_transcript(transcript))
        return path

    def stored(self) -> bytes:
        """All that SQLite has written."""
        return b"".join(path.read_bytes() for path in self.database.parent.glob("jobs.db*"))

    def uploads(self) -> list[bytes]:
        """The files in the spool."""
        return [path.read_bytes() for path in self.spool.iterdir()] if self.spool.exists() else []


def using(directory: Path, story: Callable[[Service], Awaitable[T]], **settings: Any) -> T:
    """Runs a story on a new service with an empty store."""

    async def told() -> T:
        await migrate(store_at(directory))
        service = Service(directory, **settings)
        try:
            return await story(service)
        finally:
            await service.jobs.store.close()

    return asyncio.run(told())


def error_of(answer: httpx.Response) -> tuple[int, str | None, str]:
    """Status, field and code."""
    error = answer.json()["error"]
    return answer.status_code, error["param"], error["code"]


async def arrived(service: Service, held: ClaimedJob) -> tuple[Options, Source, bytes]:
    """The options, the source and the uploaded bytes that a runner gets for a job."""
    request = await service.jobs.request(held.job.id, held.job.key)
    async with service.jobs.source(held) as source:
        return request.options, source, source.file.read() if source.file else b""
