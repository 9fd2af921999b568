"""The Ingress in front of a graph in this process: what it refuses, and what it ends with a request."""

import asyncio
import hashlib
import inspect
import io
import math
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import replace
from types import MappingProxyType, SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import ray
from fakes import References, recording
from ray import serve
from ray.exceptions import ObjectStoreFullError, OutOfDiskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError
from transcripts import FIXED, watched

from serve_app import deployments
from serve_app.audio import AudioInfo, RawAudio, Selection
from serve_app.deployments import ingress as ingress_module
from serve_app.deployments.calls import audio_ref as loading_module
from serve_app.deployments.calls import handles as handles_module
from serve_app.errors import InvalidRequest, Overloaded
from serve_app.http.without_text import WithoutText
from serve_app.request.calls import DetectCall, DiarizeCall
from serve_app.request.without_text import DetectedSpeech
from serve_app.settings import IntakeSettings, Settings
from serve_app.settings.access import AccessSettings, ApiKey
from serve_app.transcript import Diarization, SpeakerBounds, Speech, Transcript, Turn, Voices, Window

FILE_S = 2.0
PAGE = "https://page.example"
FORM = {"content-type": "multipart/form-data; boundary=b"}


class Reference:
    """To a result: whoever stops waiting for it leaves it alone."""

    def __init__(self, result: "asyncio.Future[Any]") -> None:
        self._result = result

    def __await__(self) -> Iterator[Any]:
        return asyncio.shield(self._result).__await__()


class Call:
    """What a handle gives: of one answer or of many."""

    def __init__(self, result: Any) -> None:
        self._result: Any = asyncio.ensure_future(result) if inspect.isawaitable(result) else result

    def __await__(self) -> Iterator[Any]:
        return iter(self._result.__await__())

    def __aiter__(self) -> Any:
        return self._result

    async def _to_object_ref(self) -> Reference:
        return Reference(self._result)

    async def _to_object_ref_gen(self) -> References:
        return References(self._references())

    async def _references(self) -> AsyncGenerator[Reference, None]:
        async for item in self._result:
            result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            result.set_result(item)
            yield Reference(result)

    def cancel(self) -> None:
        if isinstance(self._result, asyncio.Future):
            self._result.cancel()


class Graph:
    """Every deployment in one object; all files are two silent seconds, or said to be longer."""

    def __init__(self, file_s: float = FILE_S) -> None:
        self.file_s = file_s
        self.loading = 0
        self.loaded = asyncio.Event()  # loading takes until then
        self.loaded.set()
        self.worked = asyncio.Event()  # what comes after it takes until then
        self.worked.set()
        self.heard = asyncio.Event()  # the length of a file is known
        self.abandoned = asyncio.Event()
        self.bounds: list[SpeakerBounds] = []
        self.questions = 0
        self.listening = asyncio.Event()  # answers no question about readiness before
        self.listening.set()
        self.broken = False
        self.replicas = 1
        self.asked = asyncio.Event()
        self.news = asyncio.Condition()

    async def load(self, url: str | None, headers: dict[str, str], chunks: list[Any], *_: Any) -> Any:
        async with self.news:
            self.loading += 1
            self.news.notify_all()
        try:
            await self.loaded.wait()
        except asyncio.CancelledError:
            self.abandoned.set()
            raise
        yield AudioInfo(0.0, self.file_s, is_last=True)
        yield recording(0, 0)

    async def detect(self, call: DetectCall) -> Speech:
        await call.audio.samples()
        self.heard.set()
        await self.worked.wait()
        return Speech((), None, self.file_s)

    async def diarize(self, call: DiarizeCall) -> Diarization:
        self.bounds.append(call.bounds)
        turns = (Turn(0.5, 1.5, "SPEAKER_00"),)
        return Diarization(turns, turns, Voices("fake", 2, {"SPEAKER_00": (1.0, 2.0)}))

    async def ready(self) -> bool:
        self.questions += 1
        self.asked.set()
        await self.listening.wait()
        if self.broken:
            raise RuntimeError("broken")
        return True

    async def until_loading(self, files: int) -> None:
        async with self.news:
            await asyncio.wait_for(self.news.wait_for(lambda: self.loading == files), 60)


