"""What a model's process gets from the node it runs on, not from the one where the graph was built."""

import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeAligner, FakeDiarizer, FakeRecognizer, FakeSpeechModel

from serve_app.app import graph
from serve_app.models.loaders import Loaders
from serve_app.settings import Settings
from serve_app.stage_requests import Decoding
from serve_app.stages.torch_support import limit_gpu_memory

LOADERS = Loaders(FakeSpeechModel, partial(FakeRecognizer, Path("gate")), FakeAligner, FakeDiarizer)


def bound_deployments(device: str = "cpu", load: Loaders = LOADERS, **settings: Any) -> list[Any]:
    """The deployments of a graph, with what they are bound to."""
    ingress: Any = graph(Settings.model_validate({"model": "fake", **settings}), load, device)
    bound = [ingress._bound_deployment]
    for node in bound:  # which grows meanwhile
        below = [*node.init_args, *node.init_kwargs.get("other_transcribers", {}).values()]
        bound += [arg._bound_deployment for arg in below if hasattr(arg, "_bound_deployment")]
    return bound


def environments(monkeypatch: pytest.MonkeyPatch, cores: int) -> dict[str, dict[str, str]]:
    """The environment of each deployment of a graph that is built on a node with this many cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    return {node.name: node.ray_actor_options["runtime_env"]["env_vars"] for node in bound_deployments()}


@pytest.mark.parametrize(
    ("jobs", "longest_s"), [({"timeout_s": 7200}, 7200), ({"store": "off"}, 60), ({"timeout_s": 1}, 60)]
)
def test_speakers_of_a_file_have_the_time_of_its_job(jobs: dict[str, Any], longest_s: float) -> None:
    """A Diarizer that works on a long file counts as hung only when neither request nor job would wait."""
    bound = {node.name: node for node in bound_deployments(request_timeout_s=60, jobs=jobs)}["Diarizer"]
    assert bound.init_args[1].limit_s(4 * 3600.0) == longest_s


def test_no_environment_depends_on_where_the_graph_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head with two cores says nothing about workers with 32."""
    on_small, on_large = (environments(monkeypatch, cores) for cores in (2, 32))
    assert len(on_small) == 7
    assert on_small == on_large
    every_name = {name for env_vars in on_small.values() for name in env_vars}
    assert not any(name.startswith("MALLOC_MMAP") for name in every_name)  # glibc's


def test_secrets_reach_only_those_that_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas inherit their node's: webhooks' secrets are for the JobRunner, tokens for models, and
    the password of the database is for those that ask the store of jobs."""
    found = environments(monkeypatch, 2)
    models = {"SpeechDetector", "Transcriber", "Aligner", "Diarizer"}
    assert {name for name, variables in found.items() if "WEBHOOK_SECRETS" not in variables} == {"JobRunner"}
    assert {name for name, variables in found.items() if "HF_TOKEN" not in variables} == models
    store = {"Ingress", "JobRunner"}
    assert {name for name, variables in found.items() if "PGPASSWORD" not in variables} == store
    assert all(variables.get("WEBHOOK_SECRETS", "") == "" for variables in found.values())


# What a replica's process does on a node of two cores, and then: the threads that torch has in one of its own
# threads, and the MiB that the process keeps of an array of 64 MiB.
REPLICA = """
import os, threading
import numpy
os.sched_getaffinity = lambda _: set(range(2))
from serve_app.models.loaders import prepare_process, threads_on
prepare_process(threads_on("cpu", None), keep_memory={keep_memory})
import torch
threads = []
thread = threading.Thread(target=lambda: threads.append(torch.get_num_threads()))
thread.start()
thread.join()
def resident_mib():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
array = numpy.ones(1 << 23)
before = resident_mib()
del array
print(*threads, 64 - (before - resident_mib()))
"""


@pytest.mark.parametrize(("keep_memory", "kept_mib"), [(True, 64), (False, 0)])
def test_a_replica_fits_its_own_node(keep_memory: bool, kept_mib: int) -> None:
    """It has the threads of that node's cores, and keeps memory between batches where that is wanted."""
    run = subprocess.run(
        [sys.executable, "-c", REPLICA.format(keep_memory=keep_memory)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    threads, found_mib = map(int, run.stdout.split())
    assert threads == 2
    assert abs(found_mib - kept_mib) < 8


@pytest.mark.parametrize(("device", "told"), [("cuda", [0.3]), ("cpu", [])])
def test_a_stage_on_a_gpu_is_bounded_to_its_share(
    monkeypatch: pytest.MonkeyPatch, device: str, told: list[float]
) -> None:
    """The share that Ray books is the fraction that torch may take; on a CPU nothing is touched."""
    fractions: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", fractions.append)
    limit_gpu_memory(0.3, device)
    assert fractions == told


def test_replicas_run_on_nodes_with_the_labels_of_their_kind() -> None:
    """What books part of a GPU goes to the nodes for that, and everything else keeps off them."""
    placement = {"cpu": {"pool": "cpu"}, "gpu": {"pool": "gpu"}}
    options = {node.name: node.ray_actor_options for node in bound_deployments("cuda", placement=placement)}
    on_gpus = {name for name, of_replica in options.items() if of_replica.get("num_gpus")}
    assert on_gpus == {"Transcriber", "Aligner", "Diarizer"}
    assert {
        name for name, of_replica in options.items() if of_replica["label_selector"] == placement["gpu"]
    } == on_gpus
    assert all(
        of_replica["label_selector"]["pool"] == "cpu"
        for name, of_replica in options.items()
        if name not in on_gpus
    )


def test_without_placement_replicas_run_anywhere() -> None:
    """A node without labels, such as one machine's, takes every replica."""
    assert not any(node.ray_actor_options.get("label_selector") for node in bound_deployments())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_each_model_is_a_deployment_of_its_own(device: str) -> None:
    """With its own loader, share and attempts; the Ingress and the JobRunner have them all."""
    others: dict[str, Any] = {"small": FakeRecognizer, "a/b": FakeRecognizer}
    models = {"small": {"gpu_share": 0.1, "temperature_fallback": []}, "a/b": None}
    nodes = bound_deployments(device, replace(LOADERS, other_recognizers=others), models=models)
    found = {node.name: node for node in nodes}
    shares = {
        name: node.ray_actor_options.get("num_gpus", 0.0)
        for name, node in found.items()
        if name.startswith("Transcriber")
    }
    on_gpu = device == "cuda"
    assert shares == {
        "Transcriber": 0.5 * on_gpu,
        "Transcriber-small": 0.1 * on_gpu,
        "Transcriber-a-b": 0.5 * on_gpu,
    }
    assert found["Transcriber-small"].init_args[0] is FakeRecognizer
    attempts = [len(found[name].init_args[2].schedule(Decoding())) for name in shares]
    assert attempts == [6, 1, 6]
    for name in ("Ingress", "JobRunner"):
        assert [*found[name].init_kwargs["other_transcribers"]] == ["small", "a/b"]
    cpus = sum(node.ray_actor_options["num_cpus"] for name, node in found.items())
    assert cpus <= 2, "one replica of each fits on two cores"
