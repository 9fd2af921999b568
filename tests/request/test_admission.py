"""What the server takes on, and when it tells those it refuses to come back; a clock that tests move."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from serve_app.errors import Overloaded
from serve_app.request.admission import Admission

HOUR_S = 3600.0
MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class House:
    """An Admission, its clock, and the requests in it."""

    def __init__(
        self, requests: int = 100, audio_s: float = 100 * HOUR_S, within_s: float = math.inf
    ) -> None:
        self.clock = Clock()
        self.admission = Admission(requests, audio_s, self.clock, within_s)
        self._inside: dict[object, AbstractContextManager[None]] = {}

    def let_in(self, audio_s: float | None = None, body_bytes: int = 0) -> object:
        """A request, and its audio if it is decoded already; what identifies it."""
        audio = object()
        self._inside[audio] = self.admission.one(body_bytes)
        self._inside[audio].__enter__()
        if audio_s is not None:
            self.admission.add(audio, audio_s)
        return audio

    def end(self, audio: object, audio_s: float, after_s: float) -> None:
        self.clock.now_s += after_s
        self.admission.remove(audio)
        self.admission.finished(audio_s)
        self._inside.pop(audio).__exit__(None, None, None)

    def fill_and_finish(self, requests: int, audio_s: float, each_s: float) -> None:
        """So many files, one after the other, so much time each."""
        for _ in range(requests):
            self.end(self.let_in(audio_s), audio_s, each_s)


def retry_after_s(refused: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    with pytest.raises(Overloaded) as raised:
        refused(*args, **kwargs)
    assert raised.value.retry_after_s is not None
    return raised.value.retry_after_s


def test_a_refused_client_comes_back_when_half_of_the_audio_is_done() -> None:
    """An hour is held and audio was finished at 20 times real time: 90 s are half of it."""
    house = House(audio_s=HOUR_S)
    house.fill_and_finish(50, audio_s=60.0, each_s=3.0)
    house.let_in(audio_s=HOUR_S)
    assert retry_after_s(house.let_in) == 90


def test_requests_that_are_not_decoded_count_as_long_as_the_usual_ones() -> None:
    """Ten of unknown length, where others have a minute: 15 s until half of them have ended."""
    house = House(requests=10)
    house.fill_and_finish(50, audio_s=60.0, each_s=3.0)
    for _ in range(10):
        house.let_in()
    assert retry_after_s(house.let_in) == 15


def test_short_requests_make_room_before_long_ones_are_done() -> None:
    """Half of ten have a minute, as far as is known: at 20 times real time those have ended after 15 s."""
    house = House(requests=10)
    house.fill_and_finish(50, audio_s=60.0, each_s=3.0)
    for audio_s in [None, *4 * [60.0], *5 * [HOUR_S]]:
        house.let_in(audio_s)
    assert retry_after_s(house.let_in) == 15


def test_the_pace_is_that_of_the_last_minutes() -> None:
    """A server that has become four times slower says so; a night without work changes nothing."""
    house = House(audio_s=HOUR_S)
    house.fill_and_finish(100, audio_s=60.0, each_s=3.0)
    house.clock.now_s += 8 * HOUR_S
    house.fill_and_finish(60, audio_s=60.0, each_s=12.0)
    house.let_in(audio_s=HOUR_S)
    assert 350 <= retry_after_s(house.let_in) <= 360


def test_files_that_run_side_by_side_have_their_true_pace() -> None:
    """Seven hours of audio that all end after five minutes were 84 times real time, not their last gap."""
    house = House(audio_s=24 * HOUR_S)
    audios = [house.let_in(audio_s=HOUR_S) for _ in range(7)]
    house.clock.now_s += 293.0
    for audio in audios:
        house.end(audio, HOUR_S, after_s=1.0)
    for _ in range(21):
        house.let_in(audio_s=HOUR_S)
    assert retry_after_s(house.let_in, HOUR_S) == pytest.approx(21 * HOUR_S / 2 / 84, rel=0.1)


def test_nothing_finished_is_said_honestly() -> None:
    """Before any success the wait is as long as the work so far, and a stall makes every wait longer."""
    house = House(audio_s=HOUR_S)
    house.let_in(audio_s=HOUR_S)
    assert retry_after_s(house.let_in) == 3  # half of the first guess
    house.clock.now_s += 60.0
    assert retry_after_s(house.let_in) == 30
    stalled = House(audio_s=HOUR_S)
    stalled.fill_and_finish(50, audio_s=60.0, each_s=3.0)
    stalled.let_in(audio_s=HOUR_S)
    stalled.clock.now_s += 200.0
    assert retry_after_s(stalled.let_in) > 2 * 90


def test_retry_after_stays_between_a_second_and_ten_minutes() -> None:
    """However little or much there is to do."""
    quick, slow = House(requests=1), House(audio_s=HOUR_S)
    quick.fill_and_finish(5, audio_s=1.0, each_s=0.01)
    quick.let_in()
    assert retry_after_s(quick.let_in) == 1
    slow.fill_and_finish(5, audio_s=1.0, each_s=10.0)
    slow.let_in(audio_s=HOUR_S)
    assert retry_after_s(slow.let_in) == 600


def test_long_files_leave_room_for_short_ones() -> None:
    """Long files have filled nine tenths: the next is refused, and clips come in up to the limit."""
    house = House(audio_s=10 * HOUR_S)
    for _ in range(9):
        house.let_in(audio_s=HOUR_S)
    retry_after_s(house.let_in, HOUR_S)
    retry_after_s(house.let_in, None, 1000 * MIB)  # before its body is read
    for _ in range(6):
        house.let_in(audio_s=600.0, body_bytes=100 * MIB)
    retry_after_s(house.let_in, 10.0)


def test_a_file_counts_as_far_as_it_is_decoded() -> None:
    """It grows for as long as there is room for it, and shrinks; said twice, it counts once."""
    house = House(audio_s=10 * HOUR_S)
    growing, other = house.let_in(9.5 * HOUR_S), house.let_in(120.0)
    for seconds in (480.0, 8 * HOUR_S, 8 * HOUR_S):
        house.admission.add(growing, seconds)
    house.admission.add(other, 480.0)
    with pytest.raises(Overloaded):
        house.admission.add(other, 8 * HOUR_S)
    house.end(other, 0.0, 1.0)
    house.end(growing, 8 * HOUR_S, 1.0)
    house.let_in(8 * HOUR_S)


def test_one_long_file_always_fits() -> None:
    """However long: the limit refuses company."""
    house = House(audio_s=HOUR_S)
    house.let_in(audio_s=10.0)
    house.let_in(audio_s=4 * HOUR_S)
    retry_after_s(house.let_in)


def test_what_has_ended_makes_room() -> None:
    """Of audio and of requests, whether it came to a transcript or not."""
    house = House(requests=1, audio_s=HOUR_S)
    with house.admission.one():
        house.admission.add("first", HOUR_S)
        retry_after_s(house.admission.one)
        house.admission.remove("first")
        retry_after_s(house.admission.one)  # the one request is still answered
    with house.admission.one():
        house.admission.add("second", HOUR_S)


def test_a_server_that_shuts_down_finishes_what_it_has() -> None:
    """New requests are refused, and the audio of one that was let in before is not."""
    house = House()
    house.let_in()
    house.admission.draining = True
    house.admission.add("decoded later", HOUR_S)
    with pytest.raises(Overloaded) as raised:
        house.let_in()
    assert raised.value.code == "shutting_down"


def test_what_would_not_be_done_in_time_is_refused() -> None:
    """At twice real time one hour has two hours of audio, taken in turns: short files get theirs at once."""
    house = House(within_s=HOUR_S)
    house.fill_and_finish(50, audio_s=60.0, each_s=30.0)
    first = house.let_in(audio_s=1.5 * HOUR_S)
    assert retry_after_s(house.let_in, 1.5 * HOUR_S) == 600
    house.let_in(audio_s=10.0)
    house.let_in(audio_s=0.9 * HOUR_S)
    house.end(first, 1.5 * HOUR_S, after_s=0.75 * HOUR_S)
    house.let_in(audio_s=0.9 * HOUR_S)


def test_the_only_file_is_never_refused_by_the_pace() -> None:
    """It may be slower than hoped, or quicker; and little work tells no pace to refuse anybody by."""
    house = House(within_s=HOUR_S)
    house.fill_and_finish(1, audio_s=1.0, each_s=50.0)
    house.let_in(audio_s=HOUR_S)
    house.let_in(audio_s=HOUR_S)
    slow = House(within_s=HOUR_S)
    slow.fill_and_finish(20, audio_s=10.0, each_s=30.0)
    slow.let_in(audio_s=4 * HOUR_S)
