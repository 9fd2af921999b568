"""Migrations: from nothing, from the first version, at the same time, and not backwards."""

import asyncio
import io
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import sqlalchemy as sa
from aiohttp import web
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from job_stores import new_job, submit, using
from loopback import serving
from tenacity import AsyncRetrying, stop_after_delay, wait_fixed

from serve_app.audio import Source
from serve_app.errors import StoreBusy
from serve_app.http.responses import answer, logprobs
from serve_app.jobs.runner import Runner
from serve_app.jobs.service import Jobs
from serve_app.jobs.store.job_store import JobStore
from serve_app.jobs.store.migration import VERSION_TABLE, NotMigrated, SchemaTooNew, check, migrate
from serve_app.jobs.store.records import FINAL
from serve_app.jobs.store.schema import WEBHOOK_ID_PREFIX, metadata
from serve_app.jobs.stored import dump_transcript, load_transcript
from serve_app.options import Options
from serve_app.request.progress import Report, ignore_progress
from serve_app.settings import IntakeSettings
from serve_app.settings.jobs import JobsSettings, WebhookSettings
from serve_app.transcript import Segment, StageWarning, Transcript, Turn, Word

# As the first version wrote them. All of this stays as it is when tables, options and transcripts change.
JOB = """
INSERT INTO jobs (
    id, version, key, body_hash, status, priority, created_at_s, run_at_s, keep_s, attempt, failures, deaths,
    max_attempts, initial_delay_s, max_delay_s, is_cancel_requested, progress, webhook_style, webhook_url,
    input_ref, lease_until_s, expires_at_s, finished_at_s, delete_at_s
) VALUES (
    :id, 1, 'alice', 'a', :status, 0, 1000.0, 1000.0, 1e12, :attempt, 0, 0,
    3, 1.0, 5.0, :cancel, '{}', 'standard', :url,
    :audio, :lease, :expires, :finished, :delete
)"""
REQUEST = (
    '{"options": {"language": "de", "diarize": true, "num_speakers": 2, "response_format": "words", '
    '"word_timestamps": true, "initial_prompt": "Gr\\u00fc\\u00dfe"}, "audio": "upload", '
    '"echo": {"language_code": "de"}}'
)
TRANSCRIPT = (
    b'{"segments": [{"start_s": 0.5, "end_s": 1.5, "text": "Gr\\u00fc\\u00dfe &", '
    b'"words": [{"text": "Gr\\u00fc\\u00dfe", "start_s": 0.5, "end_s": 1.0, "score": 0.9, '
    b'"speaker": "SPEAKER_00"}, {"text": "&", "start_s": null, "end_s": null, "score": null, '
    b'"speaker": null}], "speaker": "SPEAKER_00", "avg_logprob": -0.25, "window": null, '
    b'"source_text": null}], "language": "de", "duration_s": 2.0, "model": "tiny", '
    b'"turns": [{"start_s": 0.4, "end_s": 1.6, "speaker": "SPEAKER_00"}], '
    b'"warnings": [{"stage": "alignment", "code": "alignment_failed", "message": "It failed."}], '
    b'"timings": {"total": 1.5}}'
)
# As b90fd1c wrote it: each segment has the tokens of its whole window.
SOURCE_TEXT = (
    '{"text": " Hm. Ja.", "language": "de", "language_probability": 0.9, "avg_logprob": NaN, '
    '"no_speech_prob": 0.0, "compression_ratio": 1.0, "temperature": 0.0, "attempts": 1, '
    '"is_repetitive": false, "was_silence": false, "is_over_silence": false, "prompt_tokens_cut": 0, '
    '"languages": [["de", 0.9]], "tokens": [[0.0, 0.5, 0.9, 4, [32, 72, 109, 46]], '
    '[0.5, 1.0, 0.8, 8, [32, 74, 97, 46]]], "sentences": []}'
)
WITH_TOKENS = (
    '{"segments": ['
    + ", ".join(
        f'{{"start_s": {start_s}, "end_s": {start_s + 1}, "text": "Hm.", "words": [], '
        f'"speaker": "{speaker}", "avg_logprob": -0.1, '
        f'"window": {{"start_s": {window_s}, "end_s": {window_s + 2}}}, '
        f'"source_text": {SOURCE_TEXT}}}'
        for start_s, window_s, speaker in ((0.0, 0.0, "A"), (1.0, 0.0, "B"), (9.0, 9.0, "A"))
    )
    + '], "language": "de", "duration_s": 12.0, "model": "tiny", "turns": [], "warnings": [], '
    '"timings": {}, "peaks": "", "voices": null, "exclusive_turns": []}'
)
DEFAULTS = {
    "attempt": 0,
    "cancel": False,
    **dict.fromkeys(("audio", "lease", "expires", "finished", "delete")),
}
WAITING: dict[str, dict[str, object]] = {
    "queued": {"status": "queued"},
    "overdue": {"status": "queued", "expires": 1060.0},
    "running": {"status": "running", "attempt": 1, "lease": 1060.0},
    "canceling": {"status": "running", "attempt": 1, "lease": 1060.0, "cancel": True},
}
ENDED: dict[str, dict[str, object]] = {
    status: {"status": status, "attempt": 1, "finished": 1060.0, "delete": 4e9} for status in FINAL
}

