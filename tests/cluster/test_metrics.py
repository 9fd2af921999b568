"""What operators see of a service that `serve_app serve` runs: metrics, alerts, logs and traces.

The real Prometheus scrapes it; the models are fakes that fail when they are told to.
"""

import json
import math
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from collector import Collector, Span
from fakes import recording
from faulty_graph import MOST_ITEMS
from inside import processes_with
from measured_graph import REQUESTS, UNLIKELY, Faults, write_config
from sounds import wav
from tenacity import RetryError, Retrying, retry_if_not_result, stop_after_delay, wait_fixed

from serve_app.cli.launcher import free_port
from serve_app.jobs.webhooks.signatures import new_secret

PROJECT = Path(__file__).parents[2]
DEPLOY = PROJECT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
# Of the dashboard's panels; a store that works has no errors.
COUNTERS = {
    name
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", ())
    for name in re.findall(r"ray_whisperx_\w+_(?:total|bucket)\b", target["expr"])
} - {"ray_whisperx_job_store_errors_total"}
GAUGES = {"ray_whisperx_requests_open", "ray_serve_deployment_replica_healthy"}  # which alerts miss
NEEDS_GPU = {"GPU memory of processes", "GPU memory of nodes"}
GONE = {"WhisperxDown", "WhisperxNodeDown"}
START_S = 300.0  # of the service, on a busy machine
SEEN_S = 120.0  # until all processes have told Ray's exporter, every 10 s, and that was scraped
FILE = wav(recording(1, 2, 0, UNLIKELY))
LONG_FILE = wav(recording(*range(10, 22)))  # more windows than a batch has
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
STAGES = {
    "AudioLoader load",
    "SpeechDetector detect",
    "Transcriber transcribe",
    "Aligner align",
    "Diarizer diarize",
}


def until(condition: Callable[[], Any], within_s: float, every_s: float = 0.2) -> Any:
    """What the condition gives, once it is true."""
    return Retrying(
        retry=retry_if_not_result(bool), wait=wait_fixed(every_s), stop=stop_after_delay(within_s)
    )(condition)


@dataclass
class Service:
    """A running service."""

    folder: Path
    port: int
    metrics_port: int
    collector: Collector
    process: "subprocess.Popen[bytes]"
    faults: Faults = field(init=False)

    def __post_init__(self) -> None:
        self.faults = Faults(self.folder / "faults")

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    @property
    def metrics(self) -> str:
        return httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=60).text

    def queued(self, stage: str) -> float:
        """How many calls wait for the stage, as the exporter says."""
        found = re.findall(rf'^ray_whisperx_stage_queued{{.*stage="{stage}".* (\S+)$', self.metrics, re.M)
        return sum(map(float, found))

    @property
    def log(self) -> list[dict[str, Any]]:
        """All lines that Serve has logged."""
        files = (self.folder / "logs").glob("*.log")
        lines = [line for file in files for line in file.read_text().splitlines(keepends=True)]
        return [json.loads(line) for line in lines if line.endswith("\n")]  # else it is being written

    def post(self, file: bytes = FILE, path: str = "/predict", **headers: str) -> httpx.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{self.port}{path}"
        return httpx.post(url, files={"file": file}, headers=names, timeout=180)

    def submit(self, **options: str) -> str:
        url = f"http://127.0.0.1:{self.port}/v1/jobs"
        answer = httpx.post(url, files={"file": FILE}, data=options, timeout=180)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"http://127.0.0.1:{self.port}/v1/jobs/{job_id}", timeout=60).json()
        return found

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)


@contextmanager
def fault(service: Service, name: str) -> Iterator[None]:
    """The fault, until this ends."""
    path = service.faults.folder / name
    path.touch()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    (folder / "secrets").write_text(new_secret())
    collector, port, metrics_port = Collector(), free_port(), free_port()
    config = write_config(folder, port)
    command = [sys.executable, "-m", "serve_app", "serve", str(config), "--metrics-port", str(metrics_port)]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{PROJECT / 'tests'}:{PROJECT}",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "MEASURED": str(folder),
    }
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, env=environment, cwd=PROJECT, stdout=said, stderr=said)
    service = Service(folder, port, metrics_port, collector, process)
    try:
        until(lambda: "Ready on" in service.said or process.poll() is not None, START_S)
        assert process.poll() is None, service.said
        until(lambda: set(re.findall(r"^\w+", service.metrics, re.M)) >= GAUGES, SEEN_S)
        yield service
    finally:
        service.stop()
        collector.close()
        until(lambda: not processes_with(str(folder)), 60)


