"""The batcher: what shares a batch, whose turn it is, and who hears of an error. Plain asyncio, no Ray."""

import asyncio
import math
import threading
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.batching.batcher import Batcher, BatcherDied, BatchRun
from serve_app.batching.queue import FairQueue, Waiting


@dataclass(frozen=True)
class Item:
    """An item of a request, in the order in which it came."""

    request: int
    number: int
    key: int = 0
    is_first: bool = False
    audio_s: float = 1.0


items = st.builds(
    Item,
    request=st.integers(0, 7),
    number=st.just(0),
    key=st.integers(0, 2),
    is_first=st.booleans(),
    audio_s=st.sampled_from([1.0, 5.0, 29.0]),
)


class Queue:
    """A FairQueue of items, with the event loop that its futures need."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self.queue: FairQueue[Item, None] = FairQueue(lambda item: item.audio_s)

    def put(self, item: Item) -> None:
        self.queue.put(item.request, Waiting(item, item.key, item.is_first, self._loop.create_future()))

    def cut(self, max_items: int, max_audio_s: float = math.inf) -> list[Item]:
        return [waiting.item for waiting in self.queue.cut(max_items, max_audio_s)]

    def close(self) -> None:
        self._loop.close()


def numbered(found: list[Item]) -> list[Item]:
    """The same items, each with its number among those of its request."""
    counts: Counter[int] = Counter()
    numbers = []
    for item in found:
        numbers.append(Item(item.request, counts[item.request], item.key, item.is_first, item.audio_s))
        counts[item.request] += 1
    return numbers


@given(st.lists(items, max_size=60).map(numbered), st.integers(1, 16), st.sampled_from([10.0, math.inf]))
def test_every_item_comes_once_in_batches_that_fit(
    waiting: list[Item], max_items: int, max_audio_s: float
) -> None:
    """A batch has equal keys, is not too large, and items of one request and key keep their order."""
    queue = Queue()
    for item in waiting:
        queue.put(item)
    batches = []
    while batch := queue.cut(max_items, max_audio_s):
        batches.append(batch)
    queue.close()
    assert Counter(item for batch in batches for item in batch) == Counter(waiting)
    taken = defaultdict(list)
    for batch in batches:
        assert len({item.key for item in batch}) == 1
        assert len(batch) <= max_items
        assert len(batch) == 1 or sum(item.audio_s for item in batch) <= max_audio_s
        for item in batch:
            taken[item.request, item.key, item.is_first].append(item.number)
    assert all(numbers == sorted(numbers) for numbers in taken.values())


@given(
    old=st.lists(st.integers(1, 5), min_size=1, max_size=20),
    newcomers=st.lists(st.integers(0, 8), min_size=60, max_size=60),
    max_items=st.integers(1, 8),
)
def test_no_request_waits_for_more_than_its_turns(
    old: list[int], newcomers: list[int], max_items: int
) -> None:
    """However many new requests come before every batch, a request that waits behind n others has an item in
    one of the next 2 * (n // batch size + 1) batches.
    """
    queue = Queue()
    for request, count in enumerate(old):
        for number in range(count):
            queue.put(Item(request, number))
    served: set[int] = set()
    name = len(old)
    for cut, count in enumerate(newcomers):
        for _ in range(count):
            queue.put(Item(name, 0, is_first=True))
            name += 1
        served |= {item.request for item in queue.cut(max_items)}
        for request in range(len(old)):
            if cut + 1 >= 2 * (request // max_items + 1):
                assert request in served, (request, cut)
    queue.close()


@given(files=st.integers(1, 40), windows=st.integers(1, 10), max_items=st.integers(1, 16))
def test_a_new_request_is_in_one_of_the_next_two_batches(files: int, windows: int, max_items: int) -> None:
    """However much others have queued before it."""
    queue = Queue()
    for number in range(windows):
        for file in range(files):
            queue.put(Item(file, number))
    queue.cut(max_items)
    queue.put(Item(99, 0, is_first=True))
    assert 99 in {item.request for _ in range(2) for item in queue.cut(max_items)}
    queue.close()


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


async def submitted(batcher: Batcher[Any, Any], *names: Any, **options: Any) -> "list[asyncio.Task[Any]]":
    """Tasks that wait for these items, each of a request of its own, all in the queue."""
    tasks = [asyncio.create_task(batcher.submit(name, name, **options)) for name in names]
    await asyncio.sleep(0)
    return tasks


def test_items_that_arrive_while_the_device_is_busy_share_the_next_batch() -> None:
    """A batch is cut when the device is free, so it holds all that waited meanwhile."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=8)
        first = await submitted(batcher, 0)
        await device.busy()
        others = await submitted(batcher, *range(1, 8))
        device.free(2)
        assert await asyncio.gather(*first, *others) == [f"<{n}>" for n in range(8)]
        assert (batcher.counters.batches, batcher.counters.items, batcher.counters.slots) == (2, 8, 16)
        return device.batches

    assert asyncio.run(scenario()) == [[0], [1, 2, 3, 4, 5, 6, 7]]


def test_every_batch_is_told_with_what_waited_for_it() -> None:
    """And so is the audio that is left to do, on the device and before it."""

    async def scenario() -> None:
        device, runs = Device(), list[BatchRun]()
        batcher: Batcher[Any, Any] = Batcher(
            device.run, max_batch_size=4, audio_s=lambda item: 10.0 + item, on_run=runs.append
        )
        first = await submitted(batcher, 0)
        await device.busy()
        gone, *others = await submitted(batcher, 1, 2, 3)
        gone.cancel()
        await asyncio.sleep(0)
        assert (batcher.queued, batcher.unfinished_audio_s) == (2, 10 + 12 + 13)
        device.free(2)
        await asyncio.gather(*first, *others)
        assert [(len(run.waits_s), run.slots) for run in runs] == [(1, 4), (2, 4)]
        assert all(0 <= wait_s <= runs[0].run_s for wait_s in runs[1].waits_s)
        assert batcher.unfinished_audio_s == 0

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("lengths_s", "slots"), [([30.0], 1), ([5.0, 7.0, 3.0], 6), ([45.0], 1), ([1.0], 16)]
)
def test_a_batch_that_holds_all_the_audio_it_may_is_full(lengths_s: list[float], slots: int) -> None:
    """Its places are the items of their mean length that fit, whether size or audio is the limit."""

    async def scenario() -> None:
        device, runs = Device(), list[BatchRun]()
        batcher: Batcher[Any, Any] = Batcher(
            device.run, max_batch_size=16, max_batch_audio_s=30.0, audio_s=float, on_run=runs.append
        )
        device.free()
        await asyncio.gather(*await submitted(batcher, *lengths_s))
        assert [(len(run.waits_s), run.slots) for run in runs] == [(len(lengths_s), slots)]

    asyncio.run(scenario())


