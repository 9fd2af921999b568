"""Signatures, verified by the package of Standard Webhooks and as Baseten's samples do."""

import hmac
import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from deliveries import NEW, OLD, delivery, job
from pydantic import BaseModel
from standardwebhooks import Webhook, WebhookVerificationError
from typer.testing import CliRunner

from serve_app.__main__ import cli
from serve_app.jobs.webhooks.payloads import baseten_body, standard_body
from serve_app.jobs.webhooks.sending import signed
from serve_app.jobs.webhooks.signatures import UnusableSecrets, read_secrets

ANSWER = {
    "model_output": [{"start": 0.1, "end": 1e-05, "text": "„Grüße“ \u2028", "speaker": None}],
    "duration": 30.0,
}


class BasetenPayload(BaseModel):
    """The body as Baseten's older sample parses it, in the order of its fields."""

    request_id: str
    model_id: str
    deployment_id: str
    type: str
    time: datetime
    data: Any
    errors: list[dict[str, str]]


@pytest.mark.parametrize("signers", [(NEW, OLD), (NEW,)], ids=["rotating", "rotated"])
def test_standard_signatures(signers: tuple[str, ...]) -> None:
    """A receiver that has any of the secrets can verify; one whose secret was taken away cannot."""
    headers, body = signed(delivery(), ANSWER, signers, time.time() + 0.9)
    for secret in signers:
        assert Webhook(secret).verify(body, headers)["data"]["result"] == ANSWER
        for changed in (body.replace(b"succeeded", b"failed"), body + b" "):
            with pytest.raises(WebhookVerificationError):
                Webhook(secret).verify(changed, headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, {**headers, "webhook-id": "another"})
    if OLD not in signers:
        with pytest.raises(WebhookVerificationError):
            Webhook(OLD).verify(body, headers)


def test_what_stays_from_try_to_try() -> None:
    """Id and body are the same on every try; the timestamp is that of the try, in whole seconds."""
    (first, body), (second, same_body) = (
        signed(delivery(), None, (NEW,), at_s) for at_s in (1000.9, 90_000.1)
    )
    assert body == same_body
    assert first["webhook-id"] == second["webhook-id"] == "msg_1"
    assert [first["webhook-timestamp"], second["webhook-timestamp"]] == ["1000", "90000"]
    assert first["webhook-signature"] != second["webhook-signature"]


def test_baseten_signatures() -> None:
    """There is a signature by each secret, the newest first: Baseten's newest sample looks at no other."""
    headers, body = signed(delivery(style="baseten"), ANSWER, (NEW, OLD), 1000.0)
    signatures = headers["X-BASETEN-SIGNATURE"].replace("v1=", "").split(",")
    assert signatures == [hmac.new(key.encode(), body, "sha256").hexdigest() for key in (NEW, OLD)]
    assert headers["X-BASETEN-REQUEST-ID"] == json.loads(body)["request_id"] == job().id


@pytest.mark.parametrize(("status", "told"), [("succeeded", "completed"), ("failed", "error")])
def test_assemblyais_webhook(status: str, told: str) -> None:
    """It has AssemblyAI's two fields, and a signature, which AssemblyAI does not send."""
    ended = delivery(style="assemblyai", status=status)
    headers, body = signed(ended, {"text": "x"}, (NEW,), time.time())
    assert Webhook(NEW).verify(body, headers) == {"transcript_id": ended.job.id, "status": told}
    assert list(json.loads(body)) == ["transcript_id", "status"]


@pytest.mark.parametrize("now_s", [1_795_860_000.0, 1_795_860_000.25, 1_795_860_000.123456])
def test_baseten_receivers_that_verify_what_they_parsed(now_s: float) -> None:
    """The older sample signs the parsed body, written again: that gives the same bytes."""
    _, body = signed(delivery(style="baseten"), ANSWER, (NEW,), now_s)
    parsed = BasetenPayload.model_validate_json(body)
    assert parsed.model_dump_json().encode() == body
    assert (parsed.data, parsed.errors, parsed.type) == (ANSWER, [], "async_request_completed")
    assert parsed.time.timestamp() == pytest.approx(now_s, abs=1e-5)


