"""What a client sees of its jobs: lists, states, webhooks, cancelling, deleting; and of nobody else's."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from job_api import ANN, BOB, LEASE_S, URL, Service, error_of, using
from transcripts import FIXED

from serve_app.errors import StoreBusy
from serve_app.http.app import create_app
from serve_app.jobs.store.records import Try
from serve_app.jobs.stored import dump_transcript

pytestmark = pytest.mark.usefixtures("each_store")

HOOK: dict[str, Any] = {"webhook_url": "https://example.com/hook?token=secret"}
ROUTES = [
    ("GET", ""),
    ("GET", "/result"),
    ("GET", "/events"),
    ("POST", "/cancel"),
    ("POST", "/webhook/retry"),
    ("DELETE", ""),
]


def test_a_job_s_life(tmp_path: Path) -> None:
    """It waits, runs, fails, waits to be tried again, runs and succeeds; each state shows what it has."""

    async def story(service: Service) -> None:
        store = service.jobs.store
        first = await service.submitted()
        path = await service.submitted(max_queue_s=60)

        async def job() -> dict[str, Any]:
            shown: dict[str, Any] = (await service.get(path)).json()
            return shown

        waiting = await job()
        assert (waiting["jobs_ahead"], waiting["started_at"], waiting["attempts"]) == (1, None, 0)
        assert waiting["created_at"] < waiting["expires_at"]
        assert waiting["created_at"].endswith("Z")
        assert len({len(waiting[name]) for name in ("created_at", "expires_at")}) == 1
        await service.send("DELETE", first)

        held = await service.claimed()
        running = await job()
        assert (running["status"], running["progress"], running["attempts"]) == ("running", None, 1)
        assert running["started_at"] >= running["created_at"]
        assert running["expires_at"] is None
        assert "jobs_ahead" not in running
        progress = {"windows_done": 1, "windows_found": 3, "all_found": False, "stage": "diarization"}
        await store.heartbeat(held.job.id, held.job.attempt, LEASE_S, progress)
        assert (await job())["progress"] == progress

        await store.fail(held.job.id, held.job.attempt, "out_of_memory", "No room.", retry=True)
        failed = await job()
        assert (failed["status"], failed["failures"], failed["progress"]) == ("queued", 1, None)
        assert failed["error"] == {"code": "out_of_memory", "message": "No room."}

        async with store.write() as connection:  # the back-off is over
            await connection.exec_driver_sql("UPDATE jobs SET run_at_s = 0")
        held = await service.claimed()
        await store.finish(held.job.id, held.job.attempt, dump_transcript(FIXED))
        done = await job()
        assert (done["status"], done["error"], done["attempts"]) == ("succeeded", None, 2)
        assert done["started_at"] <= done["finished_at"] < done["delete_at"]
        assert done["result_url"] == f"{path}/result"
        assert (await service.get(done["result_url"])).status_code == 200

    using(tmp_path, story)


def test_a_job_that_cannot_succeed_says_why(tmp_path: Path) -> None:
    """It has the code of the error that /predict would have answered."""

    async def story(service: Service) -> None:
        path = await service.submitted()
        held = await service.claimed()
        await service.jobs.store.fail(held.job.id, 1, "undecodable_audio", "It is no audio.", retry=False)
        job = (await service.get(path)).json()
        assert (job["status"], job["result_url"]) == ("failed", None)
        assert job["error"] == {"code": "undecodable_audio", "message": "It is no audio."}

    using(tmp_path, story)


def test_a_list_has_pages(tmp_path: Path) -> None:
    """Jobs come newest first; following `next` finds each job once, although others are added and deleted."""

    async def story(service: Service) -> None:
        paths = [await service.submitted() for _ in range(7)]
        seen, query = list[str](), "limit=3"
        for _ in range(3):
            page = (await service.get(f"/v1/jobs?{query}")).json()
            assert all("jobs_ahead" not in job for job in page["jobs"])
            seen += [f"/v1/jobs/{job['id']}" for job in page["jobs"]]
            query = f"limit=3&after={page['next']}"
            await service.submitted()
            await service.send("DELETE", seen[-1])
        assert seen == paths[::-1]
        assert page["next"] is None
        assert (await service.get("/v1/jobs?limit=7")).json()["next"] is None  # 7 + 3 - 3 are left
        assert len((await service.get("/v1/jobs?")).json()["jobs"]) == 7

    using(tmp_path, story)


def test_a_list_can_be_of_some_states(tmp_path: Path) -> None:
    """Several states have commas between them, or the parameter is repeated."""

    async def story(service: Service) -> None:
        canceled = await service.submitted()
        await service.post(f"{canceled}/cancel")
        running = await service.submitted()
        await service.claimed()
        queued = await service.submitted()
        for query, expected in {
            "status=queued": [queued],
            "status=queued,running": [queued, running],
            "status=canceled&status=running": [running, canceled],
            "status=failed, expired": [],
            "status=": [queued, running, canceled],
        }.items():
            page = (await service.get(f"/v1/jobs?{query}")).json()
            assert [f"/v1/jobs/{job['id']}" for job in page["jobs"]] == expected, query

    using(tmp_path, story)


def test_a_list_takes_nothing_else(tmp_path: Path) -> None:
    """A parameter that is ignored would give a list of the wrong jobs."""

    async def story(service: Service) -> None:
        for query, param in {
            "status=done": "status",
            "status=queued,": "status",
            "limit=0": "limit",
            "limit=101": "limit",
            "limit=x": "limit",
            "limit=1&limit=2": "limit",
            "after=x": "after",
            "after=%00": "after",
            "status[]=queued": "status[]",
            "offset=3": "offset",
            "offset": "offset",
        }.items():
            answer = await service.get(f"/v1/jobs?{query}")
            assert error_of(answer)[:2] == (400, param), query
            if param == "after":
                assert "`next` of the page before" in answer.json()["error"]["message"]

    using(tmp_path, story)


def test_a_server_for_everybody_lists_nobodys_jobs(tmp_path: Path) -> None:
    """All its clients share the jobs, so a job is seen only by its id."""

    async def story(service: Service) -> None:
        path = await service.submitted()
        assert error_of(await service.get("/v1/jobs")) == (403, None, "no_api_keys")
        assert (await service.get(path)).status_code == 200

    using(tmp_path, story, is_public=True)


def test_a_key_sees_its_own_jobs_only(tmp_path: Path) -> None:
    """Every call about another key's job is answered as if there were no such job."""

    async def story(service: Service) -> None:
        path = await service.submitted(ANN, **HOOK)
        for method, rest in ROUTES:
            answer = await service.send(method, path + rest, headers=BOB)
            assert error_of(answer) == (404, None, "job_not_found"), (method, rest)
        assert (await service.get("/v1/jobs", headers=BOB)).json()["jobs"] == []
        (job,) = (await service.get("/v1/jobs", headers=ANN)).json()["jobs"]
        assert (job["status"], f"/v1/jobs/{job['id']}") == ("queued", path)
        assert (await service.get(path)).status_code == 401
        assert (await service.send("DELETE", path, headers=ANN)).status_code == 204

    using(tmp_path, story, with_keys=True)


