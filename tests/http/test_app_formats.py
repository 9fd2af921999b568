"""Response formats over HTTP with a fake pipeline: media types, warnings, and what a format cannot show."""

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from transcripts import AT_ONCE, AT_ONCE_WORDS, FIXED, watched

from serve_app.audio import Source
from serve_app.formats.subtitles import SubtitleLayout
from serve_app.formats.table import FORMATS
from serve_app.http.app import create_app
from serve_app.options import Options
from serve_app.request.progress import Report, ignore_progress
from serve_app.settings.access import AccessSettings
from serve_app.transcript import Transcript, Window, WindowText

URL = {"audio_file": "https://example.com/x.mp3"}
OPENAI = "/v1/audio/transcriptions"
GOLDEN = Path(__file__).parents[1] / "golden"


def written(name: Any, layout: SubtitleLayout = SubtitleLayout()) -> str:  # noqa: B008  (frozen)
    """The fixed transcript in a format that is text."""
    write = FORMATS[name].write
    assert write is not None
    return write(FIXED, layout)


def request(
    method: str,
    path: str,
    access: AccessSettings | None = None,
    transcript: Transcript = FIXED,
    **kwargs: Any,
) -> httpx.Response:
    async def transcribe(source: Source, options: Options, report: Report = ignore_progress) -> Transcript:
        return transcript

    async def readiness() -> dict[str, bool]:
        return {}

    async def send() -> httpx.Response:
        app = create_app(
            transcribe, readiness, model="fixed", max_bytes=1 << 20, access=access or AccessSettings()
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **kwargs)

    return asyncio.run(send())


def post(**kwargs: Any) -> httpx.Response:
    return request("POST", "/predict", **kwargs)


