"""The files of deploy/, read as the programs read them that they are for."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serve_app.http.auth import new_key

PROJECT = Path(__file__).parents[1]
DEPLOY = PROJECT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
APPLICATION = "whisperx"
SOURCES = pytest.mark.parametrize("source", ["files", "gpu", "cpu"])  # of all_documents


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file."""
    return [*yaml.safe_load_all(path.read_text())]


def kustomized(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send. The test is skipped where there is no kubectl."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    return [*yaml.safe_load_all(_kustomized_text(folder))]


@cache
def _kustomized_text(folder: Path) -> str:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def of_kind(kind: str, found: list[dict[str, Any]], name: str = APPLICATION) -> dict[str, Any]:
    """The document of this kind and name."""
    (document,) = (each for each in found if each["kind"] == kind and each["metadata"]["name"] == name)
    return document


def all_documents(source: str) -> list[dict[str, Any]]:
    """The manifests as files, or as kubectl makes them for GPUs or without."""
    if source == "files":
        (kustomization,) = documents(KUBERNETES / "kustomization.yaml")
        return [each for name in kustomization["resources"] for each in documents(KUBERNETES / name)]
    return kustomized({"gpu": KUBERNETES, "cpu": DEPLOY / "kustomize" / "cpu"}[source])


def cluster(source: str) -> dict[str, Any]:
    """The RayService's cluster."""
    found = of_kind("RayService", all_documents(source))["spec"]["rayClusterConfig"]
    assert isinstance(found, dict)
    return found


def groups(source: str) -> list[dict[str, Any]]:
    """The head's group, then those of the workers."""
    found = cluster(source)
    return [found["headGroupSpec"], *found["workerGroupSpecs"]]


def serve_config(source: str) -> dict[str, Any]:
    """What KubeRay sends to Serve."""
    config = yaml.safe_load(of_kind("RayService", all_documents(source))["spec"]["serveConfigV2"])
    assert isinstance(config, dict)
    return config


def pod_templates(value: Any) -> Iterator[dict[str, Any]]:
    """The pod templates anywhere in a document."""
    if isinstance(value, list):
        for each in value:
            yield from pod_templates(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key == "template" and "containers" in each.get("spec", ()):
                yield each
            yield from pod_templates(each)


def application(config: dict[str, Any]) -> dict[str, Any]:
    """The only application of a config file's content."""
    (found,) = config["applications"]
    assert isinstance(found, dict)
    return found


def with_key(config: dict[str, Any]) -> dict[str, Any]:
    """The config file's content after an operator has added a key to it."""
    args = application(config)["args"]
    args["access"] = args["access"] | {"keys": [{"name": "acme", "sha256": new_key()[1]}]}
    return config


def interpolated(compose: str) -> str:
    """A compose file's text with the defaults of its variables."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", compose)


def size_bytes(text: str) -> float:
    """A size as compose and Kubernetes write it."""
    found = re.fullmatch(r"([\d.]+)([kmgt]?)i?", text.lower())
    assert found, text
    power = 1 + "kmgt".index(found[2]) if found[2] else 0
    return float(found[1]) * float(1024**power)


def answers(url: str) -> bool:
    """Whether this address can be reached from here."""
    try:
        return httpx.head(url, timeout=10, follow_redirects=True).is_success
    except httpx.HTTPError:
        return False