def test_without_secrets_nothing_is_signed() -> None:
    """A header with an empty signature would only look like one."""
    assert "webhook-signature" not in signed(delivery(), None, (), 0.0)[0]
    assert "X-BASETEN-SIGNATURE" not in signed(delivery(style="baseten"), None, (), 0.0)[0]


@pytest.mark.parametrize("letters", [10_000, 16_000, 17_000, 5_000_000])
def test_long_results_are_left_for_the_receiver_to_fetch(letters: int) -> None:
    """A standard webhook stays under 20 kB and always says where the result is; Baseten's has all of it."""
    answer = {"text": "x" * letters}
    body = standard_body(job(), answer)
    data = json.loads(body)["data"]
    assert len(body) < 20_000
    assert data["result_url"] == f"/v1/jobs/{job().id}/result"
    assert data.get("result") == (answer if letters <= 16_000 else None)
    assert json.loads(baseten_body(job(), answer, 0.0))["data"] == answer


ENDED = {"canceled": "The request was canceled.", "expired": "The request has expired."}


@pytest.mark.parametrize(
    ("status", "event", "code", "baseten_code"),
    [
        ("failed", "transcription.failed", "model_crashed", "MODEL_PREDICT_ERROR"),
        ("failed", "transcription.failed", "deadline_exceeded", "MODEL_PREDICT_TIMEOUT"),
        ("failed", "transcription.failed", "undecodable_audio", "MODEL_INVALID_INPUT"),
        ("failed", "transcription.failed", "payload_too_large", "MODEL_INVALID_INPUT"),
        ("canceled", "transcription.canceled", None, "MODEL_PREDICT_ERROR"),
        ("expired", "transcription.expired", None, "MODEL_PREDICT_ERROR"),
    ],
)
def test_other_ends(status: str, event: str, code: str | None, baseten_code: str) -> None:
    """A job without a result has a webhook, too, with the reason."""
    ended = job(status=status, error_code=code, error_message=code and "It was too much.")
    told = json.loads(standard_body(ended, None))
    assert told["type"] == event
    assert told["data"]["status"] == status
    assert "result_url" not in told["data"]
    assert told["data"].get("error") == (code and {"code": code, "message": "It was too much."})
    in_baseten = json.loads(baseten_body(ended, None, 0.0))
    assert in_baseten["data"] is None
    message = "It was too much." if code else ENDED[status]
    assert in_baseten["errors"] == [{"code": baseten_code, "message": message}]


def test_where_secrets_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets are in the environment, or in a file if one is named, newest first; there may be none."""
    monkeypatch.delenv("WEBHOOK_SECRETS", raising=False)
    assert read_secrets(None) == ()
    monkeypatch.setenv("WEBHOOK_SECRETS", f" {OLD}  {NEW}")
    assert read_secrets(None) == (OLD, NEW)
    (tmp_path / "secrets").write_text(f"{NEW}\n{OLD}\n")
    assert read_secrets(str(tmp_path / "secrets")) == (NEW, OLD)


@pytest.mark.parametrize(
    "second",
    ["hello", "whsec_!", "whsec_aGVsbG8=", NEW.removeprefix("whsec_"), f"{NEW}é", NEW[:-5], NEW + NEW],
    ids=["plain", "no base64", "short", "no prefix", "letters", "cut off", "two in one"],
)
def test_secrets_that_are_none(second: str, tmp_path: Path) -> None:
    """They are refused by their number, without being shown."""
    (tmp_path / "secrets").write_text(f"{NEW}\n{second}")
    with pytest.raises(UnusableSecrets, match=r"^Secret 2 of ") as caught:
        read_secrets(str(tmp_path / "secrets"))
    assert second.removeprefix("whsec_") not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_files_without_secrets(content: bytes | None, tmp_path: Path) -> None:
    """A named file that is missing, empty or not text is an error; webhooks do not go out unsigned."""
    if content is not None:
        (tmp_path / "secrets").write_bytes(content)
    with pytest.raises(UnusableSecrets, match="secrets_file"):
        read_secrets(str(tmp_path / "secrets"))


def test_the_command_makes_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes another one each time, which the server accepts; standard output has nothing else."""
    made = [CliRunner().invoke(cli, ["webhook-secret"]).stdout.strip() for _ in range(2)]
    monkeypatch.setenv("WEBHOOK_SECRETS", " ".join(made))
    assert read_secrets(None) == tuple(made)
    assert made[0] != made[1]
