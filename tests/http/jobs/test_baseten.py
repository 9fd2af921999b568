"""Baseten's asynchronous inference API: what its clients send and get."""

import base64
import time
from pathlib import Path
from typing import Any

import pytest
from job_api import ANN, BOB, URL, Service, using

from serve_app.jobs.store.records import Try
from serve_app.jobs.stored import dump_transcript
from serve_app.options import Options
from serve_app.transcript import Transcript

INPUT = {"model_input": {"audio_file": URL}}
HOOK = {"webhook_endpoint": "https://example.com/hook"}
RESULT = dump_transcript(Transcript((), "en", 1.0, "fake"))


async def status(service: Service, request_id: str) -> dict[str, Any]:
    told: dict[str, Any] = (await service.ask("GET", f"/async_request/{request_id}")).json()
    return told


@pytest.mark.parametrize(
    "prefix", ["", "/production", "/development", "/environments/staging", "/deployment/abcd1234"]
)
def test_a_request_becomes_a_job(prefix: str, tmp_path: Path) -> None:
    """The job has the source, the options, the priority and the retries that were asked for."""

    async def story(service: Service) -> None:
        source = {"audio_file": f"{URL}?token=1", "headers": {"Authorization": "Bearer x"}}
        body = {
            "model_input": {**source, "language": "de", "response_format": "srt"},
            "priority": 2,
            "max_time_in_queue_seconds": 30,
            "inference_retry_config": {"max_attempts": 5, "initial_delay_ms": 250, "max_delay_ms": 1500},
            **HOOK,
        }
        answer = await service.ask("POST", f"{prefix}/async_predict", 201, json=body)
        (job_id,) = answer.json().values()
        assert answer.json() == {"request_id": job_id}
        job = await service.jobs.get(job_id, "")
        assert (job.priority, job.max_attempts, job.webhook_style) == (2, 5, "baseten")
        assert job.webhook_url == HOOK["webhook_endpoint"]
        assert job.expires_at_s == pytest.approx(job.created_at_s + 30)
        assert (await service.jobs.request(job_id, "")).options == Options(
            language="de", response_format="srt"
        )
        claimed = await service.claimed()
        async with service.jobs.source(claimed) as got:
            assert (got.url, got.headers) == (source["audio_file"], source["headers"])
        before_s = time.time()
        await service.jobs.store.fail(job_id, 1, "overloaded", "Later.", retry=True)
        run_at_s = (await service.jobs.get(job_id, "")).run_at_s
        assert before_s + 0.25 <= run_at_s <= time.time() + 0.25

    using(tmp_path, story)


def test_audio_in_the_body(tmp_path: Path) -> None:
    """The runner gets it."""

    async def story(service: Service) -> None:
        body = {"model_input": {"audio_b64": base64.b64encode(b"RIFF").decode()}}
        await service.ask("POST", "/async_predict", 201, json=body)
        async with service.jobs.source(await service.claimed()) as got:
            assert got.file is not None
            assert got.file.read() == b"RIFF"

    using(tmp_path, story)


@pytest.mark.usefixtures("each_store")
def test_the_life_of_a_request(tmp_path: Path) -> None:
    """Its statuses are Baseten's, and so are those of its webhook."""

    async def story(service: Service) -> None:
        submitted = await service.ask("POST", "/async_predict", 201, json={**INPUT, **HOOK})
        job_id = submitted.json()["request_id"]
        first = await status(service, job_id)
        assert first == {
            "request_id": job_id,
            "model_id": "whisperx",
            "deployment_id": "whisperx",
            "status": "QUEUED",
            "webhook_status": "PENDING",
            "created_at": first["created_at"],
            "status_at": first["created_at"],
            "errors": [],
        }
        assert first["created_at"].endswith("Z")
        claimed = await service.claimed()
        running = await status(service, job_id)
        assert running["status"] == "IN_PROGRESS"
        assert running["status_at"] >= first["status_at"]
        await service.jobs.store.finish(job_id, claimed.job.attempt, RESULT)
        ended = await status(service, job_id)
        assert (ended["status"], ended["webhook_status"], ended["errors"]) == ("SUCCEEDED", "PENDING", [])
        delivery = await service.jobs.store.claim_delivery(60)
        assert delivery is not None
        sent = Try(1.0, 200, None, 0.1)
        await service.jobs.store.record_try(delivery.id, delivery.claim_no, sent, None)
        assert (await status(service, job_id))["webhook_status"] == "SUCCEEDED"

    using(tmp_path, story)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.usefixtures("each_store")
def test_a_webhook_that_never_arrives(fails: bool, tmp_path: Path) -> None:
    """Its client must learn that the result was not delivered; a request that failed stays FAILED."""

    async def story(service: Service) -> None:
        await service.ask("POST", "/async_predict", 201, json={**INPUT, **HOOK})
        job_id, attempt, store = (await service.claimed()).job.id, 1, service.jobs.store
        if fails:
            await store.fail(job_id, attempt, "deadline_exceeded", "It took too long.", retry=False)
        else:
            await store.finish(job_id, attempt, RESULT)
        delivery = await store.claim_delivery(60)
        assert delivery is not None
        gone = Try(1.0, 410, "Gone.", 0.1)
        await store.record_try(delivery.id, delivery.claim_no, gone, None)
        told = await status(service, job_id)
        assert told["status"] == ("FAILED" if fails else "WEBHOOK_FAILED")
        assert told["webhook_status"] == "FAILED"
        errors = [{"code": "MODEL_PREDICT_TIMEOUT", "message": "It took too long."}]
        assert told["errors"] == (errors if fails else [])
        assert (await service.jobs.transcript(job_id, "") is None) == fails

    using(tmp_path, story)


