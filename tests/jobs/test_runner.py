"""Runners on a real store, with a transcription that the test can hold up."""

import asyncio
import io
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from job_stores import new_job, using
from loopback import serving
from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    retry_if_not_result,
    stop_after_delay,
    wait_fixed,
)
from transcripts import FIXED

from benchmarks.private_postgres import Postgres
from serve_app.audio import Source
from serve_app.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelCrashed,
    ModelUnavailable,
    NoRoom,
    OutOfMemory,
    Overloaded,
    RateLimited,
    SourceUnavailable,
    StoreBusy,
    UnusableAudio,
)
from serve_app.http.responses import answer
from serve_app.jobs import attempt as attempt_module
from serve_app.jobs import runner as runner_module
from serve_app.jobs.runner import Runner
from serve_app.jobs.service import Jobs, NoSuchJob, Submission
from serve_app.jobs.spool import SpoolAway, SpoolUnavailable
from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.records import SUSPECT_DEATHS, Job, Status
from serve_app.jobs.stored import JobRequest, OtherVersion
from serve_app.options import Options
from serve_app.request.progress import Report, ignore_progress
from serve_app.request.speaker_turns import wants_speakers
from serve_app.settings import IntakeSettings
from serve_app.settings.jobs import JobsSettings, WebhookSettings
from serve_app.transcript import Progress, Transcript

LEASE_S = 2.0
KEY = "alice"


@dataclass
class Graph:
    """A graph that gives a fixed transcript, or fails as told, once it is open."""

    failures: list[Exception] = field(default_factory=list)  # of the first calls, in order
    heard: list[bytes] = field(default_factory=list)
    asked: list[Options] = field(default_factory=list)
    begun_s: list[float] = field(default_factory=list)
    given_up: int = 0
    running: int = 0
    most_running: int = 0
    news: asyncio.Condition = field(default_factory=asyncio.Condition)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def transcribe(
        self, source: Source, options: Options, report: Report = ignore_progress
    ) -> Transcript:
        self.heard.append(source.file.read() if source.file else b"")
        self.asked.append(options)
        self.begun_s.append(time.monotonic())
        await self._now_run(self.running + 1)
        report(Progress(1, 3, False, FIXED.segments[:1]))
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        finally:
            await self._now_run(self.running - 1)
        if self.failures:
            raise self.failures.pop(0)
        return FIXED

    async def _now_run(self, jobs: int) -> None:
        async with self.news:
            self.running = jobs
            self.most_running = max(jobs, self.most_running)
            self.news.notify_all()

    async def runs(self, jobs: int) -> None:
        """Waits until it works on this many at once."""
        async with self.news:
            await asyncio.wait_for(self.news.wait_for(lambda: self.running == jobs), 60)


@dataclass
class Service:
    """Jobs as clients see them, and runners that work on them."""

    url: str
    folder: Path
    settings: dict[str, Any]

    def __post_init__(self) -> None:
        self.jobs = self.new_jobs()

    def new_jobs(self) -> Jobs:
        places = {"store": self.url, "state_dir": str(self.folder), "spool": str(self.folder / "uploads")}
        own = {**places, "lease_s": LEASE_S, **self.settings}
        return Jobs(JobsSettings.model_validate(own), IntakeSettings())

    def uploads(self) -> list[bytes]:
        """What lies in the spool."""
        return [file.read_bytes() for file in (self.folder / "uploads").glob("*")]

    async def submit(self, audio: bytes = b"audio", key: str = KEY, **asked: Any) -> Job:
        usual = {"source": Source(file=io.BytesIO(audio)), "options": Options(), "initial_delay_s": 0.01}
        ((job, _),) = await self.jobs.submit(key, [Submission(**{**usual, **asked})])
        return job

    async def until(self, job: Job, holds: Callable[[Job], Any]) -> Job:
        """The job, once `holds` is true of it."""
        again = retry_if_not_result(holds) | retry_if_exception_type(StoreBusy)
        asking = AsyncRetrying(retry=again, wait=wait_fixed(0.02), stop=stop_after_delay(60), reraise=True)
        return await asking(self.jobs.get, job.id, job.key)

    async def ended(self, job: Job, status: Status) -> Job:
        job = await self.until(job, lambda now: now.is_final)
        assert job.status == status, job.error_code
        return job

    @asynccontextmanager
    async def runner(self, graph: Graph) -> AsyncIterator[Runner]:
        """A runner at work, which has drained at the end."""
        runner = Runner(self.new_jobs(), graph.transcribe, answer, "runner")
        running = asyncio.create_task(runner.run())
        try:
            yield runner
        finally:
            await asyncio.wait_for(runner.drain(), 30)
            await running