@pytest.mark.parametrize(
    ("response_format", "content_type"),
    [
        ("text", "text/plain; charset=utf-8"),
        ("srt", "application/x-subrip; charset=utf-8"),
        ("vtt", "text/vtt; charset=utf-8"),
        ("tsv", "text/tab-separated-values; charset=utf-8"),
        ("rttm", "text/plain; charset=utf-8"),
    ],
)
def test_text_formats_have_their_type_and_keep_their_warnings(
    response_format: str, content_type: str
) -> None:
    """The body is the format alone; what JSON has as `warnings` is ASCII JSON in a header."""
    by_json = post(json={**URL, "response_format": response_format})
    by_form = post(files={"file": b"x"}, data={"response_format": response_format})
    for response in (by_json, by_form):
        assert response.status_code == 200
        assert response.headers["content-type"] == content_type
        assert response.content.decode() == written(response_format)
        assert json.loads(response.headers["x-warnings"]) == post(json=URL).json()["warnings"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/predict", {"word_timestamps": "true"}),
        ("/predict", {"response_format": "words"}),
        ("/predict", {"response_format": "srt"}),
        (OPENAI, {"model": "whisper-1", "response_format": "verbose_json"}),
        (OPENAI, {"model": "whisper-1", "response_format": "vtt"}),
        (OPENAI, {"model": "whisper-1", "response_format": "diarized_json"}),
        (OPENAI, {"model": "whisper-1", "response_format": "diarized_json", "stream": "true"}),
    ],
)
def test_answers_are_built_beside_the_event_loop(
    path: str, fields: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many thousand words take seconds, in which other requests go on; this includes writing JSON."""
    threads: set[int] = set()
    render = JSONResponse.render

    def watched_render(response: JSONResponse, content: Any) -> bytes:
        threads.add(threading.get_ident())
        return render(response, content)

    monkeypatch.setattr(JSONResponse, "render", watched_render)
    heard = WindowText("Hello.", "en", None, -0.1, 0.0, 1.0)
    segment = replace(FIXED.segments[0], source_text=heard, window=Window(0.0, 1.0))
    transcript = watched(replace(FIXED, segments=(segment,)), threads)
    response = request("POST", path, transcript=transcript, files={"file": b"x"}, data=fields)
    assert response.status_code == 200
    assert threads
    assert threading.get_ident() not in threads  # where the event loop is


def test_without_warnings_there_is_no_header() -> None:
    """The header X-Warnings is only there when something went less well."""
    fine = replace(FIXED, warnings=())
    response = post(json={**URL, "response_format": "srt"}, transcript=fine)
    assert (response.status_code, "x-warnings" in response.headers) == (200, False)


def test_words_is_one_list() -> None:
    """Every word with times, score and speaker; those of a segment that was not aligned have nulls."""
    response = post(json={**URL, "response_format": "words", "word_timestamps": True})
    assert response.headers["content-type"] == "application/json"
    assert response.json() == json.loads((GOLDEN / "fixed.words.json").read_text())


def test_words_of_two_who_speak_at_once_are_in_order() -> None:
    """By their starts, in our own format and in OpenAI's."""
    ours = post(json={**URL, "response_format": "words", "channels": "speakers"}, transcript=AT_ONCE)
    asked = {"timestamp_granularities[]": "word", "channels": "speakers", "model": "whisper-1"}
    form = {"response_format": "verbose_json", **asked}
    theirs = request("POST", OPENAI, data=form, files={"file": b"x"}, transcript=AT_ONCE)
    for answer in (ours, theirs):
        assert [word["word"] for word in answer.json()["words"]] == AT_ONCE_WORDS


def test_json_is_the_default() -> None:
    """It need not be asked for; its warnings are in the body and not in a header."""
    response = post(json={**URL, "response_format": "json"})
    assert response.json() == post(json=URL).json() == json.loads((GOLDEN / "fixed.json").read_text())
    assert "x-warnings" not in response.headers


@pytest.mark.parametrize("response_format", ["srt", "vtt"])
def test_subtitle_options_arrive_from_json_and_from_forms(response_format: str) -> None:
    """Width, count and highlighting change the subtitles."""
    options = {"max_line_width": 16, "max_line_count": 2, "highlight_words": True}
    by_json = post(json={**URL, "response_format": response_format, **options})
    by_form = post(files={"file": b"x"}, data={"response_format": response_format, **options})
    assert by_json.text == by_form.text == written(response_format, SubtitleLayout(16, 2, True))


@pytest.mark.parametrize(
    ("options", "param", "says"),
    [
        ({"response_format": "docx"}, "response_format", "'srt'"),
        ({"response_format": "rttm", "diarize": False}, "response_format", "diarize"),
        *(
            ({"response_format": "tsv", option: value}, option, "no speakers")
            for option, value in (("diarize", True), ("num_speakers", 2), ("split_at_speaker_change", True))
        ),
        (
            {"response_format": "rttm", "split_at_speaker_change": True},
            "split_at_speaker_change",
            "sentences",
        ),
        ({"response_format": "words", "task": "translate"}, "response_format", "translate"),
        *(
            ({"response_format": name, "word_timestamps": True}, "word_timestamps", name)
            for name in ("text", "srt", "vtt", "tsv", "rttm")
        ),
        *(
            ({"response_format": name, option: value}, option, f"{name} has no subtitle lines")
            for name in ("json", "text", "tsv", "rttm", "words")
            for option, value in (("max_line_width", 40), ("max_line_count", 2), ("highlight_words", True))
        ),
        ({"max_line_width": 40}, "max_line_width", "json has no subtitle lines"),
        ({"response_format": "srt", "max_line_count": 2}, "max_line_count", "needs max_line_width"),
        ({"response_format": "srt", "max_line_width": 0}, "max_line_width", "greater than or equal to 1"),
        (
            {"response_format": "srt", "max_line_width": 9, "max_line_count": 0},
            "max_line_count",
            "or equal to 1",
        ),
        ({"response_format": "vtt", "highlight_words": "very"}, "highlight_words", "boolean"),
        *(
            ({"response_format": "vtt", "task": "translate", option: value}, option, "translate")
            for option, value in (("max_line_width", 40), ("highlight_words", True))
        ),
    ],
)
def test_what_a_format_cannot_do_is_a_400_that_names_the_option(
    options: dict[str, Any], param: str, says: str
) -> None:
    """This holds in JSON and in forms; no option is accepted and ignored."""
    form = {name: str(value).lower() for name, value in options.items()}
    for response in (post(json={**URL, **options}), post(files={"file": b"x"}, data=form)):
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, param)
        assert says in error["message"]


def test_options_that_say_nothing_are_no_error() -> None:
    """A form that sends all its fields, with nothing chosen, gets what it would get without them."""
    off = {"max_line_width": None, "max_line_count": None, "highlight_words": False, "word_timestamps": False}
    for name in ("json", "text", "rttm", "vtt"):
        assert post(json={**URL, **off, "response_format": name}).status_code == 200


def test_the_documentation_lists_every_type() -> None:
    """OpenAPI names each type of answer, the shapes of both JSON ones, and the header."""
    document = request("GET", "/openapi.json").json()
    answer = document["paths"]["/predict"]["post"]["responses"]["200"]
    types = {entry.media_type.partition(";")[0] for entry in FORMATS.values() if entry.write}
    assert set(answer["content"]) == {"application/json"} | types
    shapes = {
        shape["$ref"].split("/")[-1] for shape in answer["content"]["application/json"]["schema"]["anyOf"]
    }
    assert shapes == {"PredictResponse", "WordsResponse"}
    assert set(document["components"]["schemas"]["WordsResponse"]["properties"]) == set(
        post(json={**URL, "response_format": "words", "languages": "de"}).json()
    )
    assert "X-Warnings" in answer["headers"]


def test_another_web_page_may_read_the_warnings() -> None:
    """Browsers show a page only the headers that the answer says it may see."""
    access = AccessSettings(cors_origins=("https://example.com",))
    response = request(
        "POST",
        "/predict",
        access,
        json={**URL, "response_format": "vtt"},
        headers={"Origin": "https://example.com"},
    )
    assert "X-Warnings" in response.headers["access-control-expose-headers"]
