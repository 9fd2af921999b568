"""The batcher: late cut, fair, one result or error per item. Plain asyncio, no Ray, no sleeps."""

import asyncio
import threading
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serve_app.batching import batcher as batching
from serve_app.batching import turns as turns_module
from serve_app.batching.batcher import Batcher
from serve_app.batching.items import BatcherDied
from serve_app.batching.queue import NEWCOMER_ITEMS, BatchQueue
from serve_app.batching.turns import DeviceTurns, Turns
from serve_app.transcript import SAMPLE_RATE_HZ, Audio


class Device:
    """Runs batches only when let, and remembers what was in them."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)

    def run(self, items: list[Any]) -> list[Any]:
        self.batches.append(items)
        self.begun.release()
        assert self.may_end.acquire(timeout=10)
        return [ValueError(item) if item == "bad" else f"<{item}>" for item in items]

    async def busy(self) -> None:
        """Returns once the device has begun a batch."""
        assert await asyncio.to_thread(self.begun.acquire, timeout=10)

    def free(self, batches: int = 1) -> None:
        self.may_end.release(batches)


async def settle() -> None:
    """Lets every task that can run now do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_items_that_arrive_while_the_device_is_busy_share_the_next_batch() -> None:
    """A batch is cut when the device is free, so it holds all that waited meanwhile."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=8)
        first = asyncio.create_task(batcher.submit(0, "request-0"))
        await device.busy()
        others = [asyncio.create_task(batcher.submit(n, f"request-{n}")) for n in range(1, 8)]
        await settle()
        device.free(2)
        assert await asyncio.gather(first, *others) == [f"<{n}>" for n in range(8)]
        assert (batcher.counters.batches, batcher.counters.items) == (2, 8)
        batcher.close()
        return device.batches

    assert asyncio.run(scenario()) == [[0], [1, 2, 3, 4, 5, 6, 7]]


def test_a_short_request_does_not_wait_behind_a_long_one() -> None:
    """Requests take turns: a newcomer's item is in the very next batch although 40 others wait."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=4)
        long = [asyncio.create_task(batcher.submit(f"long-{n}", "long")) for n in range(40)]
        await device.busy()
        short = asyncio.create_task(batcher.submit("short", "short"))
        await settle()
        device.free(2)
        assert await short == "<short>"
        device.free(100)
        assert len(await asyncio.gather(*long)) == 40
        batcher.close()
        return device.batches

    batches = asyncio.run(scenario())
    assert "short" in batches[1]
    assert [item for batch in batches for item in batch if item != "short"] == [
        f"long-{n}" for n in range(40)
    ]
    assert all(len(batch) == 4 for batch in batches[:-1])


def test_an_error_belongs_to_its_item_alone() -> None:
    """An exception standing in the result list is raised for that item; the others get results."""

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=8, wait_s=5)
        batcher.max_batch_size = 3
        tasks = [asyncio.create_task(batcher.submit(item, item)) for item in ("a", "bad", "c")]
        await device.busy()
        device.free()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[0] == "<a>"
        assert isinstance(results[1], ValueError)
        assert results[2] == "<c>"
        assert len(device.batches) == 1
        batcher.close()

    asyncio.run(scenario())


def test_a_failing_model_call_fails_its_batch_and_not_the_batcher() -> None:
    """When the call itself raises, its items hear of it and the next batch runs as ever."""

    def run(items: list[int]) -> list[int]:
        if -1 in items:
            raise RuntimeError("out of memory")
        if -2 in items:
            raise StopIteration
        return items

    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(run, max_batch_size=1)
        with pytest.raises(RuntimeError, match="out of memory"):
            await batcher.submit(-1, "a")
        with pytest.raises(RuntimeError, match="StopIteration"):  # which a future cannot carry
            await batcher.submit(-2, "a")
        assert await batcher.submit(7, "b") == 7
        batcher.close()

    asyncio.run(scenario())


