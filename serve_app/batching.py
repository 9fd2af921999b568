"""One device, many callers: a late-cut, fair batcher in plain asyncio.

Items wait in one queue per request. Only when the device's single thread is free is a batch cut,
so it holds everything that arrived meanwhile (`@serve.batch` cuts before the device is free: 24
requests ran as 24 batches of one). A batch takes one item per request in turn, so a long file
cannot keep a short clip waiting, and holds only items with equal keys, because some options are
per model call. Items whose caller has gone are dropped; each item gets its own result or error.
"""

import asyncio
import contextvars
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

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


class Batcher(Generic[Item, Result]):
    """Runs `run(items)` on one thread, with at most `max_batch_size` items of equal key at a time.

    `run` gets a list and returns a list of the same length and order, an exception standing for
    an item that failed. `wait_s` is how long an idle device waits for company before it cuts a
    batch that is not full; while the device is busy nobody waits for it.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result | BaseException]],
        *,
        max_batch_size: int,
        wait_s: float = 0.0,
        key: Callable[[Item], Hashable] = lambda item: None,
        name: str = "device",
    ) -> None:
        self._run = run
        self._key = key
        self.max_batch_size = max_batch_size
        self.wait_s = wait_s
        self.counters = BatchCounters()
        self._queues: OrderedDict[Hashable, deque[_Waiting[Item, Result]]] = OrderedDict()
        self._arrived = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._loop_task: asyncio.Task[None] | None = None

    async def submit(self, item: Item, request_id: Hashable) -> Result:
        """Waits for the item's turn and returns its result or raises its error."""
        if self._loop_task is None:
            # Here, because a constructor has no running loop; in an empty context, because Ray Serve
            # ties what is started in a request's context to that request's client.
            self._loop_task = contextvars.Context().run(asyncio.create_task, self._cut_batches())
        waiting: _Waiting[Item, Result] = _Waiting(
            item, self._key(item), asyncio.get_running_loop().create_future(), time.monotonic()
        )
        self._queues.setdefault(request_id, deque()).append(waiting)
        self._arrived.set()
        return await waiting.answer

    @property
    def queued(self) -> int:
        """Items not yet on the device."""
        return sum(len(queue) for queue in self._queues.values())

    def close(self) -> None:
        """Stops cutting batches and frees the thread once its present batch is done."""
        if self._loop_task is not None:
            self._loop_task.cancel()
        self._thread.shutdown(wait=False)

    async def _cut_batches(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await self._wait_for_company(loop.time() + self.wait_s)
            batch = self._cut()
            if not batch:
                continue
            begun_s = time.monotonic()
            try:
                results = await loop.run_in_executor(self._thread, self._run_batch, batch)
            except BaseException:  # the loop or the interpreter is ending: nobody may wait for ever
                for waiting in batch:
                    waiting.answer.cancel()
                raise
            self._count(batch, begun_s)
            for waiting, result in zip(batch, results, strict=True):
                if waiting.answer.done():
                    continue
                if isinstance(result, BaseException):
                    waiting.answer.set_exception(result)
                else:
                    waiting.answer.set_result(result)

    async def _wait_for_company(self, until_s: float) -> None:
        while self.queued < self.max_batch_size:
            left_s = until_s - asyncio.get_running_loop().time()
            if left_s <= 0:
                return
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left_s)
            except asyncio.TimeoutError:
                return

    def _cut(self) -> list[_Waiting[Item, Result]]:
        """One item per request in turn, all with the key of whoever's turn is first."""
        batch: list[_Waiting[Item, Result]] = []
        self._drop_cancelled()
        while len(batch) < self.max_batch_size:
            before = len(batch)
            for request_id in list(self._queues):
                queue = self._queues[request_id]
                if batch and queue[0].key != batch[0].key:
                    continue
                batch.append(queue.popleft())
                if queue:
                    self._queues.move_to_end(request_id)  # its next item goes behind the others
                else:
                    del self._queues[request_id]
                if len(batch) == self.max_batch_size:
                    break
            if len(batch) == before:
                break
        if self._queues:  # items of other keys: set again, for waiting for company clears it
            self._arrived.set()
        else:
            self._arrived.clear()
        return batch

    def _drop_cancelled(self) -> None:
        for request_id, queue in list(self._queues.items()):
            alive = deque(waiting for waiting in queue if not waiting.answer.done())
            self.counters.dropped += len(queue) - len(alive)
            if alive:
                self._queues[request_id] = alive
            else:
                del self._queues[request_id]

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