def test_only_waiting_requests_are_canceled(tmp_path: Path) -> None:
    """A running one goes on, and the message says how to stop it."""

    async def story(service: Service) -> None:
        ids = []
        for _ in range(2):
            ids.append((await service.ask("POST", "/async_predict", 201, json=INPUT)).json()["request_id"])
        running = await service.claimed()
        assert running.job.id == ids[0]
        told = (await service.ask("DELETE", f"/async_request/{ids[0]}")).json()
        assert (told["request_id"], told["canceled"]) == (ids[0], False)
        assert "IN_PROGRESS" in told["message"]
        assert f"/v1/jobs/{ids[0]}/cancel" in told["message"]
        assert await service.jobs.store.heartbeat(ids[0], running.job.attempt, 60) == "ok"
        told = (await service.ask("DELETE", f"/async_request/{ids[1]}")).json()
        assert (told["request_id"], told["canceled"]) == (ids[1], True)
        canceled = await status(service, ids[1])
        assert (canceled["status"], canceled["webhook_status"]) == ("CANCELED", "NO_WEBHOOK_PROVIDED")

    using(tmp_path, story)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"model_input": None}, "model_input"),
        ({"model_input": {}}, "model_input: give either audio_file"),
        ({"model_input": {"audio_file": URL, "beam": 3}}, "model_input.beam: unknown option"),
        ({"model_input": {"audio_file": URL, "language": "klingon"}}, "model_input.language:"),
        ({"model_input": {"audio_file": "talk.mp3"}}, "model_input.audio_file is not a URL"),
        ({"model_input": {"audio_b64": "!"}}, "model_input.audio_b64: not valid base64"),
        ({"model_inputs": {}}, "model_inputs: unknown option"),
        ({"webhook_endpoint": "http://example.com"}, "webhook_endpoint is not https"),
        ({"priority": 3}, "priority:"),
        ({"max_time_in_queue_seconds": 9}, "max_time_in_queue_seconds:"),
        ({"max_time_in_queue_seconds": 259_201}, "max_time_in_queue_seconds:"),
        ({"inference_retry_config": {"max_attempts": 11}}, "inference_retry_config.max_attempts:"),
        ({"inference_retry_config": {"initial_delay_ms": 10_001}}, "inference_retry_config.initial_delay_ms"),
        ({"inference_retry_config": {"max_delay_ms": 60_001}}, "inference_retry_config.max_delay_ms:"),
        ({"inference_retry_config": {"tries": 1}}, "inference_retry_config.tries: unknown option"),
    ],
)
def test_a_wrong_request_is_a_400_that_names_the_field(
    changes: dict[str, Any], names: str, tmp_path: Path
) -> None:
    """The error has Baseten's shape, and nothing is queued."""

    async def story(service: Service) -> None:
        told = (await service.ask("POST", "/async_predict", 400, json={**INPUT, **changes})).json()
        assert told["error"].startswith(names)
        assert (told["error_code"], told["detail"]) == ("client_error", "invalid_request")
        assert await service.jobs.store.claim("runner", 60) is None

    using(tmp_path, story)


@pytest.mark.parametrize(
    ("status", "code", "sent"),
    [
        (413, "payload_too_large", {"json": {**INPUT, "priority": "x" * (256 << 10)}}),
        (400, "client_error", {"content": b"{", "headers": {"content-type": "application/json"}}),
        (400, "client_error", {"content": b"[]", "headers": {"content-type": "application/json"}}),
        (400, "client_error", {"content": b"{}", "headers": {"content-type": "text/plain"}}),
        (400, "client_error", {"json": INPUT, "params": {"priority": 1}}),
    ],
)
def test_bodies_that_are_not_read(status: int, code: str, sent: dict[str, Any], tmp_path: Path) -> None:
    """These are too large, no JSON object, not declared as JSON, or have options in the URL."""

    async def story(service: Service) -> None:
        told = (await service.ask("POST", "/async_predict", status, **sent)).json()
        assert told["error_code"] == code

    using(tmp_path, story)


def test_too_many_requests(tmp_path: Path) -> None:
    """The answer says when to come back."""

    async def story(service: Service) -> None:
        await service.ask("POST", "/async_predict", 201, json=INPUT)
        refused = await service.ask("POST", "/async_predict", 429, json=INPUT)
        assert refused.json()["error_code"] == "rate_limited"
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.json()["error"].startswith("1 jobs may wait")  # there are no API keys

    using(tmp_path, story, max_queued=1)


def test_a_request_is_its_keys_alone(tmp_path: Path) -> None:
    """Another key's request is as unknown as one that never was."""

    async def story(service: Service) -> None:
        submitted = await service.ask("POST", "/async_predict", 201, json=INPUT, headers=ANN)
        path = f"/async_request/{submitted.json()['request_id']}"
        for method in ("DELETE", "GET"):
            told = (await service.ask(method, path, 404, headers=BOB)).json()
            assert told == (await service.ask(method, "/async_request/none", 404, headers=ANN)).json()
            assert (told["error_code"], told["detail"]) == ("client_error", "job_not_found")
        assert (await service.ask("GET", path, headers=ANN)).json()["status"] == "QUEUED"

    using(tmp_path, story, with_keys=True)