def test_a_model_that_loses_an_item_is_an_error_and_not_a_hang() -> None:
    """Too few results fail the batch; the batcher goes on."""

    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(lambda items: [n for n in items if n > 0], max_batch_size=1)
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            await batcher.submit(-1, "a")
        assert await batcher.submit(7, "b") == 7
        batcher.close()

    asyncio.run(scenario())


def test_cancelled_items_never_reach_the_device() -> None:
    """An item whose caller has gone while it queued is dropped and counted."""

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=4)
        first = asyncio.create_task(batcher.submit("first", "a"))
        await device.busy()
        gone = asyncio.create_task(batcher.submit("gone", "b"))
        stays = asyncio.create_task(batcher.submit("stays", "c"))
        await settle()
        gone.cancel()
        device.free(2)
        await asyncio.gather(first, stays)
        assert device.batches == [["first"], ["stays"]]
        assert batcher.counters.dropped == 1
        assert batcher.queued == 0
        batcher.close()

    asyncio.run(scenario())


def test_only_items_with_equal_keys_share_a_batch() -> None:
    """Options that are per model call split batches, and no key starves."""

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=8, key=lambda item: item[0])
        first = asyncio.create_task(batcher.submit("x0", "r0"))
        await device.busy()
        rest = [
            asyncio.create_task(batcher.submit(item, f"r{n}"))
            for n, item in enumerate(("x1", "y1", "x2", "y2"), 1)
        ]
        await settle()
        device.free(3)
        await asyncio.gather(first, *rest)
        assert device.batches == [["x0"], ["x1", "x2"], ["y1", "y2"]]
        batcher.close()

    asyncio.run(scenario())


def test_another_key_within_a_request_splits_no_batch() -> None:
    """A window that goes round again waits for others of its kind; those around it still fill batches."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=4, key=lambda item: item[0])
        items = ("x0", "x1", "y1", "x2", "y2", "x3", "x4", "x5")
        tasks = [asyncio.create_task(batcher.submit(items[0], "long"))]
        await device.busy()
        tasks += [asyncio.create_task(batcher.submit(item, "long")) for item in items[1:]]
        await settle()
        device.free(4)
        await asyncio.gather(*tasks)
        batcher.close()
        return device.batches

    assert asyncio.run(scenario()) == [["x0"], ["x1", "x2", "x3", "x4"], ["y1", "y2"], ["x5"]]


def test_a_stream_of_requests_of_one_key_starves_no_other_key() -> None:
    """However many prompted requests come, one without a prompt is in the first batch that it is due for."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=2, key=lambda item: item[0])
        tasks = [asyncio.create_task(batcher.submit("p0", "p0"))]
        await device.busy()
        tasks += [asyncio.create_task(batcher.submit(f"p{n}", f"p{n}")) for n in (1, 2)]
        tasks += [asyncio.create_task(batcher.submit("u", "u"))]
        for n in range(3, 9):  # one more for every batch
            tasks += [asyncio.create_task(batcher.submit(f"p{n}", f"p{n}"))]
            await settle()
            device.free()
            await device.busy()
        device.free(9)
        await asyncio.gather(*tasks)
        batcher.close()
        return device.batches

    assert asyncio.run(scenario())[:4] == [["p0"], ["p1", "p2"], ["u"], ["p3", "p4"]]


def test_waiting_for_company_forgets_no_key() -> None:
    """With a wait set and two keys, the one that is not in the first batch runs next, unprompted."""

    async def scenario() -> None:
        batcher: Batcher[str, str] = Batcher(
            lambda items: [f"<{item}>" for item in items], max_batch_size=8, wait_s=0.01, key=str
        )
        both = asyncio.gather(batcher.submit("a", "r0"), batcher.submit("b", "r1"))
        assert list(await asyncio.wait_for(both, 10)) == ["<a>", "<b>"]
        batcher.close()

    asyncio.run(scenario())


