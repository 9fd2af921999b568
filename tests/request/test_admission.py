"""What the server takes on, and when it tells those it refuses to come back."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import Overloaded
from serve_app.request.admission import Admission

HOUR_S = 3600.0


def retry_after_s(refused: Callable[..., Any], *arguments: Any) -> int:
    """What a refused client is told."""
    with pytest.raises(Overloaded) as raised:
        refused(*arguments)
    assert raised.value.retry_after_s is not None
    return raised.value.retry_after_s


def test_one_request_too_many_is_refused_until_another_ends() -> None:
    """The limit counts requests that are there, not those that were."""
    admission = Admission(2, HOUR_S)
    with ExitStack() as inside:
        inside.enter_context(admission.admit())
        with admission.admit():
            retry_after_s(lambda: admission.admit().__enter__())
        inside.enter_context(admission.admit())
        assert not admission.idle.is_set()
    assert admission.idle.is_set()


def test_audio_is_refused_when_there_is_as_much_as_the_server_takes() -> None:
    """The file that passes the limit is let in, the next one is not; what is released counts no longer."""
    admission = Admission(100, HOUR_S)
    admission.hold("a", 0.75 * HOUR_S)
    admission.hold("b", 500.0)
    admission.hold("c", 600.0)
    retry_after_s(admission.refuse_new)
    retry_after_s(admission.hold, "d", 1.0)
    admission.release("a")
    admission.refuse_new()


def test_a_file_is_counted_by_what_is_known_of_its_length() -> None:
    """More is refused where it is too much, less is never refused."""
    admission = Admission(100, 1000.0)
    admission.hold("a", 100.0)
    admission.hold("b", 550.0)
    admission.hold("c", 500.0)
    admission.hold("a", 50.0)
    retry_after_s(admission.hold, "a", 60.0)


def test_short_files_have_a_tenth_for_themselves() -> None:
    """Long files together leave it free; one alone, however long, counts as all that they may have."""
    admission = Admission(100, 10 * HOUR_S)
    admission.hold("long", 8 * HOUR_S)
    retry_after_s(admission.hold, "another", 1.5 * HOUR_S)
    admission.hold("short", 600.0)
    alone = Admission(100, HOUR_S)
    alone.hold("long", 30.0)
    alone.hold("long", 8 * 4 * HOUR_S)
    retry_after_s(alone.hold, "another", 601.0)
    alone.refuse_new()
    alone.hold("short", 600.0)
    retry_after_s(alone.hold, "third", 1.0)
    small = Admission(100, 600.0)
    small.hold("long", 4 * HOUR_S)
    retry_after_s(small.hold, "another", 4 * HOUR_S)
    assert small.held_s == 4 * HOUR_S


def test_a_server_that_is_shutting_down_says_so() -> None:
    """Whatever room it has; requests that are there already go on."""
    admission = Admission(100, HOUR_S)
    with admission.admit():
        admission.is_draining = True
        with pytest.raises(Overloaded) as raised:
            admission.refuse_new()
        assert raised.value.code == "shutting_down"
        admission.hold("running", 10.0)


@given(st.lists(st.floats(0.0, 1e6), max_size=50))
def test_retry_after_is_a_whole_number_of_seconds_within_bounds(lasted_s: list[float]) -> None:
    """Whatever requests have taken."""
    admission = Admission(0, HOUR_S)
    for wall_s in lasted_s:
        admission.finished(wall_s)
    assert 1 <= retry_after_s(lambda: admission.admit().__enter__()) <= 600


def test_retry_after_follows_how_long_requests_take() -> None:
    """About half of what they took lately."""
    admission = Admission(0, HOUR_S)
    for _ in range(50):
        admission.finished(100.0)
    assert 45 <= retry_after_s(lambda: admission.admit().__enter__()) <= 50
