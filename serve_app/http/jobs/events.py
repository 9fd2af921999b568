"""A job's changes as server-sent events. Their ids are the job's versions, so a client can resume."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict
from time import monotonic

from starlette.requests import Request
from starlette.responses import Response

from serve_app.errors import StoreBusy
from serve_app.http.errors import error_body
from serve_app.http.jobs.shown import JobOut
from serve_app.http.responses import KEEP_ALIVE_S, EventStream
from serve_app.jobs.service import NoSuchJob
from serve_app.jobs.store.records import Job, SegmentBatch

POLL_S = 1.0  # a running job's progress is written every two


Read = Callable[[], Awaitable[Job]]
Show = Callable[[Job], Awaitable[JobOut]]
ReadSegments = Callable[[int, int], Awaitable[list[SegmentBatch]]]  # of an attempt, from this number on


async def event_stream(request: Request, read: Read, show: Show, read_segments: ReadSegments) -> Response:
    """The answer: an event at once, then one for each change, until the job has ended. Raises NoSuchJob."""
    job = await read()
    seen = _last_event_id(request)
    if job.is_final and job.version <= seen:
        return Response(status_code=204)  # browsers connect again and again until they get this
    async with AsyncExitStack() as held:
        events = await held.enter_async_context(aclosing(_events(job, seen, read, show, read_segments)))
        if request.scope.get("is_head"):
            await events.aclose()  # the headers are the whole answer
        return EventStream(b"", events, held.pop_all())


async def _events(
    job: Job, seen: int, read: Read, show: Show, read_segments: ReadSegments
) -> AsyncGenerator[bytes, None]:
    sent_at_s, attempt, segments_sent = monotonic(), 0, 0
    while True:
        try:
            if job.version > seen:
                data = json.dumps(await show(job))
                yield f"id: {job.version}\nevent: {job.status}\ndata: {data}\n\n".encode()
                seen, sent_at_s = job.version, monotonic()
                if job.attempt != attempt:
                    attempt, segments_sent = job.attempt, 0
                for batch in await read_segments(attempt, segments_sent):
                    yield f"event: segments\ndata: {json.dumps(asdict(batch))}\n\n".encode()
                    segments_sent = batch.first + len(batch.segments)
            if job.is_final:
                return
            await asyncio.sleep(POLL_S)
            job = await read()
        except StoreBusy:  # it passes; without the stream the client would only ask more often
            await asyncio.sleep(POLL_S)
        except NoSuchJob as error:  # it was deleted
            yield b"event: error\ndata: " + json.dumps(error_body(error)).encode() + b"\n\n"
            return
        if monotonic() - sent_at_s >= KEEP_ALIVE_S:
            yield b": still there\n\n"
            sent_at_s = monotonic()


def _last_event_id(request: Request) -> int:
    """The version that the client has; 0 where it has none of ours."""
    given = request.headers.get("last-event-id", "")[:18]  # int() refuses thousands of digits
    return int(given) if given.isascii() and given.isdecimal() else 0
