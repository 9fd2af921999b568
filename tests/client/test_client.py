"""The client, sync and async, on the whole HTTP API: what it sends, gives, raises and repeats."""

import asyncio
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from clients import until
from played_service import KEY, Played, played
from transcripts import FIXED

from serve_app.client import AsyncClient, Client, Unreachable
from serve_app.errors import (
    InvalidRequest,
    Overloaded,
    RateLimited,
    TranscriptionError,
    Unauthorized,
    UnusableAudio,
)
from serve_app.http.responses import answer
from serve_app.options import Options

PROJECT = Path(__file__).parents[2]
TEXT = answer(FIXED, Options(response_format="text"))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Played]:
    with played(tmp_path / "state") as service:
        yield service


class Both:
    """Makes a call with both clients, the async one first, and gives both answers."""

    def __init__(self, url: str, **settings: Any) -> None:
        self.url, self.settings = url, settings

    def __call__(self, call: Callable[..., Any]) -> list[Any]:
        async def ask() -> Any:
            async with AsyncClient(self.url, **self.settings) as client:
                given = call(client)
                if hasattr(given, "__aiter__"):
                    return [each async for each in given]
                return await given

        with Client(self.url, **self.settings) as client:
            given = call(client)
            return [asyncio.run(ask()), [*given] if isinstance(given, Iterator) else given]


@pytest.fixture
def both(service: Played) -> Both:
    return Both(service.url)


def test_every_kind_of_audio_is_transcribed(service: Played, both: Both, tmp_path: Path) -> None:
    """Audio can be a path, a str, any kind of bytes, an open file, an unseekable file or a URL."""
    path = tmp_path / "talk.mp3"
    path.write_bytes(b"audio")

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    sources: list[Callable[[], Any]] = [lambda: path, lambda: str(path), lambda: b"audio"]
    sources += [lambda: bytearray(b"audio"), lambda: memoryview(b"audio")]
    for source in [*sources, lambda: io.BytesIO(b"audio"), lambda: Pipe(b"audio")]:
        service.heard.clear()
        for given in both(
            lambda client, s=source: client.transcribe(s(), language="de", word_timestamps=True)
        ):
            assert [each["text"] for each in given["model_output"]] == [each.text for each in FIXED.segments]
            assert "words" in given["model_output"][0]
        assert service.heard == [b"audio", b"audio"]
        assert service.asked[-1].language == "de"
    assert both(lambda client: client.transcribe(b"audio", response_format="text")) == [TEXT, TEXT]
    service.heard.clear()
    both(lambda client: client.transcribe("https://example.com/a.mp3", hotwords=None))
    assert service.heard == [b"https://example.com/a.mp3"] * 2


def test_lists_are_sent_in_forms(service: Played, both: Both) -> None:
    """Names of known speakers arrive in their order."""
    voices = ["data:audio/wav;base64,AAAA", "data:audio/wav;base64,BBBB"]
    both(
        lambda client: client.transcribe(
            b"audio", known_speaker_names=["Ann", "Bob"], known_speaker_references=voices
        )
    )
    assert service.asked[-1].known_speaker_names == ("Ann", "Bob")


def test_speakers_and_speech_alone(service: Played, both: Both) -> None:
    """Of a file and of a URL; RTTM is a text, and speech a list in milliseconds."""
    for audio in (b"audio", "https://example.com/a.mp3"):
        service.heard.clear()
        first, second = both(lambda client, a=audio: client.diarize(a, num_speakers=3))
        assert first == {**second, "timings": first["timings"]}
        assert [turn["speaker"] for turn in first["segments"]] == [turn.speaker for turn in FIXED.turns]
        assert service.asked[-1] == Options(num_speakers=3)
        for speech in both(lambda client, a=audio: client.detect_speech(a, vad_onset=0.75)):
            assert service.asked[-1] == Options(vad_onset=0.75)
            assert speech == [{"start": 500, "end": 2000}, {"start": 3000, "end": 4000}]
        assert service.heard == [audio if isinstance(audio, bytes) else audio.encode()] * 4
    for rttm in both(lambda client: client.diarize(b"audio", response_format="rttm")):
        assert rttm.startswith("SPEAKER audio 1 0.300")
    with pytest.raises(InvalidRequest, match="language"):
        both(lambda client: client.diarize(b"audio", language="de"))