@dataclass(frozen=True)
class Prometheus:
    """The real one."""

    port: int

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that it gives now, each with a number."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/query", params={"query": expression})
        found = answer.json()
        assert found["status"] == "success", found
        series = found["data"]["result"]
        return [each for each in series if not math.isnan(float(each["value"][1]))]

    def fired(self) -> set[str]:
        """Alerts that have fired so far."""
        found = self.query('count by (alertname) (max_over_time(ALERTS{alertstate="firing"}[1h]))')
        return {each["metric"]["alertname"] for each in found}


@contextmanager
def prometheus_of(config: str, metrics_port: int, folder: Path) -> Iterator[Prometheus]:
    """It runs with this file of deploy/prometheus, but looks and alerts sooner, and after shorter waits."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed: tests/programs.sh")
    target = f"127.0.0.1:{metrics_port}"
    discovered = folder / "discovered.json"
    # As Ray's dashboard writes it.
    discovered.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": [target]}]))
    text = (DEPLOY / "prometheus" / config).read_text()
    text = text.replace("15s", "5s").replace("127.0.0.1:8080", target)
    text = text.replace("/tmp/ray/prom_metrics_service_discovery.json", str(discovered))
    (folder / "prometheus.yml").write_text(text)
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    rules = re.sub(r"\bfor: \d+m", "for: 15s", rules)
    rules, waits = re.subn(r"(stage_wait_seconds.*) > 120$", r"\1 > 5", rules, flags=re.MULTILINE)
    assert waits == 1
    (folder / "alerts.yml").write_text(rules)
    port = free_port()
    command = [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log
        )
    prometheus = Prometheus(port)

    def is_up() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()
        try:
            is_ready = httpx.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200
        except httpx.TransportError:
            return False
        return is_ready and bool(prometheus.query('up{job="whisperx"}'))

    try:
        until(is_up, 60)
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def prometheus(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    with prometheus_of(
        "prometheus.yml", service.metrics_port, tmp_path_factory.mktemp("prometheus")
    ) as running:
        yield running


class Taking(BaseHTTPRequestHandler):
    """Takes every webhook."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def hook() -> Iterator[str]:
    """The address of a receiver of webhooks."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Taking) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def refused(service: Service) -> httpx.Response:
    """The answer to one request more than the service takes, whose others end well, in halved batches."""
    with fault(service, "scarce"), ThreadPoolExecutor(REQUESTS + 1) as pool:
        with fault(service, "asr.closed"):
            asked = [pool.submit(service.post, LONG_FILE) for _ in range(REQUESTS + 1)]
            until(lambda: any(each.done() for each in asked), 60)
            until(lambda: service.queued("asr") > MOST_ITEMS, SEEN_S)  # so a batch is too large
        answers = sorted((each.result() for each in asked), key=lambda answer: answer.status_code)
    assert [answer.status_code for answer in answers] == [200] * REQUESTS + [503]
    return answers[-1]


def use(service: Service, hook: str) -> str:
    """Does what clients do, and gives the id of a job: requests with a fallback, a refused one, a webhook."""
    for _ in range(3):
        assert service.post().status_code == 200
    assert service.post(b"no audio").status_code == 422
    assert refused(service).json()["error"]["code"] == "overloaded"
    job_id = service.submit(webhook_url=hook)
    until(lambda: service.job(job_id)["status"] == "succeeded", 60)
    return job_id


def await_all(prometheus: Prometheus, query: str) -> None:
    """Waits until the query has an answer for each of the counters."""

    def missing() -> set[str]:
        return {name for name in COUNTERS if not prometheus.query(query.format(name))}

    with suppress(RetryError):
        until(lambda: not missing(), SEEN_S, every_s=2)
    assert missing() == set()


@pytest.fixture(scope="module")
def job_id(service: Service, prometheus: Prometheus, hook: str) -> str:
    """A job; it and requests have run twice, so that counters have risen since they were first seen.

    Each process exports its metrics at another time, and a rate needs two different values.
    """
    use(service, hook)
    until(lambda: prometheus.query("ray_whisperx_jobs_oldest_queued_seconds"), SEEN_S)
    await_all(prometheus, "{}")
    found = use(service, hook)
    await_all(prometheus, "sum(increase({}[5m])) > 0")
    return found


def test_the_port_of_the_metrics_is_said(service: Service) -> None:
    """Where Prometheus finds them is printed, and is the port that was asked for."""
    (url,) = re.findall(r"^Metrics: (\S+)$", service.said, re.M)
    assert url == f"http://127.0.0.1:{service.metrics_port}/metrics"
    assert "ray_serve_deployment_status" in httpx.get(url).text


def test_every_panel_has_data(prometheus: Prometheus, job_id: str) -> None:
    """Each query of the dashboard gives numbers on a service that has done all kinds of work."""
    queries = [
        (panel["title"], target["expr"].replace("$__rate_interval", "5m"))
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", [])
    ]

    def empty() -> set[str]:
        return {title for title, query in queries if not prometheus.query(query)}

    assert len(queries) > 30
    with suppress(RetryError):
        until(lambda: empty() == NEEDS_GPU, SEEN_S)
    assert empty() == NEEDS_GPU


@pytest.mark.usefixtures("job_id")
def test_a_healthy_service_alerts_nobody(prometheus: Prometheus) -> None:
    """Nothing but what was done to it: requests that were refused, and some that had to wait."""
    assert prometheus.fired() <= {"WhisperxRefusing", "WhisperxQueueWait"}


def test_the_nodes_of_a_cluster_are_discovered(service: Service, tmp_path: Path) -> None:
    """From the file that Ray's dashboard keeps; the alerts find these nodes under the same job."""
    with prometheus_of("prometheus.cluster.yml", service.metrics_port, tmp_path) as prometheus:
        until(lambda: prometheus.query('ray_whisperx_requests_open{job="whisperx"}'), 30)


