"""Requests that nobody means, in a short form; `python -m benchmarks.fuzz` is the long one."""

from benchmarks.fuzz import fuzz


def test_no_request_breaks_the_service() -> None:
    """Of 200 random and mutated ones none is answered 5xx, and nothing stays open or on disk."""
    statuses, left = fuzz(200, 0)
    assert [status for status in statuses if status >= 500] == []
    assert {200, 400, 413, 422, 424} <= set(statuses)  # they reach every part of the intake
    assert left == {"descriptors": 0, "children": 0, "names": 0}