def test_text_comes_while_it_becomes_final(service: Played) -> None:
    """The first sentence is there before the transcription has ended."""
    service.opened.clear()
    with Client(service.url) as client:
        pieces = client.stream(b"audio", language="en")
        assert next(pieces) == FIXED.segments[0].text
        service.opened.set()
        assert "late" in "".join(pieces)


def test_text_comes_while_it_becomes_final_asynchronously(service: Played) -> None:
    """The async client gives the first sentence as early."""
    service.opened.clear()

    async def story() -> None:
        async with AsyncClient(service.url) as client:
            pieces = client.stream(b"audio")
            assert await anext(pieces) == FIXED.segments[0].text
            service.opened.set()
            assert "late" in "".join([piece async for piece in pieces])

    asyncio.run(story())


def test_a_url_is_not_streamed(both: Both) -> None:
    """The error names the calls that take a URL."""
    with pytest.raises(InvalidRequest, match="transcribe"):
        both(lambda client: client.stream("https://example.com/a.mp3"))


def test_an_error_in_a_stream(service: Played, both: Both) -> None:
    """An error after the answer has begun is typed too."""
    service.failures[b"audio"] = UnusableAudio("This is no audio.")
    with pytest.raises(UnusableAudio, match="This is no audio"):
        both(lambda client: client.stream(b"audio"))


def test_a_job_from_its_beginning_to_its_end(service: Played, both: Both) -> None:
    """A job is submitted, listed, followed, fetched in two formats and deleted."""
    submitted = both(lambda client: client.jobs.submit(b"audio", language="en", priority=1))
    ids = {job["id"] for job in submitted}
    rendering = {"response_format": "text", "word_timestamps": None}
    assert len(ids) == 2
    for job in submitted:
        for states in both(lambda client, job=job: client.jobs.events(job["id"])):
            assert states[-1]["status"] == "succeeded"
        ended, again = both(lambda client, job=job: client.jobs.wait(job["id"], timeout_s=60))
        assert ended == again == both(lambda client, job=job: client.jobs.get(job["id"]))[0]
        assert ended["priority"] == 1
        for given in both(lambda client, job=job: client.jobs.result(job["id"])):
            assert given["model"] == "fixed"
        texts = both(lambda client, job=job: client.jobs.result(job["id"], **rendering))
        assert texts == [TEXT, TEXT]
    pages = both(lambda client: client.jobs.list(status=["succeeded"], limit=1))
    assert [len(page["jobs"]) for page in pages] == [1, 1]
    after = pages[0]["next"]
    (other, _) = both(lambda client: client.jobs.list(after=after))
    assert {other["jobs"][0]["id"], pages[0]["jobs"][0]["id"]} == ids
    with Client(service.url) as client:
        for job_id in ids:
            client.jobs.delete(job_id)
    with pytest.raises(InvalidRequest) as caught:
        both(lambda client: client.jobs.get(min(ids)))
    assert (caught.value.status, caught.value.code) == (404, "job_not_found")


def test_a_job_is_canceled(service: Played, both: Both) -> None:
    """Asking for its result is an error that says so."""
    service.opened.clear()
    for job in both(lambda client: client.jobs.submit(b"audio")):
        both(lambda client, job=job: client.jobs.cancel(job["id"]))
        assert both(lambda client, job=job: client.jobs.wait(job["id"]))[0]["status"] == "canceled"
        with pytest.raises(TranscriptionError) as caught:
            both(lambda client, job=job: client.jobs.result(job["id"]))
        assert (caught.value.status, caught.value.code) == (409, "job_canceled")


