"""How `make chaos` judges `Retry-After`: against the time until half of the requests held had ended."""

import pytest

from benchmarks.chaos.load import Clip, Outcome
from benchmarks.chaos.overload import told_over_true

CLIP = Clip("clip", 10.0, b"", False, {})


def answered(begun_s: float, ended_s: float) -> Outcome:
    return Outcome(CLIP, begun_s, ended_s, 200)


def refused(at_s: float, retry_after_s: int | None) -> Outcome:
    return Outcome(CLIP, at_s, at_s, 503, retry_after_s=retry_after_s)


@pytest.mark.parametrize(
    ("ends_s", "told_s", "ratio"),
    [([110.0, 120.0, 190.0], 20, 1.0), ([110.0, 120.0], 20, 2.0), ([100.1], 3, 3.0), ([], 5, 5.0)],
)
def test_a_refusal_is_judged_by_half_of_what_was_held(ends_s: list[float], told_s: int, ratio: float) -> None:
    """Of an even number the smaller half; where nothing is held, by the second that is the least to tell."""
    held = [answered(90.0, ended_s) for ended_s in ends_s]
    others = [answered(80.0, 99.0), answered(101.0, 102.0), refused(100.0, None)]
    assert told_over_true([refused(100.0, told_s), *held, *others]) == [pytest.approx(ratio)]
