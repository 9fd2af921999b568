"""Channels, a stretch, a track and samples without a header, on every route; decoding is real."""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fakes import FakeAudio, FakeStages, recording
from job_api import using
from sounds import wav

from benchmarks.decoding import decode_whole
from serve_app.audio import Source
from serve_app.http.app import create_app
from serve_app.jobs.stored import JobRequest
from serve_app.options import Options
from serve_app.request import pipeline
from serve_app.request.progress import Report, ignore_progress
from serve_app.request.without_text import DetectedLanguage
from serve_app.transcript import Segment, Transcript, Turn

CALL = np.stack([recording(1, 0, 3, 0, 5), recording(0, 2, 4, 0, 0)], axis=1)
SPOKEN = [
    (0.0, "word1", "SPEAKER_00"),
    (1.0, "word2", "SPEAKER_01"),
    (2.0, "word3", "SPEAKER_00"),
    (2.0, "word4", "SPEAKER_01"),
    (4.0, "word5", "SPEAKER_00"),
]
RAW = {"encoding": "s16le", "sample_rate": 16000, "channel_count": 2}


@asynccontextmanager
async def load(source: Source) -> AsyncIterator[FakeAudio]:
    assert source.file is not None
    _, samples = await decode_whole(
        source.file, max_audio_s=60, timeout_s=30, raw=source.raw, selection=source.selection
    )
    yield FakeAudio(samples)


# Without a diarizer: channels need none.
STAGES = replace(FakeStages(recording()).stages(diarizes=False), load=load)


async def transcribe(source: Source, options: Options, report: Report = ignore_progress) -> Transcript:
    return await pipeline.transcribe(STAGES, source, options, report)


async def detect_language(source: Source, options: Options) -> DetectedLanguage:
    raise AssertionError(source, options)


async def readiness() -> dict[str, bool]:
    return {}


def sent(path: str, **kwargs: Any) -> httpx.Response:
    async def send() -> httpx.Response:
        app = create_app(
            transcribe, readiness, model="fake", max_bytes=1 << 20, detect_language=detect_language
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.post(path, **kwargs)

    return asyncio.run(send())


def form(content: bytes, options: dict[str, Any]) -> httpx.Response:
    return sent("/predict", files={"file": content}, data=options)


def as_json(content: bytes, options: dict[str, Any]) -> httpx.Response:
    return sent("/predict", json={"audio_b64": base64.b64encode(content).decode(), **options})


def openai(content: bytes, options: dict[str, Any]) -> httpx.Response:
    data = {"model": "whisper-1", "response_format": "verbose_json", **options}
    return sent("/v1/audio/transcriptions", files={"file": content}, data=data)


def whisper_cpp(content: bytes, options: dict[str, Any]) -> httpx.Response:
    return sent("/inference", files={"file": content}, data={"response_format": "verbose_json", **options})


def asr(content: bytes, options: dict[str, Any]) -> httpx.Response:
    return sent("/asr", files={"audio_file": content}, params={"output": "json", **options})


ROUTES = (form, as_json, openai, whisper_cpp, asr)
Ask = Callable[[bytes, dict[str, Any]], httpx.Response]


def segments(response: httpx.Response) -> list[tuple[float, str, str | None]]:
    assert response.status_code == 200, (response.text, response.headers)
    body = response.json()
    found = body["model_output"] if "model_output" in body else body["segments"]
    return [(each["start"], each["text"], each.get("speaker")) for each in found]


def refusal(response: httpx.Response) -> str:
    """The message of an error 400; /asr has it in a header."""
    assert response.status_code == 400, response.text
    header: str = response.headers.get("X-Error-Message", "")
    return header or str(response.json()["error"]["message"])


@pytest.mark.parametrize("ask", ROUTES)
def test_channels_are_speakers(ask: Ask) -> None:
    """Of a file, and of samples without a header, on a server that does not tell speakers apart."""
    assert segments(ask(wav(CALL), {"channels": "speakers"})) == SPOKEN
    assert segments(ask(CALL.astype("<i2").tobytes(), {"channels": "speakers", **RAW})) == SPOKEN


@pytest.mark.parametrize("ask", ROUTES)
def test_a_stretch_has_the_times_of_the_file(ask: Ask) -> None:
    """Only what is spoken there, when it is spoken in the file."""
    options = {"channels": "speakers", "start_s": 1, "end_s": 3}
    assert segments(ask(wav(CALL), options)) == SPOKEN[1:4]


@pytest.mark.parametrize("ask", ROUTES)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": "speakers"}, "channels: the sound track has 1 channel; speakers needs 2 to 8"),
        ({"track": 1}, "track: the file has 1 sound track that can be decoded: 0"),
        ({"start_s": 5.0}, "start_s: the file ends at 5.0 s"),
        ({"start_s": 2, "end_s": 2}, "end_s: must be after start_s"),
        ({"sample_rate": 8000}, "sample_rate: is for samples without a header"),
        ({"encoding": "mulaw"}, "encoding: needs sample_rate"),
        ({"channels": "speakers", "diarize": "true"}, "diarize: cannot be combined with channels=speakers"),
        ({"channels": "speakers", "num_speakers": 2}, "num_speakers: cannot be combined"),
    ],
)
def test_what_makes_no_sense_is_refused(ask: Ask, options: dict[str, Any], says: str) -> None:
    """With one sentence, whether it shows in the options or only in the file."""
    assert refusal(ask(wav(CALL[:, 0]), options)).startswith(says)


