"""GET /v1/jobs/{id}/events: each change as it comes, from where the client stopped, until the end."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from job_api import LEASE_S, Service, error_of, using
from transcripts import FIXED

from serve_app.errors import StoreBusy
from serve_app.http.jobs import events
from serve_app.jobs.store.records import SegmentBatch
from serve_app.jobs.stored import dump_transcript

WAIT_S = 30.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "POLL_S", 0.01)


class Following:
    """A client at ASGI level, which sees each piece as it is sent and can leave."""

    def __init__(self, service: Service, path: str, last_event_id: str | None = None) -> None:
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.left = asyncio.Event()
        self.status = 0
        headers = [(b"host", b"127.0.0.1")]
        if last_event_id is not None:
            headers.append((b"last-event-id", last_event_id.encode()))
        scope = {
            "type": "http",
            "method": "GET",
            "path": f"{path}/events",
            "query_string": b"",
            "root_path": "",
            "client": ("127.0.0.1", 50_000),
            "headers": headers,
        }
        self.answering = asyncio.create_task(service.app(scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if "status" in message:
            self.status = message["status"]
            self.pieces.put_nowait(b"begins")
        elif message.get("body"):
            self.pieces.put_nowait(message["body"])

    async def next(self) -> bytes:
        return await asyncio.wait_for(self.pieces.get(), WAIT_S)

    async def next_event(self) -> tuple[int, str, dict[str, Any]]:
        """Version, status and job of the next event."""
        number, status, data = (await self.next()).decode().removesuffix("\n\n").split("\n")
        return int(number.removeprefix("id: ")), status.removeprefix("event: "), json.loads(data[6:])

    async def segments(self) -> tuple[int, int, list[dict[str, Any]]]:
        """Attempt, number and segments of the next batch."""
        name, data = (await self.next()).decode().removesuffix("\n\n").split("\n")
        assert name == "event: segments"
        batch = json.loads(data[6:])
        return batch["attempt"], batch["first"], batch["segments"]

    async def news(self) -> tuple[int, int, list[dict[str, Any]]]:
        """The next batch, and beside it that the job runs: a batch may still come with the event before."""
        pieces = sorted([await self.next(), await self.next()], key=lambda piece: b"segments" in piece[:15])
        assert b"event: running" in pieces[0]
        self.pieces.put_nowait(pieces[1])
        return await self.segments()

    async def end(self) -> list[bytes]:
        """What was sent and not yet read, when the answer has ended."""
        await asyncio.wait_for(self.answering, WAIT_S)
        return [self.pieces.get_nowait() for _ in range(self.pieces.qsize())]


async def begun(service: Service, path: str, last_event_id: str | None = None) -> Following:
    """A client whose answer has begun."""
    client = Following(service, path, last_event_id)
    assert await client.next() == b"begins"
    return client


def test_each_change_is_an_event(tmp_path: Path) -> None:
    """The events go from the job's present state to its end; each has what GET shows at that time."""

    async def story(service: Service) -> None:
        store = service.jobs.store
        path = await service.submitted()
        client = await begun(service, path)
        version, status, job = await client.next_event()
        assert (client.status, version, status) == (200, 1, "queued")
        assert job == (await service.get(path)).json()

        held = await service.claimed()
        version, status, job = await client.next_event()
        assert (version, status, job) == (2, "running", (await service.get(path)).json())

        progress = {"windows_done": 1, "windows_found": 3, "all_found": False, "stage": "diarization"}
        await store.heartbeat(held.job.id, 1, LEASE_S, progress)
        version, status, job = await client.next_event()
        assert (version, status, job["progress"]) == (3, "running", progress)

        await service.post(f"{path}/cancel")
        assert (await client.next_event())[2]["canceling"] is True

        await store.finish(held.job.id, 1, dump_transcript(FIXED))
        version, status, job = await client.next_event()
        assert (version, status, job) == (5, "succeeded", (await service.get(path)).json())
        assert await client.end() == []

    using(tmp_path, story)


def test_a_client_takes_up_where_it_stopped(tmp_path: Path) -> None:
    """It gets only what it has not seen, also if the job has ended meanwhile."""

    async def story(service: Service) -> None:
        path = await service.submitted()
        up_to_date = await begun(service, path, "1")
        held = await service.claimed()
        assert (await up_to_date.next_event())[:2] == (2, "running")
        behind = await begun(service, path, "1")
        assert (await behind.next_event())[:2] == (2, "running")
        await service.jobs.store.finish(held.job.id, 1, dump_transcript(FIXED))
        for client in (up_to_date, behind):
            assert (await client.next_event())[:2] == (3, "succeeded")
            assert await client.end() == []
        late = await begun(service, path, "2")
        assert (await late.next_event())[:2] == (3, "succeeded")
        assert await late.end() == []

    using(tmp_path, story)


