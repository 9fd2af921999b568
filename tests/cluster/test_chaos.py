"""`make chaos` in a short form: the same scenarios, fewer blows."""

import random
from collections.abc import Callable, Iterator

import pytest

from benchmarks.chaos.changes import broken_update, deploy
from benchmarks.chaos.faults import front, hang, kill_together
from benchmarks.chaos.load import Load, mixed_clips
from benchmarks.chaos.overload import overload
from benchmarks.chaos.running_graph import Graph, config, deployed

URL = "http://127.0.0.1:18000/chaos"
LENGTHS_S = [1.0, 20.0, 5.0, 2.5, 10.0, 3.0]
SETTINGS = {"requests_in_flight": 12, "call_timeout_s": 2.0, "call_timeout_per_audio_s": 0.5}
LIMIT_S = 60.0

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Graph, Load]]:
    """The graph around models that give checksums, with two slow Transcribers, and its clients."""
    raw = config(
        route_prefix="/chaos",
        settings=SETTINGS,
        args={"load_s": 0.1, "asr": 0.2},
        deployments={"Transcriber": {"num_replicas": 2}},
    )
    load = Load(URL, mixed_clips(LENGTHS_S, random.Random(1)))
    try:
        with deployed(raw, URL) as graph:
            yield graph, load
    finally:
        load.close()


def test_killed_replicas_lose_no_request_and_change_no_word(
    scene: tuple[Graph, Load], figure: Callable[[str], None]
) -> None:
    """SIGKILL of one replica of each stage, all at once, while clips of all kinds run."""
    found = kill_together(*scene, rng=random.Random(1), clients=4)
    figure(f"killed replicas, one of each stage: whole again after {found['recover_s']:.1f} s")
    assert (found["failures"], found["changes"]) == ({}, [])
    assert sum(found["retries"].values()) > 0  # else none of them had anything to do


@pytest.mark.slow  # test_graph and test_admission refuse, too
def test_more_than_the_graph_can_do_is_refused_and_the_rest_done(
    scene: tuple[Graph, Load], figure: Callable[[str], None]
) -> None:
    """Ten times its capacity for some seconds: it works on, and the refused hear when to come back."""
    found = overload(*scene, capacity_s=5.0, overload_s=5.0, rng=random.Random(1))
    figure(f"overload: {found['goodput_ratio']:.2f} of the capacity, {found['refused']} refused")
    assert (found["failures"], found["changed_transcripts"]) == ({}, 0)
    assert found["refused"] > 0
    assert found["refused_without_retry_after"] == 0
    assert found["goodput_ratio"] > 0.5  # what is left is noise; make chaos asks for 0.9


def test_a_killed_ingress_fails_its_own_requests_audibly(scene: tuple[Graph, Load]) -> None:
    """A 503 that says so, or a broken connection; whoever tries again is answered."""
    found = front(*scene, times=1, rng=random.Random(1), clients=4, parts=["ingress"])
    assert found["ingress_wrong_status"] == 0, found["ingress_failures"]
    assert found["ingress_failed_otherwise"] == 0, found["ingress_failures"]
    assert (found["ingress_changed_transcripts"], found["never_answered"]) == (0, 0)


@pytest.mark.slow  # test_faults has one that hangs, too
def test_requests_of_a_hung_replica_end_on_another(
    scene: tuple[Graph, Load], figure: Callable[[str], None]
) -> None:
    """SIGSTOP of one of two Transcribers: it is killed, and its calls are made again."""
    found = hang(*scene, limit_s=LIMIT_S, clients=3)
    figure(f"hung replica: {found['calls_hit']} calls made again")
    assert (found["failures"], found["changes"]) == ({}, [])
    assert found["slowest_request_s"] < LIMIT_S


def test_settings_change_under_load(scene: tuple[Graph, Load]) -> None:
    """Batch size in place, then one more replica: no request fails. test_faults replaces all of them."""
    found = deploy(*scene, clients=4, replace=False)
    assert (found["failures"], found["changes"]) == ({}, [])
    assert (found["batch_size_in_place"], found["replicas_added"], found["all_replaced"]) == (1, 1, 0)


def test_a_version_that_does_not_start_takes_nothing_away(scene: tuple[Graph, Load]) -> None:
    """An update to it, and back: one of two old Transcribers answers all requests meanwhile."""
    found = broken_update(*scene, clients=3, until_given_up=False)
    assert (found["failures"], found["changes"]) == ({}, [])
    assert found["old_transcribers_kept"] > 0
    assert found["answered_while_broken"] > 0
