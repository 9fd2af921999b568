"""docs/options.md is what `make docs` writes, and true: options are taken, refused and tested as it says."""

import ast
import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fakes import FakeStages, data_url, recording
from job_api import Service, arrived, using

from serve_app.audio import Source
from serve_app.http.app import create_app
from serve_app.http.without_text import WithoutText
from serve_app.options import Options, parse_options
from serve_app.options.fields import LISTS
from serve_app.request import pipeline, without_text
from serve_app.request.calls import Stages
from serve_app.request.progress import Report, ignore_progress
from serve_app.request.without_text import DetectedLanguage, DetectedSpeech
from serve_app.transcript import Transcript
from tools.options import ALWAYS, FILE, ROUTES, TESTS, THE_PATH, page

OWN, OPENAI, CPP, ASR, ASSEMBLY, TURNS, SPEECH, COMMAND = ROUTES
ROOT = Path(__file__).parents[1]
SOURCE = Source(url="https://example.com/talk.wav")
MONO, CHANNELS = recording(1, 2, 0, 3), np.stack([recording(1, 0, 3, 0), recording(0, 2, 4, 0)])
RAW = {"encoding": "s16le", "sample_rate": 8000, "channel_count": 2}
SPEAKERS = {"diarize": True}
KNOWN = {
    "known_speaker_names": ["Ada"],
    "known_speaker_references": [data_url(recording(1, 1).tobytes())],
    **SPEAKERS,
}
WORDS, SUBTITLES = {"word_timestamps": True}, {"response_format": "srt"}
LINES = {"max_line_width": 30, **SUBTITLES}

# A valid value of each option, with what it needs beside it.
VALID: Mapping[str, Mapping[str, Any]] = {
    "model": {"model": "small"},
    "language": {"language": "de"},
    "languages": {"languages": ["de", "en"]},
    "task": {"task": "translate"},
    "channels": {"channels": "speakers"},
    "start_s": {"start_s": 1.0},
    "end_s": {"end_s": 2.0},
    "track": {"track": 1},
    **dict.fromkeys(RAW, RAW),
    "diarize": SPEAKERS,
    "num_speakers": {"num_speakers": 2, **SPEAKERS},
    "min_speakers": {"min_speakers": 2, **SPEAKERS},
    "max_speakers": {"max_speakers": 2, **SPEAKERS},
    "known_speaker_names": KNOWN,
    "known_speaker_references": KNOWN,
    "embeddings": {"embeddings": True, **SPEAKERS},
    "response_format": SUBTITLES,
    "word_timestamps": WORDS,
    "confidence": {"confidence": True, **WORDS},
    "logprobs": {"logprobs": True},
    "max_line_width": LINES,
    "max_line_count": {"max_line_count": 2, **LINES},
    "highlight_words": {"highlight_words": True, **SUBTITLES},
    "initial_prompt": {"initial_prompt": "Kant."},
    "hotwords": {"hotwords": "Hegel"},
    "temperature": {"temperature": 0.4},
    "temperature_inc": {"temperature_inc": 0.3},
    "beam_size": {"beam_size": 3},
    "suppress_numerals": {"suppress_numerals": True},
    "split_at_speaker_change": {"split_at_speaker_change": True, **SPEAKERS},
    "vad_onset": {"vad_onset": 0.7},
    "vad_offset": {"vad_offset": 0.2},
    "vad_min_silence_s": {"vad_min_silence_s": 0.5},
    "max_segment_s": {"max_segment_s": 5.0},
    "align": {"align": False},
    "char_timestamps": {"char_timestamps": True, **WORDS},
}

# The same in the body of AssemblyAI's route, where it has a name.
ASSEMBLYAI: Mapping[str, Mapping[str, Any]] = {
    "model": {"speech_model": "small"},
    "language": {"language_code": "de"},
    "channels": {"multichannel": True},
    "start_s": {"audio_start_from": 1000},
    "end_s": {"audio_end_at": 2000},
    "diarize": {"speaker_labels": True},
    "num_speakers": {"speakers_expected": 2, "speaker_labels": True},
    "hotwords": {"keyterms_prompt": ["Hegel"]},
    "word_timestamps": {},
}


