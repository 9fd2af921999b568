"""What waits for a device: one queue for each request, and whose item is next."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(eq=False)
class Waiting(Generic[Item, Result]):
    """An item in the queue and the future its caller waits for."""

    item: Item
    key: Hashable
    is_first: bool
    answer: "asyncio.Future[Result]"
    since_s: float = field(default_factory=time.monotonic)

    def end(self, result: Result | BaseException) -> None:
        """Gives the caller its result, or raises the error there; does nothing where the caller has gone."""
        if self.answer.done():
            return
        if isinstance(result, StopIteration):  # a future cannot hold it
            result = RuntimeError(f"the model call ended with {result!r}")
        if isinstance(result, BaseException):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


class FairQueue(Generic[Item, Result]):
    """Requests take turns: a batch takes one item of each request, then a second one of each, and so on.

    In every second batch first items go before all that are not, so that neither a new request waits for long
    nor an old one starves.
    """

    def __init__(self, audio_s: Callable[[Item], float]) -> None:
        self._audio_s = audio_s
        self._queues: OrderedDict[Hashable, deque[Waiting[Item, Result]]] = OrderedDict()  # next one first
        self._first_items_led = False  # when both first and other items last waited

    def __iter__(self) -> Iterator[Waiting[Item, Result]]:
        return (waiting for queue in self._queues.values() for waiting in queue)

    def put(self, request_id: Hashable, waiting: Waiting[Item, Result]) -> None:
        """Adds an item behind the others of its request; first items go before those that are not."""
        queue = self._queues.setdefault(request_id, deque())
        later = (n for n, other in enumerate(queue) if waiting.is_first and not other.is_first)
        queue.insert(next(later, len(queue)), waiting)

    def clear(self) -> None:
        self._queues.clear()

    def cut(self, max_items: int, max_audio_s: float) -> list[Waiting[Item, Result]]:
        """Takes the next batch: items that all have the key of the first one.

        A batch of more than one item has at most `max_audio_s` of audio.
        """
        order = self._order()
        batch: list[Waiting[Item, Result]] = []
        left_s, is_growing = max_audio_s, True
        while is_growing:
            is_growing = False
            for request_id in order:
                queue = self._queues.get(request_id) or deque()
                index = next((n for n, w in enumerate(queue) if not batch or w.key == batch[0].key), None)
                if index is None or (batch and self._audio_s(queue[index].item) > left_s):
                    continue
                batch.append(self._take(request_id, index))
                left_s -= self._audio_s(batch[-1].item)
                if len(batch) == max_items:
                    return batch
                is_growing = True
        return batch

    def drop_abandoned(self) -> int:
        """Removes the items whose callers have gone; says how many."""
        dropped = 0
        for request_id, queue in list(self._queues.items()):
            alive = deque(waiting for waiting in queue if not waiting.answer.done())
            dropped += len(queue) - len(alive)
            if alive:
                self._queues[request_id] = alive
            else:
                del self._queues[request_id]
        return dropped

    def _order(self) -> list[Hashable]:
        first = [request_id for request_id, queue in self._queues.items() if queue[0].is_first]
        others = [request_id for request_id, queue in self._queues.items() if not queue[0].is_first]
        if not (first and others):
            return first + others
        self._first_items_led = not self._first_items_led
        return first + others if self._first_items_led else list(self._queues)

    def _take(self, request_id: Hashable, index: int) -> Waiting[Item, Result]:
        queue = self._queues[request_id]
        waiting = queue[index]
        del queue[index]
        if queue:
            self._queues.move_to_end(request_id)
        else:
            del self._queues[request_id]
        return waiting
