"""What our own, Baseten's and AssemblyAI's job routes share: admission, errors, bodies, idempotency."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import httpx
import pytest
from job_api import ANN, URL, Service, arrived, error_of, using
from transcripts import FIXED

from serve_app.http.app import create_app
from serve_app.request.admission import Admission
from serve_app.request.quotas import charge
from serve_app.transcript import Transcript

JOBS, BASETEN, ASSEMBLYAI = "/v1/jobs", "/async_predict", "/v2/transcript"
BODIES: dict[str, dict[str, Any]] = {
    JOBS: {"audio_file": URL},
    BASETEN: {"model_input": {"audio_file": URL}},
    ASSEMBLYAI: {"audio_url": URL},
}
JSON = {"Content-Type": "application/json"}
FILE = {"file": b"RIFF"}
HOUR_S = 3600.0


def said(answer: httpx.Response) -> str:
    """The message of an error in any shape."""
    error: Any = answer.json()["error"]
    return str(error["message"] if isinstance(error, dict) else error)


def in_their_shape(path: str, answer: httpx.Response) -> bool:
    """Whether an error looks as that API's do."""
    error = answer.json()
    if "/v2" in path:
        return list(error) == ["error"] and isinstance(error["error"], str)
    return list(error) == ["error", "error_code", "detail"] and isinstance(error["error"], str)


async def all_calls_pass(service: Service, **kwargs: Any) -> None:
    """Each way to submit a job, and each call about one, is taken."""
    for path, body in BODIES.items():
        assert (await service.post(path, json=body, **kwargs)).is_success, path
    upload = await service.post(files=FILE, **kwargs)
    assert upload.status_code == 201
    assert (await service.post("/production/async_predict", json=BODIES[BASETEN], **kwargs)).is_success
    job = upload.headers["location"]
    assert (await service.post(f"{job}/cancel", **kwargs)).status_code == 200
    assert (await service.post(f"{job}/webhook/retry", **kwargs)).status_code == 409  # it has none


def test_a_server_that_is_full_of_transcriptions_takes_jobs(tmp_path: Path) -> None:
    """This holds for a server that is full of requests, and for one that is full of audio."""
    admission = Admission(1, HOUR_S)

    async def story(service: Service) -> None:
        with admission.admit():
            admission.hold("a long file", HOUR_S)
            admission.hold("a short one", 600.0)
            assert error_of(await service.post("/predict", files=FILE))[0] == 503
            await all_calls_pass(service)
        assert admission.idle.is_set()

    using(tmp_path, story, admission=admission)


def test_uploads_of_jobs_have_their_own_limit(tmp_path: Path) -> None:
    """The limit keeps them from filling the disk; calls that bring no audio have no limit."""
    admission = Admission(1, HOUR_S)

    async def story(service: Service) -> None:
        path = await service.submitted()
        with admission.admit("upload"):
            assert not admission.idle.is_set()  # a server that ends waits for it
            refused = await service.post(files=FILE)
            assert error_of(refused) == (503, None, "overloaded")
            assert int(refused.headers["retry-after"]) > 0
            assert (await service.post(f"{path}/cancel")).status_code == 200
        assert (await service.post(files=FILE)).status_code == 201

    using(tmp_path, story, admission=admission)


def test_the_limits_of_a_key_are_not_for_jobs(tmp_path: Path) -> None:
    """A key that has all its requests running and is in debt with its audio still submits."""
    is_running, may_end = asyncio.Event(), asyncio.Event()

    async def transcribe(*_: object) -> Transcript:
        charge(HOUR_S)
        is_running.set()
        await may_end.wait()
        return FIXED

    async def story(service: Service) -> None:
        running = asyncio.create_task(service.post("/predict", files=FILE, headers=ANN))
        await is_running.wait()
        refused = await service.post("/predict", files=FILE, headers=ANN)
        assert error_of(refused) == (429, None, "too_many_requests")
        await all_calls_pass(service, headers=ANN)
        may_end.set()
        assert (await running).status_code == 200
        refused = await service.post("/predict", files=FILE, headers=ANN)
        assert error_of(refused) == (429, None, "audio_limit_reached")
        await all_calls_pass(service, headers=ANN)

    limits = {"max_requests": 1, "max_audio_s_per_minute": 60}
    using(tmp_path, story, with_keys=True, limits=limits, transcribe=transcribe)


def test_a_server_that_ends_takes_nothing(tmp_path: Path) -> None:
    """Clients can still ask for their jobs."""
    admission = Admission(1, HOUR_S)

    async def story(service: Service) -> None:
        path = await service.submitted()
        admission.is_draining = True
        for target, body in BODIES.items():
            refused = await service.post(target, json=body)
            assert refused.status_code == 503
            assert "shutting down" in said(refused)
        assert error_of(await service.post(f"{path}/cancel"))[2] == "shutting_down"
        assert (await service.get(path)).status_code == 200

    using(tmp_path, story, admission=admission)