@pytest.mark.parametrize("job_id", ["0" * 32, "x", "%00", "a%2Fb"])
def test_an_unknown_job_is_a_404(job_id: str, tmp_path: Path) -> None:
    """This holds on every route."""

    async def story(service: Service) -> None:
        for method, rest in ROUTES:
            answer = await service.send(method, f"/v1/jobs/{job_id}{rest}")
            assert answer.status_code == 404, (method, rest)

    using(tmp_path, story)


def test_a_job_can_be_canceled_at_any_time(tmp_path: Path) -> None:
    """A queued job ends at once, a running one is told to stop; canceling twice or too late is no error."""

    async def story(service: Service) -> None:
        waiting = await service.submitted()
        for _ in range(2):
            answer = await service.post(f"{waiting}/cancel")
            assert (answer.status_code, answer.json()["status"]) == (200, "canceled")

        running = await service.submitted()
        held = await service.claimed()
        versions = []
        for _ in range(2):
            answer = await service.post(f"{running}/cancel")
            assert (answer.json()["status"], answer.json()["canceling"]) == ("running", True)
            versions.append((await service.jobs.get(held.job.id, "")).version)
        assert versions[0] == versions[1]
        assert await service.jobs.store.heartbeat(held.job.id, 1, LEASE_S) == "cancel"
        await service.jobs.store.canceled(held.job.id, 1)
        job = (await service.get(running)).json()
        assert (job["status"], job["canceling"]) == ("canceled", False)

        done = await service.finished(FIXED)
        assert (await service.post(f"{done}/cancel")).json()["status"] == "succeeded"

    using(tmp_path, story)