class Server:
    """The application over fake stages, and the options that arrived at them."""

    def __init__(self) -> None:
        self.asked: list[Options] = []
        self.app = create_app(
            self.transcribe,
            self.readiness,
            model="fake",
            other_models=("small",),
            max_bytes=1 << 20,
            detect_language=self.detect_language,
            without_text=WithoutText(self.diarize, self.detect_speech),
        )

    def stages(self, options: Options) -> Stages:
        self.asked.append(options)
        return FakeStages(CHANNELS if options.channels == "speakers" else MONO).stages()

    async def transcribe(
        self, source: Source, options: Options, report: Report = ignore_progress
    ) -> Transcript:
        stages = self.stages(options)
        return await pipeline.transcribe(stages, SOURCE, options.model_copy(update={"model": None}), report)

    async def diarize(self, source: Source, options: Options) -> Transcript:
        return await without_text.diarize(self.stages(options), SOURCE, options)

    async def detect_speech(self, source: Source, options: Options) -> DetectedSpeech:
        return await without_text.detect_speech(self.stages(options), SOURCE, options)

    async def detect_language(self, source: Source, options: Options) -> DetectedLanguage:
        raise AssertionError((source, options))

    async def readiness(self) -> dict[str, bool]:
        return {}

    def post(self, path: str, **kwargs: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.post(path, **kwargs)

        return asyncio.run(send())

    def ask(self, route: str, fields: Mapping[str, Any]) -> httpx.Response:
        """Sends fields as the route takes them."""
        if route == "json":
            return self.post("/predict", json={"audio_file": SOURCE.url, **fields})
        texts = _texts(fields)
        if route == ASR:
            lists = {name: texts.pop(name) for name in LISTS if name in texts}  # clips are too long for a URL
            return self.post("/asr", files={"audio_file": b"x"}, params=texts, data=lists)
        task = "translations" if texts.pop(THE_PATH, None) else "transcriptions"
        path = {"form": "/predict", OPENAI: f"/v1/audio/{task}"}.get(route, route.strip("`"))
        return self.post(path, files={"file": b"x"}, data=texts)


def _texts(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as a form has them."""
    return {
        name: value if isinstance(value, list | str) else json.dumps(value) for name, value in fields.items()
    }


def as_sent(route: str, option: str, name: str) -> dict[str, Any]:
    """The valid value of an option, under this name, with what it needs on the route."""
    fields = dict(VALID[option])
    if route in (OPENAI, CPP):
        needs_json = option in ("logprobs", "task")
        fields = {"model": "whisper-1", "response_format": "json" if needs_json else "verbose_json"} | fields
        if fields.pop("word_timestamps", None):
            fields["timestamp_granularities[]"] = "word"
    elif route == ASR:
        fields = {"output": fields.pop("response_format", "json"), **fields}
    elif route == TURNS:
        fields.pop("diarize", None)
        fields |= {"response_format": "rttm"} if option == "response_format" else {}
    values = {"translate": True, "include[]": "logprobs", "keywords[]": ["Hegel"]}
    if name not in fields:
        value = fields.pop(option, True)
        fields[name] = values.get(name, value)
    return fields


def param_of(response: httpx.Response) -> str | None:
    """What an error 400 is about; /asr has it at the start of the message in a header."""
    assert response.status_code == 400, (response.status_code, response.text)
    if message := response.headers.get("X-Error-Message"):
        return str(message).partition(":")[0]
    param: str | None = response.json()["error"]["param"]
    return param


# The routes that answer at once.
SENT = {
    "form": ROUTES[OWN],
    "json": ROUTES[OWN],
    **{route: ROUTES[route] for route in (OPENAI, CPP, ASR, TURNS, SPEECH)},
}


@pytest.fixture(scope="module")
def server() -> Server:
    return Server()


def value_of(options: Options, option: str) -> Any:
    """The value, which is not the one of a request that leaves it out."""
    value = getattr(options, option)
    assert value != Options.model_fields[option].default, option
    return value


def test_it_is_current() -> None:
    """The page is never edited."""
    assert page() == FILE.read_text(), "run `make docs`"


def test_every_option_has_a_row_tests_and_a_value() -> None:
    """In the order of the options; none is forgotten when one is added."""
    rows = re.findall(r"^\| `(\w+)`", FILE.read_text(), re.MULTILINE)
    assert rows == [*Options.model_fields]
    assert TESTS.keys() == VALID.keys() == Options.model_fields.keys()


@pytest.mark.parametrize("name", sorted({each for tests in TESTS.values() for each in tests}))
def test_the_tests_that_are_named_exist_and_run(name: str) -> None:
    """They need no weights and no cluster, and nothing skips them."""
    path, _, function = name.partition("::")
    assert not path.startswith(("tests/models/", "tests/cluster/"))
    tree = ast.parse((ROOT / path).read_text())
    [found] = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name == function]
    marks = [ast.unparse(each) for each in tree.body if "pytestmark" in ast.unparse(each)]
    for text in (ast.unparse(found), *marks):
        assert not any(word in text for word in ("skip", "xfail", "mark.slow")), text


@pytest.mark.slow
def test_the_tests_that_are_named_fail_where_the_option_is_ignored() -> None:
    """Each option's own, on a service for which it reads as if it had been left out."""
    command = [sys.executable, str(ROOT / "tests" / "ignored_options.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("option", Options.model_fields)
def test_each_option_is_taken_or_refused_where_the_page_says(option: str, server: Server) -> None:
    """It arrives as it was meant, under each of its names; elsewhere the error names it."""
    meant = {route: value_of(Options(**VALID[option]), option) for route in SENT}
    meant[TURNS] = "rttm" if option == "response_format" else meant[TURNS]
    for route, names_of in SENT.items():
        names = names_of(option)
        for name in names:
            server.asked.clear()
            response = server.ask(route, as_sent(route, option, name))
            assert response.status_code == 200, (route, name, response.text, response.headers)
            [asked] = server.asked
            if option != "model" or route not in (TURNS, SPEECH):
                assert value_of(asked, option) == meant[route], (route, name)
        if not {option, f"{option}[]", THE_PATH} & {*names}:
            server.asked.clear()
            needed = {"model": "whisper-1"} if route == OPENAI else {}
            assert param_of(server.ask(route, {**needed, option: VALID[option][option]})) == option, route
            assert server.asked == []


def test_jobs_and_handles_take_all_of_them(tmp_path: Path) -> None:
    """In a form and in JSON; a job keeps what a handle makes of the same arguments."""

    async def story(service: Service) -> None:
        for option, fields in VALID.items():
            as_json: dict[str, Any] = {"json": {"audio_file": SOURCE.url, **fields}}
            as_form: dict[str, Any] = {"files": {"file": b"x"}, "data": _texts(fields)}
            for body in (as_json, as_form):
                response = await service.post(**body)
                assert response.status_code == 201, (option, response.text)
                options, _, _ = await arrived(service, await service.claimed())
                assert options == parse_options({**fields})
                value_of(options, option)

    using(tmp_path, story)


def test_assemblyais_names_are_those_of_the_page(tmp_path: Path) -> None:
    """They mean the same options; what has no name there is refused by our name."""
    names_of = ROUTES[ASSEMBLY]
    assert {option for option in Options.model_fields if names_of(option)} == ASSEMBLYAI.keys()

    async def story(service: Service) -> None:
        for option, fields in VALID.items():
            body = {"audio_url": SOURCE.url}
            if option in ASSEMBLYAI:
                assert names_of(option) == (ALWAYS,) or {*names_of(option)} & ASSEMBLYAI[option].keys()
                await service.ask("POST", "/v2/transcript", json={**body, **ASSEMBLYAI[option]})
                options, _, _ = await arrived(service, await service.claimed())
                assert value_of(options, option) == value_of(Options(**fields), option)
            body |= {option: fields[option]}
            refused = await service.ask("POST", "/v2/transcript", 400, json=body)
            assert refused.json()["error"].startswith(f"{option}:"), option

    using(tmp_path, story)
