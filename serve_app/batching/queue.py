"""What waits for a batcher: one queue per request, and whose items are next.

A batch of a model that writes lasts as long as its longest item, and one that is padded is as long. So of
more requests than go into one batch the shorter half goes first, and the longer half next.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from serve_app.batching.items import Waiting

NEWCOMER_ITEMS = 2  # so many items of a request are a newcomer's; of a long file the first only
REQUESTS_KNOWN = 4096  # whose items are counted

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatchQueue(Generic[Item, Result]):
    """Requests take turns, an item each, shorter ones first of as many as go into two batches; who was
    passed over comes first in the next one. Newcomers come before others in every other batch.
    """

    def __init__(self, audio_s: Callable[[Item], float]) -> None:
        self._audio_s = audio_s
        self._queues: OrderedDict[Hashable, deque[Waiting[Item, Result]]] = OrderedDict()
        self._submitted: OrderedDict[Hashable, int] = OrderedDict()  # by request, the latest last
        self._newcomers_were_first = False

    def __iter__(self) -> Iterator[Waiting[Item, Result]]:
        """All of it, also what nobody waits for any more."""
        return (waiting for queue in self._queues.values() for waiting in queue)

    @property
    def waiting(self) -> int:
        """How many of it somebody waits for."""
        return sum(not waiting.answer.done() for waiting in self)

    @property
    def is_pressed(self) -> bool:
        """Whether somebody waits for a pressing item."""
        return any(waiting.pressing and not waiting.answer.done() for waiting in self)

    def knows(self, request_id: Hashable) -> bool:
        """Whether the request has had an item before."""
        return request_id in self._submitted

    def put(
        self, request_id: Hashable, item: Item, key: Hashable, *, long: bool = False, urgent: bool = False
    ) -> Waiting[Item, Result]:
        """Behind the request's other items; what is pressing, before those that are not."""
        self._submitted[request_id] = 1 + (number := self._submitted.pop(request_id, 0))
        if len(self._submitted) > REQUESTS_KNOWN:
            self._submitted.popitem(last=False)
        newcomer = number < (1 if long else NEWCOMER_ITEMS)
        short, pressing = newcomer and not long, newcomer or urgent or not long
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        waiting = Waiting(item, key, newcomer, short, pressing, answer, time.monotonic())
        queue = self._queues.setdefault(request_id, deque())
        behind = (n for n, other in enumerate(queue) if pressing and not other.pressing)
        queue.insert(next(behind, len(queue)), waiting)
        return waiting

    def clear(self) -> None:
        self._queues.clear()

    def cut(self, max_items: int, max_s: float) -> list[Waiting[Item, Result]]:
        """One item per request in turn, its first with the key of whoever is first."""
        in_turn = self._order()
        nearest = [self._queues[request_id][0] for request_id in in_turn[:max_items]]
        batch = self._fill(self._shorter_first(in_turn, max_items), max_items, max_s)
        for waiting in nearest:
            waiting.passed_over = waiting not in batch
        return batch

    def _fill(self, order: list[Hashable], max_items: int, max_s: float) -> list[Waiting[Item, Result]]:
        batch: list[Waiting[Item, Result]] = []
        left_s, grown = max_s, True
        while grown:
            grown = False
            for request_id in order:
                queue = self._queues.get(request_id, ())
                fitting = (n for n, waiting in enumerate(queue) if not batch or waiting.key == batch[0].key)
                at = next(fitting, None)
                if at is None or (batch and self._audio_s(self._queues[request_id][at].item) > left_s):
                    continue
                batch.append(self._take(request_id, at))
                left_s -= self._audio_s(batch[-1].item)
                if len(batch) == max_items:
                    return batch
                grown = True
        return batch

    def _shorter_first(self, in_turn: list[Hashable], max_items: int) -> list[Hashable]:
        """Whoever was passed over before, then by length of their first items as many as make two batches."""
        if len(in_turn) <= max_items:
            return in_turn
        late = [request_id for request_id in in_turn if self._queues[request_id][0].passed_over]
        others = [request_id for request_id in in_turn if not self._queues[request_id][0].passed_over]
        near, far = others[: 2 * max_items], others[2 * max_items :]
        return late + sorted(near, key=lambda r: self._audio_s(self._queues[r][0].item)) + far

    def _order(self) -> list[Hashable]:
        """In a batch that one long window fills, a clip would else wait for another such batch."""
        newcomers = [request_id for request_id, queue in self._queues.items() if queue[0].newcomer]
        others = [request_id for request_id, queue in self._queues.items() if not queue[0].newcomer]
        self._newcomers_were_first = bool(newcomers and others) and not self._newcomers_were_first
        return newcomers + others if self._newcomers_were_first else list(self._queues)

    def cut_newcomers(self, max_items: int) -> list[Waiting[Item, Result]]:
        """All newcomers' items with the first one's key; nothing where there are more than `max_items`."""
        if sum(waiting.newcomer for waiting in self) > max_items:
            return []
        batch: list[Waiting[Item, Result]] = []
        for request_id in list(self._queues):
            while (queue := self._queues.get(request_id)) and queue[0].newcomer:
                if batch and queue[0].key != batch[0].key:
                    break
                batch.append(self._take(request_id))
        return batch

    def drop_cancelled(self) -> int:
        """How many items there were whose callers have gone."""
        dropped = 0
        for request_id, queue in list(self._queues.items()):
            alive = deque(waiting for waiting in queue if not waiting.answer.done())
            dropped += len(queue) - len(alive)
            if alive:
                self._queues[request_id] = alive
            else:
                del self._queues[request_id]
        return dropped

    def _take(self, request_id: Hashable, at: int = 0) -> Waiting[Item, Result]:
        queue = self._queues[request_id]
        waiting = queue[at]
        del queue[at]
        if queue:
            self._queues.move_to_end(request_id)  # its next item goes behind the others
        else:
            del self._queues[request_id]
        return waiting
