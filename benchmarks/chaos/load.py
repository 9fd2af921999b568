"""Clips, the clients that send them, and what became of every request."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from benchmarks import people
from benchmarks.systems import wav
from serve_app.transcript import SAMPLE_RATE_HZ

REQUEST_TIMEOUT_S = 600.0
RECORDING_S = 600.0


@dataclass(frozen=True)
class Clip:
    """A file, how it is sent, and with which options."""

    name: str
    audio_s: float
    file: bytes
    by_url: bool
    options: dict[str, str]


def mixed_clips(lengths_s: list[float], rng: random.Random) -> list[Clip]:
    """Pieces of a recording, no two alike: in turns by upload and URL, and every third without speakers."""
    recording = people.speech(RECORDING_S)
    clips = []
    for number, audio_s in enumerate(lengths_s):
        samples = int(audio_s * SAMPLE_RATE_HZ)
        first = rng.randrange(len(recording) - samples)
        piece = wav(recording[first : first + samples])
        options = {"language": "en", "word_timestamps": "true"}
        if number % 3 == 2:
            options["diarize"] = "false"
        clips.append(Clip(f"{number}-{audio_s:g}s", audio_s, piece, number % 2 == 1, options))
    return clips


@dataclass(frozen=True)
class Outcome:
    """What became of one request."""

    clip: Clip
    begun_s: float  # monotonic clock
    ended_s: float
    status: int | None  # None: the connection broke
    changed: bool = False  # a transcript, and not the undisturbed one
    retry_after_s: int | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200 and not self.changed

    @property
    def wall_s(self) -> float:
        return self.ended_s - self.begun_s


@dataclass
class Load:
    """Clients of one graph. `expected` has the undisturbed answer to each clip."""

    url: str
    clips: list[Clip]
    source_pace: float = 0.0  # seconds that a URL's server takes for one of audio
    host: str = "127.0.0.1"  # of that server, as loaders know it
    expected: dict[str, Any] = field(default_factory=dict)
    gave_up: int = 0  # clients that tried again and again, for nothing

    def __post_init__(self) -> None:
        # A new connection for every request: one that a killed process has left behind is nobody's error.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.client = httpx.Client(limits=limits, timeout=REQUEST_TIMEOUT_S, verify=False, trust_env=False)
        files = {f"/{clip.name}": clip for clip in self.clips}
        self._files = _serve_files(files, self.source_pace, self.host)

    def close(self) -> None:
        self.client.close()
        self._files.shutdown()
        self._files.server_close()

    def learn(self) -> None:
        """Sends every clip that is not known once, undisturbed; raises RuntimeError where that fails."""
        for clip in self.clips:
            if clip.name in self.expected:
                continue
            status, body, _ = self._post(clip)
            if status != 200:
                raise RuntimeError(f"{clip.name}: {status} {body}")
            self.expected[clip.name] = _transcript(body)

    def send(self, clip: Clip) -> Outcome:
        begun_s = time.monotonic()
        try:
            status, body, retry_after = self._post(clip)
        except httpx.TransportError as error:
            return Outcome(clip, begun_s, time.monotonic(), None, detail=type(error).__name__)
        ended_s = time.monotonic()
        if status == 200:
            changed = clip.name in self.expected and _transcript(body) != self.expected[clip.name]
            return Outcome(clip, begun_s, ended_s, status, changed, detail=str(body) if changed else "")
        return Outcome(clip, begun_s, ended_s, status, False, retry_after, str(body))

    def send_until_answered(self, clip: Clip, timeout_s: float = 180.0) -> list[Outcome]:
        """As a client that tries again after a broken connection or a 5xx, when it is told to or soon."""
        outcomes = [self.send(clip)]
        deadline_s = time.monotonic() + timeout_s
        while (last := outcomes[-1]).status is None or last.status >= 500:
            if time.monotonic() > deadline_s:
                self.gave_up += 1
                break
            time.sleep(last.retry_after_s or 0.5)  # as a well-behaved client waits
            outcomes.append(self.send(clip))
        return outcomes

    def _post(self, clip: Clip) -> tuple[int, Any, int | None]:
        if clip.by_url:
            host, port = self._files.server_address[:2]
            options: dict[str, Any] = {**clip.options, "word_timestamps": True}
            if "diarize" in options:
                options["diarize"] = False
            asked = {"audio_file": f"http://{host!s}:{port}/{clip.name}", **options}
            answer = self.client.post(f"{self.url}/predict", json=asked)
        else:
            answer = self.client.post(f"{self.url}/predict", files={"file": clip.file}, data=clip.options)
        try:
            body: Any = answer.json()
        except ValueError:  # Serve's own errors are plain text
            body = answer.text
        retry_after = answer.headers.get("retry-after")
        return answer.status_code, body, int(retry_after) if retry_after else None

    @contextmanager
    def steady(
        self, clients: int, send: Callable[[Clip], list[Outcome]] | None = None
    ) -> Iterator[list[Outcome]]:
        """So many clients, each sending one clip after the other; what became of them so far."""
        outcomes: list[Outcome] = []
        stop = threading.Event()

        def client(number: int) -> None:
            rng = random.Random(number)
            while not stop.is_set():
                clip = rng.choice(self.clips)
                outcomes.extend(send(clip) if send else [self.send(clip)])

        with ThreadPoolExecutor(clients) as pool:
            running = [pool.submit(client, number) for number in range(clients)]
            try:
                yield outcomes
            finally:
                stop.set()
        for done in running:
            done.result()

    def arriving(self, per_s: float, for_s: float, rng: random.Random) -> list[Outcome]:
        """Requests that come whether or not others have been answered, at random times."""
        outcomes: list[Outcome] = []

        def send(clip: Clip) -> None:
            outcomes.append(self.send(clip))

        begun_s = due_s = time.monotonic()
        with ThreadPoolExecutor(512) as pool:
            while due_s < begun_s + for_s:
                time.sleep(max(0.0, due_s - time.monotonic()))  # open loop: by the clock, not by answers
                pool.submit(send, rng.choice(self.clips))
                due_s += rng.expovariate(per_s)
        return outcomes


def failures(outcomes: list[Outcome]) -> dict[str, int]:
    """How many requests failed, by what they failed with."""
    return dict(
        Counter(
            f"{outcome.status or 'connection'} {outcome.detail[:120]}"
            for outcome in outcomes
            if outcome.status != 200
        )
    )


def _transcript(body: Any) -> Any:
    return {name: body[name] for name in ("model_output", "language", "duration", "warnings")}


def _serve_files(clips: dict[str, Clip], pace: float, host: str) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            clip = clips[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(clip.file)))
            self.end_headers()
            time.sleep(pace * clip.audio_s)  # its loader is at work meanwhile
            self.wfile.write(clip.file)

        def log_message(self, *_: object) -> None:
            """Results are what counts here."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A killed loader leaves in the middle."""

    server = Server((host, 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
