"""Speakers alone and speech alone over HTTP: what clients of speaches send, and our own options."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest
from fakes import FakeStages, data_url, recording

from serve_app.audio import Source
from serve_app.http.app import create_app
from serve_app.http.without_text import WithoutText
from serve_app.options import Options
from serve_app.request.admission import Admission
from serve_app.request.without_text import DetectedSpeech, detect_speech, diarize
from serve_app.settings.access import AccessSettings
from serve_app.settings.openai import OpenAISettings
from serve_app.transcript import StageWarning, Transcript

TALK = recording(1, 2, 0, 3)
SPEAKERS, SPEECH = "/v1/audio/diarization", "/v1/audio/speech/timestamps"
FILE = {"file": ("talk.wav", b"x", "audio/wav")}
ADA = data_url(recording(1, 1).tobytes())
TURNS = [
    {"start": 0.0, "end": 1.0, "speaker": "SPEAKER_01"},
    {"start": 1.0, "end": 2.0, "speaker": "SPEAKER_00"},
    {"start": 3.0, "end": 4.0, "speaker": "SPEAKER_01"},
]


class Server:
    """The application over fake stages; every file is the same talk."""

    def __init__(self, *, diarizes: bool = True, warning: StageWarning | None = None, **more: Any) -> None:
        self.fake, self._warnings = FakeStages(TALK), (warning,) if warning else ()
        self._stages = self.fake.stages(diarizes=diarizes)
        self.asked: list[tuple[Source, Options]] = []
        self.app = create_app(
            self.never,
            self.never,
            model="large-v2",
            max_bytes=1 << 20,
            without_text=WithoutText(self.diarize, self.detect_speech),
            **more,
        )

    async def never(self, *_: Any) -> Any:
        raise AssertionError("nothing is transcribed here")

    async def diarize(self, source: Source, options: Options) -> Transcript:
        self.asked.append((source, options))
        return await diarize(self._stages, Source(url=source.url), options)

    async def detect_speech(self, source: Source, options: Options) -> DetectedSpeech:
        self.asked.append((source, options))
        found = await detect_speech(self._stages, Source(url=source.url), options)
        return DetectedSpeech(found.segments, self._warnings)

    def post(self, path: str, *, client: str = "127.0.0.1", **kwargs: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(client, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
                return await http.post(path, **kwargs)

        return asyncio.run(send())


def test_a_client_of_speaches_gets_its_turns() -> None:
    """speaches-ai/speaches, src/speaches/routers/diarization.py at 126333b: a form with `file`, `model` and
    maybe known speakers; the answer has `duration` and `segments` with `start`, `end`, `speaker`."""
    server = Server()
    form = {"model": "whisper-1", "response_format": "json"}
    answer = server.post(SPEAKERS, files=FILE, data=form).json()
    assert (answer["duration"], answer["segments"], answer["exclusive_segments"]) == (4.0, TURNS, TURNS)
    assert [*answer] == ["segments", "exclusive_segments", "duration", "warnings", "timings"]
    known = {"known_speaker_names[]": "Ada", "known_speaker_references[]": ADA}
    named = server.post(SPEAKERS, files=FILE, data=form | known).json()["segments"]
    assert [turn["speaker"] for turn in named] == ["Ada", "SPEAKER_00", "Ada"]


def test_rttm_is_text() -> None:
    """Warnings, which it has no place for, are in a header."""
    form = {"response_format": "rttm", "known_speaker_names": ["Bob", "Ada"]}
    voices = [data_url(recording(5, 5).tobytes()), ADA]  # the same voice, which only one can have
    answer = Server().post(SPEAKERS, files=FILE, data=form | {"known_speaker_references": voices})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.text.splitlines()[0] == "SPEAKER audio 1 0.000 1.000 <NA> <NA> Ada <NA> <NA>"
    assert [each["code"] for each in json.loads(answer.headers["x-warnings"])] == ["known_speaker_not_found"]


def test_a_url_and_base64_in_json_are_taken() -> None:
    """With the options of the form, as at /predict."""
    server = Server()
    asked = {"audio_file": "https://example.com/x.mp3", "headers": {"X-A": "1"}, "num_speakers": 2}
    assert server.post(SPEAKERS, json=asked).json()["segments"] == TURNS
    source, options = server.asked[0]
    assert (source.url, source.headers) == (asked["audio_file"], {"X-A": "1"})
    assert options == Options(num_speakers=2)
    assert server.post(SPEAKERS, json={"audio_b64": "UklGRg=="}).json()["segments"] == TURNS
    nulls = {"model": None, "language": None, "languages": None, "embeddings": None}
    assert server.post(SPEAKERS, json={"audio_b64": "UklGRg==", **nulls}).json()["segments"] == TURNS
    assert server.post(SPEECH, json={"audio_file": "https://example.com/x.mp3"}).status_code == 200
    error = server.post(SPEAKERS, json={"num_speakers": 2}).json()["error"]
    assert "audio_file" in error["message"]


def test_what_of_the_file_is_wanted_and_how_speech_is_found() -> None:
    """The options of a transcription that mean something here."""
    server = Server()
    stretch = {"start_s": "1", "end_s": "4", "track": "1"}
    raw = {"encoding": "s16le", "sample_rate": "8000"}
    speech = {"vad_onset": "0.7", "vad_offset": "0.2", "vad_min_silence_s": "1.5"}
    turns = server.post(SPEAKERS, files=FILE, data=stretch | raw).json()["segments"]
    assert (turns[0]["start"], turns[-1]["end"]) == (1.0, 4.0)
    stretches = server.post(SPEECH, files=FILE, data=stretch | raw | speech).json()
    assert stretches[0] == {"start": 1000, "end": 2000}
    expected = Options.model_validate(stretch | raw)
    assert server.asked[0][1] == expected
    assert server.asked[1][1] == expected.model_copy(
        update={"vad_onset": 0.7, "vad_offset": 0.2, "vad_min_silence_s": 1.5}
    )


def test_embeddings_come_with_their_model() -> None:
    """Only where they are asked for."""
    answer = Server().post(SPEAKERS, files=FILE, data={"embeddings": "true"}).json()
    assert answer["speaker_embeddings"] == {"SPEAKER_00": [1.0, 0.0], "SPEAKER_01": [1.0, 1.0]}
    assert answer["embedding_model"] == {"name": "fake", "dimension": 2}
    assert "speaker_embeddings" not in Server().post(SPEAKERS, files=FILE).json()


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (SPEAKERS, "language", "de"),
        (SPEAKERS, "diarize", "true"),
        (SPEAKERS, "word_timestamps", "true"),
        (SPEAKERS, "response_format", "json5"),
        (SPEAKERS, "response_format", "text"),
        (SPEAKERS, "num_speakers", "0"),
        (SPEAKERS, "threshold", "0.5"),
        (SPEAKERS, "vad_onset", "0.5"),
        (SPEAKERS, "channels", "speakers"),
        (SPEECH, "threshold", "0.5"),
        (SPEECH, "min_silence_duration_ms", "100"),
        (SPEECH, "response_format", "rttm"),
        (SPEECH, "num_speakers", "2"),
    ],
)
def test_what_the_request_does_not_have_is_refused_by_name(
    as_json: bool, path: str, field: str, value: str
) -> None:
    """Also options that a transcription has: without a text they would be ignored."""
    server = Server()
    given: dict[str, Any] = {"files": FILE, "data": {field: value}}
    if as_json:
        given = {"json": {"audio_file": "https://example.com/x.mp3", field: value}}
    answer = server.post(path, **given)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert not server.asked


@pytest.mark.parametrize("path", [SPEAKERS, SPEECH])
def test_a_refusal_lists_all_that_the_request_has(path: str) -> None:
    """Also `model`, so that a client that leaves out the rest keeps what it needs."""
    server = Server()
    message = server.post(path, files=FILE, data={"threshold": "0.5"}).json()["error"]["message"]
    assert {"model", "start_s", "track"} <= set(re.findall(r"\w+", message.partition("has only")[2]))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"num_speakers": "2", "max_speakers": "3"}, "num_speakers"),
        ({"min_speakers": "3", "max_speakers": "2"}, "min_speakers"),
        ({"known_speaker_names[]": "Ada"}, "known_speaker_references"),
        ({"embeddings": "true", "response_format": "rttm"}, "embeddings"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, str], param: str) -> None:
    """As for a transcription; RTTM has no place for vectors."""
    answer = Server().post(SPEAKERS, files=FILE, data=options)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_models_are_named_as_at_openais_routes() -> None:
    """What a name stands for counts as far as it says something here; an unknown name is a 404."""
    server = Server(openai=OpenAISettings(aliases={"pairs": {"num_speakers": 2, "language": "de"}}))
    server.post(SPEAKERS, files=FILE, data={"model": "pairs"})
    assert server.asked[0][1] == Options(num_speakers=2)
    for path in (SPEAKERS, SPEECH):
        answer = server.post(path, files=FILE, data={"model": "pyannote/other"})
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "model")
        assert server.post(path, files=FILE, data={"model": "whisper-1"}).status_code == 200
        assert server.post(path, files=FILE).status_code == 200
    anything = Server(openai=OpenAISettings(aliases={"*": {}}))
    assert anything.post(SPEAKERS, files=FILE, data={"model": "pyannote/other"}).status_code == 200


def test_speech_is_in_milliseconds() -> None:
    """speaches-ai/speaches, src/speaches/routers/vad.py at 74ef3d9: a bare list of `start` and `end`."""
    server = Server(warning=StageWarning("decode", "quiet_audio", "It is quiet."))
    answer = server.post(SPEECH, files=FILE)
    assert answer.json() == [{"start": 0, "end": 2000}, {"start": 3000, "end": 4000}]
    assert [each["code"] for each in json.loads(answer.headers["x-warnings"])] == ["quiet_audio"]
    assert server.fake.calls == {"load": 1, "speech": 4}


def test_without_a_diarizer_only_speech_is_found() -> None:
    """The error says what the operator has switched off."""
    server = Server(diarizes=False)
    answer = server.post(SPEAKERS, files=FILE)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "diarization_unavailable")
    assert server.post(SPEECH, files=FILE).status_code == 200


@pytest.mark.parametrize("path", [SPEAKERS, SPEECH])
def test_they_are_requests_like_others(path: str) -> None:
    """A key is asked for, a full server refuses, the URL takes no options, and only POST is possible."""
    locked = Server(access=AccessSettings(keys=({"name": "a", "sha256": "0" * 64},)))
    assert locked.post(path, files=FILE).status_code == 401
    assert Server().post(path, files=FILE, client="192.0.2.1").status_code == 403
    full = Admission(1, 60.0)
    server = Server(admission=full)
    with full.admit():
        assert server.post(path, files=FILE).status_code == 503
    assert server.post(f"{path}?num_speakers=2", files=FILE).json()["error"]["param"] == "num_speakers"
    assert server.post(path, content=b"x" * (2 << 20)).status_code == 400
    assert server.post(path, files={"file": b"x" * (2 << 20)}).status_code == 413
