"""The whole HTTP API with jobs and their runner, on a port, with a transcription that a test holds."""

import asyncio
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from transcripts import FIXED

from serve_app.audio import Source
from serve_app.errors import TranscriptionError
from serve_app.http.app import create_app
from serve_app.http.jobs import events
from serve_app.http.responses import answer
from serve_app.http.without_text import WithoutText
from serve_app.jobs import runner as runner_module
from serve_app.jobs.runner import Runner
from serve_app.jobs.service import Jobs
from serve_app.jobs.store.migration import migrate
from serve_app.options import Options
from serve_app.request.progress import Report, ignore_progress
from serve_app.request.without_text import DetectedLanguage, DetectedSpeech
from serve_app.settings import IntakeSettings
from serve_app.settings.access import AccessSettings, ApiKey
from serve_app.settings.jobs import JobsSettings, WebhookSettings
from serve_app.transcript import Progress, Transcript, Window

KEY = "wx_ann"


class Played:
    """A service in a thread. Transcriptions end when `opened` is set."""

    def __init__(
        self, folder: Path, *, with_keys: bool = False, is_public: bool = False, concurrency: int = 4
    ) -> None:
        self.folder, self.is_public, self.concurrency = folder, is_public, concurrency
        self.heard: list[bytes] = []
        self.asked: list[Options] = []
        self.running = self.most_running = 0
        self.opened = threading.Event()
        self.opened.set()
        self.failures: dict[bytes, TranscriptionError] = {}  # by the content of the file
        self.models: list[str] = []
        self.free = 0  # this many transcriptions end although `opened` is not set
        self.transcript = FIXED
        self.keys = (ApiKey(name="ann", sha256=hashlib.sha256(KEY.encode()).hexdigest()),) * with_keys
        self.url = ""
        self.paths: list[str] = []  # of all requests

    async def transcribe(
        self, source: Source, options: Options, report: Report = ignore_progress
    ) -> Transcript:
        audio = source.file.read() if source.file else str(source.url).encode()
        self.heard.append(audio)
        self.asked.append(options)
        self.running += 1
        self.most_running = max(self.running, self.most_running)
        try:
            report(Progress(1, 2, False, self.transcript.segments[:1]))
            while not self.opened.is_set() and len(self.heard) > self.free:  # noqa: ASYNC110  (a test's thread sets it)
                await asyncio.sleep(0.01)
            if audio in self.failures:
                raise self.failures[audio]
            report(Progress(2, 2, True, self.transcript.segments[1:]))
            return self.transcript
        finally:
            self.running -= 1

    def jobs(self) -> Jobs:
        webhooks = WebhookSettings(allowed_hosts=("127.0.0.1",))
        settings = JobsSettings(state_dir=str(self.folder), concurrency=self.concurrency, webhooks=webhooks)
        return Jobs(settings, IntakeSettings(), models=self.models)

    async def serve(self, is_up: threading.Event, ending: threading.Event) -> None:
        await migrate(f"sqlite:///{self.folder}/jobs.db")

        async def ready() -> dict[str, bool]:
            return {}

        jobs = self.jobs()
        access = AccessSettings(keys=self.keys, public_without_keys=self.is_public)

        async def detect_language(_: Source, options: Options) -> DetectedLanguage:
            return DetectedLanguage("en", 0.9)

        async def detect_speech(source: Source, options: Options) -> DetectedSpeech:
            self.asked.append(options)
            self.heard.append(source.file.read() if source.file else str(source.url).encode())
            return DetectedSpeech((Window(0.5, 2.0), Window(3.0, 4.0)), ())

        app = create_app(
            self.transcribe,
            ready,
            model="fixed",
            max_bytes=1 << 20,
            access=access,
            detect_language=detect_language,
            without_text=WithoutText(self.transcribe, detect_speech),
            jobs=jobs,
        )

        async def recorded(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                self.paths.append(f"{scope['method']} {scope['path']}")
            await app(scope, receive, send)

        server = uvicorn.Server(
            uvicorn.Config(recorded, port=0, log_level="error", timeout_graceful_shutdown=1)
        )
        runner = Runner(self.jobs(), self.transcribe, answer, "runner")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve())
            tasks.create_task(runner.run())
            while not server.started:  # noqa: ASYNC110  (uvicorn has no event for it)
                await asyncio.sleep(0.01)
            self.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            is_up.set()
            await asyncio.to_thread(ending.wait)
            server.should_exit = True
            await runner.drain()
        await jobs.store.close()


@contextmanager
def played(folder: Path, **settings: Any) -> Iterator[Played]:
    """Runs the service until the block ends."""
    polls_s = runner_module.POLL_S, events.POLL_S
    runner_module.POLL_S = events.POLL_S = 0.02
    service, is_up, ending = Played(folder, **settings), threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(service.serve(is_up, ending)))
    thread.start()
    try:
        assert is_up.wait(30)
        yield service
    finally:
        ending.set()
        thread.join(30)
        runner_module.POLL_S, events.POLL_S = polls_s