Story = Callable[[Service, Graph], Awaitable[None]]


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "POLL_S", 0.02)


@pytest.fixture
def tell(store_url: str, tmp_path: Path) -> Callable[..., None]:
    """Runs a story on both kinds of store; the graph is open from the beginning unless it is `held`."""

    def run(story: Story, *failures: Exception, held: bool = False, **settings: Any) -> None:
        async def told() -> None:
            graph, service = Graph(list(failures)), Service(store_url, tmp_path / "state", settings)
            if not held:
                graph.opened.set()
            try:
                await story(service, graph)
            finally:
                await service.jobs.store.close()

        asyncio.run(told())

    return run


def test_a_job_is_transcribed(tell: Callable[..., None]) -> None:
    """The graph hears what was uploaded, and the client finds the whole transcript."""

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit(b"the audio")
        async with service.runner(graph):
            done = await service.ended(job, "succeeded")
        assert graph.heard == [b"the audio"]
        assert (done.attempt, done.failures, done.deaths) == (1, 0, 0)
        assert await service.jobs.transcript(job.id, KEY) == FIXED

    tell(story)


def test_speakers_are_found_for_formats_that_are_chosen_later(tell: Callable[..., None]) -> None:
    """A table shows none, but the same transcript may be shown as subtitles; a client can do without."""

    async def story(service: Service, graph: Graph) -> None:
        for diarize, wanted in ((None, True), (False, False)):
            job = await service.submit(options=Options(response_format="tsv", diarize=diarize))
            async with service.runner(graph):
                await service.ended(job, "succeeded")
            assert wants_speakers(graph.asked.pop(), available=True) == wanted
            submitted = await service.jobs.request(job.id, KEY)
            assert submitted.options.response_format == "tsv"

    tell(story)


def test_what_may_pass_is_tried_again_later(tell: Callable[..., None]) -> None:
    """Each pause is twice as long, and the client limits the number of attempts."""

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit(initial_delay_s=0.2, max_attempts=4)
        async with service.runner(graph):
            done = await service.ended(job, "succeeded")
            assert (done.attempt, done.failures) == (4, 3)
            first, second, third, fourth = graph.begun_s
            assert second - first >= 0.2
            assert third - second >= 0.4
            assert fourth - third >= 0.8
            graph.failures = [ModelUnavailable("No model.")] * 2
            job = await service.submit(max_attempts=2)
            done = await service.ended(job, "failed")
        assert (done.failures, done.error_code, done.error_message) == (2, "model_unavailable", "No model.")

    tell(
        story,
        SourceUnavailable("No answer.", None, "too_slow"),
        ModelUnavailable("No model."),
        RuntimeError("a bug"),
    )


@pytest.mark.parametrize(
    "error",
    [
        UnusableAudio("No audio."),
        InvalidRequest("No."),
        ModelCrashed("Leave it out."),
        DeadlineExceeded("Too long."),
    ],
)
def test_what_cannot_pass_is_not_tried_again(error: Exception, tell: Callable[..., None]) -> None:
    """The client gets the reason at once."""

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit()
        async with service.runner(graph):
            done = await service.ended(job, "failed")
        assert (done.error_code, done.error_message) == (getattr(error, "code", None), str(error))
        assert len(graph.heard) == 1

    tell(story, error)