class Handle:
    """Calls a graph's methods as a deployment's handle does."""

    app_name, deployment_name = "whisperx", "Diarizer"

    def __init__(self, graph: Graph, name: str = "") -> None:
        self._graph = graph
        self._name = name

    def __getattr__(self, name: str) -> "Handle":
        return Handle(self._graph, name)

    def options(self, **_: Any) -> "Handle":
        return self

    def broadcast(self, name: str) -> "Handle":
        return Handle(self._graph, name)

    async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
        if not self._graph.replicas:
            raise DeploymentUnavailableError(DeploymentID("fake"))
        try:
            return [await asyncio.wait_for(getattr(self._graph, self._name)(), timeout_s)]
        except TimeoutError:
            raise TimeoutError from None

    def remote(self, *args: Any) -> Call:
        return Call(getattr(self._graph, self._name)(*args))


class Server:
    """An Ingress of these settings and its application."""

    def __init__(
        self,
        graph: Graph,
        audio_in_flight_s: float = 3600.0,
        diarizer: Any = None,
        others: Any = MappingProxyType({}),
        **settings: Any,
    ) -> None:
        intake = IntakeSettings(audio_in_flight_s=audio_in_flight_s)
        untyped: Any = deployments.Ingress
        own_class = untyped.func_or_class.__mro__[1]  # without what Serve wraps around it
        chosen = Settings(model="fake", intake=intake, **settings)
        self.ingress = own_class(chosen, *[Handle(graph)] * 4, diarizer, other_transcribers=others)
        transport = httpx.ASGITransport(self.ingress.__serve_build_asgi_app__())
        self.http = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def post(self, **kwargs: Any) -> tuple[int, str | None]:
        """The status, and an error's code."""
        response = await self.http.post("/predict", **(kwargs or {"files": {"file": b"x"}}))
        assert ("retry-after" in response.headers) == (response.status_code == 503)
        return response.status_code, response.json().get("error", {}).get("code")


OK = (200, None)
FULL = (503, "overloaded")


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is in the object store."""
    stored: list[bytes] = []
    monkeypatch.setattr(ray, "put", stored.append)
    return stored


def test_a_handle_has_channels_as_speakers() -> None:
    """The loader is told what is wanted, and each channel is searched by itself."""
    told, searched = list[Any](), set[int]()

    class Stereo(Graph):
        async def load(self, url: str | None, headers: dict[str, str], chunks: list[Any], *more: Any) -> Any:
            told[:] = more
            yield AudioInfo(0.0, self.file_s, is_last=True, channels=2)
            yield np.stack([recording(1, 1), recording(2, 2)])

        async def detect(self, call: DetectCall) -> Speech:
            searched.update(np.unique(await call.audio.samples()).tolist())
            return await super().detect(call)

    async def run() -> None:
        asked = {"channels": "speakers", "start_s": 1, "track": 0, "encoding": "alaw", "sample_rate": 8000}
        answer = await Server(Stereo()).ingress.transcribe(b"x", **asked)
        assert answer["duration"] == FILE_S
        assert told[-2:] == [RawAudio("alaw", 8000), Selection(1.0, None, 0, channels_apart=True)]
        assert searched == {1, 2}

    asyncio.run(run())


def test_a_handle_takes_a_language_by_any_name() -> None:
    """As over HTTP, and what is none is refused before anything is loaded."""

    async def run() -> None:
        graph = Graph()
        server = Server(graph)
        for name in ("de-AT", "German", "Deutsch", "auto", "", None):
            assert (await server.ingress.transcribe(b"x", language=name))["model_output"] == []
        with pytest.raises(InvalidRequest, match="German or Deutsch"):
            await server.ingress.transcribe(b"x", language="klingon")
        assert graph.loading == 6

    asyncio.run(run())


def test_a_handle_detects_a_language() -> None:
    """Of a file's bytes or a URL, as `POST /detect-language`; a full server refuses it, too."""

    async def run() -> None:
        graph = Graph()
        server = Server(graph, requests_in_flight=1)
        silent = {"detected_language": "unknown", "language_code": "und", "confidence": 0.0}
        assert await server.ingress.detect_language(b"x") == silent
        assert await server.ingress.detect_language("https://example.com/x.mp3") == silent
        with pytest.raises(InvalidRequest, match="languages: must be"):
            await server.ingress.detect_language(b"x", languages=["klingon"])
        assert await server.ingress.detect_language(b"x", start_s=1, languages=None) == silent
        with pytest.raises(InvalidRequest, match="task: unknown option"):
            await server.ingress.detect_language(b"x", task="translate")
        files = {"audio_file": b"x"}
        assert (await server.http.post("/detect-language", files=files)).json() == silent
        graph.worked.clear()
        first = asyncio.create_task(server.ingress.detect_language(b"x"))
        await graph.until_loading(5)
        with pytest.raises(Overloaded):
            await server.ingress.detect_language(b"x")
        assert (await server.http.post("/asr", files=files)).status_code == 503
        graph.worked.set()
        assert await first == silent

    asyncio.run(run())