def test_a_metric_that_fails_ends_no_transcription(caplog: pytest.LogCaptureFixture) -> None:
    """Callers get their results, later batches run, and the log has the error."""

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=1, on_run=lambda run: 1 / 0)  # type: ignore[arg-type]
        device.free(2)
        assert await asyncio.gather(*await submitted(batcher, 1, 2)) == ["<1>", "<2>"]
        batcher.check()

    asyncio.run(scenario())
    assert "ZeroDivisionError" in caplog.text


def test_an_error_belongs_to_its_item_alone() -> None:
    """An exception standing in the result list is raised for that item; the others get results."""

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=8)
        blocking = await submitted(batcher, "first")
        await device.busy()
        tasks = await submitted(batcher, "a", "bad", "c")
        device.free(2)
        results = await asyncio.gather(*blocking, *tasks, return_exceptions=True)
        assert results[1] == "<a>"
        assert isinstance(results[2], ValueError)
        assert results[3] == "<c>"
        assert len(device.batches) == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), StopIteration()])
def test_a_failing_model_call_fails_its_batch_and_not_the_batcher(error: Exception) -> None:
    """When the call itself raises, its items hear of it and the next batch runs as ever."""

    def run(items: list[int]) -> list[int]:
        if -1 in items:
            raise error
        return items

    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(run, max_batch_size=8)
        with pytest.raises(RuntimeError):
            await batcher.submit(-1, "a")
        assert await batcher.submit(1, "a") == 1

    asyncio.run(scenario())


def test_a_wrong_number_of_results_is_an_error_for_each_item() -> None:
    """No caller gets another one's result, or waits for ever."""

    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(lambda items: [], max_batch_size=8)
        with pytest.raises(RuntimeError, match="0 results for 1 items"):
            await batcher.submit(1, "a")

    asyncio.run(scenario())