@pytest.mark.parametrize(
    ("path", "wrong_path"),
    [
        ("/async_predict", "/async_request"),
        ("/environments/staging/async_predict", "/async_request/x/y"),
        ("/v2/transcript", "/v2/upload"),
    ],
)
def test_errors_from_in_front_of_a_route_have_the_shape_of_its_api(
    path: str, wrong_path: str, tmp_path: Path
) -> None:
    """These are a wrong key, a wrong method, an unknown path and a server that is shutting down."""
    admission = Admission(1, HOUR_S)

    async def story(service: Service) -> None:
        answers = [
            await service.post(path, json={}, headers={"Authorization": "Bearer wx_x"}),
            await service.send("PUT", path, headers=ANN),
            await service.get(wrong_path, headers=ANN),
        ]
        admission.is_draining = True
        answers.append(await service.post(path, json={}, headers=ANN))
        assert [answer.status_code for answer in answers] == [401, 405, 404, 503]
        assert all(in_their_shape(path, answer) for answer in answers)
        assert answers[0].headers["www-authenticate"] == "Bearer"
        assert "POST" in answers[1].headers["allow"]
        assert int(answers[3].headers["retry-after"]) > 0

    using(tmp_path, story, with_keys=True, admission=admission)


@pytest.mark.parametrize("path", [BASETEN, ASSEMBLYAI])
def test_strangers_are_refused_in_the_shape_of_the_api(path: str, tmp_path: Path) -> None:
    """A server without keys refuses requests that name another host."""

    async def story(service: Service) -> None:
        refused = await service.post(path, json={}, headers={"Host": "example.com"})
        assert (refused.status_code, in_their_shape(path, refused)) == (403, True)

    using(tmp_path, story)


@pytest.mark.parametrize("rest", ["upload", "realtime/token", "transcript/x/sentences", "transcript/x/y/z"])
def test_what_is_missing_of_assemblyai_s_api_is_said(rest: str, tmp_path: Path) -> None:
    """The error names the routes that there are."""

    async def story(service: Service) -> None:
        answer = await service.get(f"/v2/{rest}")
        assert answer.status_code == 404
        assert "POST /v2/transcript" in answer.json()["error"]

    using(tmp_path, story)


def test_without_jobs_other_apis_say_so(tmp_path: Path) -> None:
    """The errors have the shape of each API, and name the setting."""

    async def story(service: Service) -> None:
        service.app = create_app(None, None, model="none", max_bytes=1)  # type: ignore[arg-type]
        for method, path in (
            ("POST", "/async_predict"),
            ("POST", "/environments/x/async_predict"),
            ("GET", "/async_request/x"),
            ("DELETE", "/async_request/x"),
            ("POST", "/v2/transcript"),
            ("GET", "/v2/transcript/x/srt"),
        ):
            answer = await service.send(method, path)
            assert (answer.status_code, in_their_shape(path, answer)) == (404, True)
            assert "jobs.store" in said(answer)

    using(tmp_path, story)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    ("status", "sent"),
    [
        (415, {"headers": {**JSON, "Content-Encoding": "gzip"}}),
        (400, {"headers": {"Content-Type": "application/json; charset=utf-16"}}),
        (400, {"headers": {"Content-Type": "text/plain"}}),
        (400, {"headers": JSON, "content": b'{"priority": 0, "priority": 0}'}),
        (400, {"headers": JSON, "content": b'{"priority": "\\ud800"}'}),
        (400, {"headers": JSON, "content": b"[" * 100_000}),
        (400, {"headers": JSON, "content": b"[]"}),
    ],
)
def test_json_is_read_by_the_same_rules(path: str, status: int, sent: dict[str, Any], tmp_path: Path) -> None:
    """The rules are the same for all APIs."""

    async def story(service: Service) -> None:
        content = sent.get("content", b"{}")
        refused = await service.post(path, content=content, headers=sent["headers"])
        assert refused.status_code == status, refused.text

    using(tmp_path, story)


def test_unusual_but_clear_bodies_are_taken(tmp_path: Path) -> None:
    """They have `Content-Encoding: none`, a vendor's type of JSON, a BOM, or base64 with line breaks."""

    async def story(service: Service) -> None:
        text = base64.encodebytes(bytes(200)).decode()
        headers = {"Content-Type": "application/vnd.api+json", "Content-Encoding": "none"}
        for path, shown in ((JOBS, '{"audio_b64": "%s"}'), (BASETEN, '{"model_input": {"audio_b64": "%s"}}')):
            content = b"\xef\xbb\xbf" + (shown % text).encode()
            answer = await service.post(path, content=content, headers=headers)
            assert answer.status_code == 201, answer.text
            assert (await arrived(service, await service.claimed()))[2] == bytes(200)

    using(tmp_path, story)


