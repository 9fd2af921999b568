"""The service as a browser meets it: real application, jobs and runner, in front of a fake transcription."""

import asyncio
import hashlib
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.types import Receive, Scope, Send

from serve_app.audio import Source
from serve_app.http.app import create_app
from serve_app.http.responses import answer
from serve_app.jobs.runner import Runner
from serve_app.jobs.service import Jobs
from serve_app.jobs.store.migration import migrate
from serve_app.options import Options
from serve_app.request.admission import Admission
from serve_app.request.progress import Report, ignore_progress
from serve_app.settings import IntakeSettings
from serve_app.settings.access import AccessSettings, ApiKey
from serve_app.settings.jobs import JobsSettings
from serve_app.transcript import Progress, Segment, StageWarning, Transcript, Turn, Word

KEY = "wx_page"


def said(start_s: float, text: str, speaker: str | None, word_s: float = 0.4) -> Segment:
    """A segment with a word every `word_s` seconds; the third word of each is uncertain."""
    words = tuple(
        Word(
            word,
            round(start_s + number * word_s, 3),
            round(start_s + number * word_s + 0.9 * word_s, 3),
            0.35 if number == 2 else 0.9,
            speaker,
        )
        for number, word in enumerate(text.split())
    )
    end_s = words[-1].end_s
    assert end_s is not None
    return Segment(start_s, end_s, text, words, speaker)


# A waveform of 30 s that is silent, but for the last one of each six seconds.
PEAKS = b64encode(bytes(100 if number // 20 % 6 == 5 else 2 for number in range(20 * 30))).decode()

TALK = Transcript(
    segments=(
        said(1.0, "Hello, this is Diane in New Jersey.", "SPEAKER_00"),
        said(5.5, "And I'm Sheila in Texas, originally from Chicago.", "SPEAKER_01"),
        said(10.0, "Oh, I'm originally from Chicago also.", "SPEAKER_00"),
        said(14.2, "I'm in New Jersey now & I like it -- mostly.", "SPEAKER_00"),
        said(20.0, "Well, there is not much difference.", "SPEAKER_01"),
    ),
    language="en",
    duration_s=30.0,
    model="base",
    turns=(
        Turn(1.0, 4.0, "SPEAKER_00"),
        Turn(5.5, 9.0, "SPEAKER_01"),
        Turn(10.0, 18.5, "SPEAKER_00"),
        Turn(20.0, 23.0, "SPEAKER_01"),
    ),
    warnings=(StageWarning("asr", "fallback_temperature", "Some windows were decoded again."),),
    timings={"total": 2.0},
    peaks=PEAKS,
)


def long_talk(hours: float = 3.0) -> Transcript:
    """About 10,000 words an hour, by two speakers, in sentences of twelve words."""
    words = "so we looked at the numbers again and they were quite good"
    count = int(hours * 3600 / 4.3)
    segments = tuple(
        said(number * 4.3, f"{words} {number}.", f"SPEAKER_0{number // 5 % 2}", 0.32)
        for number in range(count)
    )
    return Transcript(segments, "en", hours * 3600.0, "base")


@dataclass
class Graph:
    """A transcription that reports half of its progress, and ends when the test releases it."""

    transcript: Transcript = TALK
    error: Exception | None = None
    heard: list[tuple[bytes, Options]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)

    async def transcribe(
        self, source: Source, options: Options, report: Report = ignore_progress
    ) -> Transcript:
        self.heard.append((source.file.read() if source.file else b"", options))
        report(Progress(1, 4, True, self.transcript.segments[:2]))
        self.begun.set()
        await asyncio.to_thread(self.may_end.wait, 60)
        if self.error:
            raise self.error
        return self.transcript


@dataclass
class Site:
    """The URL of the service, and its transcription."""

    url: str
    graph: Graph


@contextmanager
def serving(
    folder: Path,
    *,
    with_key: bool = False,
    max_bytes: int = 1 << 30,
    root_path: str = "",
    queue: int | None = None,
    with_jobs: bool = True,
) -> Iterator[Site]:
    """The service on a free port, until the block ends. `queue` is how many requests may run at once."""
    graph, started, stop = Graph(), threading.Event(), threading.Event()
    site = Site("", graph)
    failures: list[BaseException] = []

    async def serve() -> None:
        settings = JobsSettings(state_dir=str(folder))
        url = f"sqlite:///{folder}/jobs.db"
        await migrate(url)
        jobs, of_runner = (Jobs(settings, IntakeSettings()) for _ in range(2))
        keys = (ApiKey(name="page", sha256=hashlib.sha256(KEY.encode()).hexdigest()),) if with_key else ()
        app = create_app(
            graph.transcribe,
            _ready,
            model="base",
            max_bytes=max_bytes,
            access=AccessSettings(keys=keys),
            admission=Admission(queue, 3600.0) if queue is not None else None,
            jobs=jobs if with_jobs else None,
        )
        runner = Runner(of_runner, graph.transcribe, answer, "runner")

        async def behind_prefix(scope: Scope, receive: Receive, send: Send) -> None:  # as Serve does it
            await app({**scope, "root_path": root_path}, receive, send)

        config = uvicorn.Config(behind_prefix, log_level="error", timeout_graceful_shutdown=1, lifespan="off")
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        site.url = f"http://127.0.0.1:{listener.getsockname()[1]}{root_path}/"
        tasks = [asyncio.create_task(runner.run()), asyncio.create_task(server.serve([listener]))]
        started.set()
        await asyncio.to_thread(stop.wait)
        graph.may_end.set()
        await runner.drain()
        server.should_exit = True
        await asyncio.gather(*tasks)
        await jobs.store.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # a thread's error is lost; the test's thread looks for it here
            failures.append(error)
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert started.wait(60)
        assert not failures, failures
        yield site
    finally:
        stop.set()
        thread.join(30)
    assert not failures, failures


async def _ready() -> dict[str, bool]:
    return {"asr": True}