def test_an_idle_device_waits_for_company_only_until_the_batch_is_full() -> None:
    """With a wait set, a burst runs as one batch, and a full one does not wait out its time."""

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=3, wait_s=3600)
        tasks = []
        for n in range(3):
            tasks.append(asyncio.create_task(batcher.submit(n, n)))
            await settle()
        await device.busy()
        device.free()
        await asyncio.gather(*tasks)
        assert device.batches == [[0, 1, 2]]
        batcher.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("announced", "company_s", "next_s", "batches"),
    [
        ((2, 1, 0), 60.0, 60.0, [[0, 1, 2]]),
        ((1, 1, 0), 60.0, 60.0, [[0], [1, 2]]),
        ((9, 9, 9), 60.0, 0.01, [[0], [1, 2]]),
        ((9, 9, 9), 0.01, 60.0, [[0], [1, 2]]),
        ((2, None, None), 60.0, 60.0, [[0, 1, 2]]),
    ],
    ids=["a batch full", "not enough", "none comes next", "too late", "no news"],
)
def test_an_idle_device_waits_for_a_full_batch_that_is_on_its_way(
    announced: tuple[int | None, ...],
    company_s: float,
    next_s: float,
    batches: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Only for as much as fills it, and not for long."""
    monkeypatch.setattr(batching, "NEXT_S", next_s)

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=3)
        batcher.company_s = company_s
        tasks = [asyncio.create_task(batcher.submit(0, 0, coming=announced[0]))]
        if batches[0] == [0]:
            await device.busy()
        for n in (1, 2):
            tasks.append(asyncio.create_task(batcher.submit(n, n, coming=announced[n])))
            await settle()
        device.free(2)
        await asyncio.gather(*tasks)
        assert device.batches == batches
        batcher.close()

    asyncio.run(scenario())


def test_the_batch_size_changes_while_running() -> None:
    """A new size holds from the next batch on."""

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=1)
        tasks = [asyncio.create_task(batcher.submit(n, "r")) for n in range(5)]
        await device.busy()
        batcher.max_batch_size = 4
        device.free(2)
        await asyncio.gather(*tasks)
        assert device.batches == [[0], [1, 2, 3, 4]]
        batcher.close()

    asyncio.run(scenario())


def test_a_batch_holds_no_more_audio_than_it_may() -> None:
    """Long windows go by twos or alone and short ones by as many as fit, whoever's turn it is."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=16, audio_s=float)
        batcher.max_batch_s = 60.0
        first = asyncio.create_task(batcher.submit(70, "longest"))
        await device.busy()
        long = [asyncio.create_task(batcher.submit(30, "long")) for _ in range(3)]
        short = [asyncio.create_task(batcher.submit(10, f"short-{n}")) for n in range(3)]
        await settle()
        device.free(100)
        await asyncio.gather(first, *long, *short)
        batcher.close()
        return device.batches

    assert asyncio.run(scenario()) == [[70], [30, 10, 10, 10], [30, 30]]


def test_of_more_clips_than_go_into_a_batch_the_shorter_ones_go_first_but_once() -> None:
    """A batch lasts as long as its longest item; whoever was passed over is in the next one all the same."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=2, audio_s=float)
        waiting = [asyncio.create_task(batcher.submit(0, "first"))]
        await device.busy()

        async def come(*lengths_s: int) -> None:
            waiting.extend(asyncio.create_task(batcher.submit(s, f"clip of {s} s")) for s in lengths_s)
            await settle()

        await come(20, 3, 25, 4, 1)
        device.free()
        await device.busy()  # with the shorter two of the first four
        await come(2)
        device.free(100)
        await asyncio.gather(*waiting)
        batcher.close()
        return device.batches

    assert asyncio.run(scenario()) == [[0], [3, 4], [20, 1], [25, 2]]


def test_lanes_share_what_waits() -> None:
    """Two batches side by side rather than a full one and none; the only idle lane takes all it may."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=4, lanes=2)
        first = [asyncio.create_task(batcher.submit(n, f"request-{n}")) for n in range(3)]
        await device.busy()
        await device.busy()
        later = [asyncio.create_task(batcher.submit(n, f"request-{n}")) for n in range(3, 8)]
        await settle()
        assert (batcher.running, batcher.queued) == (3, 5)
        device.free()
        await device.busy()
        device.free(100)
        await asyncio.gather(*first, *later)
        batcher.close()
        return device.batches

    batches = asyncio.run(scenario())
    assert sorted(batches[:2]) == [[0, 1], [2]]  # by two threads, whichever comes first
    assert batches[2:] == [[3, 4, 5, 6], [7]]


def test_a_newcomer_goes_beside_lanes_that_are_all_busy_with_long_files() -> None:
    """As on CPUs; not beside a lane that is idle, where there is room for it."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        options: dict[str, Any] = {"lanes": 2, "newcomers_beside": True}
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=4, **options)
        long = [asyncio.create_task(batcher.submit(f"long-{n}", "long")) for n in range(8)]
        await device.busy()
        await device.busy()
        first = asyncio.create_task(batcher.submit("first", "first"))
        await device.busy()
        assert (batcher.running, batcher.queued) == (9, 0)
        device.free(3)
        await asyncio.gather(*long, first)
        late = [asyncio.create_task(batcher.submit(f"long-{n}", "long")) for n in (8, 9)]
        second = asyncio.create_task(batcher.submit("second", "second"))
        device.free(100)
        await asyncio.gather(*late, second)
        assert batcher.counters.beside == 1
        batcher.close()
        return device.batches

    batches = asyncio.run(scenario())
    halves = [[f"long-{n}" for n in range(first, first + 4)] for first in (0, 4)]
    assert sorted(batches[:3]) == [["first"], *halves]


def test_a_newcomer_does_not_wait_for_a_long_batch() -> None:
    """A short request runs in a lane of its own beside a long one's batch, and that one's stay full."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=4, newcomers_beside=True)
        long = [asyncio.create_task(batcher.submit(f"long-{n}", "long")) for n in range(8)]
        await device.busy()
        short = asyncio.create_task(batcher.submit("short", "short"))
        await device.busy()  # while the other still runs
        device.free(100)
        assert await short == "<short>"
        assert len(await asyncio.gather(*long)) == 8
        counters = batcher.counters
        assert (counters.items, counters.slots, counters.beside) == (8, 8, 1)
        batcher.close()
        return device.batches

    batches = asyncio.run(scenario())
    assert batches[0] == [f"long-{n}" for n in range(4)]
    assert sorted(batches[1:]) == [[f"long-{n}" for n in range(4, 8)], ["short"]]


def test_many_newcomers_fill_the_next_batch_instead() -> None:
    """Their lane takes one or two; where more wait they share a batch with the long file, in turn."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=4, newcomers_beside=True)
        long = [asyncio.create_task(batcher.submit(f"long-{n}", "long")) for n in range(5)]
        await device.busy()
        short = [asyncio.create_task(batcher.submit(f"short-{n}", n)) for n in range(3)]
        await settle()
        device.free(100)
        await asyncio.gather(*long, *short)
        batcher.close()
        return device.batches

    batches = asyncio.run(scenario())
    assert [sorted(batch) for batch in batches] == [
        ["long-0", "long-1", "long-2", "long-3"],
        ["long-4", "short-0", "short-1", "short-2"],
    ]


def test_the_lane_for_newcomers_splits_no_batches_of_them() -> None:
    """While newcomers run, others wait and share the next batch: their own lane is for long batches only."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=8, newcomers_beside=True)
        first = asyncio.create_task(batcher.submit(0, "request-0"))
        await device.busy()
        others = [asyncio.create_task(batcher.submit(n, f"request-{n}")) for n in range(1, 3)]
        await settle()
        device.free(2)
        await asyncio.gather(first, *others)
        batcher.close()
        return device.batches

    assert asyncio.run(scenario()) == [[0], [1, 2]]


def test_a_long_request_is_no_newcomer_again_after_a_pause() -> None:
    """Windows of a long file that come in small numbers stay in the other lane, all in one batch."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=4, newcomers_beside=True)
        for first in (0, 4, 8):
            tasks = [asyncio.create_task(batcher.submit(n, "long")) for n in range(first, first + 4)]
            await device.busy()
            device.free()
            await asyncio.gather(*tasks)
        batcher.close()
        return device.batches

    assert asyncio.run(scenario()) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


async def after_first_items(run: Any = None, **options: Any) -> "tuple[Device, Batcher[Any, Any]]":
    """A device that ends every batch, and its batcher, to which the request "long" is a newcomer no more."""
    device = Device()
    device.free(100)
    batcher: Batcher[Any, Any] = Batcher(run or device.run, **options)
    for n in range(NEWCOMER_ITEMS):
        await batcher.submit(f"long-{n}", "long", long=True)
    return device, batcher


async def still_waits(task: "asyncio.Task[Any]") -> bool:
    """Whether it does not end, although whatever could let it look again does so several times."""
    await asyncio.wait({task}, timeout=10 * turns_module.LOOK_S)
    await settle()  # a look at this very moment is over before anything else comes
    return not task.done()


@pytest.mark.parametrize(
    ("others", "beside", "searches"),
    [("short", False, False), ("search", False, False), ("short", False, True), ("search", True, False)],
)
def test_what_can_wait_gives_way_to_others_on_the_same_device(
    turns: DeviceTurns, others: str, beside: bool, searches: bool
) -> None:
    """A long file waits while a clip is at work elsewhere, or a search that finds work for many devices; a
    clip here does not.
    """

    async def scenario() -> list[list[Any]]:
        options = {"newcomers_beside": beside, "turns": turns, "searches": searches}
        device, batcher = await after_first_items(max_batch_size=8, **options)
        with getattr(turns, others).first():
            late = asyncio.create_task(batcher.submit("long-late", "long", long=True))
            assert await still_waits(late)
            if beside:
                assert await batcher.submit("short", "short") == "<short>"
            assert await still_waits(late)
        assert await late == "<long-late>"
        batcher.close()
        return device.batches

    clips = [["short"]] * beside
    assert asyncio.run(scenario())[NEWCOMER_ITEMS:] == [*clips, ["long-late"]]


def test_where_nothing_goes_beside_a_clip_ends_the_giving_way(turns: DeviceTurns) -> None:
    """It would else wait with the long file's items."""

    async def scenario() -> list[list[Any]]:
        device, batcher = await after_first_items(max_batch_size=1, turns=turns)
        with turns.short.first():
            late = asyncio.create_task(batcher.submit("long-late", "long", long=True))
            await settle()
            assert await batcher.submit("short", "short") == "<short>"
        await late
        batcher.close()
        return device.batches

    assert asyncio.run(scenario())[NEWCOMER_ITEMS] == ["short"]


@pytest.mark.parametrize(("others", "beside", "searches"), [("short", True, False), ("search", False, True)])
def test_not_all_wait_for_all(turns: DeviceTurns, others: str, beside: bool, searches: bool) -> None:
    """A recogniser has a lane for short work, and a search waits for no search."""

    async def scenario() -> None:
        options = {"newcomers_beside": beside, "turns": turns, "searches": searches}
        device, batcher = await after_first_items(max_batch_size=8, **options)
        with getattr(turns, others).first():
            first = asyncio.create_task(batcher.submit("long-first", "long", long=True))
            await settle()
            second = asyncio.create_task(batcher.submit("long-second", "long", long=True))
            await asyncio.gather(first, second)
        batcher.close()
        assert device.batches[NEWCOMER_ITEMS:] == [["long-first"], ["long-second"]]

    asyncio.run(scenario())


def test_a_search_lets_what_it_found_in_a_clip_be_recognised_first(
    turns: DeviceTurns, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clip comes to another stage in a moment; a step begun meanwhile would be beside it there."""
    monkeypatch.setattr(turns_module, "LINGER_S", 60.0)

    async def scenario() -> None:
        device, batcher = await after_first_items(max_batch_size=8, turns=turns, searches=True)
        await batcher.submit("short", "short")
        late = asyncio.create_task(batcher.submit("long-late", "long", long=True))
        await asyncio.wait({late}, timeout=0.1)
        assert device.batches[NEWCOMER_ITEMS:] == [["short"]]
        monkeypatch.setattr(turns_module, "LINGER_S", 0.0)
        await late
        batcher.close()

    asyncio.run(scenario())


def test_others_are_not_waited_for_for_ever(turns: DeviceTurns) -> None:
    """However long they go on, also the second time."""
    hurried = replace(turns, most_s=0.02)

    async def scenario() -> list[Any]:
        device = Device()
        device.free(100)
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=1, turns=hurried)
        with turns.short.first():
            answers = [await batcher.submit(n, "long", long=True) for n in range(NEWCOMER_ITEMS + 2)]
        batcher.close()
        return answers

    assert asyncio.run(scenario()) == [f"<{n}>" for n in range(NEWCOMER_ITEMS + 2)]


def test_a_recogniser_waits_for_two_full_batches_while_windows_are_searched_for(turns: DeviceTurns) -> None:
    """On the same device; then the first of them runs, and the rest waits on."""

    async def scenario() -> list[list[Any]]:
        device, batcher = await after_first_items(max_batch_size=2, newcomers_beside=True, turns=turns)
        assert turns.search
        with turns.search.first():
            windows = [asyncio.create_task(batcher.submit(n, "long", long=True)) for n in range(3)]
            assert await still_waits(windows[0])
            windows.append(asyncio.create_task(batcher.submit(3, "long", long=True)))
            await asyncio.gather(*windows[:2])
            assert await still_waits(windows[2])
        await asyncio.gather(*windows)
        batcher.close()
        return device.batches

    assert asyncio.run(scenario())[NEWCOMER_ITEMS:] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("beside", [True, False], ids=["recogniser", "aligner"])
def test_only_what_a_long_file_can_wait_for_waits_for_a_search(turns: DeviceTurns, beside: bool) -> None:
    """Not its first item, and none that decides how it goes on; of a short file nothing at all."""

    async def scenario() -> None:
        device = Device()
        device.free(100)
        batcher: Batcher[Any, Any] = Batcher(
            device.run, max_batch_size=8, newcomers_beside=beside, turns=turns
        )
        assert turns.search
        with turns.search.first():
            await batcher.submit("long-first", "long", long=True)
            for n in range(NEWCOMER_ITEMS + 1):
                await batcher.submit(n, "short")
            second = asyncio.create_task(batcher.submit("long-second", "long", long=True))
            assert await still_waits(second)
            await batcher.submit("another's first", "another long one", long=True)
            assert not beside or await still_waits(second)
            third = asyncio.create_task(batcher.submit("long-third", "long", long=True))
            assert await still_waits(third)
            await batcher.submit("urgent", "long", long=True, urgent=True)
        await asyncio.gather(second, third)
        batcher.close()

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_giving_way_to_a_search_leaves_time_to_give_way_to_clips(turns: DeviceTurns) -> None:
    """Half of the time at most goes to each: a clip that comes during a search would else get none of it."""

    async def gives_way_to(first: Turns, batcher: Batcher[Any, Any]) -> bool:
        """Whether a long file's item still waits for it after a while."""
        with first.first():
            late = asyncio.create_task(batcher.submit("long", "long", long=True))
            await asyncio.wait({late}, timeout=4 * turns_module.LINGER_S)
            waits = not late.done()
            await late  # for as long as it may
        return waits

    async def scenario() -> list[bool]:
        hurried = replace(turns, most_s=8 * turns_module.LINGER_S)
        _, batcher = await after_first_items(max_batch_size=1, turns=hurried)
        assert turns.search
        gave_way = [await gives_way_to(first, batcher) for first in (turns.search, turns.short)]
        batcher.close()
        return gave_way

    assert asyncio.run(scenario()) == [True, True]


@pytest.mark.parametrize("beside", [True, False], ids=["recogniser", "aligner"])
def test_who_gives_way_to_all_still_works_for_a_part_of_the_time(turns: DeviceTurns, beside: bool) -> None:
    """Also while clips and searches on the same device never end."""

    def run(items: list[Any]) -> list[Any]:
        time.sleep(0.05)  # the work itself: what is measured is how much of it there is
        return items

    async def scenario() -> float:
        hurried = replace(turns, most_s=0.5, most_for_search_s=1.0)
        _, batcher = await after_first_items(run, max_batch_size=1, newcomers_beside=beside, turns=hurried)
        assert turns.search
        with turns.short.first(), turns.search.first():
            await batcher.submit("long", "long", long=True)  # which gives all that is owed to them
            begun_s, busy_s = time.monotonic(), batcher.counters.busy_s
            for _ in range(10):
                await batcher.submit("long", "long", long=True)
            share = (batcher.counters.busy_s - busy_s) / (time.monotonic() - begun_s)
        batcher.close()
        return share

    assert asyncio.run(scenario()) > 0.3


def test_who_goes_first_shows_to_others_while_it_runs(turns: DeviceTurns) -> None:
    """Short work to everybody, and of a search also what is done for a long file."""
    seen: list[tuple[bool, bool]] = []

    def run(items: list[Any]) -> list[Any]:
        assert turns.search
        seen.append((turns.short.taken(), turns.search.taken()))
        return items

    async def scenario(searches: bool) -> None:
        batcher: Batcher[Any, Any] = Batcher(run, max_batch_size=1, turns=turns, searches=searches)
        for n in range(NEWCOMER_ITEMS + 1):
            await batcher.submit(n, "short")
        await batcher.submit(n, "long", long=True)
        batcher.close()

    asyncio.run(scenario(searches=False))
    asyncio.run(scenario(searches=True))
    short = [(True, False)] * NEWCOMER_ITEMS
    assert seen == [*short, *[(False, False)] * 2, *short, *[(False, True)] * 2]


@pytest.mark.parametrize(
    ("audio", "is_long"),
    [
        (Audio(np.zeros(60 * SAMPLE_RATE_HZ, np.int16)), False),
        (Audio(np.zeros(121 * SAMPLE_RATE_HZ, np.int16)), True),
        (Audio(np.zeros(60 * SAMPLE_RATE_HZ, np.int16), whole=False), True),
    ],
    ids=["a minute", "two", "the first of many"],
)
def test_a_file_is_long_after_two_minutes_and_while_there_is_more_to_come(
    audio: Audio, is_long: bool
) -> None:
    """Also one that does not say how long it will be."""
    assert audio.is_long is is_long


def test_what_is_urgent_is_first_of_its_request() -> None:
    """But behind what is urgent already; other requests keep their turn."""

    async def scenario() -> list[list[str]]:
        queue: BatchQueue[str, None] = BatchQueue(lambda item: 30.0)
        queue.put("other", "other's first", None, long=True)
        for number in range(3):
            queue.put("file", f"window {number}", None, long=True)
        for number in range(2):
            queue.put("file", f"again {number}", "again", long=True, urgent=True)
        return [[waiting.item for waiting in queue.cut(2, 300.0)] for _ in range(3)]

    assert asyncio.run(scenario()) == [
        ["other's first", "window 0"],
        ["again 0", "again 1"],
        ["window 1", "window 2"],
    ]


def test_newcomers_come_first_but_not_always() -> None:
    """Where one long window fills a batch, clips come before it, and it comes before the next clips."""

    async def scenario() -> list[list[str]]:
        queue: BatchQueue[str, None] = BatchQueue(lambda item: 30.0 if item == "long" else 10.0)

        queue.put("file", "first", None, long=True)
        queue.cut(8, 30.0)
        queue.put("file", "long", None, long=True)
        queue.put("file", "long", None, long=True)
        queue.put("clip 1", "clip", None)
        batches = [queue.cut(8, 30.0)]
        for number in (2, 3, 4, 5):
            queue.put(f"clip {number}", "clip", None)
        batches += [queue.cut(8, 30.0) for _ in range(4)]
        return [[waiting.item for waiting in batch] for batch in batches]

    assert asyncio.run(scenario()) == [["clip"], ["long"], ["clip"] * 3, ["clip"], ["long"]]


def test_what_waits_is_counted_without_those_who_left() -> None:
    """`queued` and `running` are what is really there, and busy time is counted."""

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=1)
        first = asyncio.create_task(batcher.submit("first", "a"))
        await device.busy()
        gone = asyncio.create_task(batcher.submit("gone", "b"))
        await settle()
        assert (batcher.queued, batcher.running) == (1, 1)
        gone.cancel()
        await settle()
        assert (batcher.queued, batcher.running) == (0, 1)
        device.free()
        await first
        assert batcher.counters.busy_s > 0
        batcher.close()

    asyncio.run(scenario())


def test_a_batcher_that_has_died_says_so() -> None:
    """Whoever is in it hears of it, whoever comes later too, and so does the replica's health."""

    async def scenario() -> None:
        device = Device()

        def run(items: list[Any]) -> list[Any]:
            device.run(items)
            return [StopIteration()]  # which the loop cannot hand on

        batcher: Batcher[Any, Any] = Batcher(run, max_batch_size=1)
        batcher.check()
        inside = [asyncio.create_task(batcher.submit(n, f"request-{n}")) for n in range(3)]
        await device.busy()
        device.free()
        ended = await asyncio.wait_for(asyncio.gather(*inside, return_exceptions=True), 10)
        assert [type(error) for error in ended] == [BatcherDied] * 3
        with pytest.raises(BatcherDied):
            await asyncio.wait_for(batcher.submit(4, "later"), 10)
        with pytest.raises(BatcherDied):
            batcher.check()
        batcher.close()

    asyncio.run(scenario())


def test_an_item_that_asks_for_it_is_alone_in_its_batch() -> None:
    """Also where others with the same key wait, before it and behind it."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=8)
        first = asyncio.create_task(batcher.submit(0, "request-0"))
        await device.busy()
        others = [
            asyncio.create_task(batcher.submit(n, f"request-{n}", alone=n in (2, 3))) for n in range(1, 6)
        ]
        await settle()
        device.free(4)
        await asyncio.gather(first, *others)
        batcher.close()
        return device.batches

    assert sorted(asyncio.run(scenario())) == [[0], [1, 4, 5], [2], [3]]


@pytest.mark.parametrize("ticks", range(6))
def test_a_batcher_that_is_closed_while_an_item_comes_ends_quietly(
    ticks: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Whenever that is: no lane goes on without its threads."""

    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(list, max_batch_size=4, wait_s=60)
        first = asyncio.create_task(batcher.submit(1, "a"))
        for _ in range(5):
            await asyncio.sleep(0)
        second = asyncio.create_task(batcher.submit(2, "b"))
        for _ in range(ticks):
            await asyncio.sleep(0)
        batcher.close()
        for item in range(3, 7):
            batcher._queue.put("c", item, None)
        batcher._wake()
        for _ in range(5):
            await asyncio.sleep(0)
        batcher.check()
        for task in (first, second):
            task.cancel()

    asyncio.run(run())
    assert "A batcher has ended" not in caplog.text