# What they stand for.
OPTIONS = Options(
    language="de",
    initial_prompt="Grüße",
    diarize=True,
    num_speakers=2,
    word_timestamps=True,
    response_format="words",
)
WORDS = Word("Grüße", 0.5, 1.0, 0.9, "SPEAKER_00"), Word("&", None, None, None)
RESULT = Transcript(
    (Segment(0.5, 1.5, "Grüße &", WORDS, "SPEAKER_00", -0.25),),
    "de",
    2.0,
    "tiny",
    (Turn(0.4, 1.6, "SPEAKER_00"),),
    (StageWarning("alignment", "alignment_failed", "It failed."),),
    {"total": 1.5},
)


def test_a_new_database_is_migrated_and_fits(empty_url: str) -> None:
    """Before, the service refuses it; then it has the tables of the code, and can be migrated again."""
    with pytest.raises(NotMigrated, match="jobs migrate"):
        asyncio.run(check(empty_url))
    for _ in range(2):
        asyncio.run(migrate(empty_url))
        asyncio.run(check(empty_url))

    def differences(connection: sa.Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        return list(compare_metadata(context, metadata))

    async def story(store: JobStore) -> list[object]:
        async with store.read() as connection:
            return await connection.run_sync(differences)

    assert using(empty_url, story) == []


def test_jobs_of_the_first_version_finish(empty_url: str, tmp_path: Path) -> None:
    """A database with jobs in every state is upgraded, and a runner ends each of them as it should."""
    asyncio.run(migrate(empty_url, "0001"))
    settings = JobsSettings(
        store=empty_url,
        state_dir=str(tmp_path),
        webhooks=WebhookSettings(allowed_hosts=("127.0.0.1",)),
    )
    told = set[str]()

    async def transcribe(source: Source, options: Options, report: Report = ignore_progress) -> Transcript:
        assert source.file is not None
        assert (source.file.read(), options) == (b"audio", OPTIONS)
        return RESULT

    async def receive(request: web.Request) -> web.StreamResponse:
        told.add(request.headers["webhook-id"].removeprefix(WEBHOOK_ID_PREFIX))
        return web.Response()

    async def write(jobs: Jobs, url: str) -> None:
        async with jobs.store.write() as connection:
            for name, changes in (WAITING | ENDED).items():
                audio = await jobs.spool.put(io.BytesIO(b"audio"))
                row = {**DEFAULTS, "id": name, "audio": audio, "url": url, **changes}
                await connection.execute(sa.text(JOB), row)
                asked = sa.text("INSERT INTO job_requests VALUES (:id, :request)")
                await connection.execute(asked, {"id": name, "request": REQUEST})
            result = sa.text("INSERT INTO job_results VALUES ('succeeded', :body)")
            await connection.execute(result, {"body": zlib.compress(TRANSCRIPT, 1)})
            await connection.exec_driver_sql(
                "INSERT INTO job_webhooks (job_id, key, status, due_at_s, claim_no, tries, log) "
                "VALUES ('succeeded', 'alice', 'pending', 1060.0, 1, 0, '[]')"
            )

    async def story() -> None:
        async with serving(receive) as port:
            jobs = Jobs(settings, IntakeSettings())
            await write(jobs, f"http://127.0.0.1:{port}/")
            await migrate(empty_url)
            await check(empty_url)
            runner = Runner(Jobs(settings, IntakeSettings()), transcribe, answer, "runner")
            running = asyncio.create_task(runner.run())
            async for attempt in AsyncRetrying(wait=wait_fixed(0.05), stop=stop_after_delay(60)):
                with attempt:
                    found = {job.id: job for job in await jobs.page("alice", (), None, 100)}
                    assert all(job.is_final for job in found.values())
                    assert told == {*WAITING, "succeeded"}
            await runner.drain()
            await running
            for job_id, job in found.items():
                request = await jobs.request(job_id, "alice")
                assert (request.options, request.audio, request.echo) == (
                    OPTIONS,
                    "upload",
                    {"language_code": "de"},
                )
                transcript = await jobs.transcript(job_id, "alice")
                assert transcript == (RESULT if job.status == "succeeded" else None)
            await jobs.store.close()
        ended: dict[str, str] = {status: status for status in FINAL}
        ended |= {
            "queued": "succeeded",
            "running": "succeeded",
            "overdue": "expired",
            "canceling": "canceled",
        }
        assert {job_id: job.status for job_id, job in found.items()} == ended

    asyncio.run(story())


def test_tokens_of_an_earlier_version_are_shown_once() -> None:
    """It kept those of a window with each of the window's segments."""
    transcript = load_transcript(WITH_TOKENS.encode())
    assert [segment.start_s for segment in transcript.segments] == [0.0, 1.0, 9.0]
    assert "".join(each["token"] for each in logprobs(transcript)) == 2 * " Hm. Ja."
    assert load_transcript(dump_transcript(transcript)).tokens == transcript.tokens


def test_a_newer_database_is_refused(empty_url: str) -> None:
    """The service and the migration both refuse it."""
    asyncio.run(migrate(empty_url))

    async def upgrade(store: JobStore) -> None:
        async with store.write() as connection:
            await connection.exec_driver_sql(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")

    using(empty_url, upgrade)
    for action in (check, migrate):
        with pytest.raises(SchemaTooNew, match="9999"):
            asyncio.run(action(empty_url))


def test_a_migration_that_fails_leaves_nothing(empty_url: str) -> None:
    """The error names the table that is in the way, and no other table is created."""

    async def obstruct(store: JobStore) -> None:
        async with store.write() as connection:
            await connection.exec_driver_sql("CREATE TABLE job_webhooks (something INTEGER)")

    async def tables(store: JobStore) -> list[str]:
        async with store.read() as connection:
            return await connection.run_sync(lambda sync: sa.inspect(sync).get_table_names())

    if empty_url.startswith("sqlite"):
        Path(empty_url.removeprefix("sqlite:///")).parent.mkdir()
    using(empty_url, obstruct)
    with pytest.raises(sa.exc.DBAPIError, match="job_webhooks"):
        asyncio.run(migrate(empty_url))
    assert using(empty_url, tables) == ["job_webhooks"]


def test_two_processes_may_migrate_at_once(empty_url: str) -> None:
    """Nodes that start together do this."""
    code = (
        "import asyncio; from serve_app.jobs.store.migration import migrate; "
        f"asyncio.run(migrate({empty_url!r}))"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], stderr=subprocess.PIPE, env={"PYTHONPATH": ":".join(sys.path)}
        )
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    using(empty_url, lambda store: submit(store, new_job()))


def test_a_database_that_cannot_be_reached_is_busy(tmp_path: Path) -> None:
    """An operator who starts the service before its database is told so, in one sentence."""
    with pytest.raises(StoreBusy, match="reached"):
        asyncio.run(check(f"postgresql://jobs@/jobs?host={tmp_path}"))
