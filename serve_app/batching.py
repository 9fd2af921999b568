"""One device, many callers: a late-cut, fair batcher in plain asyncio.

Items wait in one queue per request. Only when the device's thread is free is a batch cut, so it holds
everything that arrived meanwhile (`@serve.batch` cuts before the device is free: 24 requests ran as 24
batches of one). A batch takes one item per request in turn, so a long file cannot keep a short clip waiting,
and holds only items with equal keys, because some options are per model call. Items whose caller has gone are
dropped; each item gets its own result or error.

A second lane is for newcomers, the first items of each request: while the first lane runs a batch of a long
file, they run beside it, because waiting for it and in it would take a short clip ten times as long as alone.
Nothing else ever runs there, so that batches stay full.
"""

import asyncio
import contextvars
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

NEWCOMERS = 2  # so many items of a request are newcomers

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class BatchCounters:
    """What has run so far; occupancy is `items / (batches * max_batch_size)`."""

    batches: int = 0
    items: int = 0
    dropped: int = 0
    wait_s: float = 0.0
    run_s: float = 0.0


@dataclass(eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    key: Hashable
    answer: "asyncio.Future[Result]"
    since_s: float


Queues = OrderedDict[Hashable, deque[_Waiting[Item, Result]]]  # by request, whose turn is next first


class Batcher(Generic[Item, Result]):
    """Runs `run(items)` on one thread, with at most `max_batch_size` items of equal key at a time.

    `run` gets a list and returns a list of the same length and order, an exception standing for an item
    that failed. `wait_s` is how long an idle device waits for company before it cuts a batch that is not
    full. With two `lanes`, `run` must bear being called by two threads.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result | BaseException]],
        *,
        max_batch_size: int,
        wait_s: float = 0.0,
        key: Callable[[Item], Hashable] = lambda item: None,
        lanes: int = 1,
        name: str = "device",
    ) -> None:
        self._run = run
        self._key = key
        self.max_batch_size = max_batch_size
        self.wait_s = wait_s
        self.counters = BatchCounters()
        self._queues: Queues[Item, Result] = OrderedDict()
        self._newcomers: Queues[Item, Result] = OrderedDict() if lanes > 1 else self._queues
        self._present: Counter[Hashable] = Counter()  # items of each request, waiting or running
        self._submitted: Counter[Hashable] = Counter()  # since it last had none
        self._running = 0
        self._long_batch = False  # the first lane is busy with one
        self._news = [asyncio.Event() for _ in range(lanes)]
        self._thread = ThreadPoolExecutor(max_workers=lanes, thread_name_prefix=name)
        self._loop_tasks: list[asyncio.Task[None]] = []

    async def submit(self, item: Item, request_id: Hashable) -> Result:
        """Waits for the item's turn and returns its result or raises its error."""
        if not self._loop_tasks:
            # Here, because a constructor has no running loop; in an empty context, because Ray Serve
            # ties what is started in a request's context to that request's client.
            self._loop_tasks = [
                contextvars.Context().run(asyncio.create_task, self._serve(lane))
                for lane in range(len(self._news))
            ]
        waiting: _Waiting[Item, Result] = _Waiting(
            item, self._key(item), asyncio.get_running_loop().create_future(), time.monotonic()
        )
        queues = self._newcomers if self._submitted[request_id] < NEWCOMERS else self._queues
        queues.setdefault(request_id, deque()).append(waiting)
        self._present[request_id] += 1
        self._submitted[request_id] += 1
        self._wake()
        try:
            return await waiting.answer
        finally:
            self._present[request_id] -= 1
            if not self._present[request_id]:
                del self._present[request_id], self._submitted[request_id]

    @property
    def queued(self) -> int:
        """Items not yet on the device."""
        waiting = sum(len(queue) for queue in self._queues.values())
        if self._newcomers is not self._queues:
            waiting += sum(len(queue) for queue in self._newcomers.values())
        return waiting

    @property
    def running(self) -> int:
        """Items on the device."""
        return self._running

    def close(self) -> None:
        """Stops cutting batches and frees the threads once their present batches are done."""
        for task in self._loop_tasks:
            task.cancel()
        self._thread.shutdown(wait=False)

    def _wake(self) -> None:
        for news in self._news:
            news.set()

    async def _serve(self, lane: int) -> None:
        while True:
            await self._news[lane].wait()
            self._news[lane].clear()
            while True:
                if lane == 0:
                    await self._wait_for_company()
                batch = self._cut_first_lane() if lane == 0 else self._cut_second_lane()
                if not batch:
                    break
                try:
                    await self._serve_batch(batch)
                finally:
                    if lane == 0:
                        self._long_batch = False

    async def _serve_batch(self, batch: list[_Waiting[Item, Result]]) -> None:
        begun_s = time.monotonic()
        self._running += len(batch)
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._run_batch, batch)
        except BaseException:  # the loop or the interpreter is ending: nobody may wait for ever
            for waiting in batch:
                waiting.answer.cancel()
            raise
        finally:
            self._running -= len(batch)
        self._count(batch, begun_s)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(result, BaseException):
                waiting.answer.set_exception(result)
            else:
                waiting.answer.set_result(result)

    async def _wait_for_company(self) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.wait_s
        while 0 < self.queued < self.max_batch_size:
            left_s = until_s - loop.time()
            if left_s <= 0:
                return
            self._news[0].clear()
            try:
                await asyncio.wait_for(self._news[0].wait(), left_s)
            except asyncio.TimeoutError:
                return

    def _cut_first_lane(self) -> list[_Waiting[Item, Result]]:
        batch = self._cut(self._queues)
        if batch:
            self._long_batch = True
            self._wake()  # newcomers need not wait for it
        return batch or self._cut(self._newcomers)

    def _cut_second_lane(self) -> list[_Waiting[Item, Result]]:
        return self._cut(self._newcomers) if self._long_batch else []

    def _cut(self, queues: Queues[Item, Result]) -> list[_Waiting[Item, Result]]:
        """One item per request in turn, all with the key of whoever's turn is first."""
        batch: list[_Waiting[Item, Result]] = []
        self._drop_cancelled(queues)
        while len(batch) < self.max_batch_size:
            before = len(batch)
            for request_id in list(queues):
                queue = queues[request_id]
                if batch and queue[0].key != batch[0].key:
                    continue
                batch.append(queue.popleft())
                if queue:
                    queues.move_to_end(request_id)  # its next item goes behind the others
                else:
                    del queues[request_id]
                if len(batch) == self.max_batch_size:
                    break
            if len(batch) == before:
                break
        return batch

    def _drop_cancelled(self, queues: Queues[Item, Result]) -> None:
        for request_id, queue in list(queues.items()):
            alive = deque(waiting for waiting in queue if not waiting.answer.done())
            self.counters.dropped += len(queue) - len(alive)
            if alive:
                queues[request_id] = alive
            else:
                del queues[request_id]

    def _run_batch(self, batch: list[_Waiting[Item, Result]]) -> Sequence[Result | BaseException]:
        try:
            results = self._run([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except StopIteration as error:  # which no future can hold
            return [RuntimeError(f"the model call ended with {error!r}")] * len(batch)
        except Exception as error:  # noqa: BLE001  (the whole call failed: every item of this batch hears of it)
            return [error] * len(batch)
        return results

    def _count(self, batch: list[_Waiting[Item, Result]], begun_s: float) -> None:
        self.counters.batches += 1
        self.counters.items += len(batch)
        self.counters.wait_s += sum(begun_s - waiting.since_s for waiting in batch)
        self.counters.run_s += time.monotonic() - begun_s
