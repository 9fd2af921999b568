"""How many replicas `ByAudio` wants, alone and behind the delays of Serve that it runs behind."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve import autoscaling_policy
from ray.serve._private.common import DeploymentID, TimeStampedValue
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from benchmarks.virtual_day import simulate
from serve_app.deployments.autoscaling import ByAudio

PER_REPLICA_S = 960.0
SPEED = 100.0
WINDOW_S = 30.0  # of one sample of metrics to the last

seconds = st.floats(0, 1e6)
counts = st.integers(0, 50)


def state(
    unfinished_s: Sequence[float] = (),
    *,
    target: int = 1,
    running: int | None = None,
    calls: float = 0.0,
    speeds: Sequence[float] = (),
    busy: Sequence[float] = (),
    busy_beside: Sequence[float] = (),
    config: AutoscalingConfig | None = None,
    kept: dict[str, Any] | None = None,
) -> AutoscalingContext:
    """What Serve tells a policy; one replica for each value, unless some have not reported."""
    unfinished: Any = {"unfinished_audio_s": dict(enumerate(unfinished_s))} if unfinished_s else {}
    counters: Any = {
        name: {
            number: [TimeStampedValue(0.0, 5.0), TimeStampedValue(WINDOW_S, 5.0 + WINDOW_S * per_s)]
            for number, per_s in enumerate(slopes)
        }
        for name, slopes in (
            ("done_audio_s", speeds),
            ("busy_s_diarization_long", busy),
            ("busy_s_diarization_short", busy_beside),
        )
    }
    return AutoscalingContext(
        deployment_id=DeploymentID("Transcriber", "whisperx"),
        deployment_name="Transcriber",
        app_name="whisperx",
        current_num_replicas=len(unfinished_s) if running is None else running,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=calls,
        total_queued_requests=None,
        aggregated_metrics=unfinished,
        raw_metrics=counters,
        capacity_adjusted_min_replicas=0,
        capacity_adjusted_max_replicas=100,
        policy_state=kept or {},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=config,
    )


def wanted(policy: ByAudio, *arguments: Any, **options: Any) -> int:
    return policy(state(*arguments, **options))[0]


@given(st.lists(seconds, min_size=1, max_size=20), counts, st.floats(0, 1000))
def test_audio_that_waits_has_enough_replicas(unfinished_s: list[float], target: int, calls: float) -> None:
    """One for each 960 s or for each call, whichever is less, and never less than one while there is work."""
    needed = math.ceil(sum(unfinished_s) / PER_REPLICA_S)
    found = wanted(ByAudio(PER_REPLICA_S), unfinished_s, target=target, calls=calls)
    assert found >= (min(needed, math.ceil(calls)) if calls else needed)
    assert found >= (1 if calls or any(unfinished_s) else 0)


@given(st.lists(seconds, min_size=1, max_size=20), counts, st.floats(0, 1000), seconds)
def test_more_audio_never_needs_fewer_replicas(
    unfinished_s: list[float], target: int, calls: float, more_s: float
) -> None:
    """Whatever else is the case."""
    for speed in (None, SPEED):
        policy = ByAudio(PER_REPLICA_S, speed)
        options: dict[str, Any] = {"target": target, "calls": calls, "speeds": [50.0]}
        more = [unfinished_s[0] + more_s, *unfinished_s[1:]]
        assert wanted(policy, more, **options) >= wanted(policy, unfinished_s, **options)


@given(st.lists(st.floats(0, SPEED), min_size=2, max_size=10))
def test_what_is_done_now_can_be_done_with_the_replicas_that_stay(speeds: list[float]) -> None:
    """A short queue is no reason to stop a replica whose work the others could not take."""
    idle = [0.0] * len(speeds)
    found = wanted(ByAudio(PER_REPLICA_S, SPEED), idle, target=len(idle), calls=1e9, speeds=speeds)
    assert found * SPEED >= sum(speeds) * (1 - 1e-9)


def test_only_a_queue_starts_replicas() -> None:
    """A replica that does much and keeps its queue short needs no other one."""
    assert wanted(ByAudio(PER_REPLICA_S, SPEED), [500.0], calls=20.0, speeds=[3 * SPEED]) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_without_a_known_speed_busy_replicas_stay(busy: list[float]) -> None:
    """As many as can do the work of all of them; idle ones are stopped."""
    idle = [0.0] * len(busy)
    found = wanted(ByAudio(PER_REPLICA_S), idle, target=len(idle), calls=1e9, busy=busy)
    assert found >= sum(busy) * (1 - 1e-9)
    assert wanted(ByAudio(PER_REPLICA_S), idle, target=len(idle), busy=idle) == 0


@pytest.mark.parametrize(
    ("long", "short"),
    [
        ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]),
        ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
        ([1.0, 1.0, 0.0], [0.0, 0.0, 1.0]),
    ],
)
def test_a_replica_is_as_busy_as_its_busiest_thread(long: list[float], short: list[float]) -> None:
    """A Diarizer has two: one may idle while short files keep the other busy."""
    found = wanted(ByAudio(3600.0), [300.0] * 3, target=3, calls=3.0, busy=long, busy_beside=short)
    assert found == 3


@given(counts, st.integers(1, 20))
def test_replicas_that_start_or_have_not_reported_are_kept(target: int, running: int) -> None:
    """They may have work that nobody has heard of yet."""
    policy = ByAudio(PER_REPLICA_S, SPEED)
    assert wanted(policy, target=target, running=0) == target
    assert wanted(policy, [0.0] * (running - 1), target=target, running=running) >= target


def test_only_idle_stages_go_to_zero_and_a_call_that_waits_ends_that() -> None:
    """A call without audio is one that is about to hand its audio over."""
    policy = ByAudio(PER_REPLICA_S, SPEED)
    assert wanted(policy, [0.0]) == 0
    assert wanted(policy, [0.0], calls=0.2) == 1
    assert wanted(policy, [3.0]) == 1
    assert wanted(policy, target=0, running=0) == 0
    assert wanted(policy, target=0, running=0, calls=0.2) == 1


def test_more_replicas_than_calls_would_stand_idle() -> None:
    """A file of ten hours is one call of the Diarizer."""
    assert wanted(ByAudio(3600.0), [36_000.0], calls=1.0) == 1
    assert wanted(ByAudio(3600.0), [36_000.0], calls=4.0) == 4


@pytest.mark.parametrize("arguments", [(0.0,), (-1.0,), (960.0, 0.0), (float("nan"),)])
def test_what_could_never_work_is_refused(arguments: tuple[float, ...]) -> None:
    """`serve_app check` shows this error."""
    with pytest.raises(ValueError, match="above 0"):
        ByAudio(*arguments)


@dataclass
class Deployment:
    """One whose load is what the test says, scaled by the policy behind Serve's own delays, on a clock."""

    config: AutoscalingConfig
    policy: ByAudio
    clock_s: float = 0.0
    replicas: int = 1

    def __post_init__(self) -> None:
        behind_delays: Any = autoscaling_policy._apply_autoscaling_config
        self._policy = behind_delays(self.policy)
        self._kept: dict[str, Any] = {}

    def after(self, for_s: float, speed: float, unfinished_s: float = 0.0) -> int:
        """The number of replicas after so long with this load."""
        for _ in range(int(for_s)):
            self.clock_s += 1.0
            busy = state(
                [unfinished_s / max(1, self.replicas)] * self.replicas,
                target=self.replicas,
                calls=100.0 * bool(speed or unfinished_s),
                speeds=[speed / max(1, self.replicas)] * self.replicas,
                busy=[min(1.0, speed / SPEED / max(1, self.replicas))] * self.replicas,
                config=self.config,
                kept=self._kept,
            )
            found, self._kept = self._policy(busy)
            self.replicas = max(self.config.min_replicas, min(self.config.max_replicas, found))
        return self.replicas


