"""Requests recorded from real clients, over real decoding and fake models; tests/cluster has Serve's part."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from fakes import FakeAudio, FakeStages, recording
from recorded_clients import ACCESS, FOLDER, RECORDED, Recorded, Wire, file_of, wire, words_of

from benchmarks.decoding import decode_whole
from serve_app.audio import Source
from serve_app.http.app import create_app
from serve_app.options import Options
from serve_app.request import pipeline
from serve_app.request.progress import Report, ignore_progress
from serve_app.request.without_text import DetectedLanguage, detect_language
from serve_app.transcript import SAMPLE_RATE_HZ, Transcript

PROJECT = Path(__file__).parents[2]


class Server:
    """The application with a key, and what arrived behind it."""

    def __init__(self) -> None:
        self.stages = replace(FakeStages(recording()).stages(), load=self.load)
        self.asked: list[Options] = []
        self.app = create_app(
            self.transcribe,
            self.readiness,
            model="fake",
            max_bytes=2 << 20,
            access=ACCESS,
            detect_language=self.detect,
        )

    @asynccontextmanager
    async def load(self, source: Source) -> AsyncIterator[FakeAudio]:
        assert source.file is not None
        with tempfile.TemporaryFile() as on_disk:  # the clip of a known speaker is in memory
            on_disk.write(source.file.read())
            _, samples = await decode_whole(on_disk, max_audio_s=60, timeout_s=30, raw=source.raw)
        yield FakeAudio(np.pad(samples, (0, -len(samples) % SAMPLE_RATE_HZ)))  # its parts are whole seconds

    async def transcribe(
        self, source: Source, options: Options, report: Report = ignore_progress
    ) -> Transcript:
        self.asked.append(options)
        return await pipeline.transcribe(self.stages, source, options, report)

    async def detect(self, source: Source, options: Options) -> DetectedLanguage:
        return await detect_language(self.stages, source, options)

    async def readiness(self) -> dict[str, bool]:
        return {}

    def answer(self, request: Wire) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app)) as http:
                return await http.send(request.request())

        return asyncio.run(send())


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.name)
def test_a_recorded_request_is_answered(recorded: Recorded) -> None:
    """The options are those that the client means, and it can read its words out of the answer."""
    server = Server()
    answer = server.answer(wire(recorded.name, file_of(recorded.audio), host="127.0.0.1"))
    assert recorded.read(answer) == (recorded.shows or words_of(recorded.audio))
    assert server.asked == ([] if recorded.shows else [recorded.asked])


def test_obsidian_may_ask() -> None:
    """Its window is a page of app://obsidian.md, so Chromium asks first whether it may send a key."""
    server = Server()
    allowed = server.answer(wire("obsidian_whisper_preflight", host="127.0.0.1"))
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, "app://obsidian.md")
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    answer = server.answer(wire("obsidian_whisper", file_of("webm"), host="127.0.0.1"))
    assert answer.headers["access-control-allow-origin"] == "app://obsidian.md"


def test_every_recording_is_used() -> None:
    """A file without an entry would be tested nowhere."""
    names = {"obsidian_whisper_preflight", *(recorded.name for recorded in RECORDED)}
    assert {path.stem for path in FOLDER.iterdir()} == names


def test_every_client_is_documented() -> None:
    """docs/openai.md says what to set in each of them."""
    section = (PROJECT / "docs" / "openai.md").read_text().partition("## Clients\n")[2].partition("\n## ")[0]
    assert [each.client for each in RECORDED if each.client.partition(",")[0] not in section] == []
