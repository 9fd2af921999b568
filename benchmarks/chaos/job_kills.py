"""Fifty jobs while all that works on them is killed, one after the other, and the whole of Ray as well.

The service is a process of its own, `python -m serve_app serve`, so that it can be killed with all its
children. Its models give checksums of what they hear.
"""

import asyncio
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import sqlalchemy as sa
import yaml
from rich.console import Console
from standardwebhooks import Webhook, WebhookVerificationError

from benchmarks.chaos.load import Clip, Load, mixed_clips
from benchmarks.chaos.running_graph import config, wait_for
from benchmarks.private_postgres import Postgres, private_postgres
from serve_app.cli.launcher import url_of
from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.migration import migrate
from serve_app.jobs.store.records import Job
from serve_app.jobs.store.schema import jobs as jobs_table
from serve_app.jobs.store.schema import results
from serve_app.jobs.webhooks.signatures import VARIABLE, new_secret

LEASE_S = 15.0
SLOW = 0.12  # seconds of device for a second of audio: fifty jobs take some minutes
BETWEEN_S = (2.0, 15.0)
READY_S = 300.0
STOPS_JOBS = ("JobRunner", "ray", "hang")
PARTS = ("JobRunner", "Ingress", "ServeController", "JobRunner", "ray")  # in turn, by title of the process

say = Console(stderr=True, highlight=False, soft_wrap=True)


@dataclass
class Receiver:
    """Takes webhooks, refuses the first try of every third, and verifies all."""

    secret: str
    accepted: dict[str, int] = field(default_factory=dict)  # webhook-id -> how often
    refused: set[str] = field(default_factory=set)
    not_genuine: int = 0
    url: str = ""

    def take(self, headers: Any, body: bytes) -> int:
        """The status of the answer."""
        try:
            Webhook(self.secret).verify(body, {name.lower(): value for name, value in headers.items()})
        except WebhookVerificationError:
            self.not_genuine += 1
            return 401
        name = headers["webhook-id"]
        if name not in self.refused and len(self.refused | set(self.accepted)) % 3 == 0:
            self.refused.add(name)
            return 500
        self.accepted[name] = self.accepted.get(name, 0) + 1
        return 204


@contextmanager
def receiving(secret: str) -> Iterator[Receiver]:
    receiver = Receiver(secret)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(receiver.take(self.headers, body))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """What arrives is counted."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()


class Service:
    """The service as an operator runs it."""

    def __init__(self, config_file: Path, url: str, environment: dict[str, str]) -> None:
        self._command = [sys.executable, "-m", "serve_app", "serve", str(config_file)]
        self._environment, self._url = environment, url
        self._process: psutil.Popen | None = None
        self._log = config_file.with_suffix(".log")

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = psutil.Popen(self._command, stdout=log, stderr=log, env=self._environment)
        wait_for(self.is_ready, f"the service is ready; {self._log} says more", READY_S)

    def is_ready(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the service has ended: {self._log.read_text()[-2000:]}")
        with suppress(httpx.TransportError):
            return httpx.get(f"{self._url}/readyz", timeout=5, trust_env=False).status_code == 200
        return False

    def processes(self, part: str) -> list[psutil.Process]:
        """Those of a deployment, or of a part of Serve. Ray writes what a process does behind a dot."""
        found = []
        for process in self._all():
            with suppress(psutil.Error, IndexError):
                title = process.cmdline()[0].partition(".")[0]
                if title.startswith("ray::") and title.endswith(part):
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL of all of it at once, Ray's own processes too."""
        for process in self._all():
            with suppress(psutil.Error):
                process.suspend()  # so that none starts another one meanwhile
        for process in self._all():
            with suppress(psutil.Error):
                process.kill()
        assert self._process is not None
        self._process.wait()

    def stop(self) -> None:
        """As an operator stops it."""
        assert self._process is not None
        with suppress(psutil.Error):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=120)
        except (psutil.TimeoutExpired, subprocess.TimeoutExpired):
            self.kill()

    def logged(self, what: str) -> int:
        """How often this stands in the log."""
        return self._log.read_text(errors="replace").count(what)

    def _all(self) -> list[psutil.Process]:
        assert self._process is not None
        with suppress(psutil.NoSuchProcess):
            return [psutil.Process(self._process.pid), *self._process.children(recursive=True)]
        return []


