"""Each example is run as its user runs it."""

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from played_service import KEY, Played, played
from transcripts import FIXED, WITH_SOURCES

from serve_app.http.responses import answer
from serve_app.jobs.webhooks.signatures import VARIABLE, new_secret
from serve_app.options import Options

EXAMPLES = Path(__file__).parents[2] / "examples"
TEXT = str(answer(FIXED, Options(response_format="text")))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Played]:
    with played(tmp_path / "state") as service:
        yield service


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "recordings" / "talk.mp3"
    path.parent.mkdir()
    path.write_bytes(b"audio")
    return path


def run(service: Played, name: str, *arguments: object, expect: int = 0, **environment: str) -> str:
    """Runs an example and gives its output."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        env={**os.environ, "WHISPERX_URL": service.url, "PYTHONPATH": str(EXAMPLES.parent), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    return done.stdout + done.stderr


def test_plain_http(service: Played, talk: Path) -> None:
    """The example transcribes a file and URLs, and prints the message of an error."""
    assert "0.42     2.25 SPEAKER_00: four score" in run(service, "plain_http.py", talk)
    urls = ["https://example.com/talk.mp3", "http://example.com/talk.mp3"]
    for url in urls:
        run(service, "plain_http.py", url)
    assert service.heard == [b"audio", *(url.encode() for url in urls)]
    talk.write_bytes(b"x" * (1 << 21))
    assert "bytes" in run(service, "plain_http.py", talk, expect=1)


def test_plain_http_with_a_key(talk: Path, tmp_path: Path) -> None:
    """The example sends the key in the environment."""
    with played(tmp_path / "state", with_keys=True) as service:
        for audio in (talk, "https://example.com/talk.mp3"):
            assert "four score" in run(service, "plain_http.py", audio, WHISPERX_API_KEY=KEY)
            assert "key" in run(service, "plain_http.py", audio, expect=1)


def test_streaming(service: Played, talk: Path) -> None:
    """The example prints the whole text."""
    assert (
        run(service, "streaming.py", talk).split() == " ".join(each.text for each in FIXED.segments).split()
    )


def test_a_job_with_a_webhook(service: Played, talk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service signs it, the example verifies that, and erases the job."""
    secret = new_secret()
    monkeypatch.setenv(VARIABLE, secret)
    said = run(service, "jobs_with_webhook.py", talk, WEBHOOK_SECRETS=secret)
    assert re.match(rf"submitted \w+\ntranscription.completed\n{re.escape(TEXT)}\n", said)
    assert httpx.get(f"{service.url}/v1/jobs").json()["jobs"] == []


def test_a_folder(service: Played, talk: Path) -> None:
    """Each recording gets a text, also where others cannot be read or written."""
    (talk.parent / "other.mp3").write_bytes(b"other")
    (talk.parent / "folder.mp3").mkdir()
    (talk.parent / "locked.mp3").write_bytes(b"locked")
    (talk.parent / "locked.txt").mkdir()
    said = run(service, "folder.py", talk.parent)
    assert said.count("recordings/other.txt\n") == said.count("recordings/talk.txt\n") == 1
    assert said.count("Is a directory") == 2
    assert talk.with_suffix(".txt").read_text() == (talk.parent / "other.txt").read_text() == TEXT


def test_openais_package(service: Played, talk: Path) -> None:
    """The example prints segments with times."""
    service.transcript = WITH_SOURCES
    assert "0.42     2.25 four score & seven years ago." in run(service, "openai_client.py", talk)


class Handle:
    """Stands in for the handle of serve.get_app_handle."""

    def __init__(self, given: Any = None) -> None:
        self.given = given
        self.asked: list[dict[str, Any]] = []
        self.transcribe = self.stream = self

    def options(self, *, stream: bool) -> "Handle":
        return Handle([{"segments": [{"text": "Hello."}]}, {"model_output": []}])

    def remote(self, audio: bytes, **options: Any) -> Any:
        self.asked.append({"audio": audio, **options})
        return self.given or self

    def result(self) -> str:
        return "1\n00:00:00,000 --> 00:00:01,000\nHello."


def test_a_deployment_handle(
    talk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The example prints a stream, then subtitles; tests/cluster has real handles."""
    handle = Handle()
    monkeypatch.setattr("ray.init", lambda address: None)
    monkeypatch.setattr("ray.serve.get_app_handle", {"whisperx": handle}.__getitem__)
    monkeypatch.setattr(sys, "argv", ["deployment_handle.py", str(talk)])
    runpy.run_path(str(EXAMPLES / "deployment_handle.py"))
    assert capsys.readouterr().out.startswith("[{'text': 'Hello.'}]\nthe whole answer:\n1\n00:00")
    assert handle.asked == [{"audio": b"audio", "response_format": "srt"}]


def blocks(kind: str) -> list[str]:
    """The code blocks of clients.md."""
    return re.findall(rf"```{kind}\n(.*?)```", (EXAMPLES / "clients.md").read_text(), re.DOTALL)


def test_the_settings_of_other_programs(tmp_path: Path, talk: Path) -> None:
    """The service answers requests built from the settings in clients.md."""
    with played(tmp_path / "state", with_keys=True) as service:
        where = {"http://whisperx.internal:8000": service.url, "wx_...": KEY}

        def here(text: str) -> str:
            for written, real in where.items():
                text = text.replace(written, real)
            return text

        lines = here(blocks("")[0]).split()
        webui = dict(line.split("=", 1) for line in lines)
        libre = yaml.safe_load(here(blocks("yaml")[0]))["speech"]["stt"]["openai"]
        n8n = json.loads(here(blocks("json")[0]))
        headers = {"Authorization": f"Bearer {webui['AUDIO_STT_OPENAI_API_KEY']}"}
        for url, model in (
            (f"{webui['AUDIO_STT_OPENAI_API_BASE_URL']}/audio/transcriptions", webui["AUDIO_STT_MODEL"]),
            (libre["url"], libre["model"]),
        ):
            answered = httpx.post(
                url, data={"model": model}, files={"file": talk.read_bytes()}, headers=headers
            )
            assert answered.json()["text"], answered.text
        fields = n8n["bodyParameters"]["parameters"]
        text = {each["name"]: each["value"] for each in fields if "value" in each}
        files = {each["name"]: talk.read_bytes() for each in fields if "value" not in each}
        assert (
            httpx.request(n8n["method"], n8n["url"], data=text, files=files, headers=headers).status_code
            == 200
        )
        assert service.asked[-1].diarize is True
