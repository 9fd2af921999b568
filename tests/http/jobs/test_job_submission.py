"""POST /v1/jobs: bodies, several jobs at once, the same request again, and what is refused."""

import asyncio
import base64
import json
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from job_api import ANN, BOB, MAX_BYTES, URL, Service, arrived, error_of, using

from serve_app.audio import Source
from serve_app.errors import StoreBusy
from serve_app.http.forms import MAX_TEXT_BYTES
from serve_app.options import Options

FILE = {"file": b"RIFF of ann"}
HOOK = "https://example.com/hook?token=1"
WAITS = {"webhook_url": HOOK, "priority": 2, "max_queue_s": 60.5, "max_attempts": 5}
PLAIN = {"audio_file": URL}


def test_a_url_becomes_a_job_with_all_that_was_asked(tmp_path: Path) -> None:
    """The runner gets the whole address and the headers; answers show neither its query nor the headers."""

    async def story(service: Service) -> None:
        asked = {
            "language": "German",
            "num_speakers": 2,
            "response_format": "srt",
            "headers": {"X-A": "hush"},
        }
        answer = await service.post(json={"audio_file": f"{URL}?sig=hush", **asked, **WAITS})
        job = answer.json()
        assert (answer.status_code, answer.headers["location"]) == (201, f"/v1/jobs/{job['id']}")
        assert (job["status"], job["audio"], job["priority"], job["jobs_ahead"]) == ("queued", URL, 2, 0)
        assert "hush" not in answer.text + (await service.get(answer.headers["location"])).text
        assert (await service.get(answer.headers["location"])).json() == job
        assert b"hush" not in service.stored()
        held = await service.claimed()
        assert held.job.max_attempts == 5
        options, source, _ = await arrived(service, held)
        assert options == Options(language="de", num_speakers=2, response_format="srt")
        assert source == Source(url=f"{URL}?sig=hush", headers={"X-A": "hush"})

    using(tmp_path, story)


@pytest.mark.parametrize("kind", ["form", "base64"])
def test_a_file_is_kept_until_the_job_is_deleted(kind: str, tmp_path: Path) -> None:
    """A form and JSON ask for the same in the same words."""

    async def story(service: Service) -> None:
        fields = {"language": "en", "word_timestamps": True, **WAITS}
        if kind == "form":
            texts = {name: str(value).lower() for name, value in fields.items()}
            answer = await service.post(files=FILE, data={**texts, "num_speakers": ""})
        else:
            answer = await service.post(json={"audio_b64": base64.b64encode(FILE["file"]).decode(), **fields})
        assert (answer.status_code, answer.json()["audio"]) == (201, "upload")
        assert service.uploads() == [FILE["file"]]
        held = await service.claimed()
        assert (held.job.priority, held.job.max_attempts, held.job.webhook_url) == (2, 5, HOOK)
        options, _, file = await arrived(service, held)
        assert (options, file) == (Options(language="en", word_timestamps=True), FILE["file"])
        assert (await service.send("DELETE", answer.headers["location"])).status_code == 204
        assert service.uploads() == []

    using(tmp_path, story)


def test_several_jobs_in_one_request(tmp_path: Path) -> None:
    """Each has the fields of the body, unless it has its own."""

    async def story(service: Service) -> None:
        items: list[dict[str, Any]] = [
            {"audio_file": f"{URL}?1"},
            {"audio_file": f"{URL}?2", "language": None, "headers": {"X-A": "2"}, "priority": 0},
        ]
        shared = {"language": "en", "task": "translate", "headers": {"X-A": "1"}, "priority": 1}
        answer = await service.post(json={"items": items, **shared})
        assert answer.status_code == 201
        assert [job["priority"] for job in answer.json()["jobs"]] == [1, 0]
        assert "location" not in answer.headers
        second, first = [await service.claimed() for _ in range(2)]
        assert [first.job.id, second.job.id] == [job["id"] for job in answer.json()["jobs"]]
        options, source, _ = await arrived(service, first)
        assert options == Options(language="en", task="translate")
        assert source == Source(url=f"{URL}?1", headers={"X-A": "1"})
        options, source, _ = await arrived(service, second)
        assert options == Options(task="translate")
        assert source == Source(url=f"{URL}?2", headers={"X-A": "2"})

    using(tmp_path, story)