@pytest.fixture(params=[SPEED, None])
def deployment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """With a known speed and without."""
    found = Deployment(
        AutoscalingConfig(min_replicas=1, max_replicas=4, upscale_delay_s=10.0, downscale_delay_s=60.0),
        ByAudio(PER_REPLICA_S, request.param),
    )
    monkeypatch.setattr(autoscaling_policy, "time", SimpleNamespace(time=lambda: found.clock_s))
    return found


def test_load_has_to_last_before_replicas_are_started_or_stopped(deployment: Deployment) -> None:
    """For upscale_delay_s and downscale_delay_s, also from one number to another one far away."""
    assert deployment.after(9, speed=90.0, unfinished_s=3500.0) == 1
    assert deployment.after(3, speed=90.0, unfinished_s=3500.0) == 4
    assert deployment.after(59, speed=90.0) == 4
    assert deployment.after(3, speed=90.0) == 1


def test_load_that_goes_up_and_down_starts_and_stops_nothing(deployment: Deployment) -> None:
    """Waves that are shorter than the delays leave the number of replicas as it is."""
    assert deployment.after(20, speed=90.0, unfinished_s=2500.0) == 3
    waves = [(350.0, 3500.0), (150.0, 0.0)] * 20
    assert {deployment.after(5, *wave) for wave in waves} == {3}


def test_a_steady_load_keeps_its_replicas(deployment: Deployment) -> None:
    """A short queue for an hour, while the work is that of two and a half replicas."""
    assert deployment.after(20, speed=250.0, unfinished_s=2500.0) == 3
    assert {deployment.after(60, speed=250.0, unfinished_s=100.0) for _ in range(60)} == {3}


def test_the_bounds_hold(deployment: Deployment) -> None:
    """With a queue of hours, and with nothing to do."""
    assert deployment.after(30, speed=400.0, unfinished_s=1e5) == 4
    assert deployment.after(120, speed=0.0) == 1


def test_the_last_replica_has_its_own_delay(deployment: Deployment) -> None:
    """downscale_to_zero_delay_s, where min_replicas allows it; then the first call starts one at once."""
    deployment.config = AutoscalingConfig(
        min_replicas=0, max_replicas=4, downscale_delay_s=60.0, downscale_to_zero_delay_s=300.0
    )
    assert deployment.after(299, speed=0.0) == 1
    assert deployment.after(3, speed=0.0) == 0
    assert deployment.after(1, speed=1.0) == 1


def test_six_hours_of_load_cost_little_more_than_they_must() -> None:
    """Simulated T4s and a model that loads for a minute: no refusal, and no windows left behind."""
    found = simulate(6 * 3600.0)
    assert found["refused"] == 0
    assert found["over_ideal"] <= 1.25
    assert found["stopped"] > 0
    assert found["windows_done"] >= 0.999 * 10 * found["files"]