def test_one_trace_has_the_proxy_and_every_stage(service: Service) -> None:
    """Under the client's own trace, with its request's id; one parent leads to the next."""
    parent = "b7ad6b7169203331"
    answer = service.post(traceparent=f"00-{TRACE_ID}-{parent}-01", X_Request_ID="traced")
    assert answer.status_code == 200

    def roots() -> list[Span]:
        spans = service.collector.of(TRACE_ID)
        ids = {span.id for span in spans}
        return [span for span in spans if span.parent_id not in ids]

    def is_whole() -> bool:
        names = {span.name for span in service.collector.of(TRACE_ID)}
        has_stages = names >= {f"replica_handle_request {stage}" for stage in STAGES}
        return has_stages and [span.parent_id for span in roots()] == [parent]

    until(is_whole, 30)
    (root,) = roots()
    spans = service.collector.of(TRACE_ID)
    assert (root.name, root.parent_id) == ("proxy_http_request Ingress POST /predict", parent)
    assert {span.service for span in spans} == {"whisperx-serve"}
    assert {span.attributes.get("request_id", "traced") for span in spans} == {"traced"}


def test_traces_hold_no_address_of_a_file(service: Service) -> None:
    """Where a file cannot be fetched, its trace has the kind of the error, in Serve's own spans too."""
    trace_id = TRACE_ID[::-1]
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    asked = {"audio_file": "http://127.0.0.1:9/private.mp3"}  # where nobody listens
    answer = httpx.post(f"http://127.0.0.1:{service.port}/predict", json=asked, headers=headers, timeout=60)
    assert answer.status_code == 424

    def errors() -> str:
        return " ".join(span.error for span in service.collector.of(trace_id))

    until(lambda: "SourceUnavailable" in errors(), 30)
    sent = errors() + str([span.attributes for span in service.collector.of(trace_id)])
    assert "private" not in sent
    assert ":9" not in sent


