"""One device, many callers: a late-cut, fair batcher in plain asyncio.

Items wait in one queue per request. Only when the device's thread is free is a batch cut, so it holds all
that arrived meanwhile (`@serve.batch` cuts sooner: 24 requests ran as 24 batches of one). It takes one item
per request in turn, so no long file keeps a short clip waiting, and only items with equal keys: some options
are per model call. Items whose caller has gone are dropped; each item gets its own result or error.

A lane for newcomers runs one or two beside long files' batches: behind them, a short clip would take ten
times as long as alone. Where more newcomers wait, they fill the next batch instead.
"""

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from itertools import chain
from typing import Generic, TypeVar

from serve_app.batching.items import BatchCounters, BatcherDied, Waiting
from serve_app.batching.queue import BatchQueue
from serve_app.batching.turns import DeviceTurns, GivingWay
from serve_app.deadline import timeout

logger = logging.getLogger("ray.serve")

ITEMS_BESIDE = 2  # newcomers' at most: they are held in memory beside the other lanes' batches
NEXT_S = 0.25  # between two items of a full batch that an idle device waits for

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Runs `run(items)` on a thread a lane, with at most `max_batch_size` items of equal key at a time.

    `run` gets a list and returns a list of the same length and order, an exception standing for an item
    that failed. `wait_s` is how long an idle device waits for company, and `company_s` for a full batch that
    is on its way. `lanes` share what waits, and with `newcomers_beside` there is one more, for newcomers;
    `run` must bear so many threads. By `turns` long files' items wait for others on the device: newcomers'
    batches and searches, or, where newcomers go beside, searches until there are items for two batches. Who
    `searches` waits for newcomers only. An item that cannot wait ends the waiting of all. `max_batch_s`
    bounds the `audio_s` of a batch of more than one item.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result | BaseException]],
        *,
        max_batch_size: int,
        wait_s: float = 0.0,
        key: Callable[[Item], Hashable] = lambda item: None,
        audio_s: Callable[[Item], float] = lambda item: 0.0,
        lanes: int = 1,
        newcomers_beside: bool = False,
        turns: DeviceTurns | None = None,
        searches: bool = False,
        name: str = "device",
    ) -> None:
        self._run = run
        self._key = key
        self.max_batch_size = max_batch_size
        self.max_batch_s: float | None = None
        self.wait_s, self.company_s = wait_s, 0.0
        self.counters = BatchCounters()
        self._queue: BatchQueue[Item, Result] = BatchQueue(audio_s)
        self._turns, self._searches = turns, searches
        self._giving_way = GivingWay(turns.before(newcomers_beside, searches) if turns else {})
        self._coming, self._last_came_s = 0, -math.inf
        self._lanes, self._newcomers_beside = lanes, newcomers_beside
        self._running: list[list[Waiting[Item, Result]]] = [[] for _ in range(lanes + newcomers_beside)]
        self._busy_since_s = 0.0
        self._news = [asyncio.Event() for _ in self._running]
        self._pool = ThreadPoolExecutor(max_workers=len(self._running), thread_name_prefix=name)
        self._loop_tasks: list[asyncio.Task[None]] = []
        self._died = False

    async def submit(
        self,
        item: Item,
        request_id: Hashable,
        *,
        long: bool = False,
        urgent: bool = False,
        alone: bool = False,
        coming: int | None = None,
    ) -> Result:
        """Waits for its turn, in a batch of its own if `alone`; its result, its error, or BatcherDied.

        Nobody on the device waits for what is `long`, not even while it is a newcomer; it waits for others,
        but for its first item here and for what is `urgent`. `coming` says how many other requests are on
        their way here now, where that is news.
        """
        self.check()
        if not self._loop_tasks:
            # Here, because a constructor has no running loop; in an empty context, because Ray Serve
            # ties what is started in a request's context to that request's client.
            self._loop_tasks = [
                contextvars.Context().run(asyncio.create_task, self._serve(lane))
                for lane in range(len(self._news))
            ]
            for task in self._loop_tasks:
                task.add_done_callback(self._note_death)
        if coming is not None:
            self._coming, self._last_came_s = coming, time.monotonic()
        key = object() if alone else self._key(item)  # which nothing else has
        waiting = self._queue.put(request_id, item, key, long=long, urgent=urgent)
        self._wake()
        return await waiting.answer

    def check(self) -> None:
        """Raises BatcherDied; for `check_health`, so that Serve replaces the replica."""
        if self._died:
            raise BatcherDied

    def knows(self, request_id: Hashable) -> bool:
        """Whether the request has submitted an item before."""
        return self._queue.knows(request_id)

    @property
    def queued(self) -> int:
        """Items that wait for the device."""
        return self._queue.waiting

    @property
    def running(self) -> int:
        """Items on the device."""
        return sum(len(batch) for batch in self._running)

    def close(self) -> None:
        """Stops cutting batches and frees the threads once their present batches are done."""
        for task in self._loop_tasks:
            task.cancel()
        self._pool.shutdown(wait=False)

    def _note_death(self, task: "asyncio.Task[None]") -> None:
        """Nobody may wait for ever for a loop that an error has ended."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        logger.critical("A batcher has ended.", exc_info=error)
        self._died = True
        for waiting in (*chain(*self._running), *self._queue):
            waiting.end(BatcherDied())
        self._queue.clear()

    def _wake(self) -> None:
        for news in self._news:
            news.set()

    async def _serve(self, lane: int) -> None:
        while True:
            await self._news[lane].wait()
            self._news[lane].clear()
            if lane < self._lanes:
                await self._wait_for_company(lane)  # only now: after a batch, what came meanwhile is company
            while True:
                if lane < self._lanes:
                    await self._giving_way.wait(lambda: self.queued > 0 and not self._has_pressing_work())
                batch = self._cut() if lane < self._lanes else self._cut_newcomers()
                if not batch:
                    break
                try:
                    await self._serve_batch(batch, lane)
                except Exception:  # by our own mistake: `_note_death` tells all others
                    for waiting in batch:
                        waiting.end(BatcherDied())
                    raise

    async def _serve_batch(self, batch: list[Waiting[Item, Result]], lane: int) -> None:
        begun_s = time.monotonic()
        if not self.running:
            self._busy_since_s = begun_s
        self._running[lane] = batch
        self._wake()  # newcomers need not wait for it
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._pool, self._run_in_turn, batch)
        except BaseException:  # the loop or the interpreter is ending: nobody may wait for ever
            for waiting in batch:
                waiting.answer.cancel()
            raise
        finally:
            self._running[lane] = []
        self._count(batch, lane, begun_s)
        if self._searches and batch[0].short and results[0]:
            self._giving_way.expect()  # what was found in a short file is recognised next
        for waiting, result in zip(batch, results, strict=True):
            waiting.end(result)

    async def _wait_for_company(self, lane: int) -> None:
        begun_s = time.monotonic()
        while 0 < (queued := self.queued) < self.max_batch_size:
            until_s = begun_s + self.wait_s
            if queued + self._coming >= self.max_batch_size:
                until_s = max(until_s, min(begun_s + self.company_s, self._last_came_s + NEXT_S))
            if (left_s := until_s - time.monotonic()) <= 0:
                break
            self._news[lane].clear()
            with suppress(asyncio.TimeoutError):
                async with timeout(left_s):
                    await self._news[lane].wait()

    def _has_pressing_work(self) -> bool:
        """Work that cannot wait; and where newcomers go beside, as much as fits into two batches."""
        return self._queue.is_pressed or (self._newcomers_beside and self.queued >= 2 * self.max_batch_size)

    def _cut(self) -> list[Waiting[Item, Result]]:
        self.counters.dropped += self._queue.drop_cancelled()
        max_s = math.inf if self.max_batch_s is None else self.max_batch_s
        idle = sum(not batch for batch in self._running[: self._lanes])  # of which this lane is one
        return self._queue.cut(min(self.max_batch_size, math.ceil(self.queued / idle)), max_s)

    def _cut_newcomers(self) -> list[Waiting[Item, Result]]:
        """Newcomers that wait for long files' batches, run or not, if they are few."""
        self.counters.dropped += self._queue.drop_cancelled()
        ends_soon = (all(waiting.newcomer for waiting in batch) for batch in self._running[: self._lanes])
        if not self._giving_way.now and any(ends_soon):
            return []
        return self._queue.cut_newcomers(min(ITEMS_BESIDE, self.max_batch_size))

    def _run_in_turn(self, batch: list[Waiting[Item, Result]]) -> Sequence[Result | BaseException]:
        turn = None
        if self._turns:
            short = all(waiting.short for waiting in batch)
            turn = self._turns.short if short else self._turns.search if self._searches else None
        with turn.first() if turn else nullcontext():
            return self._run_batch(batch)

    def _run_batch(self, batch: list[Waiting[Item, Result]]) -> Sequence[Result | BaseException]:
        try:
            results = self._run([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except StopIteration as error:  # which no future can hold
            return [RuntimeError(f"the model call ended with {error!r}")] * len(batch)
        except Exception as error:  # noqa: BLE001  (the whole call failed: each of its items hears of it)
            return [error] * len(batch)
        return results

    def _count(self, batch: list[Waiting[Item, Result]], lane: int, begun_s: float) -> None:
        counters = self.counters
        if lane < self._lanes:
            counters.batches += 1
            counters.items += len(batch)
            counters.slots += self.max_batch_size
        else:
            counters.beside += len(batch)
        counters.wait_s += sum(begun_s - waiting.since_s for waiting in batch)
        if not self.running:
            counters.busy_s += time.monotonic() - self._busy_since_s