def test_a_handle_finds_speech_and_speakers() -> None:
    """As over HTTP; speakers only where there is a Diarizer, whose clips and options count."""

    async def run() -> None:
        graph = Graph()
        server = Server(graph, requests_in_flight=1)
        files = {"file": b"x"}
        assert await server.ingress.detect_speech(b"x") == []
        assert (await server.http.post("/v1/audio/speech/timestamps", files=files)).json() == []
        with pytest.raises(InvalidRequest, match="does not tell speakers apart"):
            await server.ingress.diarize("https://example.com/x.mp3")
        with pytest.raises(InvalidRequest, match="language: unknown option"):
            await server.ingress.diarize(b"x", language="de")
        with pytest.raises(InvalidRequest, match="num_speakers: unknown option"):
            await server.ingress.detect_speech(b"x", num_speakers=2)
        graph.worked.clear()
        first = asyncio.create_task(server.ingress.detect_speech(b"x"))
        await graph.until_loading(3)
        for call in (server.ingress.detect_speech, server.ingress.diarize):
            with pytest.raises(Overloaded):
                await call(b"x")
        refused = await server.http.post("/v1/audio/diarization", files=files)
        assert refused.status_code == 503
        graph.worked.set()
        assert await first == []

    asyncio.run(run())


def test_speakers_alone_are_told_by_the_diarizer() -> None:
    """The handle and the route give the same; a client that leaves ends the call, as everywhere."""

    async def run() -> None:
        graph = Graph()
        server = Server(graph, diarizer=Handle(graph))
        found = await server.ingress.diarize(b"x", embeddings=True, num_speakers=1)
        assert found["segments"] == [{"start": 0.5, "end": 1.5, "speaker": "SPEAKER_00"}]
        assert (found["speaker_embeddings"], found["duration"]) == ({"SPEAKER_00": [1.0, 2.0]}, FILE_S)
        assert graph.bounds == [SpeakerBounds(1)]
        told = await server.http.post("/v1/audio/diarization", files={"file": b"x"})
        assert told.json()["segments"] == found["segments"]
        assert await server.ingress.diarize(b"x", response_format="rttm") == told_as_rttm
        graph.loaded.clear()
        leaving = asyncio.create_task(server.ingress.diarize(b"x"))
        await graph.until_loading(4)
        leaving.cancel()
        await asyncio.wait_for(graph.abandoned.wait(), 60)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await asyncio.wait_for(server.ingress._admission.idle.wait(), 60)

    told_as_rttm = "SPEAKER audio 1 0.500 1.000 <NA> <NA> SPEAKER_00 <NA> <NA>\n"
    asyncio.run(run())


