"""The HTTP API with a fake pipeline: options, answers, errors."""

import asyncio
import re
from typing import Any

import httpx
import pytest

from serve_app.audio import Source
from serve_app.errors import (
    AudioTooLong,
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    SourceUnavailable,
    TranscriptionError,
)
from serve_app.http.app import create_app
from serve_app.options import Options
from serve_app.transcript import Segment, StageWarning, Transcript, Word


class Server:
    """The application with a fake pipeline that records what it was given."""

    def __init__(self, error: Exception | None = None, ready: bool = True) -> None:
        self.error = error
        self.got: list[tuple[Source, Options]] = []
        self.stages = {"asr": ready, "speech": True}
        self.app = create_app(self.transcribe, self.readiness, model="none", max_bytes=1 << 20)

    async def transcribe(self, source: Source, options: Options, report: object = None) -> Transcript:
        if self.error is not None:
            raise self.error
        self.got.append((source, options))
        words = (Word("hello", 0.5, 0.9, 0.8, "SPEAKER_00"), Word("2", None, None, None, "SPEAKER_00"))
        return Transcript(
            (Segment(0.5, 1.0, "hello 2", words, "SPEAKER_00"), Segment(2.0, 3.0, "who")),
            "en",
            3.5,
            "fake",
            warnings=(StageWarning("alignment", "alignment_failed", "Why."),),
            timings={"total": 0.1234},
        )

    async def readiness(self) -> dict[str, bool]:
        return self.stages

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
                return await client.request(method, path, **kwargs)

        return asyncio.run(send())

    def post(self, **kwargs: Any) -> httpx.Response:
        return self.request("POST", "/predict", **kwargs)


JSON = {"content-type": "application/json"}
TWO_LANGUAGES = [("file", b"x"), ("language", (None, "de")), ("language", (None, "en"))]
URL = {"audio_file": "https://example.com/x.mp3"}


def test_the_truss_answer() -> None:
    """A URL in JSON gives model_output whose four keys are always there, speaker null when unknown."""
    server = Server()
    response = server.post(json=URL)
    assert response.status_code == 200
    assert response.json() == {
        "model_output": [
            {"start": 0.5, "end": 1.0, "text": "hello 2", "speaker": "SPEAKER_00"},
            {"start": 2.0, "end": 3.0, "text": "who", "speaker": None},
        ],
        "language": "en",
        "duration": 3.5,
        "model": "fake",
        "warnings": [{"stage": "alignment", "code": "alignment_failed", "message": "Why."}],
        "timings": {"total": 0.123},
    }
    assert server.got == [(Source(url=URL["audio_file"]), Options())]


def test_word_timestamps_add_words() -> None:
    """Each segment then has words; a word that could not be aligned has null times."""
    segments = Server().post(json={**URL, "word_timestamps": True}).json()["model_output"]
    assert segments[0]["words"] == [
        {"word": "hello", "start": 0.5, "end": 0.9, "score": 0.8, "speaker": "SPEAKER_00"},
        {"word": "2", "start": None, "end": None, "score": None, "speaker": "SPEAKER_00"},
    ]
    assert segments[1]["words"] == []


def test_the_other_route_is_the_same() -> None:
    """/v1/models/whisperx:predict answers as /predict does."""
    server = Server()
    assert (
        server.request("POST", "/v1/models/whisperx:predict", json=URL).json() == server.post(json=URL).json()
    )


def test_options_arrive_from_json_and_from_forms() -> None:
    """The names are the same everywhere; form text becomes numbers and booleans."""
    server = Server()
    wanted = Options(language="en", diarize=True, min_speakers=1, max_speakers=3, word_timestamps=True)
    options = {
        "language": "EN",
        "diarize": True,
        "min_speakers": 1,
        "max_speakers": 3,
        "word_timestamps": True,
    }
    server.post(json={**URL, **options})
    server.post(files={"file": b"x"}, data={key: str(value).lower() for key, value in options.items()})
    assert [got for _, got in server.got] == [wanted, wanted]


def test_an_empty_form_field_is_as_good_as_none() -> None:
    """A form sends its empty inputs too."""
    server = Server()
    server.post(files={"file": b"x"}, data={"language": "", "num_speakers": "", "diarize": ""})
    assert server.got[0][1] == Options()


