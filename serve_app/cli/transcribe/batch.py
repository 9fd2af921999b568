"""Transcribes many files by jobs of a service, a few at a time, and writes their transcripts.

A job has an idempotency key made of its audio and its options. So a run that was killed and is started
again finds its jobs, finished or running.
"""

import asyncio
import json
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from serve_app.cli import CommandFailed, note
from serve_app.cli.transcribe.inputs import Done, Input, Inputs, hash_of, in_words
from serve_app.cli.transcribe.wanted import SHOWN_WITH_WORDS, Tally, Wanted
from serve_app.cli.transcribe.writers import WRITERS, whisperx_result
from serve_app.client import AsyncClient, Unreachable
from serve_app.client.answers import has_ended
from serve_app.errors import InvalidRequest, NoApiKeys, TranscriptionError, Unauthorized

FIRST_ANSWER_S = 5.0  # for a service that is just starting
RETRY_FOR_S = 600.0
STOP_POLL_S = 0.2
NO_JOB = "0"  # an id that no job has
FLAGS = {"base_url": "--server", "api_key": "--api-key"}  # flags for these parameters of the client


class Interrupted(Exception):
    """The user has stopped the run."""


@dataclass
class Batch:
    """One run of the command."""

    wanted: Wanted
    stop: threading.Event | None = None  # set when the user stops a run that has started its own service
    tally: Tally = field(default_factory=Tally)
    client: AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        self._done = Done(self.wanted.folder)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._told: set[str] = set()
        name, state = (
            TextColumn(f"{{task.{each}}}", markup=False) for each in ("description", "fields[state]")
        )
        columns = name, BarColumn(), state, TimeElapsedColumn()
        self._progress = Progress(*columns, console=note, disable=not note.is_terminal)
        self._total = self._progress.add_task("all", total=0, state="")

    def tell_retry(self, error: TranscriptionError) -> None:
        """Prints, once for each kind of error, that the request is sent again."""
        self._progress.update(self._total, state="waiting for the service")
        if error.code not in self._told:
            self._told.add(error.code)
            self._print(f"{error.message} Trying again for up to {RETRY_FOR_S / 60:g} minutes.")

    async def run(self, client: AsyncClient, paths: Sequence[str], watched: Path | None) -> Tally:
        """Transcribes all inputs. Raises CommandFailed where none can be transcribed, and Interrupted."""
        self.client = client
        free = asyncio.Semaphore(self.wanted.concurrency)
        try:
            with self._progress:
                async with asyncio.TaskGroup() as tasks:
                    stopping = tasks.create_task(self._end_when_stopped())
                    async with asyncio.TaskGroup() as files:
                        async for each in self._inputs(paths, watched):
                            await free.acquire()
                            task = files.create_task(self._in_turn(each))
                            task.add_done_callback(partial(self._advance, free))
                    stopping.cancel()
        except ExceptionGroup as group:
            raise _first_of(group) from None
        return self.tally

    async def _inputs(self, paths: Sequence[str], watched: Path | None) -> AsyncIterator[Input]:
        inputs, known = Inputs(self._unreadable), 0
        found = await asyncio.to_thread(list, inputs.found(paths))
        self._progress.update(self._total, total=len(found))
        for each in found:
            yield each
        if watched is not None:
            async for new in inputs.watched(watched):
                known += len(new)
                self._progress.update(self._total, total=len(found) + known)
                for each in new:
                    yield each

    def _advance(self, free: asyncio.Semaphore, _: object) -> None:
        free.release()
        ended = self.tally.transcribed + self.tally.done_before + self.tally.failed
        failed = f", {self.tally.failed} failed" if self.tally.failed else ""
        self._progress.update(self._total, advance=1, state=f"{ended} done{failed}")

    async def _end_when_stopped(self) -> None:
        while self.stop is not None:
            await asyncio.sleep(STOP_POLL_S)
            if self.stop.is_set():
                raise Interrupted

    async def _in_turn(self, each: Input) -> None:
        async with self._locks[each.output]:  # a file that changes meanwhile is transcribed again
            await self._transcribed(each)

    async def _transcribed(self, each: Input) -> None:
        """Transcribes one file and reports it. Raises CommandFailed for an error that all files share."""
        try:
            mark = await asyncio.to_thread(self.wanted.mark, each)
            if await asyncio.to_thread(self.wanted.is_done, each, mark, self._done):
                self.tally.done_before += 1
                return
            task = self._progress.add_task(each.output, total=None, state="sending")
            try:
                paths = await self._transcribe(each, task)
                await asyncio.to_thread(self._done.add, paths, mark)
            finally:
                self._progress.remove_task(task)
        except (Unreachable, Unauthorized, NoApiKeys, InvalidRequest) as error:
            if isinstance(error, InvalidRequest) and error.param not in self.wanted.options:
                self._failed(each, error.message)
                return
            raise CommandFailed(error.message) from None
        except (TranscriptionError, OSError) as error:
            self._failed(each, error.message if isinstance(error, TranscriptionError) else in_words(error))
        else:
            self.tally.transcribed += 1
            self._say(each, ", ".join(str(path) for path in paths))

    async def _transcribe(self, each: Input, task: TaskID) -> list[Path]:
        key = await asyncio.to_thread(each.digest, self.wanted.options)
        async with self._locks[key]:  # files of the same audio have the same job
            job = await self._job(each, key)
            async for now in self.client.jobs.events(job["id"]):
                job = now
                self._show(task, job)
            if job["status"] != "succeeded":
                error = job["error"] or {"message": f"The job has {job['status']}.", "code": job["status"]}
                raise TranscriptionError(error["message"], None, error["code"])
            return await self._written(each, job["id"])

    async def _job(self, each: Input, key: str) -> dict[str, Any]:
        """A new job, or that of an earlier run unless it ended without a transcript."""
        submit = partial(self.client.jobs.submit, each.source, idempotency_key=key, **self.wanted.options)
        job = await submit()
        if has_ended(job) and job["status"] != "succeeded":
            await _if_found(self.client.jobs.delete(job["id"]))
            job = await submit()
        return job

    async def _written(self, each: Input, job_id: str) -> list[Path]:
        result, texts = self.client.jobs.result, {}
        words = {name: True for name in SHOWN_WITH_WORDS if self.wanted.options.get(name)}
        asked = {
            "word_timestamps": self.wanted.has_words,
            "embeddings": self.wanted.options.get("embeddings"),
        }
        answer = await result(job_id, response_format="json", **asked, **words)
        assert isinstance(answer, dict)
        for warning in answer["warnings"]:
            self._say(each, f"warning: {warning['message']}")
        shown = whisperx_result(answer)
        for form in self.wanted.formats:
            if form in WRITERS:
                texts[form] = await asyncio.to_thread(WRITERS[form], shown, self.wanted.layout)
            elif form == "words":
                shown_words = await result(job_id, response_format=form, **words)
                texts[form] = json.dumps(shown_words, ensure_ascii=False)
            else:
                rttm = str(await result(job_id, response_format=form))
                name = "_".join(Path(each.output).name.split())
                texts[form] = rttm.replace("SPEAKER audio ", f"SPEAKER {name} ")
        return [_write(self.wanted.path(each, form), text) for form, text in texts.items()]

    def _show(self, task: TaskID, job: dict[str, Any]) -> None:
        state = job["status"]
        if state == "queued":
            state = f"waiting, {job['jobs_ahead']} ahead" if "jobs_ahead" in job else "waiting"
        if progress := job["progress"]:
            done, found = progress["windows_done"], progress["windows_found"]
            self._progress.update(task, total=found if progress["all_found"] else None, completed=done)
            state = "speakers" if progress.get("stage") == "diarization" else f"{done} of {found} windows"
        self._progress.update(task, state=state)

    def _unreadable(self, error: OSError) -> None:
        self.tally.failed += 1
        self._print(in_words(error))

    def _failed(self, each: Input, reason: str) -> None:
        self.tally.failed += 1
        self._say(each, reason)

    def _say(self, each: Input, text: str) -> None:
        self._print(f"{each.output}: {text}")

    def _print(self, text: str) -> None:
        self._progress.console.print(text, markup=False)


