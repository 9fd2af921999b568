"""Fixtures for every test, and the versions that matter in the report's header.

The cluster fixtures are one local Ray for the whole session, with the graph on fake models.
"""

import asyncio
import importlib.metadata
import logging
import os
import signal
import socket
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import ray
from fakes import FakeAligner, FakeDiarizer, FakeRecognizer, FakeSpeechModel
from job_api import POSTGRESQL
from job_stores import Clock
from loopback import Files
from ray import serve
from ray.serve.handle import DeploymentHandle

from benchmarks.decoding import decode_whole
from benchmarks.private_postgres import NoPostgres, Postgres, private_postgres
from serve_app.app import graph
from serve_app.cli.demo import sample as demo_sample
from serve_app.jobs.store.migration import migrate
from serve_app.models.loaders import Loaders
from serve_app.models.store import open_store
from serve_app.proxy import AT_PROXY_START, PROXY_HOOK
from serve_app.settings import IntakeSettings, Settings
from serve_app.settings.jobs import JobsSettings
from serve_app.transcript import SAMPLE_RATE_HZ, Samples

# The fixtures of tests/page and of metrics: a second conftest.py has no name for mypy.
pytest_plugins = ["page_browser", "measured"]

HTTP_PORT = 18_000  # below the range Ray takes its workers' ports from

SHARED = Path(__file__).parents[2] / "shared" / "data"  # larger real inputs, where the folder is there


def pytest_report_header() -> str:
    packages = ("ray", "whisperx", "faster-whisper", "ctranslate2", "pyannote.audio", "torch")
    return "  ".join(f"{package} {importlib.metadata.version(package)}" for package in packages)


# Where tests are started in the background SIGINT is ignored, and what they start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("project", deadline=None)  # other work on the machine is no fault
hypothesis.settings.load_profile("project")
os.environ["OMP_NUM_THREADS"] = "1"  # on a busy machine more threads only wait for each other
os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # for the whole session: pyannote fails when it is unset later


# Two processes share the files of `make test` (pytest-xdist). Those that need Ray stay in one, in this order:
# the tests that measure come last, when the other process has probably ended.
ON_RAY = (
    *("tests/cluster/", "test_commands.py", "test_real_graph.py", "test_several_models_graph.py"),
    *("test_faults.py", "test_chaos.py"),
)