@pytest.mark.parametrize("path", BODIES)
def test_the_same_key_and_body_give_the_same_job(path: str, tmp_path: Path) -> None:
    """This holds for each API; the same key at another API is refused."""

    async def story(service: Service) -> None:
        key = {"Idempotency-Key": "order 66"}
        first, again = [await service.post(path, json=BODIES[path], headers=key) for _ in range(2)]
        assert first.is_success
        assert again.json() == first.json()
        assert len((await service.get(JOBS)).json()["jobs"]) == 1
        changed = {BASETEN: {"inference_retry_config": {"max_delay_ms": 1}}}.get(path, {"webhook_url": URL})
        assert (await service.post(path, json={**BODIES[path], **changed}, headers=key)).status_code == 409
        other = next(each for each in BODIES if each != path)
        assert (await service.post(other, json=BODIES[other], headers=key)).status_code == 409
        wrong = await service.post(path, json=BODIES[path], headers={"Idempotency-Key": "x" * 256})
        assert (wrong.status_code, "Idempotency-Key" in said(wrong)) == (400, True)

    using(tmp_path, story)


def test_the_order_of_headers_is_no_difference(tmp_path: Path) -> None:
    """Clients keep headers in maps, which have no order."""

    async def story(service: Service) -> None:
        pairs = [("X-A", "1"), ("X-B", "2")]
        for headers, status in ((pairs, 201), (pairs[::-1], 200)):
            body = {"audio_file": URL, "headers": dict(headers)}
            answer = await service.post(json=body, headers={"Idempotency-Key": "1"})
            assert answer.status_code == status

    using(tmp_path, story)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        (JOBS, {"audio_file": URL, "diarize": True}, "diarize"),
        (JOBS, {"audio_file": URL, "response_format": "rttm"}, "response_format"),
        (JOBS, {"audio_file": URL, "num_speakers": 2}, "num_speakers"),
        (JOBS, {"items": [{"audio_file": URL}, {"audio_file": URL, "diarize": True}]}, "items.1"),
        (BASETEN, {"model_input": {"audio_file": URL, "diarize": True}}, "model_input.diarize"),
        (ASSEMBLYAI, {"audio_url": URL, "speaker_labels": True}, "speaker_labels"),
        (ASSEMBLYAI, {"audio_url": URL, "speaker_labels": True, "speakers_expected": 2}, "speaker_labels"),
    ],
)
def test_speakers_that_cannot_be_had_are_refused_at_once(
    path: str, body: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """As /predict does; the job could only fail."""

    async def story(service: Service) -> None:
        refused = await service.post(path, json=body)
        assert refused.status_code == 400
        assert "does not tell speakers apart" in said(refused)
        assert name in said(refused)
        assert (await service.get(JOBS)).json()["jobs"] == []
        await all_calls_pass(service)

    using(tmp_path, story, has_speakers=False)


@pytest.mark.parametrize("with_keys", [True, False])
def test_the_documentation_describes_what_is_answered(with_keys: bool, tmp_path: Path) -> None:
    """It has no 422, which never comes, 401 only where there are keys, and the fields inside bodies."""

    async def story(service: Service) -> None:
        paths = (await service.get("/openapi.json")).json()["paths"]
        operations = {
            (path, method): operation
            for path, methods in paths.items()
            if path.startswith((JOBS, "/async_", "/v2/"))
            for method, operation in methods.items()
        }
        assert len(operations) >= 14
        for where, operation in operations.items():
            assert "422" not in operation["responses"], where
            assert "default" in operation["responses"], where
            assert ("401" in operation["responses"]) == with_keys, where
        assert "409" not in paths["/predict"]["post"]["responses"]
        for name, media_type in (("srt", "application/x-subrip"), ("vtt", "text/vtt")):
            captions = paths[f"/v2/transcript/{{transcript_id}}/{name}"]["get"]
            assert list(captions["responses"]["200"]["content"]) == [media_type]
            assert "chars_per_caption" in {each["name"] for each in captions["parameters"]}

        def fields(path: str) -> Any:
            content = paths[path]["post"]["requestBody"]["content"]["application/json"]
            return content["schema"]["properties"]

        assert "max_delay_ms" in fields(BASETEN)["inference_retry_config"]["properties"]
        assert "audio_b64" in fields(BASETEN)["model_input"]["properties"]
        (items, _) = fields(JOBS)["items"]["anyOf"]
        assert items["items"]["required"] == ["audio_file"]

    using(tmp_path, story, with_keys=with_keys)