def test_waiting_has_an_end(service: Played, both: Both) -> None:
    """The job goes on after TimeoutError."""
    service.opened.clear()
    for job in both(lambda client: client.jobs.submit(b"audio")):
        with pytest.raises(TimeoutError, match="goes on"):
            both(lambda client, job=job: client.jobs.wait(job["id"], timeout_s=0.2))
    service.opened.set()
    assert {job["status"] for job in both(lambda client, job=job: client.jobs.wait(job["id"]))} == {
        "succeeded"
    }


def test_waiting_ends_in_time_where_no_service_answers() -> None:
    """TimeoutError comes after `timeout_s`, not after `retry_for_s`."""
    begun_s = time.monotonic()
    with pytest.raises(TimeoutError, match="goes on"), Client("http://127.0.0.1:1") as client:
        client.jobs.wait("1", timeout_s=0.3)

    async def story() -> None:
        async with AsyncClient("http://127.0.0.1:1") as client:
            await client.jobs.wait("1", timeout_s=0.3)

    with pytest.raises(TimeoutError, match="goes on"):
        asyncio.run(story())
    assert time.monotonic() - begun_s < 10


def test_a_submission_whose_answer_was_lost_makes_one_job(service: Played) -> None:
    """Each attempt has the same idempotency key."""

    class Losing(httpx.HTTPTransport):
        lost = 0

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answered = super().handle_request(request)
            if not self.lost:
                self.lost += 1
                answered.read()
                raise httpx.ReadError("the answer was lost", request=request)
            return answered

    with Client(service.url, transport=Losing()) as client:
        job = client.jobs.submit(io.BytesIO(b"audio"))
        assert [each["id"] for each in client.jobs.list()["jobs"]] == [job["id"]]
    assert service.paths.count("POST /v1/jobs") == 2


def test_events_go_on_after_a_broken_connection(service: Played) -> None:
    """They go on after the last event that arrived: no change is told twice."""

    class Breaking(httpx.HTTPTransport):
        breaks = 1

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            answered = super().handle_request(request)
            if request.url.path.endswith("/events") and self.breaks:
                self.breaks -= 1
                stream = answered.stream
                answered.stream = Cut(stream, request)
            return answered

    class Cut(httpx.SyncByteStream):
        def __init__(self, stream: Any, request: httpx.Request) -> None:
            self.stream, self.request = stream, request

        def __iter__(self) -> Iterator[bytes]:
            yield next(iter(self.stream))
            raise httpx.ReadError("cut", request=self.request)

    service.opened.clear()
    with Client(service.url, transport=Breaking()) as client:
        job = client.jobs.submit(b"audio")
        until(lambda: client.jobs.get(job["id"])["progress"])
        states = client.jobs.events(job["id"])
        first = next(states)
        service.opened.set()
        rest = [*states]
    assert first["status"] == "running"
    assert rest[-1]["status"] == "succeeded"
    assert first not in rest


class Answering(httpx.MockTransport):
    """Gives these answers one after the other, to both clients."""

    def __init__(self, *answers: tuple[int, dict[str, str], str]) -> None:
        self.left = list(answers)

        def handle(request: httpx.Request) -> httpx.Response:
            status, headers, content = self.left.pop(0)
            return httpx.Response(status, headers=headers, text=content)

        super().__init__(handle)


def error(code: str, kind: str = "server_error") -> str:
    return json.dumps({"error": {"message": "A sentence.", "type": kind, "param": "file", "code": code}})


OK = (200, {"Content-Type": "application/json"}, '{"id": "1"}')