def test_a_full_server_takes_no_more_requests() -> None:
    """One too many is refused before its body is read, over HTTP and from handles; health is still told."""

    async def run() -> None:
        graph = Graph()
        graph.worked.clear()
        server = Server(graph, requests_in_flight=1)
        read: list[bytes] = []

        async def body() -> AsyncIterator[bytes]:
            read.append(b"--b")
            yield b"--b"

        first = asyncio.create_task(server.post())
        await graph.until_loading(1)
        assert await server.post(content=body(), headers=FORM) == FULL
        assert read == []
        with pytest.raises(Overloaded):
            await server.ingress.transcribe(b"x")
        with pytest.raises(Overloaded):
            await server.ingress.stream(b"x").__anext__()
        assert (await server.http.get("/healthz")).status_code == 200
        graph.worked.set()
        assert await first == OK
        assert await server.post() == OK
        assert graph.loading == 2

    asyncio.run(run())


def test_a_full_server_is_readable_for_web_pages_and_tells_strangers_nothing() -> None:
    """Its 503 has the CORS headers, and without a key the answer is 401, full or not."""

    async def run() -> None:
        graph = Graph()
        graph.worked.clear()
        acme = ApiKey(name="acme", sha256=hashlib.sha256(b"wx_acme").hexdigest())
        access = AccessSettings(keys=(acme,), cors_origins=(PAGE,))
        server = Server(graph, requests_in_flight=1, access=access)
        form: dict[str, Any] = {"files": {"file": b"x"}, "headers": {"Api-Key": "wx_acme", "Origin": PAGE}}
        first = asyncio.create_task(server.http.post("/predict", **form))
        await graph.until_loading(1)
        refused = await server.http.post("/predict", **form)
        stranger = await server.http.post("/predict", files=form["files"], headers={"Origin": PAGE})
        graph.worked.set()
        answers = [refused, stranger, await first]
        assert [answer.status_code for answer in answers] == [503, 401, 200]
        assert [answer.headers.get("access-control-allow-origin") for answer in answers] == [PAGE] * 3
        assert "retry-after" in refused.headers

    asyncio.run(run())


