"""Alerts and panels by promtool's own rule tests: what they make of numbers that are written here."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"
WELL = {  # two nodes, an Ingress on one of them, and a Transcriber
    'up{job="whisperx", instance="one"}': "1x60",
    'up{job="whisperx", instance="two"}': "1x60",
    "ray_whisperx_requests_open": "0x60",
    'ray_serve_deployment_status{application="app", deployment="Transcriber"}': "6x60",
    'ray_serve_autoscaling_target_replicas{application="app", deployment="Transcriber"}': "1x60",
    'ray_serve_deployment_replica_healthy{application="app", deployment="Transcriber"}': "1x60",
}
OK = 'ray_whisperx_requests_total{kind="request", outcome="ok", status="200"}'
WARNINGS = 'ray_whisperx_warnings_total{stage="%s", code="%s"}'
UP_TWO, OPEN, STATUS, _, HEALTHY = [*WELL][1:]

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: tests/programs.sh"
)


def check(folder: Path, series: dict[str, str], *expected: dict[str, Any]) -> None:
    """Fails unless each expression has these samples; series have a value a minute."""
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": list(expected),
    }
    rules = str(DEPLOY / "prometheus" / "alerts.yml")
    (folder / "test.yml").write_text(yaml.safe_dump({"rule_files": [rules], "tests": [test]}))
    command = ["promtool", "test", "rules", str(folder / "test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def firing(after_min: int, *alerts: str) -> dict[str, Any]:
    """These alerts, and no others, fire then."""
    return {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{after_min}m",
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
    }


def shows(panel: str, samples: dict[str, float]) -> dict[str, Any]:
    """The first query of the panel gives this, once counters have risen for a while."""
    panels = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]
    (query,) = [each["targets"][0]["expr"] for each in panels if each["title"] == panel]
    return {
        "expr": query.replace("$__rate_interval", "5m"),
        "eval_time": "30m",
        "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
    }


def waits(stage: str, calls: dict[str, int]) -> dict[str, str]:
    """A stage's waits: for each limit in seconds, how many calls a minute waited no longer than that."""
    bucket = 'ray_whisperx_stage_wait_seconds_bucket{stage="%s", le="%s"}'
    return {
        bucket % (stage, le): f"0+{count}x60" for le, count in (*calls.items(), ("+Inf", max(calls.values())))
    }


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        ({}, [firing(60)]),
        ({UP_TWO: "0x60"}, [firing(4), firing(10, "WhisperxNodeDown")]),
        ({OPEN: "0x9 _x60"}, [firing(10), firing(20, "WhisperxDown")]),
        ({HEALTHY: "_x30", STATUS: "3x30"}, [firing(14), firing(16, "WhisperxStageMissing")]),
        ({HEALTHY: "_x30", STATUS: "2x30"}, [firing(3, "WhisperxStageDown")]),
        ({"ray_whisperx_job_store_errors_total": "1 4+0x30"}, [firing(5), firing(20)]),
        (
            {
                "ray_whisperx_job_store_errors_total": "1+9x60",
                "ray_whisperx_jobs_oldest_queued_seconds": "9000x60",
            },
            [firing(20, "WhisperxJobStoreDown", "WhisperxJobsWaiting")],
        ),
        (
            {
                OK: "0+60x60",
                WARNINGS % ("alignment", "char_timestamps_missing"): "0+60x60",
                WARNINGS % ("diarization", "embeddings_missing"): "0+60x60",
            },
            [firing(30)],
        ),
        (waits("asr", {"30": 0, "60": 60}) | waits("diarization_long", {"180": 0, "600": 60}), [firing(30)]),
        (waits("asr", {"60": 0, "180": 60}), [firing(30, "WhisperxQueueWait")]),
        (
            {OK: "0+60x60", WARNINGS % ("diarization", "model_crashed"): "0+6x60"},
            [firing(30, "WhisperxDegraded")],
        ),
    ],
    ids=[
        "all is well",
        "one of two nodes is lost",
        "no Ingress is left",
        "a first start takes long",
        "a deployment is broken",
        "the store failed once",
        "the store is away",
        "clients ask for what their audio or model does not have",
        "a backlog of windows_in_flight on a T4, and long files",
        "a stage is too slow for what comes",
        "a tenth of the transcripts has no speakers",
    ],
)
def test_what_fires_and_when(series: dict[str, str], expected: list[dict[str, Any]], tmp_path: Path) -> None:
    """An operator is alerted of what happened and of nothing else."""
    check(tmp_path, WELL | series, *expected)


def test_a_busy_device_and_the_work_before_it_are_apart(tmp_path: Path) -> None:
    """The Transcriber's GPU works for half of the time and its CPU for a quarter: neither is full."""
    busy = 'ray_whisperx_stage_busy_seconds_total{deployment="Transcriber", stage="%s"}'
    series = {busy % "asr": "0+30x60", busy % "asr_features": "0+15x60"}
    labels = '{deployment="Transcriber", stage="%s"}'
    check(tmp_path, WELL | series, shows("Busy share", {labels % "asr": 0.5, labels % "asr_features": 0.25}))


def test_fallbacks_are_a_share_of_windows(tmp_path: Path) -> None:
    """All windows fell back, each with six attempts."""
    series = {
        "ray_whisperx_windows_total": "0+10x60",
        "ray_whisperx_fallbacks_total": "0+10x60",
        'ray_whisperx_batch_items_total{stage="asr"}': "0+60x60",
    }
    check(tmp_path, series, shows("Fallbacks", {"{}": 1.0}))