@pytest.mark.parametrize("name", ["de-AT", "German", "Deutsch", " deu "])
def test_a_language_by_any_name_arrives_as_whisper_calls_it(name: str) -> None:
    """In a form and in JSON."""
    server = Server()
    server.post(files={"file": b"x"}, data={"language": name})
    server.post(json={**URL, "language": name})
    assert [options.language for _, options in server.got] == ["de", "de"]


def test_fetch_headers_go_with_the_url() -> None:
    """The `headers` of the body reach the fetch."""
    server = Server()
    server.post(json={**URL, "headers": {"Authorization": "Bearer x"}})
    assert server.got[0][0].headers == {"Authorization": "Bearer x"}


def test_prompts_and_temperature_arrive_as_they_were_meant() -> None:
    """Forms and JSON agree; a blank prompt is none, and a temperature is in hundredths."""
    server = Server()
    server.post(files={"file": b"x"}, data={"initial_prompt": "Kant, Hegel", "temperature": "0.2"})
    server.post(json={**URL, "initial_prompt": " ", "hotwords": "", "temperature": 0.333})
    form, body = (options for _, options in server.got)
    assert (form.initial_prompt, form.hotwords, form.temperature) == ("Kant, Hegel", None, 0.2)
    assert (body.initial_prompt, body.hotwords, body.temperature) == (None, None, 0.33)


