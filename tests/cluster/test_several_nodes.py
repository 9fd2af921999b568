"""One graph on several Ray nodes, in a process of its own: this one may have a Ray of one node already."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
TIMEOUT_S = 900.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(PROJECT / "tests" / "several_nodes.py")],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_the_demos_file_gets_its_own_text_across_nodes(found: dict[str, Any]) -> None:
    """Each window's text is the checksum of exactly its samples, decoded on another node."""
    assert found["demo_texts"] == found["demo_checksums"]
    assert len(found["demo_texts"]) == 6


def test_audio_goes_from_the_loader_to_the_models_by_reference(
    found: dict[str, Any], figure: Callable[[str], None]
) -> None:
    """The loader's node holds the 4 MiB of samples; that of the Ingress, which runs the request, does not."""
    stores = found["stores_mib"]
    figure(f"several nodes: MiB in object stores {stores}")
    assert stores["loaders"] > 3.0
    assert stores["head"] < 1.5  # objects of Ray's own


def test_killed_nodes_lose_no_request_and_change_no_word(
    found: dict[str, Any], figure: Callable[[str], None]
) -> None:
    """SIGKILL of all processes of the loader's node, then of the models', each replaced by a new node."""
    lost = found["lost"]
    figure(
        f"several nodes: {lost['requests']} requests, whole again after {lost['recover_s_of']} s, "
        f"network namespaces: {bool(lost['in_network_namespaces'])}, retries: {lost['retries']}"
    )
    assert (lost["failures"], lost["changes"]) == ({}, [])
    assert lost["open_at_each_kill"] > 0
    assert lost["retries_of_lost_replicas"] > 0
