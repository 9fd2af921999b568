"""One device, many callers: a fair batcher that cuts a batch only when the device is free.

So a batch holds all that arrived while the device was busy. (`@serve.batch` cuts sooner: 24 requests, 60 ms
apart, ran as 24 batches of one.) Each item gets its own result or error.
"""

import asyncio
import contextvars
import logging
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Generic, TypeVar

from serve_app.batching.queue import FairQueue, Waiting

logger = logging.getLogger("ray.serve")

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatcherDied(Exception):
    """The batcher's own loop has ended by an error; it runs nothing any more."""


@dataclass
class BatchCounters:
    """What has run so far. Occupancy is `items / slots`."""

    batches: int = 0
    items: int = 0
    slots: int = 0  # places that these batches had: see `BatchRun`
    dropped: int = 0  # items whose callers had gone
    busy_s: float = 0.0
    audio_s: float = 0.0  # of all items together that did not fail


@dataclass(frozen=True)
class BatchRun:
    """One batch that has run."""

    waits_s: tuple[float, ...]  # of each item, in the queue
    run_s: float
    slots: int  # items like these that it could have held


def ignore_run(run: BatchRun) -> None:
    """For callers who want to know nothing of batches."""


class Batcher(Generic[Item, Result]):
    """Runs `run(items)` on a thread, with at most `max_batch_size` items of equal `key` at a time.

    `run` gets a list and returns a list of the same length and order; an exception in it stands for an item
    that failed. `max_batch_audio_s` bounds the `audio_s` of a batch of more than one item. Which items are
    next is `FairQueue`'s rule.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result | BaseException]],
        *,
        max_batch_size: int,
        max_batch_audio_s: float | None = None,
        key: Callable[[Item], Hashable] = lambda item: None,
        audio_s: Callable[[Item], float] = lambda item: 0.0,
        name: str = "device",
        on_run: Callable[[BatchRun], None] = ignore_run,
    ) -> None:
        self.name = name
        self.max_batch_size = max_batch_size
        self.max_batch_audio_s = max_batch_audio_s
        self.counters = BatchCounters()
        self._run = run
        self._key = key
        self._audio_s = audio_s
        self._on_run = on_run
        self._queue: FairQueue[Item, Result] = FairQueue(audio_s)
        self._batch: list[Waiting[Item, Result]] = []  # on the device
        self._batch_since_s = 0.0
        self._has_news = asyncio.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._loop_task: asyncio.Task[None] | None = None
        self._has_died = False

    async def submit(
        self, item: Item, request_id: Hashable, *, is_first: bool = False, runs_alone: bool = False
    ) -> Result:
        """Waits for the item's turn and gives its result; raises its error, or BatcherDied.

        `is_first` items go first in every second batch; one that `runs_alone` has a batch of its own.
        """
        self.check()
        if self._loop_task is None:
            # Here, because a constructor has no running loop; in an empty context, because Ray Serve cancels
            # what is started in a request's context when that request's client leaves.
            self._loop_task = contextvars.Context().run(asyncio.create_task, self._serve())
            self._loop_task.add_done_callback(self._note_death)
        key = object() if runs_alone else self._key(item)  # an object that equals no other key
        waiting = Waiting(item, key, is_first, asyncio.get_running_loop().create_future())
        self._queue.put(request_id, waiting)
        self._has_news.set()
        result: Result = await waiting.answer
        return result

    def check(self) -> None:
        """Raises BatcherDied; for `check_health`, so that Serve replaces the replica."""
        if self._has_died:
            raise BatcherDied

    @property
    def queued(self) -> int:
        """How many items wait for the device whose callers still wait for them."""
        return sum(not waiting.answer.done() for waiting in self._queue)

    @property
    def unfinished_audio_s(self) -> float:
        """The audio of all items that wait or are on the device."""
        waiting = (each for each in self._queue if not each.answer.done())
        return sum(self._audio_s(each.item) for each in chain(self._batch, waiting))

    @property
    def running(self) -> int:
        """How many items are on the device."""
        return len(self._batch)

    @property
    def busy_s(self) -> float:
        """For how long batches have run so far, the present one included."""
        return self.counters.busy_s + (time.monotonic() - self._batch_since_s if self._batch else 0.0)

    def _note_death(self, task: "asyncio.Task[None]") -> None:
        """Tells all callers, so that none waits for ever for a loop that an error has ended."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        logger.critical("A batcher has ended.", exc_info=error)
        self._has_died = True
        for waiting in chain(self._batch, self._queue):
            waiting.end(BatcherDied())
        self._queue.clear()

    async def _serve(self) -> None:
        while True:
            await self._has_news.wait()
            self._has_news.clear()
            while batch := self._cut():
                await self._serve_batch(batch)

    def _cut(self) -> list[Waiting[Item, Result]]:
        self.counters.dropped += self._queue.drop_abandoned()
        max_audio_s = math.inf if self.max_batch_audio_s is None else self.max_batch_audio_s
        return self._queue.cut(self.max_batch_size, max_audio_s)

    async def _serve_batch(self, batch: list[Waiting[Item, Result]]) -> None:
        self._batch, self._batch_since_s = batch, (begun_s := time.monotonic())
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._run_batch, batch)
        except asyncio.CancelledError:  # the event loop is ending
            for waiting in batch:
                waiting.answer.cancel()
            raise
        ended_s = time.monotonic()
        for waiting, result in zip(batch, results, strict=True):
            waiting.end(result)
        self._batch = []
        lengths_s = [self._audio_s(waiting.item) for waiting in batch]
        slots = self._slots(len(batch), sum(lengths_s))
        waits_s = tuple(begun_s - waiting.since_s for waiting in batch)
        run = BatchRun(waits_s, ended_s - begun_s, slots)
        counters = self.counters
        counters.batches += 1
        counters.items += len(batch)
        counters.slots += run.slots
        counters.busy_s += run.run_s
        counters.audio_s += sum(
            length_s
            for length_s, result in zip(lengths_s, results, strict=True)
            if not isinstance(result, BaseException)
        )
        try:
            self._on_run(run)
        except Exception:  # a metric that fails ends no transcription
            logger.exception("A batch was not counted.")

    def _slots(self, items: int, audio_s: float) -> int:
        """How many items of this mean length a batch may have."""
        if self.max_batch_audio_s is None or audio_s <= 0:
            return max(items, self.max_batch_size)
        return min(self.max_batch_size, max(items, int(self.max_batch_audio_s * items / audio_s)))

    def _run_batch(self, batch: list[Waiting[Item, Result]]) -> Sequence[Result | BaseException]:
        try:
            results = self._run([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except Exception as error:  # noqa: BLE001  (the whole call failed: each of its items gets the error)
            return [error] * len(batch)
        return results