def test_deleting_a_running_job_leaves_nothing(tmp_path: Path) -> None:
    """Its runner finds that its lease is lost."""

    async def story(service: Service) -> None:
        path = (await service.post(files={"file": b"x"})).headers["location"]
        held = await service.claimed()
        answer = await service.send("DELETE", path)
        assert (answer.status_code, answer.content) == (204, b"")
        assert not await service.jobs.store.finish(held.job.id, 1, dump_transcript(FIXED))
        assert (await service.get(path)).status_code == 404
        assert (await service.send("DELETE", path)).status_code == 404
        assert service.uploads() == []

    using(tmp_path, story)


def test_a_job_says_why_it_waits_until_it_runs(tmp_path: Path) -> None:
    """Then the error would look like the running attempt's."""

    async def story(service: Service) -> None:
        path = await service.submitted()
        held = await service.claimed()
        why = ("overloaded", "The server is full.")
        await service.jobs.store.release(held.job.id, held.job.attempt, 0, why, has_begun=False)
        assert (await service.get(path)).json()["error"] == {"code": why[0], "message": why[1]}
        await service.claimed()
        assert (await service.get(path)).json()["error"] is None

    using(tmp_path, story)


def test_a_webhook_s_tries_are_shown(tmp_path: Path) -> None:
    """The URL has no query, which may be a password; the id is that of the header webhook-id."""

    async def story(service: Service) -> None:
        path = await service.submitted(**HOOK)
        before = (await service.get(path)).json()["webhook"]
        assert before == {
            "id": before["id"],
            "url": "https://example.com/hook",
            "status": "pending",
            "next_try_at": None,
            "tries": [],
        }
        await service.post(f"{path}/cancel")
        delivery = await service.jobs.store.claim_delivery(LEASE_S)
        assert delivery is not None
        assert delivery.id == before["id"]
        made = Try(1_700_000_000.25, 500, "The receiver answered 500.", 0.12345)
        await service.jobs.store.record_try(delivery.id, delivery.claim_no, made, 600.0)
        after = (await service.get(path)).json()["webhook"]
        wait_s = datetime.fromisoformat(after["next_try_at"]).timestamp() - time.time()
        assert after["status"] == "pending"
        assert wait_s == pytest.approx(600, abs=60)
        assert after["tries"] == [
            {
                "at": "2023-11-14T22:13:20.250Z",
                "status": 500,
                "error": "The receiver answered 500.",
                "took_s": 0.123,
            }
        ]

    using(tmp_path, story)