def test_a_thousand_jobs_fit_into_one_request(tmp_path: Path) -> None:
    """More are refused, and so is a list whose jobs would each store the same megabytes."""

    async def story(service: Service) -> None:
        items = [{"audio_file": f"{URL}?{number}"} for number in range(1001)]
        assert error_of(await service.post(json={"items": items})) == (400, "items", "invalid_request")
        voices = {"known_speaker_names": ["Ada"], "known_speaker_references": ["A" * (MAX_TEXT_BYTES // 100)]}
        answer = await service.post(json={"items": items[:200], **voices})
        assert (answer.status_code, "known_speaker_references" in answer.text) == (413, True)
        answer = await service.post(json={"items": items[:1000]})
        assert (answer.status_code, len({job["id"] for job in answer.json()["jobs"]})) == (201, 1000)

    using(tmp_path, story, max_queued=1000)


REFUSED: list[tuple[dict[str, Any], str | None, str]] = [
    ({"json": {}}, None, "either audio_file"),
    ({"json": {**PLAIN, "audio_b64": "AAAA"}}, None, "either audio_file"),
    ({"json": {**PLAIN, "beam": 3}}, "beam", "unknown option"),
    ({"json": {**PLAIN, "idempotency_key": "x"}}, "idempotency_key", "unknown option"),
    ({"json": {**PLAIN, "language": "klingon"}}, "language", "language code"),
    ({"json": {**PLAIN, "diarize": False, "num_speakers": 2}}, "num_speakers", "diarize"),
    ({"json": {**PLAIN, "priority": 3}}, "priority", "less than or equal to 2"),
    ({"json": {**PLAIN, "priority": -1}}, "priority", "greater than or equal to 0"),
    ({"json": {**PLAIN, "max_queue_s": 0}}, "max_queue_s", "greater than 0"),
    ({"json": {**PLAIN, "max_queue_s": 1e12}}, "max_queue_s", "less than or equal"),
    ({"json": {**PLAIN, "max_attempts": 0}}, "max_attempts", "greater than or equal to 1"),
    ({"json": {**PLAIN, "max_attempts": 11}}, "max_attempts", "less than or equal to 10"),
    ({"json": {**PLAIN, "webhook_url": "http://example.com"}}, "webhook_url", "https"),
    ({"json": {**PLAIN, "webhook_url": ""}}, "webhook_url", "no URL"),
    ({"json": {"audio_file": "ftp://example.com/x"}}, "audio_file", "http or https"),
    ({"json": {"audio_file": "talk.mp3"}}, "audio_file", "complete http(s) address"),
    ({"json": {**PLAIN, "headers": {"Host": "x"}}}, "headers", "cannot be set"),
    ({"json": {"audio_b64": "not base64!"}}, "audio_b64", "base64"),
    ({"files": FILE, "data": {"nonsense": "1"}}, "nonsense", "unknown option"),
    ({"files": FILE, "data": {"audio_file": URL}}, "audio_file", "unknown option"),
    ({"files": FILE, "data": {"items": "[]"}}, "items", "unknown option"),
    ({"files": FILE, "data": {"priority": "high"}}, "priority", "integer"),
    ({"files": FILE, "data": {"webhook_url": "https://example.com:1/"}}, "webhook_url", "port"),
    ({"files": {"audio": b"x"}}, "file", "file part"),
    ({"content": b"RIFF", "headers": {"content-type": "audio/wav"}}, None, "multipart/form-data"),
    ({"json": {"items": []}}, "items", "at least 1"),
    ({"json": {"items": ["x"]}}, "items", "items.0"),
    ({"json": {"items": [PLAIN], **PLAIN}}, "audio_file", "each of them"),
    ({"json": {"items": [PLAIN], "audio_b64": "AAAA"}}, "audio_b64", "each of them"),
    ({"json": {"items": [PLAIN], "language": "klingon"}}, "language", "language code"),
    ({"json": {"items": [PLAIN, {}]}}, "items.1.audio_file", "items.1.audio_file: Field required"),
    ({"json": {"items": [PLAIN, {**PLAIN, "audio_b64": "AAAA"}]}}, "items.1.audio_b64", "unknown option"),
    ({"json": {"items": [{**PLAIN, "items": []}]}}, "items.0.items", "unknown option"),
    ({"json": {"items": [{**PLAIN, "priority": 3}]}}, "items.0.priority", "items.0.priority: "),
    ({"json": {"items": [PLAIN, {"audio_file": "x"}]}}, "items.1.audio_file", "items.1.audio_file is not"),
    ({"json": {"items": [PLAIN, {"audio_file": "ftp://x"}]}}, "items.1.audio_file", "items.1: ftp"),
    ({"json": {"items": [{**PLAIN, "headers": {"Host": "x"}}]}}, "items.0.headers", "cannot be set"),
    ({"json": {"items": [{**PLAIN, "webhook_url": "http://x"}]}}, "items.0.webhook_url", "https"),
    ({"json": PLAIN, "params": {"language": "en"}}, "language", "in the body"),
    ({"json": PLAIN, "headers": {"Max-Attempts": "2"}}, "max_attempts", "in the body"),
    *(
        ({"json": PLAIN, "headers": [("Idempotency-Key", key) for key in keys]}, "Idempotency-Key", "255")
        for keys in ([""], ["x" * 256], ["é".encode()], ["tab\there"], ["one", "two"])
    ),
]  # fmt: skip


def test_a_wrong_request_is_a_400_that_names_the_field(tmp_path: Path) -> None:
    """Nothing is stored, although other jobs of the request are right."""

    async def story(service: Service) -> None:
        for arguments, param, says in REFUSED:
            answer = await service.post(**arguments)
            assert error_of(answer)[:2] == (400, param), (arguments, answer.text)
            assert says in answer.json()["error"]["message"], arguments
        assert (await service.get("/v1/jobs")).json() == {"jobs": [], "next": None}
        assert service.uploads() == []

    using(tmp_path, story)


def test_a_file_that_is_too_large_leaves_nothing(tmp_path: Path) -> None:
    """As in a request to /predict."""

    async def story(service: Service) -> None:
        large = b"x" * (MAX_BYTES + 1)
        assert error_of(await service.post(files={"file": large})) == (413, "file", "payload_too_large")
        encoded = base64.b64encode(large).decode()
        answer = await service.post(json={"audio_b64": encoded})
        assert error_of(answer) == (413, "audio_b64", "payload_too_large")
        assert service.uploads() == []

    using(tmp_path, story)


def test_the_priority_header_of_browsers_is_no_option(tmp_path: Path) -> None:
    """RFC 9218: it tells the server which answer to send first."""

    async def story(service: Service) -> None:
        answer = await service.post(json=PLAIN, headers={"Priority": "u=1, i"})
        assert (answer.status_code, answer.json()["priority"]) == (201, 0)

    using(tmp_path, story)


BODIES: list[Callable[[str], dict[str, Any]]] = [
    lambda said: {"json": {"audio_file": f"{URL}?{said}"}},
    lambda said: {"json": {"audio_b64": base64.b64encode(said.encode()).decode()}},
    lambda said: {"files": {"file": said.encode()}},
    lambda said: {"json": {"items": [PLAIN, {"audio_file": f"{URL}?{said}"}]}},
]


@pytest.mark.parametrize("body", BODIES, ids=["url", "base64", "form", "items"])
def test_the_same_request_again_is_the_same_job(
    body: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    """A client that did not hear the answer asks again; another request under the same key is a mistake."""

    async def story(service: Service) -> None:
        key = {"Idempotency-Key": "order 66"}
        first = await service.post(**body("one"), headers=key)
        again = await service.post(**body("one"), headers={"IDEMPOTENCY-KEY": "order 66"})
        assert (first.status_code, again.status_code) == (201, 200)
        assert again.json() == first.json()
        before = service.uploads()
        assert len(before) <= 1
        other = await service.post(**body("two"), headers=key)
        assert error_of(other) == (409, None, "idempotency_conflict")
        options = {"language": "en"}
        same = body("one")
        changed = {"json": {**same["json"], **options}} if "json" in same else {**same, "data": options}
        other = await service.post(headers=key, **changed)
        assert error_of(other) == (409, None, "idempotency_conflict")
        assert service.uploads() == before
        assert len((await service.get("/v1/jobs")).json()["jobs"]) == len(first.json().get("jobs", [1]))
        assert (await service.post(**body("one"), headers={"Idempotency-Key": "67"})).status_code == 201
        assert (await service.post(**body("one"))).status_code == 201

    using(tmp_path, story)


def test_of_several_jobs_only_those_that_are_gone_are_made_again(tmp_path: Path) -> None:
    """The answer is then a 201, because a job is new."""

    async def story(service: Service) -> None:
        body = {"items": [PLAIN, {"audio_file": f"{URL}?2"}]}
        key = {"Idempotency-Key": "both"}
        first, second = (await service.post(json=body, headers=key)).json()["jobs"]
        await service.send("DELETE", f"/v1/jobs/{first['id']}")
        answer = await service.post(json=body, headers=key)
        assert answer.status_code == 201
        assert answer.json()["jobs"][0]["id"] != first["id"]
        assert answer.json()["jobs"][1] == second

    using(tmp_path, story)


def test_idempotency_keys_of_one_client_are_nothing_to_another(tmp_path: Path) -> None:
    """Two clients may choose the same one."""

    async def story(service: Service) -> None:
        for headers in (ANN, BOB):
            answer = await service.post(json=PLAIN, headers={**headers, "Idempotency-Key": "1"})
            assert answer.status_code == 201

    using(tmp_path, story, with_keys=True)


def test_a_key_may_have_so_many_jobs_waiting(tmp_path: Path) -> None:
    """A request that would add more gets 429 and stores nothing; another key's jobs do not count."""

    async def story(service: Service) -> None:
        assert (await service.post(files=FILE, headers=ANN)).status_code == 201
        answer = await service.post(json={"items": [PLAIN] * 2}, headers=ANN)
        assert error_of(answer) == (429, None, "too_many_jobs")
        assert int(answer.headers["retry-after"]) > 0
        answer = await service.post(json={"items": [PLAIN] * 3}, headers=ANN)
        assert error_of(answer) == (400, "items", "invalid_request")  # waiting would not help
        assert "at most 2" in answer.json()["error"]["message"]
        assert "retry-after" not in answer.headers
        assert (await service.post(files={"file": b"2"}, headers=ANN)).status_code == 201
        assert (await service.post(files={"file": b"3"}, headers=ANN)).status_code == 429
        assert sorted(service.uploads()) == [b"2", FILE["file"]]
        assert (await service.post(json=PLAIN, headers=BOB)).status_code == 201

    using(tmp_path, story, with_keys=True, max_queued=2)


def test_a_locked_store_is_a_503_that_says_when_to_come_back(tmp_path: Path) -> None:
    """The upload stays until a sweep, because the job may have been stored."""

    async def story(service: Service) -> None:
        path = await service.submitted()
        other = sqlite3.connect(service.database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        calls: list[Awaitable[Any]] = [
            service.post(files=FILE),
            service.post(json=PLAIN),
            service.post(f"{path}/cancel"),
            service.send("DELETE", path),
        ]
        for call in calls:
            answer = await call
            assert error_of(answer) == (503, None, "job_store_busy")
            assert int(answer.headers["retry-after"]) > 0
        assert service.uploads() == [FILE["file"]]
        assert (await service.get(path)).status_code == 200  # reading waits for nobody
        other.close()
        assert (await service.post(files=FILE)).status_code == 201

    using(tmp_path, story)


@pytest.mark.parametrize(("path", "body"), [("/v1/jobs", PLAIN), ("/v2/transcript", {"audio_url": URL})])
def test_a_store_that_is_busy_after_the_commit_is_no_error(
    path: str, body: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is stored: told to try again, the client would submit it twice."""

    async def story(service: Service) -> None:
        async def busy(*asked: Any) -> Any:
            raise StoreBusy("Busy.")

        for read in ("get", "request", "jobs_ahead"):
            monkeypatch.setattr(service.jobs.store, read, busy)
        answer = await service.post(path, json=body)
        assert answer.is_success, answer.text
        assert answer.json()["id"] == (await service.claimed()).job.id

    using(tmp_path, story)


def test_a_client_that_leaves_while_its_job_is_stored_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the job was stored, its audio is there, too."""

    async def story(service: Service) -> None:
        storing = asyncio.Event()
        store_all = service.jobs.store.submit_all

        async def watched(*args: Any) -> Any:
            storing.set()
            return await store_all(*args)

        monkeypatch.setattr(service.jobs.store, "submit_all", watched)
        client = asyncio.create_task(service.post(files=FILE))
        await storing.wait()
        client.cancel()  # as Serve does
        await asyncio.gather(client, return_exceptions=True)
        await asyncio.gather(*service.jobs.store.running)
        held = await service.claimed()
        assert (await arrived(service, held))[2] == FILE["file"]

    using(tmp_path, story)


def test_the_documentation_shows_both_kinds_of_body(tmp_path: Path) -> None:
    """A client can send the example for JSON without a change."""

    async def story(service: Service) -> None:
        document = (await service.get("/openapi.json")).json()
        operation = document["paths"]["/v1/jobs"]["post"]
        content = operation["requestBody"]["content"]
        own = {"webhook_url", "priority", "max_queue_s", "max_attempts"}
        for kind, more in (
            ("application/json", {"audio_file", "audio_b64", "headers", "items"}),
            ("multipart/form-data", {"file"}),
        ):
            assert set(content[kind]["schema"]["properties"]) == {*Options.model_fields, *own, *more}
        assert (await service.post(json=content["application/json"]["example"])).status_code == 201
        assert {"200", "201", "400", "409", "413", "429", "503"} < set(operation["responses"])
        assert [each["name"] for each in operation["parameters"]] == ["Idempotency-Key"]
        result = document["paths"]["/v1/jobs/{job_id}/result"]["get"]
        assert "response_format" in {each["name"] for each in result["parameters"]}
        assert "#/$defs" not in json.dumps(document)

    using(tmp_path, story)


def test_a_job_names_one_of_the_models(tmp_path: Path) -> None:
    """Alone, in a list, in a form and at Baseten's path; a name that is not there is a 400 at once."""

    async def story(service: Service) -> None:
        audio = {"audio_file": "https://example.com/x.mp3"}
        small, medium = audio | {"model": "small"}, audio | {"model": "medium"}
        job = (await service.ask("POST", "/v1/jobs", 201, json=small)).json()
        assert (await service.jobs.request(job["id"], "")).options.model == "small"
        for body, place in ((medium, ""), ({"items": [small, medium]}, "items.1")):
            error = (await service.ask("POST", "/v1/jobs", 400, json=body)).json()["error"]
            assert "there is no 'medium' here; use one of none, small" in error["message"]
            assert error["message"].startswith(place)
        files = {"file": b"x"}
        await service.ask("POST", "/v1/jobs", 400, files=files, data={"model": "medium"})
        await service.ask("POST", "/v1/jobs", 201, files=files, data={"model": "small"})
        await service.ask("POST", "/async_predict", 400, json={"model_input": medium})
        await service.ask("POST", "/async_predict", 201, json={"model_input": small})

    using(tmp_path, story)