def test_speakers_have_letters_where_openai_wants_them() -> None:
    """By channel, not in the order in which they speak."""
    swapped = wav(CALL[:, ::-1])
    body = openai(swapped, {"channels": "speakers", "response_format": "diarized_json"}).json()
    assert [(each["text"], each["speaker"]) for each in body["segments"][:2]] == [
        ("word1", "B"),
        ("word2", "A"),
    ]


def test_a_model_that_stands_for_diarization_gives_way() -> None:
    """What the request itself says of its speakers counts."""
    options = {"channels": "speakers", "model": "gpt-4o-transcribe-diarize"}
    assert segments(openai(wav(CALL), options)) == SPOKEN


def test_a_stream_tells_the_text_in_the_order_of_the_file() -> None:
    """As the answer has it in the end, though channels are transcribed side by side."""
    options = {"channels": "speakers", "response_format": "diarized_json", "stream": "true"}
    events = openai(wav(CALL), options).text
    deltas = [event for event in events.split("\n\n") if "text.delta" in event]
    assert [delta.partition("word")[2][0] for delta in deltas] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("response_format", ["json", "text"])
def test_speakers_are_not_hidden(response_format: str) -> None:
    """OpenAI's plain formats have no speakers, so nobody is made to believe that there are some."""
    options = {"channels": "speakers", "response_format": response_format}
    assert refusal(openai(wav(CALL), options)).startswith(f"channels: {response_format} shows no speakers")


def test_turns_of_channels() -> None:
    """RTTM without a diarizer."""
    answer = form(wav(CALL), {"channels": "speakers", "response_format": "rttm"})
    rows = [row.split() for row in answer.text.splitlines()]
    assert [(row[3], row[4], row[7]) for row in rows] == [
        ("0.000", "1.000", "SPEAKER_00"),
        ("1.000", "2.000", "SPEAKER_01"),
        ("2.000", "1.000", "SPEAKER_00"),
        ("4.000", "1.000", "SPEAKER_00"),
    ]
    assert refusal(form(wav(CALL), {"response_format": "rttm"})).startswith("This server does not tell")


def test_asr_has_its_own_word_for_plain_samples() -> None:
    """Both at once would contradict each other."""
    says = refusal(asr(CALL.tobytes(), {"encode": "false", **RAW}))
    assert says.startswith("encoding: cannot be combined with encode=false")


def test_a_job_keeps_all_of_it(tmp_path: Path) -> None:
    """What it was submitted with is what it runs with; its turns can be had afterwards."""
    asked: dict[str, Any] = {"channels": "speakers", "start_s": 1.5, "end_s": 9, "track": 1, "diarize": False}
    options = Options(**asked, **RAW)
    assert JobRequest.load(JobRequest(options, "upload").dump()).to_run == options
    said = Transcript((Segment(2.0, 3.0, "So.", speaker="SPEAKER_01"),), "en", 7.5, "fake")
    said = replace(said, turns=(Turn(2.0, 3.0, "SPEAKER_01"),))

    async def story(service: Any) -> None:
        path = await service.finished(said, **asked)
        for chosen, begin in (
            ("rttm", "SPEAKER audio 1 2.000"),
            ("text", "[SPEAKER_01]: So."),
            ("tsv", "start"),
        ):
            answer = await service.get(f"{path}/result?response_format={chosen}")
            assert answer.text.startswith(begin), answer.text

    using(tmp_path, story)