def test_a_bug_is_told_without_its_text(tell: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    """It might hold what a client sent; the log has it."""

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit(max_attempts=1)
        async with service.runner(graph):
            done = await service.ended(job, "failed")
        assert done.error_code == "internal_error"
        assert "hidden" not in (done.error_message or "")

    tell(story, RuntimeError("hidden"))
    assert "hidden" in caplog.text


@pytest.mark.parametrize(
    "error",
    [
        NoRoom("The server is full.", None, None, 1),
        NoRoom("The server is shutting down.", None, "shutting_down", 1),
        SpoolUnavailable("No bucket.", None, None, 1),
    ],
)
def test_a_full_server_costs_no_attempt(error: Exception, tell: Callable[..., None]) -> None:
    """The job waits for as long as the error says, and is run again."""

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit(max_attempts=1)
        async with service.runner(graph):
            done = await service.ended(job, "succeeded")
        assert (done.attempt, done.failures) == (2, 0)
        assert graph.begun_s[1] - graph.begun_s[0] >= 1

    tell(story, error)


def test_room_is_asked_for_again_within_seconds(
    tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full server may say to come back in ten minutes, but room may come sooner.

    A job that was begun, as here, does not expire meanwhile.
    """
    monkeypatch.setattr(attempt_module, "MAX_WAIT_S", 1)

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit(max_queue_s=600)
        async with service.runner(graph):
            waiting = await service.until(job, lambda now: now.error_code)
            assert (waiting.status, waiting.expires_at_s) == ("queued", None)
            await service.ended(job, "succeeded")

    tell(story, NoRoom("The server is full.", None, None, 600))


def test_an_upload_that_cannot_be_read_holds_up_no_other(tell: Callable[..., None]) -> None:
    """It stays in the queue, and may expire there."""

    async def story(service: Service, graph: Graph) -> None:
        bad = await service.submit(max_queue_s=600)
        assert bad.input_ref
        place = service.folder / "uploads" / bad.input_ref
        place.unlink()
        place.mkdir()
        others = [await service.submit() for _ in range(3)]
        async with service.runner(graph):
            for job in others:
                await service.ended(job, "succeeded")
            bad = await service.until(bad, lambda now: now.error_code)
        assert (bad.status, bad.error_code) == ("queued", "job_spool_unavailable")
        assert bad.expires_at_s is not None

    tell(story, concurrency=1)


@pytest.mark.parametrize(
    ("error", "other"),
    [
        (RateLimited("Wait.", None, "audio_limit_reached", 60), {"key": "another"}),
        (SpoolAway("No folder.", None, None, 60), {"source": Source(url="https://example.com/a.mp3")}),
    ],
)
def test_what_could_not_begin_is_left_in_the_queue(
    error: Exception, other: dict[str, Any], tell: Callable[..., None]
) -> None:
    """Where a key's audio is used up or the spool is away, its jobs are not taken in a circle: others run."""

    async def story(service: Service, graph: Graph) -> None:
        waiting = [await service.submit() for _ in range(5)]
        last = await service.submit(priority=2, **other)
        async with service.runner(graph):
            await service.ended(last, "succeeded")
        first, *others = [await service.jobs.get(job.id, KEY) for job in waiting]
        assert (first.attempt, first.error_message) == (1, str(error))
        assert {job.attempt for job in others} == {0}

    tell(story, error, concurrency=1)


def test_a_job_of_another_version_costs_no_attempt(
    tell: Callable[..., None], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a service is upgraded, old runners may claim jobs whose options only new ones know.

    The job says why it waits, and the log warns: after a step back it would wait for ever.
    """
    monkeypatch.setattr(OtherVersion, "retry_after_s", 0)
    dump = JobRequest.dump
    monkeypatch.setattr(JobRequest, "dump", lambda asked: dump(asked).replace("beam_size", "beam_depth"))

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit(options=Options(beam_size=3), max_attempts=1)
        async with service.runner(graph):
            again = await service.until(job, lambda now: now.attempt > 2)
        assert (again.failures, again.error_code) == (0, "job_of_other_version")
        assert not again.is_final
        assert not graph.heard

    with caplog.at_level("WARNING"):
        tell(story)
    assert "beam_depth: unknown option" in caplog.text


def test_a_job_that_always_overloads_a_stage_ends(tell: Callable[..., None]) -> None:
    """One that needs more memory than there is; while it waits for its next attempt, it says why."""

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit(max_attempts=2, initial_delay_s=1.0)
        async with service.runner(graph):
            waiting = await service.until(job, lambda now: now.status == "queued" and now.failures)
            assert (waiting.error_code, waiting.error_message) == ("asr_out_of_memory", "No memory.")
            done = await service.ended(job, "failed")
        assert (done.failures, done.error_code) == (2, "asr_failed")

    tell(
        story,
        OutOfMemory("No memory.", None, "asr_out_of_memory"),
        Overloaded("The asr stage keeps failing; try again later.", None, "asr_failed"),
    )


def test_audio_that_is_gone_from_the_spool(tell: Callable[..., None]) -> None:
    """Another node may have it, so the job is tried again; then it fails and says what to do."""

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit()
        assert job.input_ref is not None
        await service.jobs.spool.remove(job.input_ref)
        async with service.runner(graph):
            done = await service.ended(job, "failed")
        assert (done.error_code, done.attempt) == ("audio_lost", 3)
        assert graph.heard == []

    tell(story)


def test_a_job_that_was_stored_without_an_answer_keeps_its_audio(
    tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection broke after the commit: the client is told to try again, and the job runs."""

    async def story(service: Service, graph: Graph) -> None:
        submit_all = service.jobs.store.submit_all

        async def unheard(*asked: Any) -> None:
            await submit_all(*asked)
            raise StoreBusy("The connection was lost.")

        monkeypatch.setattr(service.jobs.store, "submit_all", unheard)
        with pytest.raises(StoreBusy):
            await service.submit()
        (job,) = await service.jobs.page(KEY, (), None, 10)
        async with service.runner(graph):
            await service.ended(job, "succeeded")

    tell(story)


@pytest.mark.parametrize("error", [None, UnusableAudio("No audio."), ModelUnavailable("No model.")])
def test_an_upload_goes_with_the_end_of_its_job(error: Exception | None, tell: Callable[..., None]) -> None:
    """It is removed after any end of the job, but not between two attempts."""

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit(max_attempts=2)
        async with service.runner(graph):
            await service.ended(job, "failed" if error else "succeeded")
        assert set(graph.heard) == {b"audio"}
        assert service.uploads() == []

    tell(story, *[error] * 2 if error else [])


def test_an_upload_goes_with_a_canceled_job(tell: Callable[..., None]) -> None:
    """This holds for a queued and for a running job."""

    async def story(service: Service, graph: Graph) -> None:
        async with service.runner(graph):
            running = await service.submit()
            await graph.runs(1)
            queued = await service.submit(b"never heard")
            await service.jobs.cancel(queued.id, KEY)
            assert service.uploads() == [b"audio"]
            await service.jobs.cancel(running.id, KEY)
            await service.ended(running, "canceled")
        assert service.uploads() == []

    tell(story, held=True, concurrency=1)


def test_an_upload_goes_with_an_expired_job(tell: Callable[..., None]) -> None:
    """The sweep that ends the job removes it; other uploads stay."""

    async def story(service: Service, graph: Graph) -> None:
        job = await service.submit(max_queue_s=1e-6)
        await service.submit(b"waits")
        await service.jobs.sweep()
        await service.ended(job, "expired")
        assert service.uploads() == [b"waits"]

    tell(story)


def test_a_running_job_is_canceled(tell: Callable[..., None]) -> None:
    """The transcription is given up, and the runner takes the next job."""

    async def story(service: Service, graph: Graph) -> None:
        async with service.runner(graph):
            job = await service.submit()
            await graph.runs(1)
            assert (await service.jobs.cancel(job.id, KEY)).status == "running"
            await service.ended(job, "canceled")
            assert graph.given_up == 1
            graph.opened.set()
            await service.ended(await service.submit(), "succeeded")

    tell(story, held=True, concurrency=1)


def test_a_running_job_is_deleted(tell: Callable[..., None]) -> None:
    """Its runner finds the lease lost and gives the work up."""

    async def story(service: Service, graph: Graph) -> None:
        async with service.runner(graph):
            job = await service.submit()
            await graph.runs(1)
            await service.jobs.delete(job.id, KEY)
            await graph.runs(0)
            assert graph.given_up == 1
            with pytest.raises(NoSuchJob):
                await service.jobs.get(job.id, KEY)

    tell(story, held=True)


def test_a_late_result_is_refused(tell: Callable[..., None]) -> None:
    """Another worker got the job while this one was away, and its result stands."""

    async def second(store: JobStore) -> int:
        claimed = await store.claim("second", LEASE_S)
        assert claimed is not None
        return claimed.job.attempt

    async def story(service: Service, graph: Graph) -> None:
        async with service.runner(graph):
            job = await service.submit()
            await graph.runs(1)
            later = time.time() + 1000
            attempt = await asyncio.to_thread(using, service.url, second, lambda: later)
            graph.opened.set()
            await graph.runs(0)
        # It was written before the runner had ended, if it was written.
        assert await service.jobs.transcript(job.id, KEY) is None
        assert await service.jobs.store.finish(job.id, attempt, b"the second's")
        assert await service.jobs.store.result(job.id, KEY) == b"the second's"

    tell(story, held=True, concurrency=1)


def test_two_runners_share_the_jobs(tell: Callable[..., None]) -> None:
    """Each job is transcribed once, and none runs more at once than it may."""

    async def story(service: Service, graph: Graph) -> None:
        other = Graph()
        async with service.runner(graph), service.runner(other):
            jobs = [await service.submit(b"%d" % number) for number in range(12)]
            await asyncio.gather(graph.runs(2), other.runs(2))
            graph.opened.set()
            other.opened.set()
            for job in jobs:
                await service.ended(job, "succeeded")
        assert sorted(graph.heard + other.heard) == sorted(b"%d" % number for number in range(12))
        assert (graph.most_running, other.most_running) == (2, 2)

    tell(story, held=True, concurrency=2)


def test_a_job_whose_runner_died_does_not_wait_for_a_place(tell: Callable[..., None]) -> None:
    """Other jobs wait, but a full runner takes this one, too."""

    async def story(service: Service, graph: Graph) -> None:
        orphan = await service.submit(b"orphan")
        assert await service.jobs.store.claim("dead", lease_s=0.5)
        first = await service.submit(b"first")
        async with service.runner(graph):
            await graph.runs(2)
            second = await service.submit(b"second")
            assert (await service.jobs.get(second.id, KEY)).status == "queued"
            graph.opened.set()
            for job in (orphan, first, second):
                await service.ended(job, "succeeded")
        assert sorted(graph.heard[:2]) == [b"first", b"orphan"]
        assert graph.most_running == 2

    tell(story, held=True, concurrency=1)


def test_a_job_that_several_workers_died_of_runs_alone(tell: Callable[..., None]) -> None:
    """Its runner claims nothing else meanwhile, although it has places."""

    async def story(service: Service, graph: Graph) -> None:
        suspect = await service.submit(b"suspect")
        for _ in range(SUSPECT_DEATHS):
            assert await service.jobs.store.claim("dead", lease_s=-1)
        other = await service.submit(b"other")
        async with service.runner(graph):
            await graph.runs(1)
            await service.until(suspect, lambda now: now.progress)
            assert graph.running == 1
            graph.opened.set()
            assert (await service.ended(suspect, "succeeded")).deaths == SUSPECT_DEATHS
            await service.ended(other, "succeeded")
        assert graph.heard == [b"suspect", b"other"]
        assert graph.most_running == 1

    tell(story, held=True)


def test_a_runner_that_drains_gives_its_jobs_back(tell: Callable[..., None]) -> None:
    """The next runner need not wait for the end of the lease; no failure and no death is counted."""

    async def story(service: Service, graph: Graph) -> None:
        async with service.runner(graph) as first:
            job = await service.submit()
            await graph.runs(1)
            await asyncio.wait_for(first.drain(), 10)
            assert (await service.jobs.get(job.id, KEY)).status == "queued"
            await service.submit(b"later")  # nobody takes it
            other = Graph()
            other.opened.set()
            async with service.runner(other):
                done = await service.ended(job, "succeeded")
        assert (done.attempt, done.failures, done.deaths) == (2, 0, 0)
        assert (graph.given_up, graph.heard) == (1, [b"audio"])

    tell(story, held=True, lease_s=60)


def test_progress_is_told(tell: Callable[..., None]) -> None:
    """Clients see progress while the job runs."""

    async def story(service: Service, graph: Graph) -> None:
        async with service.runner(graph):
            job = await service.submit()
            running = await service.until(job, lambda now: now.progress)
            windows = {"windows_done": 1, "windows_found": 3, "all_found": False}
            assert running.progress == {**windows, "stage": "recognition"}
            graph.opened.set()
            await service.ended(job, "succeeded")

    tell(story, held=True)


def test_old_jobs_are_erased(tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The next runner that looks erases them, with their audio: all of them, also if there are many."""
    for module in ("service", "store.job_store"):
        monkeypatch.setattr(f"serve_app.jobs.{module}.MAX_DELETED", 1)

    async def story(service: Service, graph: Graph) -> None:
        jobs = [await service.submit() for _ in range(3)]
        async with service.runner(graph):
            for job in jobs:
                await service.ended(job, "succeeded")
        async with service.runner(graph):
            for job in jobs:
                with pytest.raises(NoSuchJob):
                    await service.until(job, lambda _: False)
        assert service.uploads() == []

    tell(story, keep_s=0.001)


def test_webhooks_carry_what_predict_would_have_answered(tell: Callable[..., None]) -> None:
    """They follow the options of the submission; the webhook of a failed job says why it failed."""
    bodies: dict[str, Any] = {}

    async def accept(request: web.Request) -> web.StreamResponse:
        event = json.loads(await request.read())
        bodies[event["data"]["job_id"]] = event
        return web.Response()

    async def story(service: Service, graph: Graph) -> None:
        async with serving(accept) as port, service.runner(graph):
            url, options = f"http://127.0.0.1:{port}/", Options(word_timestamps=True)
            bad = await service.submit(webhook_url=url)
            bad = await service.until(bad, lambda now: now.webhook and now.webhook.status == "succeeded")
            good = await service.submit(webhook_url=url, options=options)
            good = await service.until(good, lambda now: now.webhook and now.webhook.status == "succeeded")
        assert bodies[bad.id]["type"] == "transcription.failed"
        assert bodies[bad.id]["data"]["error"]["code"] == "undecodable_audio"
        assert bodies[good.id]["data"]["result"] == json.loads(json.dumps(answer(FIXED, options)))

    tell(
        story, UnusableAudio("No audio."), webhooks=WebhookSettings(allowed_hosts=("127.0.0.1",)).model_dump()
    )


def test_receivers_that_hang_hold_up_their_own_key_alone(tell: Callable[..., None]) -> None:
    """Forty webhooks of one key wait for answers, and another key's is sent at once."""
    hung, arrived, answering = list[str](), asyncio.Event(), asyncio.Event()

    async def hang(request: web.Request) -> web.StreamResponse:
        hung.append(request.headers["webhook-id"])
        await answering.wait()
        return web.Response()

    async def receive(request: web.Request) -> web.StreamResponse:
        if request.path == "/hangs":
            return await hang(request)
        arrived.set()
        return web.Response()

    async def story(service: Service, graph: Graph) -> None:
        async with serving(receive) as port:
            url, store = f"http://127.0.0.1:{port}", service.jobs.store
            slow = [await canceled(store, "slow", f"{url}/hangs") for _ in range(40)]
            await canceled(store, "quick", url)
            async with service.runner(graph):
                await asyncio.wait_for(arrived.wait(), 15)
                assert len(hung) <= 8
                answering.set()
                for job_id in slow:
                    await until_sent(store, job_id)
        assert len(set(hung)) == 40

    async def canceled(store: JobStore, key: str, url: str) -> str:
        ((job, _),) = await store.submit_all([new_job(key=key, webhook_url=url)])
        await store.cancel(job.id, key)
        return job.id

    async def until_sent(store: JobStore, job_id: str) -> None:
        again = retry_if_not_result(lambda job: job.webhook.status == "succeeded")
        asking = AsyncRetrying(retry=again, wait=wait_fixed(0.02), stop=stop_after_delay(60))
        await asking(store.get, job_id, "slow")

    tell(story, webhooks=WebhookSettings(allowed_hosts=("127.0.0.1",)).model_dump())


def test_operators_learn_why_the_store_is_busy(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log has one line without a password; clients are told nothing of the database."""
    url = f"postgresql://jobs:hidden@/jobs?host={tmp_path}"

    async def run() -> None:
        service = Service(url, tmp_path / "state", {})
        async with service.runner(Graph()):
            with pytest.raises(StoreBusy) as refused:
                await service.jobs.page(KEY, (), None, 20)
            assert str(tmp_path) not in refused.value.message
            async for attempt in AsyncRetrying(wait=wait_fixed(0.02), stop=stop_after_delay(20)):
                with attempt:
                    assert "Jobs wait" in caplog.text
        await service.jobs.store.close()

    asyncio.run(run())
    (line, *_) = [record.getMessage() for record in caplog.records if "Jobs wait" in record.getMessage()]
    assert "No such file" in line
    assert "\n" not in line
    assert "hidden" not in caplog.text


def test_unreadable_webhook_secrets_are_no_failure_of_the_store(
    tell: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    """Webhooks wait and the log says for what; jobs run, and no alert sends the operator to the database."""

    async def story(service: Service, graph: Graph) -> None:
        store_errors: list[None] = []
        runner = Runner(
            service.new_jobs(),
            graph.transcribe,
            answer,
            "runner",
            on_store_error=lambda: store_errors.append(None),
        )
        running = asyncio.create_task(runner.run())
        await service.ended(await service.submit(), "succeeded")
        async for attempt in AsyncRetrying(wait=wait_fixed(0.02), stop=stop_after_delay(20)):
            with attempt:
                assert "Webhooks wait: /nowhere (jobs.webhooks.secrets_file) cannot be read" in caplog.text
        await asyncio.wait_for(runner.drain(), 30)
        await running
        assert not store_errors
        assert "Jobs wait" not in caplog.text

    tell(story, webhooks=WebhookSettings(secrets_file="/nowhere").model_dump())


def test_the_database_is_restarted(postgres: Postgres, tmp_path: Path) -> None:
    """Jobs whose work ends meanwhile are stored later, by the same attempt, and others go on being taken."""

    url = postgres.emptied_database()

    async def run() -> None:
        service, graph = Service(url, tmp_path / "state", {"lease_s": 60}), Graph()
        async with service.runner(graph):
            job = await service.submit()
            await graph.runs(1)
            await asyncio.to_thread(postgres.stop)
            try:
                graph.opened.set()
                await graph.runs(0)
            finally:
                await asyncio.to_thread(postgres.start)
            done = await service.ended(job, "succeeded")
            assert done.attempt == 1
            await service.ended(await service.submit(), "succeeded")
        await service.jobs.store.close()

    asyncio.run(run())


def test_work_goes_on_while_the_database_is_away(postgres: Postgres, tmp_path: Path) -> None:
    """It goes on for longer than the lease: only another worker that has the job ends the attempt."""

    url = postgres.emptied_database()

    async def run() -> None:
        service, graph = Service(url, tmp_path / "state", {"concurrency": 1}), Graph()
        async with service.runner(graph):
            job = await service.submit()
            await graph.runs(1)
            await asyncio.to_thread(postgres.stop)
            try:
                await asyncio.sleep(1.5 * LEASE_S)
            finally:
                await asyncio.to_thread(postgres.start)
            graph.opened.set()
            done = await service.ended(job, "succeeded")
            assert graph.given_up == 0
            assert (done.attempt, done.deaths, done.failures) == (1, 0, 0)
        await service.jobs.store.close()

    asyncio.run(run())