@dataclass
class Watcher:
    """Looks into the store all the time: when each attempt of each job began."""

    url: str
    claims: dict[tuple[str, int], float] = field(default_factory=dict)  # job and attempt -> when seen first
    running: dict[str, int] = field(default_factory=dict)  # job -> attempt, now

    def watch(self, stop: threading.Event) -> None:
        asyncio.run(self._watch(stop))

    async def _watch(self, stop: threading.Event) -> None:
        store = JobStore(self.url)
        while not stop.is_set():
            with suppress(Exception):  # the database restarts
                self._note(await _all_jobs(store))
            await asyncio.sleep(0.2)
        await store.close()

    def taken_again(self, met: dict[str, int]) -> list[float]:
        """When the attempts began that came after these."""
        after = [(job_id, attempt + 1) for job_id, attempt in met.items()]
        return [self.claims[which] for which in after if which in self.claims]

    def _note(self, found: list[Job]) -> None:
        now_s = time.monotonic()
        for job in found:
            if job.attempt:
                self.claims.setdefault((job.id, job.attempt), now_s)
        self.running = {job.id: job.attempt for job in found if job.status == "running"}


@dataclass
class Killed:
    """One blow: when, and which attempts it met."""

    part: str
    again_s: float  # when all that is needed to go on was there again
    met: dict[str, int]


@dataclass
class Scene:
    """A running service, jobs that were submitted to it, and those who look on."""

    service: Service
    load: Load
    receiver: Receiver
    watcher: Watcher
    url: str  # of the store
    submitted: list[tuple[str, Clip]]
    postgres: Postgres | None


def job_kills(
    kills: int, rng: random.Random, *, store: str = "sqlite", runners: int = 1, jobs: int = 50
) -> dict[str, Any]:
    """Kills all parts in turn at random moments while jobs run; every job ends once, every webhook comes."""
    with _scene(rng, store, runners, jobs, LEASE_S) as scene:
        parts = [*PARTS, *(["postgres"] if scene.postgres else [])]
        blows = [_strike(scene, parts[number % len(parts)], rng) for number in range(kills)]
        say.print(f"  {kills} kills done, {len(scene.watcher.running)} jobs run")
        return _figures(scene, blows)


def job_hang(rng: random.Random, *, jobs: int = 8, lease_s: float = 5.0) -> dict[str, Any]:
    """One of two JobRunners hangs (SIGSTOP) until the other has its jobs, and wakes up: it writes nothing."""
    with _scene(rng, "postgresql", 2, jobs, lease_s, concurrency=jobs) as scene:
        wait_for(lambda: len(scene.watcher.running) >= 2, "jobs run")
        blow = next(filter(None, (_hang(scene, one) for one in scene.service.processes("JobRunner"))))
        return {**_figures(scene, [blow]), "writes_refused": scene.service.logged("to another worker")}


def _hang(scene: Scene, victim: psutil.Process) -> Killed | None:
    """Stops this one until the other has its jobs; None where it had none."""
    met = dict(scene.watcher.running)
    victim.suspend()
    blow = Killed("hang", time.monotonic(), met)
    try:
        # Shorter than Serve's health checks take to replace it, half a minute.
        wait_for(lambda: bool(scene.watcher.taken_again(met)), "the other one has its jobs", 12.0)
    except TimeoutError:
        return None
    finally:
        victim.resume()
    return blow


@contextmanager
def _scene(
    rng: random.Random, store: str, runners: int, jobs: int, lease_s: float, concurrency: int = 4
) -> Iterator[Scene]:
    with ExitStack() as held:
        folder = Path(held.enter_context(TemporaryDirectory(prefix="job-kills-")))
        postgres = held.enter_context(private_postgres()) if store == "postgresql" else None
        url = postgres.new_database() if postgres else f"sqlite:///{folder}/state/jobs.db"
        if postgres:
            asyncio.run(migrate(url))
        receiver = held.enter_context(receiving(new_secret()))
        clips = mixed_clips([rng.uniform(8.0, 35.0) for _ in range(10)], rng)
        raw = _config(url, folder, runners, {"lease_s": lease_s, "concurrency": concurrency})
        config_file = folder / "config.yaml"
        config_file.write_text(yaml.safe_dump(raw))
        service = Service(config_file, url_of(raw), _environment(receiver.secret, folder))
        service.start()
        held.callback(service.stop)
        load = Load(url_of(raw), clips)
        held.callback(load.close)
        load.learn()
        submitted = [_submit(load, clips[number % len(clips)], receiver.url) for number in range(jobs)]
        watcher = Watcher(url)
        over = threading.Event()
        held.callback(over.set)
        threading.Thread(target=watcher.watch, args=(over,), daemon=True).start()
        yield Scene(service, load, receiver, watcher, url, submitted, postgres)