def test_audio_in_memory_has_a_limit() -> None:
    """Of three files that are loaded at once two pass it, the third is refused, and so are new requests."""

    async def run() -> None:
        graph = Graph()
        graph.loaded.clear()
        graph.worked.clear()
        server = Server(graph, audio_in_flight_s=1.5 * FILE_S)
        requests = {asyncio.create_task(server.post()) for _ in range(3)}
        await graph.until_loading(3)
        graph.loaded.set()
        refused, running = await asyncio.wait(requests, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        assert [request.result() for request in refused] == [FULL]
        assert await server.post() == FULL
        assert graph.loading == 3  # the last one was not even fetched
        graph.worked.set()
        assert await asyncio.gather(*running) == [OK, OK]
        assert await server.post() == OK

    asyncio.run(run())


def test_a_file_over_the_limit_of_audio_passes_alone() -> None:
    """The limit refuses company, not long files: `intake.max_audio_s` is for those."""
    asyncio.run(_passes_alone())


async def _passes_alone() -> None:
    assert await Server(Graph(), audio_in_flight_s=FILE_S / 2).post() == OK


def test_answers_to_handles_are_built_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """As over HTTP: of both methods."""
    threads: set[int] = set()

    async def run() -> None:
        ingress = Server(Graph()).ingress

        async def transcribed(*_: Any) -> Transcript:
            return watched(FIXED, threads)

        monkeypatch.setattr(ingress, "_run", transcribed)
        whole = await ingress.transcribe(b"x")
        (streamed,) = [item async for item in ingress.stream(b"x")]
        assert whole == streamed
        assert whole["duration"] == FIXED.duration_s

    asyncio.run(run())
    assert threads
    assert threading.get_ident() not in threads


def test_answers_without_a_text_are_built_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have thousands of turns, or of stretches of speech."""
    threads: set[int] = set()

    class Noted(tuple[Any, ...]):
        def __iter__(self) -> Iterator[Any]:
            threads.add(threading.get_ident())
            return super().__iter__()

    async def run() -> None:
        ingress = Server(Graph()).ingress

        async def told_apart(*_: Any) -> Transcript:
            return replace(FIXED, turns=Noted(FIXED.turns))

        async def searched(*_: Any) -> DetectedSpeech:
            return DetectedSpeech(Noted([Window(0.5, 2.0)]), ())

        monkeypatch.setattr(ingress, "_without_text", WithoutText(told_apart, searched))
        assert (await ingress.diarize(b"x"))["segments"]
        assert await ingress.detect_speech(b"x") == [{"start": 500, "end": 2000}]

    asyncio.run(run())
    assert threads
    assert threading.get_ident() not in threads


def test_loading_ends_at_the_deadline() -> None:
    """Nobody fetches or decodes for a request that has been answered 504."""

    async def run() -> None:
        graph = Graph()
        graph.loaded.clear()
        assert await Server(graph, request_timeout_s=0.05).post() == (504, "deadline_exceeded")
        await asyncio.wait_for(graph.abandoned.wait(), 60)

    asyncio.run(run())


def test_loading_ends_when_a_stream_is_closed() -> None:
    """A Python caller that stops following has its file given up."""

    async def run() -> None:
        graph = Graph()
        graph.loaded.clear()
        reports = Server(graph).ingress.stream(b"x")
        following = asyncio.create_task(reports.__anext__())
        await graph.until_loading(1)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await asyncio.wait_for(graph.abandoned.wait(), 60)

    asyncio.run(run())


@pytest.mark.parametrize("size", [0, 9, 10, 25])
def test_an_upload_goes_into_the_store_piece_by_piece(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, in order, wherever the file was read last."""
    pieces: list[bytes] = []
    for kind in ("UPLOAD_PIECE_BYTES", "MEMORY_PIECE_BYTES"):
        monkeypatch.setattr(loading_module, kind, 10)
    monkeypatch.setattr(ray, "put", lambda piece: pieces.append(piece.tobytes()))
    content = bytes(range(size))
    with tempfile.TemporaryFile() as on_disk:
        on_disk.write(content)
        for file in (on_disk, io.BytesIO(content)):
            pieces.clear()
            references = loading_module.put_upload(file)
            assert b"".join(pieces) == content
            assert len(references) == len(pieces) == math.ceil(size / 10)


@pytest.mark.parametrize("error", [ObjectStoreFullError, OutOfDiskError])
def test_an_upload_that_the_object_store_cannot_hold_is_a_503(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """It is our trouble, to be tried again later."""

    def refuse(_: bytes) -> None:
        raise error

    monkeypatch.setattr(ray, "put", refuse)

    async def run() -> None:
        assert await Server(Graph()).post() == FULL

    asyncio.run(run())


def test_readiness_costs_the_graph_one_question_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask, and although the first of them leaves."""
    now_s = [1000.0]
    monkeypatch.setattr(ingress_module, "monotonic", lambda: now_s[0])

    async def run() -> None:
        graph = Graph()
        server = Server(graph)
        impatient = asyncio.create_task(server.http.get("/readyz"))
        await graph.asked.wait()
        impatient.cancel()
        answers = await asyncio.gather(*(server.http.get("/readyz") for _ in range(50)))
        assert [answer.status_code for answer in answers] == [200] * 50
        assert graph.questions == 4  # one of each stage
        now_s[0] += 1.0
        assert (await server.http.get("/readyz")).status_code == 200
        assert graph.questions == 8

    asyncio.run(run())


@pytest.mark.parametrize(
    ("replicas", "health", "status"),
    [({}, "HEALTHY", 200), ({"STARTING": 1}, "UPSCALING", 503), ({}, "UNHEALTHY", 503)],
)
def test_a_diarizer_at_zero_is_ready_and_stays_there(
    replicas: dict[str, int], health: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A question that waits for a replica would start one. One that is missing otherwise is not ready."""
    now = SimpleNamespace(status=health, replica_states=replicas)
    application = SimpleNamespace(deployments={Handle.deployment_name: now})
    found = SimpleNamespace(applications={Handle.app_name: application})
    monkeypatch.setattr(serve, "status", lambda: found)
    if status == 503:
        monkeypatch.setattr(ingress_module, "READY_TIMEOUT_S", 0.01)

    async def run() -> None:
        idle = Graph()
        idle.replicas = 0
        idle.listening.clear()
        server = Server(Graph(), diarizer=Handle(idle))
        assert (await server.http.get("/readyz")).status_code == status
        assert bool(idle.questions) == (status == 503)

    asyncio.run(run())


def test_each_model_has_its_own_readiness(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under its name; one that Serve has stopped, as nobody asks for it, is ready and is not started."""
    now = SimpleNamespace(status="UNHEALTHY", replica_states={})
    application = SimpleNamespace(deployments={Handle.deployment_name: now})
    found = SimpleNamespace(applications={Handle.app_name: application})
    monkeypatch.setattr(serve, "status", lambda: found)

    async def run() -> None:
        broken = Graph()
        server = Server(Graph(), others={"small": Handle(broken)})
        assert (await server.http.get("/readyz")).status_code == 200
        broken.broken = True
        server.ingress._asked_at_s = -math.inf
        response = await server.http.get("/readyz")
        stages = response.json()["stages"]
        assert (response.status_code, stages["asr"], stages["asr-small"]) == (503, True, False)
        now.status = "HEALTHY"
        server.ingress._asked_at_s = -math.inf
        asked, broken.replicas = broken.questions, 0
        assert (await server.http.get("/readyz")).status_code == 200
        assert broken.questions == asked

    asyncio.run(run())


def test_a_request_chooses_a_model_on_every_way_in() -> None:
    """By form, JSON, OpenAI's field, /asr's query and a Python handle; another name lists those there are."""
    files = {"file": b"x"}

    async def run() -> None:
        server = Server(Graph(), others={"small": Handle(Graph())})
        for name, status in (("small", 200), ("fake", 200), ("medium", 400)):
            body = {"audio_file": "https://example.com/x.mp3", "model": name}
            answers = [
                await server.http.post("/predict", files=files, data={"model": name}),
                await server.http.post("/predict", json=body),
            ]
            assert [each.status_code for each in answers] == [status, status]
            if status == 200:
                assert [each.json()["model"] for each in answers] == [name, name]
                assert (await server.ingress.transcribe(b"x", model=name))["model"] == name
            else:
                error = answers[0].json()["error"]
                assert (error["param"], "fake, small" in error["message"]) == ("model", True)
                with pytest.raises(InvalidRequest, match="use one of fake, small"):
                    await server.ingress.transcribe(b"x", model=name)
            vendors = [
                await server.http.post("/v1/audio/transcriptions", files=files, data={"model": name}),
                await server.http.post(f"/asr?model={name}", files={"audio_file": b"x"}),
            ]
            assert [each.status_code for each in vendors] == [status if status == 200 else 404] * 2

    asyncio.run(run())


@pytest.mark.parametrize(
    ("waited_s", "replicas", "broken", "status"),
    [(30.0, 1, False, 200), (90.0, 1, False, 503), (30.0, 0, False, 503), (30.0, 1, True, 503)],
)
def test_a_stage_that_is_too_busy_to_answer_stays_ready(
    waited_s: float, replicas: int, broken: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a minute after it last was; one without a replica, or with an error, is not."""
    now_s = [1000.0]
    monkeypatch.setattr(ingress_module, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(ingress_module, "READY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(handles_module, "LOOK_TIMEOUT_S", 0.01)

    async def run() -> None:
        graph = Graph()
        server = Server(graph)
        assert (await server.http.get("/readyz")).status_code == 200
        now_s[0] += waited_s
        graph.replicas, graph.broken = replicas, broken
        if not broken:
            graph.listening.clear()
        assert (await server.http.get("/readyz")).status_code == status

    asyncio.run(run())