def test_a_job_is_one_trace(service: Service) -> None:
    """Although no request waits for it; its calls have the job's id."""
    job_id = service.submit()
    until(lambda: service.job(job_id)["status"] == "succeeded", 60)

    def trace() -> set[str]:
        spans = service.collector.spans
        return {span.trace_id for span in spans if span.attributes.get("request_id") == job_id}

    (trace_id,) = until(trace, 30)
    until(lambda: "transcribe job" in {span.name for span in service.collector.of(trace_id)}, 30)
    assert trace() == {trace_id}


def test_lines_of_every_stage_have_the_request_s_id(service: Service) -> None:
    """As JSON, of requests and of jobs, also the lines that say what failed."""
    with fault(service, "diarization.fails"), fault(service, "asr.dies"):
        assert service.post(X_Request_ID="logged").status_code == 200
    job_id = service.submit()
    until(lambda: service.job(job_id)["status"] == "succeeded", 60)
    stages = {stage.partition(" ")[0] for stage in STAGES}

    def deployments(request_id: str) -> set[str]:
        lines = [line for line in service.log if line.get("request_id") == request_id]
        return {line.get("deployment", "").removeprefix("whisperx_") for line in lines}

    until(lambda: deployments("logged") >= {*stages, "Ingress"}, 30)
    until(lambda: deployments(job_id) >= stages, 30)
    messages = [line["message"] for line in service.log if line.get("request_id") == "logged"]
    assert "diarization failed" in messages
    assert any("again, because of replica_died" in message for message in messages)


@pytest.mark.slow
def test_every_alert_fires_on_its_fault(service: Service, prometheus: Prometheus, job_id: str) -> None:
    """Each is provoked, but those of a service that is gone."""

    def fires(alert: str) -> None:
        until(lambda: alert in prometheus.fired(), 2 * SEEN_S)

    def fires_after(alert: str, provoke: Callable[[], object]) -> None:
        """Every few seconds, because counters must rise after Prometheus has seen them."""
        until(lambda: bool(provoke()) and alert in prometheus.fired(), 2 * SEEN_S, every_s=3.0)

    def answered(status: int) -> bool:
        assert service.post().status_code == status
        return True

    # First, because the calls of those below do not wait. These wait until the job's alert has fired.
    with ThreadPoolExecutor(REQUESTS) as pool, fault(service, "asr.closed"):
        running = [pool.submit(service.post, LONG_FILE) for _ in range(REQUESTS)]
        until(lambda: service.faults.waiting("asr"), 60)
        waiting = [service.submit() for _ in range(3)]
        with sqlite3.connect(service.folder / "state" / "jobs.db", timeout=30) as store:
            store.execute("UPDATE jobs SET created_at_s = created_at_s - 3600 WHERE id = ?", waiting[-1:])
        fires("WhisperxJobsWaiting")
    assert [each.result().status_code for each in running] == [200] * REQUESTS
    fires("WhisperxQueueWait")

    fires_after("WhisperxRefusing", lambda: refused(service))
    with fault(service, "diarization.fails"):
        fires_after("WhisperxDegraded", lambda: answered(200))
    with fault(service, "asr.fails"):
        fires_after("WhisperxErrors", lambda: answered(500))
    for _ in range(6):
        service.submit(webhook_url="http://127.0.0.1:9")  # where nobody listens
    fires("WhisperxWebhooksFailing")
    with sqlite3.connect(service.folder / "state" / "jobs.db", timeout=30) as store:
        store.execute("BEGIN EXCLUSIVE")
        fires("WhisperxJobStoreDown")

    def has_died() -> bool:
        (service.faults.folder / "asr.dies").touch()
        return answered(200)

    fires_after("WhisperxReplicasDie", has_died)
    (service.faults.folder / "asr.dies").touch()
    with ThreadPoolExecutor(1) as pool, fault(service, "asr load.closed"):
        answer = pool.submit(service.post)
        fires("WhisperxStageDown")
        fires("WhisperxStageMissing")
    assert answer.result().status_code == 200
    assert prometheus.fired() == set(ALERTS) - GONE


def test_a_service_that_is_gone_alerts(tmp_path: Path) -> None:
    """Nothing answers where Prometheus looks for its node."""
    with prometheus_of("prometheus.yml", free_port(), tmp_path) as prometheus:
        until(lambda: prometheus.fired() == GONE, SEEN_S)
