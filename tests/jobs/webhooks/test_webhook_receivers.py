"""The receivers in docs/jobs.md verify what is really sent, and refuse the rest."""

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from deliveries import NEW, OLD, delivery, job, settings
from standardwebhooks import WebhookVerificationError

from serve_app.jobs.webhooks.sending import send, signed
from serve_app.jobs.webhooks.signatures import new_secret

PAGE = (Path(__file__).parents[3] / "docs" / "jobs.md").read_text()
EXAMPLE, RECEIVER, WITH_PACKAGE, IN_NODE, BASETEN = re.findall(
    r"^```(?:python|js|json)\n(.*?)^```$", PAGE, re.M | re.S
)


@pytest.fixture(params=["Python", "Node"])
def receiver(request: pytest.FixtureRequest) -> Iterator[tuple[int, Any]]:
    """The port and the output of a receiver whose secret is the old one."""
    command = [sys.executable, "-c", RECEIVER] if request.param == "Python" else ["node", "-e", IN_NODE]
    if not shutil.which(command[0]):
        pytest.skip("node is not installed")
    environment = {"WEBHOOK_SECRET": OLD, "PORT": "0"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout
            listening = re.fullmatch(r"listening on (\d+)\n", process.stdout.readline())
            assert listening
            yield int(listening[1]), process.stdout
        finally:
            process.kill()


def test_receivers(receiver: tuple[int, Any]) -> None:
    """A receiver with the old secret accepts what both secrets sign, nothing else and nothing an hour old."""
    port, output = receiver
    url = f"http://127.0.0.1:{port}/"

    def status(signers: tuple[str, ...], age_s: float = 0.0) -> int | None:
        made, _ = asyncio.run(
            send(delivery(url), {"text": "Grüße"}, signers, settings(), lambda: time.time() - age_s)
        )
        return made.status

    assert status((NEW, OLD)) == 204
    assert status((OLD,)) == 204
    assert status((OLD,), age_s=3600) == 401
    assert status((NEW, new_secret())) == 401
    assert status(()) == 401
    assert output.readline() == f"transcription.completed {job().id}\n"


def test_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's function gives the event, or raises the error that the page names."""
    monkeypatch.setenv("WEBHOOK_SECRET", OLD)
    names: dict[str, Any] = {}
    exec(WITH_PACKAGE, names)
    headers, body = signed(delivery(), None, (NEW, OLD), time.time())
    assert names["event_of"](headers, body) == json.loads(body)
    with pytest.raises(WebhookVerificationError):
        names["event_of"](headers, body + b" ")


def test_in_the_style_of_baseten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's function knows our signatures from others."""
    monkeypatch.setenv("WEBHOOK_SECRET", OLD)
    names: dict[str, Any] = {}
    exec(BASETEN, names)
    headers, body = signed(delivery(style="baseten"), None, (NEW, OLD), time.time())
    assert names["is_genuine"](headers, body)
    assert not names["is_genuine"](headers, body + b" ")


def test_the_example_is_one() -> None:
    """The page's event has the keys of a real one, in their order, and its times have the same form."""
    body = signed(delivery(), {}, (), 0.0)[1].decode()
    shown, real = json.loads(EXAMPLE), json.loads(body)
    assert [*shown] == [*real]
    shown_times, times = (re.findall(r'"[-0-9]+T[^"]*"', text) for text in (EXAMPLE, body))
    assert [re.sub(r"\d", "0", at) for at in shown_times] == [re.sub(r"\d", "0", at) for at in times]
    assert [*shown["data"]] == [*real["data"]]