@pytest.mark.parametrize("seen", ["3", "99", "9" * 5000])
def test_a_client_that_has_seen_the_end_is_told_not_to_come_back(seen: str, tmp_path: Path) -> None:
    """Browsers connect again after every end, unless they get a 204."""

    async def story(service: Service) -> None:
        path = await service.finished(FIXED)
        client = await begun(service, path, seen)
        assert (client.status, await client.end()) == (204, [])

    using(tmp_path, story)


@pytest.mark.parametrize("seen", ["", "x", "-1", "²"])
def test_an_id_that_is_none_of_ours_changes_nothing(seen: str, tmp_path: Path) -> None:
    """The client gets the state of the job, as without an id."""

    async def story(service: Service) -> None:
        path = await service.finished(FIXED)
        client = await begun(service, path, seen)
        assert (await client.next_event())[:2] == (3, "succeeded")
        assert await client.end() == []

    using(tmp_path, story)


def test_silence_is_broken_by_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies cut a connection on which nothing comes."""
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.02)

    async def story(service: Service) -> None:
        client = await begun(service, await service.submitted())
        await client.next_event()
        assert [(await client.next())[:1] for _ in range(2)] == [b":"] * 2
        client.left.set()
        await client.end()

    using(tmp_path, story)


@pytest.mark.parametrize("by", ["leaving", "being cancelled"])
def test_a_client_that_leaves_ends_the_polling(by: str, tmp_path: Path) -> None:
    """No task is left that asks the store for the job."""

    async def story(service: Service) -> None:
        path = await service.submitted()
        before = asyncio.all_tasks()
        client = await begun(service, path)
        await client.next_event()
        if by == "leaving":
            client.left.set()
        else:
            client.answering.cancel()  # as Serve does
        await asyncio.gather(client.answering, return_exceptions=True)
        await asyncio.gather(*service.jobs.store.running)
        assert asyncio.all_tasks() == before

    using(tmp_path, story)


def test_head_is_answered_without_the_events(tmp_path: Path) -> None:
    """The answer comes at once, with the headers that GET has, although the job goes on."""

    async def story(service: Service) -> None:
        path = await service.submitted()
        answer = await asyncio.wait_for(service.send("HEAD", f"{path}/events"), WAIT_S)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert "content-length" not in answer.headers

    using(tmp_path, story)


def test_a_deleted_job_s_events_end(tmp_path: Path) -> None:
    """The last one says that there is no such job."""

    async def story(service: Service) -> None:
        path = await service.submitted()
        client = await begun(service, path)
        await client.next_event()
        await service.send("DELETE", path)
        kind, data = (await client.next()).decode().strip().split("\n")
        assert (kind, json.loads(data[6:])["error"]["code"]) == ("event: error", "job_not_found")
        assert await client.end() == []
        assert error_of(await service.get(f"{path}/events"))[0] == 404

    using(tmp_path, story)


def test_a_store_that_is_busy_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream goes on; a client would only ask again."""

    async def story(service: Service) -> None:
        path = await service.submitted()
        client = await begun(service, path)
        await client.next_event()
        get, refused = service.jobs.store.get, 0

        async def busy(*args: Any) -> Any:
            nonlocal refused
            if refused < 3:
                refused += 1
                raise StoreBusy("Busy.")
            return await get(*args)

        monkeypatch.setattr(service.jobs.store, "get", busy)
        await service.jobs.store.cancel(path.rpartition("/")[2], "")
        assert (await client.next_event())[1] == "canceled"
        assert (refused, await client.end()) == (3, [])

    using(tmp_path, story)


@pytest.mark.usefixtures("each_store")
def test_segments_come_while_a_job_runs(tmp_path: Path) -> None:
    """Each segment comes once, even if the answer to a heartbeat was lost; another attempt begins again."""

    async def story(service: Service) -> None:
        store = service.jobs.store
        path = await service.submitted()
        job = (await service.claimed()).job
        said = [{"start": float(n), "end": n + 1.0, "text": str(n)} for n in range(5)]

        async def beat(attempt: int, first: int, end: int) -> None:
            batch = SegmentBatch(attempt, first, tuple(said[first:end]))
            assert await store.heartbeat(job.id, attempt, LEASE_S, {"windows_done": end}, batch) == "ok"

        await beat(1, 0, 2)
        client = await begun(service, path)
        assert (await client.next_event())[1] == "running"
        assert await client.segments() == (1, 0, said[:2])
        await beat(1, 0, 3)
        assert (await client.next_event())[1] == "running"
        assert await client.segments() == (1, 2, said[2:3])
        await beat(1, 0, 3)
        assert (await client.next_event())[1] == "running"
        await beat(1, 0, 5)
        assert await client.news() == (1, 3, said[3:])

        assert await store.release(job.id, 1)
        assert (await client.next_event())[1] == "queued"
        await service.claimed()
        assert (await client.next_event())[1] == "running"
        await beat(2, 0, 1)
        assert await client.news() == (2, 0, said[:1])
        assert await store.finish(job.id, 2, dump_transcript(FIXED))
        assert (await client.next_event())[1] == "succeeded"
        assert await client.end() == []
        assert await store.segments_so_far(job.id, "", 2, 0) == []

    using(tmp_path, story)