@pytest.mark.parametrize(
    ("request_arguments", "param", "says"),
    [
        ({"json": {}}, None, "audio_file"),
        ({"json": {**URL, "audio_b64": "AA=="}}, None, "either"),
        ({"json": {**URL, "beam": 3}}, "beam", "unknown option"),
        ({"json": {**URL, "language": "klingon"}}, "language", "language code"),
        ({"json": {**URL, "num_speakers": 0}}, "num_speakers", "greater than or equal to 1"),
        ({"json": {**URL, "num_speakers": 2, "max_speakers": 3}}, "num_speakers", "combined"),
        ({"json": {**URL, "min_speakers": 4, "max_speakers": 3}}, "min_speakers", "above"),
        ({"json": {**URL, "diarize": False, "num_speakers": 2}}, "num_speakers", "diarize"),
        ({"json": {**URL, "task": "translate", "word_timestamps": True}}, "word_timestamps", "translate"),
        ({"json": {**URL, "temperature": 1.1}}, "temperature", "less than or equal to 1"),
        ({"files": {"file": b"x"}, "data": {"temperature": "nan"}}, "temperature", "finite"),
        ({"json": {**URL, "initial_prompt": "a" * 4001}}, "initial_prompt", "4000 characters"),
        ({"json": {**URL, "hotwords": ["Kant"]}}, "hotwords", "string"),
        ({"json": {"audio_b64": "not base64!"}}, "audio_b64", "base64"),
        ({"json": {"audio_b64": "AA==", "headers": {"a": "b"}}}, None, "headers"),
        ({"json": [1]}, None, "JSON object"),
        ({"content": b"[" * 100_000, "headers": JSON}, None, "not valid JSON"),
        ({"files": TWO_LANGUAGES}, "language", "once"),
        ({"content": b"{", "headers": JSON}, None, "not valid JSON"),
        ({"content": b"RIFF", "headers": {"content-type": "audio/wav"}}, None, "multipart/form-data"),
        ({"data": {"language": "en"}, "files": {"audio": b"x"}}, "file", "file part"),
        ({"files": {"file": b"x"}, "data": {"nonsense": "1"}}, "nonsense", "unknown option"),
    ],
)
def test_a_wrong_request_is_a_400_that_names_the_field(
    request_arguments: dict[str, Any], param: str | None, says: str
) -> None:
    """No option is accepted and ignored; the message says what to do."""
    server = Server()
    response = server.post(**request_arguments)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert says in error["message"]
    assert server.got == []


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("language=de", "language"),
        ("language=en", "language"),
        ("audio_file=https://example.com/x.mp3", "audio_file"),
        ("nonsense=1", "nonsense"),
        ("nonsense", "nonsense"),
        ("api-version=2024-06-01", "api-version"),
    ],
)
@pytest.mark.parametrize("path", ["/predict", "/v1/models/whisperx:predict", "/v1/audio/transcriptions"])
def test_an_option_in_the_url_is_refused(path: str, query: str, param: str) -> None:
    """It is named, whether the body has another value for it, the same, or none."""
    server = Server()
    form = {"files": {"file": b"x"}, "data": {"language": "en"}}
    for body in (form, {"json": {**URL, "language": "en"}}, {}):
        answer = server.request("POST", f"{path}?{query}", **body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert server.got == []


@pytest.mark.parametrize("header", ["Language", "response-format", "num_speakers", "Audio-File"])
def test_an_option_in_a_header_is_refused(header: str) -> None:
    """It is named, as it would have no effect."""
    server = Server()
    answer = server.post(json=URL, headers={header: "en"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, header.lower().replace("-", "_"))
    assert header.lower() in answer.json()["error"]["message"]
    assert server.got == []


@pytest.mark.parametrize("header", ["prompt", "model", "stream", "Timestamp-Granularities", "num-speakers"])
def test_openais_options_in_a_header_are_refused_there(header: str) -> None:
    """And only there: /predict has no such option, so the header is not meant for it."""
    server = Server()
    answer = server.request("POST", "/v1/audio/transcriptions", files={"file": b"x"}, headers={header: "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, header.lower().replace("-", "_"))
    assert server.post(json=URL, headers={"stream": "x"}).status_code == 200


@pytest.mark.parametrize(
    "header",
    ["Accept", "Accept-Language", "Prefer", "Range", "Idempotency-Key", "X-Language", "X-Stainless-Lang"],
)
def test_other_headers_change_nothing(header: str) -> None:
    """Clients and proxies add headers that are not meant for this service."""
    server = Server()
    assert server.post(json=URL, headers={header: "text/vtt"}).status_code == 200
    assert server.got == [(Source(url=URL["audio_file"]), Options())]


def test_pages_take_any_query() -> None:
    """Load balancers add parameters to get past caches, and clients some to the list of models."""
    server = Server()
    for path in ("/healthz", "/readyz", "/docs", "/openapi.json", "/v1/models/whisperx", "/v1/models"):
        assert server.request("GET", f"{path}?limit=1").status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (InvalidRequest("No.", "language", "x"), 400, "x"),
        (AudioTooLong("Too long."), 422, "audio_too_long"),
        (SourceUnavailable("Gone.", "audio_file", "http_status"), 424, "http_status"),
        (Overloaded("Later."), 503, "overloaded"),
        (DeadlineExceeded("Slow."), 504, "deadline_exceeded"),
        (TranscriptionError("Broken."), 500, "internal_error"),
    ],
)
def test_errors_keep_their_status_and_shape(error: TranscriptionError, status: int, code: str) -> None:
    """Every error of ours is {"error": {message, type, param, code}}; overload says when to come back."""
    response = Server(error).post(json=URL)
    assert response.status_code == status
    assert response.json() == {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": code}
    }
    assert ("retry-after" in response.headers) == (status == 503)


def test_an_unexpected_error_tells_nothing_of_the_inside() -> None:
    """A bug is a 500 of the usual shape without the exception's text."""
    response = Server(RuntimeError("/secret/path")).post(json=URL)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text


@pytest.mark.parametrize("error", [None, Overloaded("Later."), RuntimeError("a bug")])
@pytest.mark.parametrize(
    ("sent", "kept"),
    [("of/the client: 7", True), ("x" * 129, False), ("ä", False), ("", False), (None, False)],
)
def test_every_answer_has_a_request_id(error: Exception | None, sent: str | None, kept: bool) -> None:
    """It is the client's, if that is printable ASCII of up to 128 characters, else a new one."""
    headers = {} if sent is None else {"X-Request-ID": sent.encode()}
    (found,) = Server(error).post(json=URL, headers=headers).headers.get_list("x-request-id")
    assert found == sent if kept else re.fullmatch("[0-9a-f]{32}", found)


def test_unknown_routes_and_methods_have_the_same_error_shape() -> None:
    """A 404 and a 405 are {"error": ...} too."""
    server = Server()
    assert server.request("GET", "/nothing").json()["error"]["code"] == "http_404"
    assert server.request("GET", "/predict").json()["error"]["code"] == "http_405"


STATIC = "/static-offline-docs/swagger-ui.css"
PAGES = ("/", "/docs", "/redoc", "/openapi.json", "/docs/oauth2-redirect", STATIC, "/healthz", "/readyz")


@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize(
    "path", [*PAGES, "/v1/models", "/v1/models/whisper-1", "/v1/models/whisperx", "/v1/models/x", "/nothing"]
)
def test_head_is_get_without_the_body(path: str, ready: bool) -> None:
    """Load balancers and link checkers ask for it; errors have no body either."""
    server = Server(ready=ready)
    get, head = (server.request(method, path, headers={"X-Request-ID": "7"}) for method in ("GET", "HEAD"))
    assert (head.status_code, head.content) == (get.status_code, b"")
    for answer in (get, head):
        answer.headers.pop("content-security-policy", None)  # the page's nonce is another one each time
    assert head.headers == get.headers
    assert int(head.headers["content-length"]) == len(get.content)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/predict", "OPTIONS, POST"),
        ("/v1/models/whisperx:predict", "OPTIONS, POST"),
        ("/v1/audio/translations", "OPTIONS, POST"),
        ("/openai/deployments/whisper/audio/transcriptions", "OPTIONS, POST"),
        ("/inference", "OPTIONS, POST"),
        ("/v1/models/whisper-1", "GET, HEAD, OPTIONS"),
        *((path, "GET, HEAD, OPTIONS") for path in PAGES),
    ],
)
def test_what_a_path_can_do_is_in_allow(path: str, allowed: str) -> None:
    """Another method is a 405 that names those that are possible; OPTIONS asks for them."""
    server = Server()
    for method in ("DELETE", "PUT", "OPTIONS"):
        answer = server.request(method, path)
        assert answer.status_code == (204 if method == "OPTIONS" else 405)
        assert answer.headers["allow"] == allowed
        assert method == "OPTIONS" or allowed in answer.json()["error"]["message"]
    assert server.request("HEAD", path).status_code == server.request("GET", path).status_code