def test_a_webhook_can_be_sent_again(tmp_path: Path) -> None:
    """It is sent at once under the same id, also if it was delivered before."""

    async def story(service: Service) -> None:
        store = service.jobs.store
        path = await service.submitted(**HOOK)
        assert error_of(await service.post(f"{path}/webhook/retry")) == (409, None, "no_webhook")
        await service.post(f"{path}/cancel")
        first = await store.claim_delivery(LEASE_S)
        assert first is not None
        await store.record_try(first.id, first.claim_no, Try(1.0, 200, None, 0.1), None)
        assert (await service.get(path)).json()["webhook"]["status"] == "succeeded"
        answer = await service.post(f"{path}/webhook/retry")
        assert (answer.status_code, answer.json()["webhook"]["status"]) == (202, "pending")
        again = await store.claim_delivery(LEASE_S)
        assert again is not None
        assert again.id == first.id
        without = await service.submitted()
        await service.post(f"{without}/cancel")
        assert error_of(await service.post(f"{without}/webhook/retry")) == (409, None, "no_webhook")

    using(tmp_path, story)


def test_without_jobs_their_routes_say_so(tmp_path: Path) -> None:
    """A 404 names the setting, and the route that needs no jobs."""

    async def story(service: Service) -> None:
        service.app = create_app(None, None, model="none", max_bytes=1)  # type: ignore[arg-type]
        for method, path in [("POST", ""), ("GET", ""), *((m, f"/{'0' * 32}{rest}") for m, rest in ROUTES)]:
            answer = await service.send(method, f"/v1/jobs{path}")
            assert error_of(answer) == (404, None, "jobs_off")
            assert "jobs.store" in answer.text
        assert "/v1/jobs" not in (await service.get("/openapi.json")).json()["paths"]

    using(tmp_path, story)


def test_a_node_without_the_store_says_so(tmp_path: Path) -> None:
    """All routes answer with the node's error."""

    async def unreachable() -> None:
        raise StoreBusy("The jobs are on another node; ask that one.", None, "jobs_elsewhere")

    async def story(service: Service) -> None:
        for method, path in [("POST", ""), ("GET", ""), *((m, f"/{'0' * 32}{rest}") for m, rest in ROUTES)]:
            body = {"json": {"audio_file": URL}} if (method, path) == ("POST", "") else {}
            answer = await service.send(method, f"/v1/jobs{path}", **body)
            assert error_of(answer) == (503, None, "jobs_elsewhere")
        assert (await service.get("/healthz")).status_code == 200

    using(tmp_path, story, jobs_reachable=unreachable)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("", "GET, HEAD, OPTIONS, POST"),
        ("/x", "DELETE, GET, HEAD, OPTIONS"),
        ("/x/cancel", "OPTIONS, POST"),
        ("/x/result", "GET, HEAD, OPTIONS"),
    ],
)
def test_all_that_a_path_can_do_is_in_allow(path: str, allowed: str, tmp_path: Path) -> None:
    """Several routes share a path."""

    async def story(service: Service) -> None:
        for method in ("PUT", "OPTIONS"):
            assert (await service.send(method, f"/v1/jobs{path}")).headers["allow"] == allowed

    using(tmp_path, story)


def test_web_pages_may_delete_and_read_where_a_job_is(tmp_path: Path) -> None:
    """This holds for pages of the configured origins."""

    async def story(service: Service) -> None:
        page = {"Origin": "https://page.example"}
        asks = {**page, "Access-Control-Request-Method": "DELETE"}
        answer = await service.send("OPTIONS", f"/v1/jobs/{'0' * 32}", headers=asks)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, page["Origin"])
        made = await service.post(json={"audio_file": URL}, headers=page)
        assert "Location" in made.headers["access-control-expose-headers"]

    using(tmp_path, story)


def test_addresses_begin_where_the_service_is(tmp_path: Path) -> None:
    """Serve's route_prefix comes as the root path."""

    async def story(service: Service) -> None:
        app = service.app

        async def prefixed(scope: Any, receive: Any, send: Any) -> None:
            await app({**scope, "root_path": "/asr", "path": "/asr" + scope["path"]}, receive, send)

        service.app = prefixed  # type: ignore[assignment]
        path = await service.finished(FIXED)
        assert path.startswith("/asr/v1/jobs/")
        job = (await service.get(path.removeprefix("/asr"))).json()
        assert job["result_url"] == f"{path}/result"

    using(tmp_path, story)
