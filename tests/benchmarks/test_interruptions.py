"""What `make chaos` counts as an interruption of jobs: a goal is not met where none was interrupted."""

from benchmarks.chaos.__main__ import SCENARIOS
from benchmarks.chaos.job_kills import Killed, Watcher, interruptions


def missed(blows: list[Killed], claims: dict[tuple[str, int], float]) -> set[str]:
    """The goals that these blows miss."""
    found = interruptions(blows, Watcher("", claims))
    return {
        goal.name for goal in SCENARIOS["jobs"][1] if goal.name in found and not goal.met(found[goal.name])
    }


def test_blows_that_stop_no_job_meet_no_goal() -> None:
    """Jobs go on without the Ingress and the controller, and a kill after their end proves nothing."""
    blows = [Killed("Ingress", 10.0, {"a": 1}), Killed("ServeController", 20.0, {"a": 1})]
    late = [Killed("JobRunner", 30.0 + number, {}) for number in range(3)]
    assert missed([*blows, *late], {("a", 1): 5.0}) == {"kills_that_stopped_jobs", "taken_again_max_s"}


def test_the_last_blow_that_met_a_job_counts() -> None:
    """A job waits from the blow that stopped it; another one before may have missed it."""
    blows = [Killed("JobRunner", at_s, {"a": 1}) for at_s in (10.0, 20.0, 30.0)]
    assert missed(blows, {("a", 1): 5.0, ("a", 2): 85.0}) == set()
    assert missed(blows, {("a", 1): 5.0, ("a", 2): 95.0}) == {"taken_again_max_s"}