@pytest.mark.parametrize(
    ("status", "headers", "content"),
    [
        (503, {"Retry-After": "0"}, error("overloaded")),
        (429, {"Retry-After": "0"}, error("too_many_requests")),
        (502, {}, "<html>bad gateway</html>"),
    ],
)
def test_what_passes_is_tried_again(
    status: int, headers: dict[str, str], content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both clients retry after a pause, and call `on_retry`."""
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("asyncio.sleep", pause)
    refused = (status, headers, content)
    told: list[TranscriptionError] = []
    answering = Answering(refused, refused, OK, refused, OK)
    answers = Both("http://x.example", transport=answering, on_retry=told.append)
    assert answers(lambda client: client.jobs.get("1")) == [{"id": "1"}, {"id": "1"}]
    assert len(pauses) == len(told) == 3
    assert {each.status for each in told} == {status}


def test_retry_after_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause longer than `retry_for_s` makes the call fail at once, with the pause in the error."""
    pauses: list[float] = []
    monkeypatch.setattr("time.sleep", pauses.append)
    full = (503, {"Retry-After": "7"}, error("overloaded"))
    with Client("http://x.example", transport=Answering(full, OK)) as client:
        client.jobs.get("1")
    assert pauses == [7.0]
    with (
        Client("http://x.example", transport=Answering(full), retry_for_s=5) as client,
        pytest.raises(Overloaded) as caught,
    ):
        client.jobs.get("1")
    assert (caught.value.retry_after_s, caught.value.status, pauses) == (7, 503, [7.0])


def stranger(answer: str) -> str:
    """The message about an answer that does not come from this service."""
    return f"http://x.example/predict answered {answer}; this does not seem to be a whisperx service."


@pytest.mark.parametrize(
    ("status", "content", "kind", "code", "message"),
    [
        (
            401,
            error("invalid_api_key", "authentication_error"),
            Unauthorized,
            "invalid_api_key",
            "A sentence.",
        ),
        (422, error("empty_audio", "invalid_request_error"), UnusableAudio, "empty_audio", "A sentence."),
        (
            400,
            error("invalid_request", "invalid_request_error"),
            InvalidRequest,
            "invalid_request",
            "A sentence.",
        ),
        (404, error("jobs_off", "invalid_request_error"), InvalidRequest, "jobs_off", "A sentence."),
        (500, error("internal_error"), TranscriptionError, "internal_error", "A sentence."),
        (418, "a teapot", InvalidRequest, "invalid_request", stranger("418 I'm a teapot")),
        (301, "moved", InvalidRequest, "invalid_request", stranger("301 Moved Permanently")),
    ],
)
def test_errors_are_typed(status: int, content: str, kind: type[Exception], code: str, message: str) -> None:
    """Errors have the classes of a deployment handle's and the status of the answer; none here is retried."""
    with (
        Client("http://x.example", transport=Answering((status, {}, content))) as client,
        pytest.raises(kind) as caught,
    ):
        client.transcribe(b"audio")
    assert isinstance(caught.value, TranscriptionError)
    assert (caught.value.status, caught.value.code, caught.value.message) == (status, code, message)


@pytest.mark.parametrize("media_type", ["text/html", "application/json"])
def test_a_success_of_something_else(media_type: str) -> None:
    """Another web server's page is not taken for a transcript, a job or events; the call is not retried."""
    page = (200, {"Content-Type": media_type}, "<html>")
    calls: list[Callable[[Any], Any]] = [
        lambda client: client.transcribe(b"audio"),
        lambda client: client.jobs.get("1"),
        lambda client: client.jobs.wait("1"),
        lambda client: client.stream(b"audio"),
    ]
    for call in calls:
        with pytest.raises(InvalidRequest, match="200 OK; this does not seem to be a whisperx service"):
            Both("http://x.example", transport=Answering(page))(call)
        with (
            pytest.raises(InvalidRequest, match="does not seem"),
            Client("http://x.example", transport=Answering(page)) as client,
        ):
            list(call(client))


def test_a_service_that_is_not_there() -> None:
    """The error is one sentence, after `retry_for_s`."""
    answers = Both("http://127.0.0.1:1", retry_for_s=0.3)
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1/predict does not answer"):
        answers(lambda client: client.transcribe(b"audio"))


def test_keys_and_urls_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment counts where the program gives no URL or key."""
    with played(tmp_path / "state", with_keys=True) as service:
        monkeypatch.setenv("WHISPERX_URL", service.url)
        with pytest.raises(Unauthorized), Client() as client:
            client.jobs.list()
        with Client(api_key=KEY) as client:
            assert client.jobs.list() == {"jobs": [], "next": None}
        monkeypatch.setenv("WHISPERX_API_KEY", KEY)
        with Client() as client:
            assert client.jobs.list() == {"jobs": [], "next": None}


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://ann:secret@127.0.0.1/x",
        "http://",
        "http://[::1",
        "http://ann:secret@[::1",
        "http://127.0.0.1:99999",
        "http://127.0.0.1/?token=secret",
    ],
)
def test_a_wrong_base_url(url: str) -> None:
    """A wrong URL is refused when the client is made, without showing secrets in it."""
    with pytest.raises(InvalidRequest, match=r"base_url: .* http://127\.0\.0\.1:8000") as caught:
        Client(url)
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("key", ["wx_se\ncret", "wx_sécret"])
def test_a_key_that_cannot_be_one(key: str) -> None:
    """A key with impossible characters is refused at once and not shown."""
    with pytest.raises(InvalidRequest, match="api_key: ") as caught:
        Client(api_key=key)
    assert "cret" not in caught.value.message


def test_a_key_with_a_line_end(tmp_path: Path) -> None:
    """Spaces and line ends around a key are dropped."""
    with (
        played(tmp_path / "state", with_keys=True) as service,
        Client(service.url, f" {KEY}\n") as client,
    ):
        assert client.jobs.list()["jobs"] == []


def test_a_key_and_a_user_in_the_url() -> None:
    """Only one of them can be sent, so both are refused; a user alone works, for example for a proxy."""
    with pytest.raises(InvalidRequest, match=r"http://127\.0\.0\.1 has a user") as caught:
        Client("http://ann:secret@127.0.0.1", KEY)
    assert "secret" not in caught.value.message
    Client("http://ann:secret@127.0.0.1").close()


def test_a_proxy_is_not_asked_for_this_machine(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would look for a loopback address on its own machine."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert both(lambda client: client.jobs.list())[0]["jobs"] == []
    elsewhere = Both("http://x.example", retry_for_s=0)
    with pytest.raises(Unreachable):
        elsewhere(lambda client: client.jobs.list())


def test_rate_limits_carry_their_pause() -> None:
    """A caller that does not retry learns how long to wait."""
    limited = (429, {"Retry-After": "30"}, error("too_many_requests", "rate_limit_error"))
    with (
        Client("http://x.example", transport=Answering(limited), retry_for_s=0) as client,
        pytest.raises(RateLimited) as caught,
    ):
        client.jobs.get("1")
    assert caught.value.retry_after_s == 30


def test_importing_the_client_is_cheap(figure: Callable[[str], None]) -> None:
    """The import loads neither Ray nor torch nor any other package of the server."""
    code = """if True:
        import json, sys, time
        def rss_kb():
            return int(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0])
        before, before_kb, begun_s = set(sys.modules), rss_kb(), time.perf_counter()
        import serve_app.client
        took_s = time.perf_counter() - begun_s
        new = {name.partition(".")[0] for name in set(sys.modules) - before}
        print(json.dumps([took_s, rss_kb() - before_kb, sorted(new - set(sys.stdlib_module_names))]))
    """
    python = [sys.executable, "-c", code]
    done = subprocess.run(python, capture_output=True, text=True, check=True, cwd=PROJECT)
    took_s, more_kb, packages = json.loads(done.stdout)
    of_httpx = {"anyio", "certifi", "click", "h11", "httpcore", "httpx", "idna", "pygments", "rich"}
    assert set(packages) <= of_httpx | {"serve_app", "tenacity"}
    figure(f"import serve_app.client: {took_s * 1000:.0f} ms, {more_kb / 1024:.0f} MB")
