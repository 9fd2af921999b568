"""Jobs on a whole graph: they run in a replica that may be killed, drained and deleted in the middle."""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from conftest import HTTP_PORT, closed
from fakes import FakeAligner, FakeDiarizer, FakeRecognizer, FakeSpeechModel, recording
from loopback import Files
from ray import serve
from ray.serve.context import _get_global_client
from sounds import wav

from serve_app.app import graph
from serve_app.audio import Source
from serve_app.deployments.job_runner import JobsElsewhere, reachable
from serve_app.jobs.places import prepare
from serve_app.jobs.service import Jobs, Submission
from serve_app.jobs.store.records import Job
from serve_app.jobs.webhooks.signatures import new_secret
from serve_app.models.loaders import Loaders
from serve_app.options import Options
from serve_app.settings import IntakeSettings, Settings
from serve_app.settings.jobs import JobsSettings, WebhookSettings

NAME = "jobs"
KEY = ""  # of a server without API keys
SECRET = new_secret()
URL = f"http://127.0.0.1:{HTTP_PORT}/{NAME}"
PAGE = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text()
COMMANDS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
FACTS = [  # one about the output of each command, in the order of the page
    r"event: succeeded\ndata: [^\n]*\n\n1\n00:00:\S+ --> ",
    r'"status":"queued"',
    r'^{"jobs":\[{"id":.*},{"id":.*}\]}$',
    r'^{"jobs":\[.*"next":.*}{.*"status":"succeeded"',
    r'"model_output":\[.*WEBVTT\n.*"words":\[',
    r'"status":"succeeded"',  # it was too late to cancel it
    r'^{"request_id":"[0-9a-f]{32}"}$',
    r'"status":"queued"',
]
PYTHON = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
RECEIVER = next(code for code in PYTHON if "HTTPServer" in code)
_IMPORTS, _CLASS = RECEIVER.split("class Receiver")
_CHECK = next(code for code in PYTHON if "X-BASETEN-SIGNATURE" in code)
BASETEN_RECEIVER = f"{_IMPORTS}{_CHECK}class Receiver{_CLASS}".replace(
    'event["data"]["job_id"]', 'event["request_id"]'
)
FILE = wav(recording(1, 2, 0, 3))
WORDS = ["word1", "word2", "word3"]

T = TypeVar("T")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "secrets").write_text(SECRET)
    webhooks = WebhookSettings(secrets_file=str(folder / "secrets"), allowed_hosts=("127.0.0.1",))
    jobs = JobsSettings(state_dir=str(folder / "state"), lease_s=2, webhooks=webhooks)
    asyncio.run(prepare(jobs))
    intake = IntakeSettings(allowed_hosts=("127.0.0.1",))
    return Settings(model="fake", device="cpu", jobs=jobs, intake=intake)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the recogniser of this graph ends no batch."""
    return tmp_path_factory.mktemp("device") / "gate"


@pytest.fixture(scope="module", autouse=True)
def _service(cluster: None, settings: Settings, device: Path) -> Iterator[None]:
    loaders = Loaders(FakeSpeechModel, partial(FakeRecognizer, device), FakeAligner, FakeDiarizer)
    serve.run(graph(settings, loaders, "cpu"), name=NAME, route_prefix=f"/{NAME}")
    yield
    serve.delete(NAME)


def asked(settings: Settings, question: Callable[[Jobs], Awaitable[T]]) -> T:
    """What a client of the jobs is told."""

    async def ask() -> T:
        jobs = Jobs(settings.jobs, settings.intake)
        try:
            return await question(jobs)
        finally:
            await jobs.store.close()

    return asyncio.run(ask())


def submitted(settings: Settings) -> Job:
    async def submit(jobs: Jobs) -> Job:
        ((job, _),) = await jobs.submit(
            KEY, [Submission(source=Source(file=io.BytesIO(FILE)), options=Options())]
        )
        return job

    return asked(settings, submit)


def until(settings: Settings, job: Job, holds: Callable[[Job], Any]) -> Job:
    """The job, once this holds for it."""
    deadline_s = time.monotonic() + 60
    while not holds(now := asked(settings, lambda jobs: jobs.get(job.id, KEY))):
        assert time.monotonic() < deadline_s, now
        time.sleep(0.02)
    return now


def words(settings: Settings, job: Job) -> list[str]:
    """Of a job that must succeed."""
    done = until(settings, job, lambda now: now.is_final)
    assert done.status == "succeeded", done
    transcript = asked(settings, lambda jobs: jobs.transcript(job.id, KEY))
    assert transcript is not None
    return [segment.text for segment in transcript.segments]


def kill_runner() -> None:
    client: Any = _get_global_client()
    deployments = client.get_serve_details()["applications"][NAME]["deployments"]
    (pid,) = [replica["pid"] for replica in deployments["JobRunner"]["replicas"]]
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def receiver(number: int) -> Iterator[tuple[str, Any]]:
    """The address and the output of the page's receiver in Python for a command."""
    code = BASETEN_RECEIVER if "async_predict" in COMMANDS[number] else RECEIVER
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={"WEBHOOK_SECRET": SECRET, "PORT": "0"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{process.stdout.readline().split()[-1]}/hook", process.stdout
        finally:
            process.kill()


@pytest.mark.parametrize("number", range(len(COMMANDS)))
def test_the_commands_of_the_page_work(
    number: int, settings: Settings, files: Files, receiver: tuple[str, Any], tmp_path: Path
) -> None:
    """Each of docs/jobs.md, as it stands there but for its addresses; `$ID` is a job that has succeeded."""
    (tmp_path / "talk.mp3").write_bytes(FILE)
    hook, told = receiver
    commands = COMMANDS[number]
    for shown, real in {
        "http://127.0.0.1:8000": URL,
        "https://example.com/talk.mp3": files.url("/talk.mp3", FILE),
        "https://example.com/hook": hook,
        "curl -s": "curl --fail-with-body --max-time 60 -s",
    }.items():
        commands = commands.replace(shown, real)
    job = submitted(settings)
    assert words(settings, job) == WORDS
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "ID": job.id},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(FACTS[number], done.stdout, re.S), done.stdout
    if "/hook" in commands:
        answer = json.loads(done.stdout)
        said = {"request_id": "async_request_completed", "id": "transcription.completed"}
        (event, job_id) = next((said[name], answer[name]) for name in said if name in answer)
        assert told.readline() == f"{event} {job_id}\n"