def test_health_and_readiness() -> None:
    """/healthz needs no model; /readyz is 503 until every stage has its own."""
    assert Server(ready=False).request("GET", "/healthz").status_code == 200
    assert Server().request("GET", "/readyz").status_code == 200
    late = Server(ready=False).request("GET", "/readyz")
    assert (late.status_code, late.json()["stages"]) == (503, {"asr": False, "speech": True})


def swaggers_value(field: dict[str, Any]) -> str:
    """What Swagger UI 5.32 sends for a field that its user leaves alone."""
    field = {**field.get("anyOf", [{}])[0], **field}
    samples = {"string": "string", "boolean": True, "integer": field.get("minimum", 0), "array": []}
    samples["number"] = field.get("maximum", 0)
    value = (field.get("examples") or [field.get("default")])[0]
    value = samples[field["type"]] if value is None else value
    return (
        ",".join(value) if isinstance(value, list) else str(value).lower() if value is False else str(value)
    )


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        ("/predict", {}),
        ("/inference", {}),
        *((f"/v1/audio/{name}", {"model": "whisper-1"}) for name in ("transcriptions", "translations")),
    ],
)
def test_try_it_out_works_with_a_file_and_nothing_else(path: str, needed: dict[str, str]) -> None:
    """What the documentation's page sends for the other fields asks for what their absence does."""
    server = Server()
    content = server.request("GET", "/openapi.json").json()["paths"][path]["post"]["requestBody"]["content"]
    fields = dict(content["multipart/form-data"]["schema"]["properties"])
    assert fields.pop("file")["format"] == "binary"
    lists = [name for name, field in fields.items() if field.get("type") == "array"]
    encoding = content["multipart/form-data"]["encoding"]
    assert encoding == {name: {"style": "form", "explode": True} for name in lists}  # else "Ada,Bob" is sent
    sent = {name: swaggers_value(field) for name, field in fields.items()}
    for data in (sent, {name: value for name, value in sent.items() if value}, needed):
        answer = server.request("POST", path, files={"file": b"x"}, data=data)
        assert answer.status_code == 200, answer.text
    first, second, third = (options for _, options in server.got)
    assert first == second == third


def test_try_it_out_works_with_a_url() -> None:
    """The page shows the example of the first type of body."""
    server = Server()
    (first, *_) = (
        server.request("GET", "/openapi.json")
        .json()["paths"]["/predict"]["post"]["requestBody"]["content"]
        .items()
    )
    assert first[0] == "application/json"
    assert server.post(json=first[1]["example"]).status_code == 200
    assert server.got == [(Source(url="https://example.com/talk.mp3"), Options())]


def test_the_documentation_lists_every_option() -> None:
    """/docs needs no other host, and the OpenAPI document names each option for JSON and for uploads."""
    server = Server()
    page = server.request("GET", "/docs")
    assert page.status_code == 200
    sources = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sources
    assert all(server.request("GET", source).status_code == 200 for source in sources)
    document = server.request("GET", "/openapi.json").json()
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(Options.model_fields) < set(content["application/json"]["schema"]["properties"])
    assert set(Options.model_fields) | {"file"} == set(content["multipart/form-data"]["schema"]["properties"])
