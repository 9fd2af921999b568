"""Transcribers that the policy of docs/autoscaling.md starts and stops while requests run."""

import random
import time
from collections.abc import Callable

import pytest
from ray import serve

from benchmarks.chaos.faults import counts
from benchmarks.chaos.load import Load, mixed_clips
from benchmarks.chaos.running_graph import config, deployed, wait_for

URL = "http://127.0.0.1:18000/scaled"
LENGTHS_S = [20.0, 10.0, 18.0, 12.0]  # two to four windows of 5 s, which count as 30 s each
MANY, FEW = 12, 3  # clients: some 1,000 s and at most 360 s of unfinished audio
SCALING = {
    "min_replicas": 1,
    "max_replicas": 3,
    "look_back_period_s": 15.0,
    "upscale_delay_s": 1.0,
    "downscale_delay_s": 5.0,
    "policy": {
        "policy_function": "serve_app.deployments.autoscaling:ByAudio",
        "policy_kwargs": {"audio_s_per_replica": 400.0, "speed": 1000.0},
    },
}


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_replicas_that_start_and_stop_lose_no_request_and_change_no_word(
    figure: Callable[[str], None],
) -> None:
    """From one Transcriber to three and back, each text a checksum of its samples."""
    raw = config(
        application="scaled",
        route_prefix="/scaled",
        args={"load_s": 0.1, "asr": 0.05},
        deployments={
            "Transcriber": {
                "autoscaling_config": SCALING,
                "graceful_shutdown_timeout_s": 60.0,
                "user_config": {"max_batch_size": 2},
            }
        },
    )

    def has(replicas: int) -> bool:
        transcribers = serve.status().applications["scaled"].deployments["Transcriber"]
        return transcribers.replica_states == {"RUNNING": replicas}

    load = Load(URL, mixed_clips(LENGTHS_S, random.Random(1)))
    try:
        with deployed(raw, URL):
            assert has(1)
            load.learn()
            with load.steady(MANY) as busy:
                grown_s = wait_for(lambda: has(3), "there are three Transcribers")
                time.sleep(5)  # of work for all three
            with load.steady(FEW) as quiet:
                shrunk_s = wait_for(lambda: has(1), "two of them have ended")
                answered = len(quiet)
                wait_for(lambda: len(quiet) > answered + FEW, "the one that is left answers")
    finally:
        load.close()
    found = counts([*busy, *quiet])
    figure(
        f"scaling: 3 replicas after {grown_s:.0f} s, 1 again {shrunk_s:.0f} s later, {len(busy)} and "
        f"{len(quiet)} requests"
    )
    assert (found["failures"], found["changes"]) == ({}, [])
    assert answered > 0
