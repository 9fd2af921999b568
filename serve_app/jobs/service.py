"""What clients of all APIs do with jobs: submit, follow, fetch, cancel, delete."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, TypeVar

from serve_app.audio import Source
from serve_app.errors import InvalidRequest, StoreBusy, TranscriptionError
from serve_app.jobs.places import key_file, spool_url, store_url
from serve_app.jobs.secrets import FetchSecrets
from serve_app.jobs.spool import Spool
from serve_app.jobs.store.job_store import MAX_DELETED, JobStore
from serve_app.jobs.store.records import ClaimedJob, Job, NewJob, Status, WebhookStyle
from serve_app.jobs.stored import JobRequest, load_transcript
from serve_app.jobs.webhooks.sending import checked_url
from serve_app.options import Options
from serve_app.request.calls import check_model
from serve_app.request.speaker_turns import wants_speakers
from serve_app.settings import IntakeSettings
from serve_app.settings.jobs import JobsSettings
from serve_app.stages.audio import address, fetch
from serve_app.transcript import Transcript

UPLOAD = "upload"

T = TypeVar("T")


class NoSuchJob(TranscriptionError, status=404, type="invalid_request_error", code="job_not_found"):
    """There is no such job, or it is another API key's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A job as a client asks for it."""

    source: Source
    options: Options
    priority: int = 0
    max_queue_s: float | None = None
    max_attempts: int = 3
    initial_delay_s: float = 1.0
    max_delay_s: float = 60.0
    webhook_url: str | None = None
    webhook_style: WebhookStyle = "standard"
    webhook_param: str = "webhook_url"  # the client's name for that field
    place: str = ""  # in a request for several jobs, such as items.3
    echo: dict[str, Any] = field(default_factory=dict)


