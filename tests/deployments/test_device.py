"""Which device a graph is built for, by what the cluster has and what its autoscaler may add."""

import logging
from typing import Any

import pytest
import ray
from ray._private import state
from ray.autoscaler._private.kuberay import node_provider
from ray.core.generated import autoscaler_pb2

from serve_app.app import choose_device
from serve_app.errors import ModelUnavailable
from serve_app.settings import Settings


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
    monkeypatch.setattr(state.state, "get_cluster_config", lambda: None)
    return resources


@pytest.fixture
def on_kuberay(monkeypatch: pytest.MonkeyPatch, cluster: dict[str, float]) -> dict[str, Any]:
    """The specification of the RayCluster that this cluster is."""
    spec = {"enableInTreeAutoscaling": True, "headGroupSpec": group("head", 0, 0), "workerGroupSpecs": []}

    def get(client: Any, path: str) -> dict[str, Any]:
        assert (client._namespace, path) == ("speech", "rayclusters/whisperx")
        return {"spec": spec}

    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "get", get)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "whisperx")
    monkeypatch.setenv("RAY_CLUSTER_NAMESPACE", "speech")
    return spec


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_gpu_that_is_there_is_used(cluster: dict[str, float], device: Any) -> None:
    """Whatever may still join."""
    cluster["GPU"] = 1.0
    assert choose_device(Settings(device=device)) == "cuda"


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpu_nodes_that_kuberay_starts_when_they_are_needed_count(
    on_kuberay: dict[str, Any], device: Any
) -> None:
    """A graph built before the first of them joins is for a GPU, too: its replicas make the node start."""
    on_kuberay["workerGroupSpecs"] = [group("cpus", 0, 8), group("gpus", 1, 2)]
    assert choose_device(Settings(device=device)) == "cuda"


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_gpu_nodes_of_another_autoscaler_count(
    monkeypatch: pytest.MonkeyPatch, cluster: dict[str, float], device: Any
) -> None:
    """One that tells Ray what nodes it may start."""
    config: Any = vars(autoscaler_pb2)["ClusterConfig"]()  # protobuf makes it, unseen by mypy
    config.node_group_configs.add(max_count=3, resources={"CPU": 8, "GPU": 1})
    monkeypatch.setattr(state.state, "get_cluster_config", lambda: config)
    assert choose_device(Settings(device=device)) == "cuda"


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"workerGroupSpecs": [group("cpus", 0, 8)]},
        {"workerGroupSpecs": [group("gpus", 1, 0)]},
        {"workerGroupSpecs": [group("gpus", 1, 2)], "enableInTreeAutoscaling": False},
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

    def refused(client: Any, path: str) -> dict[str, Any]:
        raise OSError("403 Forbidden")

    monkeypatch.setattr(node_provider.KubernetesHttpApiClient, "get", refused)
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    assert choose_device(Settings()) == "cpu"
    assert "RayCluster whisperx" in caplog.text
    assert choose_device(Settings(device="cuda")) == "cuda"


def test_outside_of_a_cluster_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while a config file is checked."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    assert choose_device(Settings()) == "cpu"