def test_a_killed_runner_is_replaced_and_its_job_runs_again(settings: Settings, device: Path) -> None:
    """When its lease has run out; jobs before and after go their way."""
    assert words(settings, submitted(settings)) == WORDS
    with closed(device):
        job = submitted(settings)
        until(settings, job, lambda now: now.status == "running")
        kill_runner()
        running = until(settings, job, lambda now: now.attempt == 2)
        assert running.deaths == 1
    assert words(settings, job) == WORDS
    assert words(settings, submitted(settings)) == WORDS


def test_draining_the_ingress_gives_running_jobs_back(settings: Settings, device: Path) -> None:
    """At once, although the graph is still there; the next runner takes them."""
    ingress: Any = serve.get_app_handle(NAME)
    with closed(device):
        job = submitted(settings)
        until(settings, job, lambda now: now.status == "running")
        assert ingress.drain.remote(30.0).result(timeout_s=60) is True
        given_back = asked(settings, lambda jobs: jobs.get(job.id, KEY))
        assert (given_back.status, given_back.deaths, given_back.failures) == ("queued", 0, 0)
    kill_runner()
    assert words(settings, job) == WORDS


class Elsewhere:
    """A JobRunner's handle whose replica is on another node."""

    @property
    def node_id(self) -> "Elsewhere":
        return self

    async def _answer(self) -> str:
        return "another node"

    def remote(self) -> Awaitable[str]:
        return self._answer()


def test_jobs_in_sqlite_are_taken_on_the_runners_node_only(settings: Settings) -> None:
    """Elsewhere they would never be found, so clients get a 503 that says so."""
    runner: Any = serve.get_deployment_handle("JobRunner", NAME)
    elsewhere: Any = Elsewhere()
    asked(settings, lambda jobs: reachable(runner, jobs.store)())
    with pytest.raises(JobsElsewhere, match="PostgreSQL"):
        asked(settings, lambda jobs: reachable(elsewhere, jobs.store)())


def test_deleting_the_application_gives_running_jobs_back(settings: Settings, device: Path) -> None:
    """Serve tells the runner before it ends it. This is the last test: the application is gone."""
    with closed(device):
        job = submitted(settings)
        until(settings, job, lambda now: now.status == "running")
        serve.delete(NAME)
        given_back = asked(settings, lambda jobs: jobs.get(job.id, KEY))
        assert (given_back.status, given_back.deaths, given_back.failures) == ("queued", 0, 0)