async def transcribe_all(
    url: str,
    api_key: str | None,
    wanted: Wanted,
    paths: Sequence[str],
    watched: Path | None = None,
    stop: threading.Event | None = None,
) -> Tally:
    """Transcribes all inputs by the service at this URL. Raises CommandFailed and Interrupted."""
    try:
        async with AsyncClient(url, api_key, retry_for_s=FIRST_ANSWER_S) as client:
            await _if_found(client.jobs.get(NO_JOB))  # does the service run, accept the key and keep jobs?
        batch = Batch(wanted, stop)
        async with AsyncClient(url, api_key, retry_for_s=RETRY_FOR_S, on_retry=batch.tell_retry) as client:
            return await batch.run(client, paths, watched)
    except TranscriptionError as error:
        name, colon, reason = error.message.partition(":")
        raise CommandFailed(f"{FLAGS.get(name, name)}{colon}{reason}") from None


async def _if_found(call: Awaitable[Any]) -> None:
    """Waits for a call; a missing job is not an error."""
    try:
        await call
    except InvalidRequest as error:
        if error.code != "job_not_found":
            raise


def _write(path: Path, text: str) -> Path:
    """Writes a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{hash_of(path.name)[:16]}.part")  # no longer than other names may be
    try:
        part.write_text(text, encoding="utf-8")
        return part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _first_of(error: Exception) -> Exception:
    """The first error in a group and in the groups within it."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
