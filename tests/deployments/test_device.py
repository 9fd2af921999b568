"""Which device a graph is built for, by what the cluster has and what its autoscaler may add."""

import io
import json
import logging
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import ray
from fakes import FakeAligner, FakeDiarizer, FakeRecognizer, FakeSpeechModel

from serve_app.app import choose_device, refuse_shares_without_gpus
from serve_app.deployments.calls import ray_private
from serve_app.errors import ModelUnavailable
from serve_app.models.loaders import Loaders
from serve_app.settings import Settings

CLUSTER = "namespaces/speech/rayclusters/whisperx"
CERTIFICATE = Path(__file__).parents[1] / "stages" / "audio" / "self_signed.pem"


def group(name: str, gpus: int, most: int) -> dict[str, Any]:
    """A worker group of a RayCluster as Kubernetes gives it; no node of it is there yet."""
    limits = {"cpu": "4", "memory": "16Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    pod = {"spec": {"containers": [{"name": "ray", "resources": {"limits": limits}}]}}
    return {
        "groupName": name,
        "replicas": 0,
        "minReplicas": 0,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": pod,
    }


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the nodes have that are there: no GPU."""
    resources = {"CPU": 4.0}
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    return resources


@pytest.fixture
def on_kuberay(monkeypatch: pytest.MonkeyPatch, cluster: dict[str, float], tmp_path: Path) -> dict[str, Any]:
    """The specification of the RayCluster that this cluster is, as Kubernetes gives it."""
    spec = {"enableInTreeAutoscaling": True, "workerGroupSpecs": []}

    def urlopen(request: urllib.request.Request, **_: Any) -> io.BytesIO:
        assert request.full_url == f"https://kubernetes.default/apis/ray.io/v1/{CLUSTER}"
        assert request.get_header("Authorization") == "Bearer secret"
        return io.BytesIO(json.dumps({"spec": spec}).encode())

    for name, content in (("namespace", "speech"), ("token", "secret"), ("ca.crt", CERTIFICATE.read_text())):
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(ray_private, "ACCOUNT", tmp_path)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "whisperx")
    return spec


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_is_there_is_used(cluster: dict[str, float], device: Any) -> None:
    """Whatever may still join."""
    cluster["GPU"] = 1.0
    assert choose_device(Settings(device=device)) == "cuda"


@pytest.mark.parametrize(
    "with_gpus",
    [
        group("gpus", 1, 2),
        {**group("gpus", 0, 2), "rayStartParams": {"num-gpus": "1"}},
        {**group("gpus", 0, 2), "resources": {"GPU": "1"}},
    ],
)
@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpu_nodes_that_kuberay_starts_when_they_are_needed_count(
    on_kuberay: dict[str, Any], device: Any, with_gpus: dict[str, Any]
) -> None:
    """A graph built before the first of them joins is for a GPU, too: its replicas make the node start."""
    on_kuberay["workerGroupSpecs"] = [group("cpus", 0, 8), with_gpus]
    assert choose_device(Settings(device=device)) == "cuda"


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"workerGroupSpecs": [group("cpus", 0, 8)]},
        {"workerGroupSpecs": [group("gpus", 1, 0)]},
        {"workerGroupSpecs": [group("gpus", 1, 2)], "enableInTreeAutoscaling": False},
        {"workerGroupSpecs": [{**group("hidden", 1, 2), "rayStartParams": {"num-gpus": "0"}}]},
    ],
)
def test_without_any_gpu_auto_is_the_cpu_and_cuda_is_refused(
    on_kuberay: dict[str, Any], spec: dict[str, Any]
) -> None:
    """Nor does a group count that may have no node, or to which nothing adds one."""
    on_kuberay.update(spec)
    assert choose_device(Settings()) == "cpu"
    with pytest.raises(ModelUnavailable, match=r"^device: cuda, but no node of this Ray cluster has a GPU,"):
        choose_device(Settings(device="cuda"))


def test_a_kubernetes_that_does_not_answer_is_told_about(
    monkeypatch: pytest.MonkeyPatch, on_kuberay: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As where the pod may not read its RayCluster: `auto` goes by the nodes that are there, and says so;
    `cuda` is taken at its word.
    """

    def refused(*_: Any, **__: Any) -> None:
        raise OSError("403 Forbidden")

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    assert choose_device(Settings()) == "cpu"
    assert "RayCluster whisperx" in caplog.text
    assert choose_device(Settings(device="cuda")) == "cuda"


def test_outside_of_a_cluster_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a config file is checked."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert choose_device(Settings()) == "cpu"


@pytest.mark.parametrize(
    ("models", "gpus", "refused"),
    [
        ({}, 1.0, False),  # 0.5 + 0.2 + 0.3
        ({"small": {"gpu_share": 0.2}}, 1.0, True),
        ({"small": {"gpu_share": 0.2}}, 2.0, False),
        ({"small": None, "base": None}, 2.0, False),  # 0.5 more for each, as in asr
        ({"small": None, "base": None}, 1.9, True),
    ],
)
def test_shares_of_gpus_that_are_not_there_are_refused(
    cluster: dict[str, float], models: dict[str, Any], gpus: float, refused: bool
) -> None:
    """One replica of each stage must fit, or Serve would wait for ever; the message has each share."""
    cluster["GPU"] = gpus
    settings = Settings.model_validate({"models": models})
    load = Loaders(FakeSpeechModel, FakeRecognizer, FakeAligner, FakeDiarizer)  # type: ignore[arg-type]
    if not refused:
        refuse_shares_without_gpus(settings, load)
        return
    with pytest.raises(ModelUnavailable, match=rf"asr 0.5, models.small .*has {gpus:g}; lower a gpu_share"):
        refuse_shares_without_gpus(settings, load)


def test_shares_of_gpus_that_kuberay_may_add_are_not_refused(on_kuberay: dict[str, Any]) -> None:
    """Its replicas make the nodes start."""
    on_kuberay["workerGroupSpecs"] = [group("gpus", 1, 2)]
    load = Loaders(FakeSpeechModel, FakeRecognizer, FakeAligner, FakeDiarizer)  # type: ignore[arg-type]
    refuse_shares_without_gpus(Settings.model_validate({"models": {"small": None}}), load)