def place_on_ray(nodeid: str) -> int:
    """The place of a test among those that need Ray, from 1 on; 0 for the others."""
    file = nodeid.partition("::")[0]
    return max((place for place, part in enumerate(ON_RAY, 1) if part in file), default=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place_on_ray(item.nodeid) or len(ON_RAY) + 1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By file, not `--dist loadgroup`, whose groups pytest 9.2 loses (pytest-xdist issue 1386)."""
    from xdist.scheduler import LoadFileScheduling

    scheduler = LoadFileScheduling(config, log)
    by_file = scheduler._split_scope
    scheduler._split_scope = lambda nodeid: "ray" if place_on_ray(nodeid) else by_file(nodeid)
    return scheduler


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Takes a line with a measurement, which is printed at the end of the run."""
    return partial(record_property, "figure")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    if lines := [line for call in calls for name, line in call.user_properties if name == "figure"]:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, no cluster and no service of the developer's in any test."""
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RAY_ADDRESS", "WHISPERX_URL", "WHISPERX_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def sample() -> Samples:
    """The demo's recording, decoded: two real people on the telephone, 30 s."""
    with demo_sample().open("rb") as file:
        return asyncio.run(decode_whole(file, max_audio_s=600, timeout_s=60))[1]


@pytest.fixture(scope="session")
def audio(sample: Samples) -> Samples:
    """The first 24 s of the sample."""
    return sample[: 24 * SAMPLE_RATE_HZ]


@pytest.fixture(scope="session")
def meeting() -> Samples:
    """Twelve seconds of two real people talking, sometimes at once, from the demo's recording."""
    with wave.open(str(demo_sample())) as recording:
        recording.setpos(6 * SAMPLE_RATE_HZ)
        return np.frombuffer(recording.readframes(12 * SAMPLE_RATE_HZ), np.int16)


def _directory_of(model: str) -> Path:
    """Where the model is on this machine; the test is skipped where it is not."""
    directory = open_store().find(model)
    if directory is None:
        pytest.skip(f"The model {model} is not on this machine: run make setup.")
    return directory


@pytest.fixture(scope="session")
def tiny_en() -> Path:
    """Whisper tiny.en, which knows English only."""
    return _directory_of("tiny.en")


@pytest.fixture(scope="session")
def base() -> Path:
    """Whisper base, which knows a hundred languages."""
    return _directory_of("base")


@pytest.fixture(scope="session")
def campplus() -> Path:
    """CAM++, the embeddings of voices."""
    return _directory_of("campplus")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with ExitStack() as held:
        try:
            server = held.enter_context(private_postgres())
        except NoPostgres as reason:
            pytest.skip(str(reason))
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def each_store(request: pytest.FixtureRequest) -> Iterator[None]:
    """Runs a test of the API of jobs twice: the two databases return values of different types."""
    url = ""
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        url = server.emptied_database()
    before = POSTGRESQL.set(url)
    yield
    POSTGRESQL.reset(before)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a job store without tables, SQLite and PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/state/jobs.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty job store, SQLite and PostgreSQL."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/state/jobs.db"
        asyncio.run(migrate(url))
        return url
    server: Postgres = request.getfixturevalue("postgres")
    return server.emptied_database()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def files() -> Iterator[Files]:
    server = Files()
    yield server
    server.close()


@pytest.fixture(scope="session")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The temporary directory of the cluster's replicas."""
    return tmp_path_factory.mktemp("spool")


@pytest.fixture(scope="session")
def cluster(spool: Path) -> Iterator[None]:
    """Ray and Serve's HTTP proxy, up once for the session."""
    # Two Serves would share the port, and each would get some of the other's requests.
    socket.create_server(("127.0.0.1", HTTP_PORT)).close()
    os.environ[PROXY_HOOK] = AT_PROXY_START  # as the launcher does
    # Replicas unpickle the fakes by name, so they must find the tests too; the launcher sets the last one.
    environment = {
        "PYTHONPATH": str(Path(__file__).parent),
        "TMPDIR": str(spool),
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    }
    ray.init(
        address="local",
        namespace="serve",
        include_dashboard=False,
        num_cpus=4,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": environment},
    )
    serve.start(
        http_options={"host": "127.0.0.1", "port": HTTP_PORT}, logging_config={"log_level": "WARNING"}
    )
    yield
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file exists, the fake recogniser ends no batch."""
    return tmp_path_factory.mktemp("device") / "gate"


@contextmanager
def closed(gate: Path) -> Iterator[Path]:
    """The gate, closed until somebody opens it or this ends."""
    gate.touch()
    try:
        yield gate
    finally:
        gate.unlink(missing_ok=True)


@pytest.fixture
def closed_gate(app: DeploymentHandle[object], gate: Path) -> Iterator[Path]:
    """The gate, closed until the test opens it or ends; no batch of an earlier test waits behind it."""
    counters: Any = serve.get_deployment_handle("Transcriber", "whisperx").counters
    deadline_s = time.monotonic() + 60
    while (now := counters.remote().result(timeout_s=60))["running"] + now["queued"]:
        assert time.monotonic() < deadline_s, now
    with closed(gate):
        yield gate


@pytest.fixture(scope="session")
def app(cluster: None, files: Files, gate: Path) -> DeploymentHandle[object]:
    """The whole graph on fake models; its ingress handle."""
    settings = Settings(
        model="fake",
        device="cpu",
        request_timeout_s=120,  # a stream that hangs fails soon
        intake=IntakeSettings(allowed_hosts=(files.host,)),
        jobs=JobsSettings(store="off"),
    )
    loaders = Loaders(FakeSpeechModel, partial(FakeRecognizer, gate), FakeAligner, FakeDiarizer)
    return serve.run(graph(settings, loaders, "cpu"), name="whisperx", route_prefix="/")


@pytest.fixture
def _punkt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Empty English punkt data, the least that whisperx.align runs with."""
    data = tmp_path / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
    data.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (data / name).touch()
    yield from _nltk_data_in([str(tmp_path / "nltk_data")], monkeypatch)


@pytest.fixture
def _no_punkt(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No NLTK data on the machine."""
    yield from _nltk_data_in([], monkeypatch)


def _nltk_data_in(path: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import nltk

    from serve_app.stages.alignment.sentences import sentence_splitter

    monkeypatch.setattr(nltk.data, "path", path)
    nltk.data.clear_cache()
    sentence_splitter.cache_clear()
    yield
    nltk.data.clear_cache()
    sentence_splitter.cache_clear()
