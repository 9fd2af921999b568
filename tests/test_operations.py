"""docs/operations.md and the files in deploy/ agree with each other and with what is measured."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from serve_app.cli.config_file import settings_table

PROJECT = Path(__file__).parents[1]
PAGE = (PROJECT / "docs" / "operations.md").read_text()
DEPLOY = PROJECT / "deploy"
ALERTS = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
QUERIES = [
    target["expr"]
    for panel in json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())["panels"]
    for target in panel.get("targets", [])
]


def measured() -> set[str]:
    """The names under which Prometheus has what the service measures itself."""
    code = (PROJECT / "serve_app" / "deployments" / "metrics.py").read_text()
    found = re.findall(r'_(counter|gauge|histogram)\(\s*"(\w+)"', code)
    return {f"ray_whisperx_{name}{'_total' if kind == 'counter' else ''}" for kind, name in found}


def asked_for(text: str) -> set[str]:
    """The metrics of the service that a text names, without the parts of histograms."""
    return {re.sub("_(bucket|count)$", "", name) for name in re.findall(r"\bray_whisperx_\w+", text)}


def test_every_metric_is_explained_and_shown() -> None:
    """In the page's table, and in a panel; and nothing that is not measured is asked for anywhere."""
    assert len(measured()) > 15
    assert asked_for(PAGE) - {"ray_whisperx_"} == measured()
    assert asked_for(" ".join(QUERIES)) == measured()
    assert asked_for(" ".join(rule["expr"] for rule in ALERTS)) <= measured()


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_every_alert_says_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    """It has a summary, a description and its own paragraph in the runbook."""
    told = rule["annotations"]
    assert {*told} == {"summary", "description", "runbook"}
    name = str(rule["alert"])
    assert told["runbook"] == f"docs/operations.md#{name.lower()}"
    paragraph = PAGE.partition(f"\n### {name}\n")[2].partition("\n#")[0]
    assert len(paragraph) > 100
    assert rule["labels"]["severity"] in ("critical", "warning")


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.cluster.yml"])
def test_prometheus_takes_the_files(name: str) -> None:
    """By promtool, which checks the alerts with them."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: tests/programs.sh")
    command = [promtool, "check", "config", str(DEPLOY / "prometheus" / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


def test_every_setting_that_is_named_exists() -> None:
    """Those of the security checklist above all."""
    known = set(re.findall(r"^\| `([\w.]+)` \|", settings_table(), re.MULTILINE))
    sections = {name.partition(".")[0] for name in known if "." in name}
    named = {name for name in re.findall(r"`(\w+\.[\w.]+)[`:]", PAGE) if name.partition(".")[0] in sections}
    assert len(named) >= 20
    assert named - known - {"jobs.key"} == set()


def test_grafana_finds_what_it_is_provided_with() -> None:
    """Panels name the dashboard's data source, no two have the same number, and rows do not overlap."""
    dashboard = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["datasource"]["uid"] for panel in panels if panel["type"] != "row"} == {"${datasource}"}
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels]
    assert len(set(places)) == len(places)
    for kind in ("datasources", "dashboards"):
        (file,) = (DEPLOY / "grafana" / "provisioning" / kind).glob("*.yml")
        assert yaml.safe_load(file.read_text())["apiVersion"] == 1