def test_items_whose_callers_have_gone_are_not_run() -> None:
    """A request that is cancelled costs the device nothing more."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=8)
        first = await submitted(batcher, 0)
        await device.busy()
        gone, stays = await submitted(batcher, 1, 2)
        gone.cancel()
        device.free(2)
        await asyncio.gather(*first, stays)
        assert batcher.counters.dropped == 1
        return device.batches

    assert asyncio.run(scenario()) == [[0], [2]]


def test_a_call_that_runs_alone_shares_no_batch() -> None:
    """As a call that may kill its replica."""

    async def scenario() -> list[list[Any]]:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=8)
        first = await submitted(batcher, 0)
        await device.busy()
        others = await submitted(batcher, 1)
        others += await submitted(batcher, 2, runs_alone=True)
        others += await submitted(batcher, 3)
        device.free(5)
        await asyncio.gather(*first, *others)
        return device.batches

    batches = asyncio.run(scenario())
    assert [2] in batches
    assert [1, 3] in batches


def test_a_batcher_whose_loop_dies_tells_everybody(caplog: pytest.LogCaptureFixture) -> None:
    """Those that wait, those that come later, and the health check."""

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[Any, Any] = Batcher(device.run, max_batch_size=1)
        first = await submitted(batcher, 0)
        await device.busy()
        second = await submitted(batcher, 1)
        batcher.max_batch_size = "none"  # type: ignore[assignment]  # a mistake of ours
        device.free()
        results = await asyncio.gather(*first, *second, return_exceptions=True)
        assert isinstance(results[1], BatcherDied)
        with pytest.raises(BatcherDied):
            await batcher.submit(2, 2)
        with pytest.raises(BatcherDied):
            batcher.check()

    asyncio.run(scenario())
    assert "A batcher has ended." in caplog.text


def test_a_batcher_outlives_the_request_that_started_it() -> None:
    """Ray Serve cancels what was started in a request's context when its client leaves."""

    async def scenario() -> None:
        batcher: Batcher[int, int] = Batcher(lambda items: items, max_batch_size=1)
        starting = asyncio.create_task(batcher.submit(1, "a"))
        await asyncio.sleep(0)
        starting.cancel()
        assert await batcher.submit(2, "b") == 2

    asyncio.run(scenario())


@pytest.mark.parametrize("ticks", range(4))
def test_a_batcher_ends_quietly_with_its_event_loop(ticks: int, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever moment that is: in a batch, between two, or as an item comes."""

    async def scenario() -> None:
        device = Device()
        batcher: Batcher[int, str] = Batcher(device.run, max_batch_size=4)
        await submitted(batcher, 1)
        await device.busy()
        await submitted(batcher, 2)
        device.free(2)
        for _ in range(ticks):
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert not caplog.records


def test_only_audio_that_did_not_fail_is_done() -> None:
    """A stage that fails everything at once does nothing that would need its replicas."""

    async def main() -> None:
        batcher: Batcher[float, str] = Batcher(
            lambda lengths_s: ["done" if each < 10 else ValueError("too long") for each in lengths_s],
            max_batch_size=4,
            audio_s=lambda length_s: length_s,
        )
        answers = [batcher.submit(length_s, 1) for length_s in (3.0, 20.0, 4.0)]
        assert len(await asyncio.gather(*answers, return_exceptions=True)) == 3
        assert batcher.counters.audio_s == 7.0

    asyncio.run(main())


def test_a_batch_that_runs_is_busy_time_already() -> None:
    """A file of hours is one batch: its replica is busy long before it ends."""
    started, release = threading.Event(), threading.Event()

    def run(items: list[int]) -> list[int]:
        started.set()
        release.wait(30)
        return items

    async def main() -> None:
        batcher = Batcher(run, max_batch_size=1)
        assert batcher.busy_s == 0.0
        answer = asyncio.create_task(batcher.submit(1, 1))
        await asyncio.to_thread(started.wait, 30)
        first = batcher.busy_s
        await asyncio.sleep(0.01)
        assert 0.0 <= first < batcher.busy_s
        release.set()
        await answer
        assert batcher.busy_s == batcher.counters.busy_s > first

    asyncio.run(main())