class Jobs:
    """The jobs of all clients. A client's methods take the name of its API key and raise NoSuchJob.

    All raise StoreBusy where the store cannot be reached.
    """

    def __init__(
        self,
        settings: JobsSettings,
        intake: IntakeSettings,
        audio_quota: Callable[[str], AbstractContextManager[Any]] = nullcontext,
        *,
        has_speakers: bool = True,
        models: Collection[str] = (),
    ) -> None:
        """Opens nothing yet. Raises ValueError for settings that cannot be used.

        Jobs of an API key run in its `audio_quota`, which may raise RateLimited. Without `has_speakers`, jobs
        that insist on speakers are refused, as are those that name none of `models`.
        """
        url = store_url(settings)
        assert url is not None, "jobs are off"
        self.settings = settings
        self.store = JobStore(url)
        self.spool = Spool(spool_url(settings, url))
        self._secrets = FetchSecrets(key_file(settings))
        self._intake, self._has_speakers, self._models = intake, has_speakers, models
        self.audio_quota = audio_quota

    async def submit(
        self, key: str, asked: Sequence[Submission], idempotency_key: str | None = None
    ) -> list[tuple[Job, bool]]:
        """Stores all of these or none; with each job, whether it is new.

        Raises InvalidRequest, IdempotencyConflict, RateLimited, SpoolUnavailable, StoreBusy.
        """
        if len(asked) > self.settings.max_queued:  # waiting would not help
            limit = f"items: at most {self.settings.max_queued} jobs may wait at once; send fewer."
            raise InvalidRequest(limit, "items")
        names: list[str] = []
        try:
            body = hashlib.sha256()
            new = []
            for number, each in enumerate(asked):
                with within(each.place):
                    new.append(await self._new_job(key, each, names, body))
                if idempotency_key is not None:
                    new[-1] = replace(new[-1], idempotency_key=f"{idempotency_key}#{number}")
            digest = body.hexdigest()
            stored = await self.store.submit_all(
                [replace(each, body_hash=digest) for each in new], self.settings.max_queued
            )
        except Exception as error:
            # After StoreBusy or a cancellation the jobs may be stored; if not, `sweep` removes the uploads.
            if not isinstance(error, StoreBusy):
                await self.spool.remove(*names)
            raise
        await self.spool.remove(*set(names) - {job.input_ref for job, _ in stored})
        return stored

    async def _new_job(self, key: str, asked: Submission, names: list[str], body: Any) -> NewJob:
        source, settings = asked.source, self.settings
        wants_speakers(asked.options, available=self._has_speakers)
        check_model(asked.options.model, self._models)
        if asked.webhook_url is not None:
            checked_url(asked.webhook_url, settings.webhooks, asked.webhook_param)
        secrets = input_ref = None
        if source.url is not None:
            shown = address.without_secrets(fetch.checked(source.url, source.headers, self._intake))
            secrets = self._secrets.encrypt(source.url, source.headers)
            what = json.dumps([source.url, dict(source.headers)], sort_keys=True).encode()
        else:
            assert source.file is not None
            shown = UPLOAD
            what = await asyncio.to_thread(_digest, source.file)
            input_ref = await self.spool.put(source.file)
            names.append(input_ref)
        request = JobRequest(asked.options, shown, asked.echo).dump()
        said = [asked.priority, asked.max_queue_s, asked.max_attempts, asked.webhook_url, asked.webhook_style]
        said += [asked.initial_delay_s, asked.max_delay_s]
        body.update(what + b"\0" + request.encode() + b"\0" + json.dumps(said).encode() + b"\0")
        return NewJob(
            key=key,
            request=request,
            audio=shown,
            body_hash="",
            keep_s=settings.keep_s,
            priority=asked.priority,
            max_queue_s=asked.max_queue_s,
            max_attempts=asked.max_attempts,
            initial_delay_s=asked.initial_delay_s,
            max_delay_s=asked.max_delay_s,
            input_ref=input_ref,
            secrets=secrets,
            webhook_url=asked.webhook_url,
            webhook_style=asked.webhook_style,
        )

    async def get(self, job_id: str, key: str) -> Job:
        """The job as it is now."""
        return _found(await self.store.get(job_id, key))

    async def page(self, key: str, statuses: Collection[Status], after: str | None, limit: int) -> list[Job]:
        """Jobs, newest first; `after` is the id of the last one of the page before."""
        return await self.store.list_jobs(key, statuses=statuses, after=after, limit=limit)

    async def jobs_ahead(self, job: Job) -> int:
        """About how many jobs begin before a queued one."""
        return await self.store.jobs_ahead(job)

    async def request(self, job_id: str, key: str) -> JobRequest:
        """What the job was submitted with."""
        return JobRequest.load(_found(await self.store.request(job_id, key)))

    async def transcript(self, job_id: str, key: str) -> Transcript | None:
        """The job's transcript; None where it has not succeeded."""
        stored = await self.store.result(job_id, key)
        return None if stored is None else await asyncio.to_thread(load_transcript, stored)

    async def cancel(self, job_id: str, key: str, *, only_queued: bool = False) -> Job:
        """Ends a queued job, or has a running one stopped between two windows; the job as it is then."""
        job = _found(await self.store.cancel(job_id, key, only_queued=only_queued))
        await self.remove_upload(job)
        return job

    async def delete(self, job_id: str, key: str) -> Job:
        """Erases the job, its audio, its result and its webhook; the job as it was."""
        job = _found(await self.store.delete(job_id, key))
        if job.input_ref is not None:
            await self.spool.remove(job.input_ref)
        return job

    async def remove_upload(self, job: Job) -> None:
        """Removes the audio of a job if it has ended; if not, its next attempt needs the audio."""
        if job.is_final and job.input_ref is not None:
            await self.spool.remove(job.input_ref)

    async def retry_webhook(self, job_id: str, key: str) -> Job | None:
        """Has the webhook sent now, with a new schedule; None if there is none, or the job has not ended."""
        await self.get(job_id, key)
        is_due = await self.store.retry_delivery(job_id, key)
        return await self.get(job_id, key) if is_due else None

    @asynccontextmanager
    async def source(self, claimed: ClaimedJob) -> AsyncIterator[Source]:
        """The audio of a job that runs. Raises SecretsUnreadable, FileNotFoundError, SpoolUnavailable."""
        if claimed.secrets is not None:
            url, headers = self._secrets.decrypt(claimed.secrets)
            yield Source(url=url, headers=headers)
        else:
            assert claimed.job.input_ref is not None
            async with self.spool.opened(claimed.job.input_ref) as file:
                yield Source(file=file)

    async def sweep(self) -> bool:
        """Erases what was kept long enough and uploads without a job. True if more may be left."""
        swept = await self.store.sweep()
        await self.spool.remove(*(ref for ref in swept if ref is not None))
        await self.spool.sweep(await self.store.input_refs())
        return len(swept) >= MAX_DELETED


@contextmanager
def within(place: str) -> Iterator[None]:
    """Raises the InvalidRequest from inside with its field named by the place that it has in the request."""
    try:
        yield
    except InvalidRequest as error:
        if not place:
            raise
        param = f"{place}.{error.param}" if error.param else place
        is_named = error.param is not None and error.message.startswith(error.param)
        raise InvalidRequest(
            f"{place}{'.' if is_named else ': '}{error.message}", param, error.code
        ) from None


def _found(found: T | None) -> T:
    if found is None:
        raise NoSuchJob("There is no such job, or no longer; look at the id.")
    return found


def _digest(file: BinaryIO) -> bytes:
    file.seek(0)
    return hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]  # a spooled file is one
