"""Keys, strangers and deadlines behind Serve's own proxy, which sees every request first."""

import hashlib
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import pytest
from fakes import FakeAligner, FakeDiarizer, FakeRecognizer, FakeSpeechModel, recording
from ray import serve
from sounds import encode, noise, silence, wav

from serve_app.app import graph
from serve_app.models.loaders import Loaders
from serve_app.settings import IntakeSettings, Settings
from serve_app.settings.access import AccessSettings, ApiKey
from serve_app.settings.jobs import JobsSettings

ADDRESS = ("127.0.0.1", 18_000)
URL = "http://127.0.0.1:18000"
FOUR_SECONDS = wav(recording(1, 2, 0, 3))
REQUEST_S = 6.0  # of a request; the fakes need much less


def key(name: str, per_minute_s: float | None = None) -> ApiKey:
    sha256 = hashlib.sha256(f"wx_{name}".encode()).hexdigest()
    return ApiKey(name=name, sha256=sha256, max_audio_s_per_minute=per_minute_s)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the guarded graph's recogniser ends no batch."""
    return tmp_path_factory.mktemp("guarded") / "gate"


@pytest.fixture(scope="module")
def guarded(cluster: None, device: Path) -> Iterator[str]:
    """A graph with keys and short deadlines, beside the other one; its URL."""
    settings = Settings(
        model="fake",
        device="cpu",
        request_timeout_s=REQUEST_S,
        intake=IntakeSettings(receive_timeout_s=1.0, max_audio_s=10.0, allowed_hosts=("127.0.0.1",)),
        jobs=JobsSettings(store="off"),
        access=AccessSettings(
            keys=(key("acme"), key("small", 1.0), key("long", 5.0), key("costly", 5.0)),
        ),
    )
    loaders = Loaders(FakeSpeechModel, partial(FakeRecognizer, device), FakeAligner, FakeDiarizer)
    serve.run(graph(settings, loaders, "cpu"), name="guarded", route_prefix="/guarded")
    deadline_s = time.monotonic() + 60
    while httpx.get(f"{URL}/guarded/readyz", timeout=60).status_code != 200:  # the proxy hears of it later
        assert time.monotonic() < deadline_s
    yield f"{URL}/guarded"
    serve.delete("guarded")


def post(url: str, file: bytes = FOUR_SECONDS, **headers: str) -> httpx.Response:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"{url}/predict", files={"file": file}, headers=sent, timeout=60)


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_keys_and_their_audio_through_the_whole_graph(guarded: str) -> None:
    """Nothing without a key; a key's four seconds at one a minute keep it waiting for three minutes."""
    assert code(post(guarded)) == (401, "missing_api_key")
    assert httpx.get(f"{guarded}/readyz", timeout=60).status_code == 200
    assert post(guarded, authorization="Bearer wx_acme").status_code == 200
    assert post(guarded, authorization="Api-Key wx_small").status_code == 200
    refused = post(guarded, authorization="Api-Key wx_small")
    assert code(refused) == (429, "audio_limit_reached")
    assert 120 < int(refused.headers["retry-after"]) <= 181
    assert post(guarded, authorization="Bearer wx_acme").status_code == 200


def test_files_that_cost_a_decoder_are_paid_for(guarded: str) -> None:
    """They come to no text, but who could send them for nothing would have the processor for nothing."""
    block = ("-af", "asetrate=1", "-frame_size", "65535")
    costly = encode(noise(5.0), 16_000, ".flac", *block)
    for name, file, expected in (
        ("long", wav(silence(11.0)), "audio_too_long"),
        ("costly", costly, "audio_too_costly"),
    ):
        bearer = f"Bearer wx_{name}"
        assert code(post(guarded, file, authorization=bearer)) == (422, expected)
        assert code(post(guarded, authorization=bearer)) == (429, "audio_limit_reached")


def test_no_header_lifts_the_deadline(guarded: str, device: Path) -> None:
    """Serve lets callers raise its own limits; ours holds, and is answered in our words."""
    device.touch()
    try:
        late = post(
            guarded,
            authorization="Bearer wx_acme",
            x_request_timeout_seconds="9999",
            x_request_disconnect_disabled="?1",
        )
    finally:
        device.unlink()
    assert code(late) == (504, "deadline_exceeded")
    assert REQUEST_S <= late.elapsed.total_seconds() < 60


def test_the_deadline_ends_the_fetch(guarded: str) -> None:
    """Nothing is loaded for a request that has been answered 504: here from a host that says nothing."""
    headers = {"authorization": "Bearer wx_acme"}
    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as pool:
        body = {"audio_file": f"http://127.0.0.1:{silent.getsockname()[1]}/"}
        late = pool.submit(httpx.post, f"{guarded}/predict", json=body, headers=headers, timeout=60)
        silent.settimeout(60)
        connection, _ = silent.accept()
        with connection:
            assert code(late.result()) == (504, "deadline_exceeded")
            connection.settimeout(10)
            assert b"GET / " in b"".join(iter(lambda: connection.recv(65_536), b""))  # and then its end


def test_an_upload_that_never_ends_loses_its_connection(guarded: str) -> None:
    """The client is told why, and can send no more."""
    head = "POST /guarded/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer wx_acme\r\n"
    head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000\r\n\r\n--b\r\n"
    with socket.create_connection(ADDRESS, timeout=60) as connection:
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"upload_too_slow" in answer


@pytest.mark.usefixtures("app")
def test_without_keys_a_stranger_is_refused_behind_serve() -> None:
    """The proxy hands on who really asks: here a client that a reverse proxy on this machine names."""
    assert post(URL).status_code == 200
    assert code(post(URL, x_forwarded_for="203.0.113.9")) == (403, "no_api_keys")
    assert code(post(URL, host="rebind.example")) == (403, "no_api_keys")