def _config(url: str, folder: Path, runners: int, chosen: dict[str, Any]) -> dict[str, Any]:
    jobs = {
        "store": url,
        "state_dir": str(folder / "state"),
        **chosen,
        "webhooks": {
            "allowed_hosts": ["127.0.0.1"],
            "retry_delays_s": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0],
        },
    }
    return config(
        settings={"jobs": jobs},
        args={"asr": SLOW, "load_s": 0.1},
        deployments={"JobRunner": {"num_replicas": runners}},
    )


def _environment(secret: str, folder: Path) -> dict[str, str]:
    project = str(Path(__file__).parents[2])
    return {**os.environ, VARIABLE: secret, "PYTHONPATH": project, "TMPDIR": str(folder)}


def _submit(load: Load, clip: Clip, webhook_url: str) -> tuple[str, Clip]:
    if clip.by_url:
        host, port = load._files.server_address[:2]
        asked: dict[str, Any] = {**clip.options, "word_timestamps": True, "webhook_url": webhook_url}
        if "diarize" in asked:
            asked["diarize"] = False
        asked["audio_file"] = f"http://{host!s}:{port}/{clip.name}"
        answer = load.client.post(f"{load.url}/v1/jobs", json=asked)
    else:
        fields = {**clip.options, "webhook_url": webhook_url}
        answer = load.client.post(f"{load.url}/v1/jobs", files={"file": clip.file}, data=fields)
    if answer.status_code != 201:
        raise RuntimeError(f"not submitted: {answer.status_code} {answer.text}")
    return answer.json()["id"], clip


def _strike(scene: Scene, part: str, rng: random.Random) -> Killed:
    time.sleep(rng.uniform(*BETWEEN_S))
    service, postgres = scene.service, scene.postgres
    met = dict(scene.watcher.running)
    if part == "ray":
        service.kill()
        service.start()
    elif part == "postgres":
        assert postgres is not None
        postgres.stop()
        time.sleep(rng.uniform(0.5, 5.0))
        postgres.start()
    else:
        wait_for(lambda: bool(service.processes(part)), f"there is a {part}")
        rng.choice(service.processes(part)).kill()
        if part != "JobRunner":
            wait_for(service.is_ready, f"there is another {part}")
    say.print(f"  {part}: killed, {len(met)} jobs ran")
    return Killed(part, time.monotonic(), met)


def _figures(scene: Scene, blows: list[Killed]) -> dict[str, Any]:
    load, receiver, watcher = scene.load, scene.receiver, scene.watcher
    wait_for(lambda: len(receiver.accepted) >= len(scene.submitted), "all webhooks have come", 900.0)
    wait_for(lambda: not watcher.running, "all jobs have ended")
    changed = 0
    jobs = []
    for job_id, clip in scene.submitted:
        job = load.client.get(f"{load.url}/v1/jobs/{job_id}").json()
        jobs.append(job)
        if job["status"] == "succeeded":
            result = load.client.get(f"{load.url}/v1/jobs/{job_id}/result").json()
            expected = load.expected[clip.name]
            changed += {name: result[name] for name in expected} != expected
    ids = [f"msg_{job_id}" for job_id, _ in scene.submitted]
    return {
        "jobs": len(jobs),
        "not_succeeded": sum(job["status"] != "succeeded" for job in jobs),
        "changed_transcripts": changed,
        "results_missing": len(jobs) - asyncio.run(_results(scene.url)),
        "attempts": sum(job["attempts"] for job in jobs),
        "kills": len(blows),
        **interruptions(blows, watcher),
        "webhooks_missing": sum(name not in receiver.accepted for name in ids),
        "webhooks_of_other_ids": sum(name not in ids for name in receiver.accepted),
        "webhooks_twice": sum(times > 1 for times in receiver.accepted.values()),
        "webhooks_not_genuine": receiver.not_genuine,
    }


def interruptions(blows: list[Killed], watcher: Watcher) -> dict[str, float]:
    """How many blows interrupted jobs, and the longest wait of such a job; NaN where none was taken again."""
    stopping = [blow for blow in blows if blow.part in STOPS_JOBS and blow.met]
    # A job that one blow has not interrupted may be met by the next one; the last one counts.
    last_s = {met: blow.again_s for blow in stopping for met in blow.met.items()}  # in the order of the blows
    waits_s = [at_s - last_s[met] for met in last_s for at_s in watcher.taken_again(dict([met]))]
    return {"kills_that_stopped_jobs": len(stopping), "taken_again_max_s": max(waits_s, default=math.nan)}


async def _all_jobs(store: JobStore) -> list[Job]:
    return await store.list_jobs("", limit=1000)


async def _results(url: str) -> int:
    store = JobStore(url)
    try:
        async with store.read() as connection:
            counted = await connection.execute(
                sa.select(sa.func.count()).select_from(results.join(jobs_table))
            )
            return int(counted.scalar_one())
    finally:
        await store.close()
