"""OpenAI's routes in front of the real pipeline on fake stages, for tests of them."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

import httpx
from fakes import FakeStages, recording
from openai_contract import check, check_event

from serve_app.audio import Source
from serve_app.http.app import create_app
from serve_app.options import Options
from serve_app.request import pipeline
from serve_app.request.progress import Report, ignore_progress
from serve_app.settings.openai import OpenAISettings
from serve_app.transcript import Transcript

SPOKEN = (1, 2, 0, 3)
TEXT = "word1 word2 word3"
TRANSCRIBE, TRANSLATE = "/v1/audio/transcriptions", "/v1/audio/translations"


class Server:
    """The app in front of the pipeline, with the options that arrived there."""

    def __init__(self, *spoken: int, diarizes: bool = True, **settings: Any) -> None:
        self.file = ("speech.wav", recording(*(spoken or SPOKEN)).tobytes(), "audio/wav")
        self.fakes = FakeStages(recording())
        self.stages = self.fakes.stages(diarizes=diarizes)
        self.asked: list[Options] = []
        self.files: list[BinaryIO | None] = []
        self.running = 0
        self.ready = True
        self.app = create_app(
            self.transcribe,
            self.readiness,
            model="large-v2",
            max_bytes=1 << 20,
            openai=OpenAISettings.model_validate(settings.pop("openai", {})),
            **settings,
        )

    async def transcribe(
        self, source: Source, options: Options, report: Report = ignore_progress
    ) -> Transcript:
        self.asked.append(options)
        self.files.append(source.file)
        self.running += 1
        try:
            return await pipeline.transcribe(self.stages, source, options, report)
        finally:
            self.running -= 1

    async def readiness(self) -> dict[str, bool]:
        return {"asr": self.ready}

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with self.client() as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(send())

    def post(self, path: str = TRANSCRIBE, **fields: Any) -> httpx.Response:
        sent = [(name.replace("__", "[]"), value) for name, value in {"model": "whisper-1", **fields}.items()]
        return self.request("POST", path, files={"file": self.file}, data=dict(sent))

    def error(self, path: str = TRANSCRIBE, **fields: Any) -> tuple[int, str | None, str]:
        """Status, parameter and message of a request that is refused before anything has run."""
        response = self.post(path, **fields)
        check("error", response.json())
        assert self.asked == []
        error = response.json()["error"]
        return response.status_code, error["param"], error["message"]


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream that ended as it should, each checked against OpenAI's schema."""
    *lines, end = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
    assert end == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    for event in events:
        check_event(event)
    return events
