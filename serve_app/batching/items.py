"""What waits for a batcher, and what it counts of that."""

import asyncio
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatcherDied(Exception):
    """A batcher's own loop has ended by an error: it serves nobody any more."""


@dataclass(eq=False)
class Waiting(Generic[Item, Result]):
    item: Item
    key: Hashable
    newcomer: bool  # one of its request's first items here: early, so that a long file's first text is
    short: bool  # and of no long file: others on the device wait for it
    pressing: bool  # a newcomer's, of no long file, or urgent: waits for nobody on the device
    answer: "asyncio.Future[Result]"
    since_s: float
    passed_over: bool = False  # it would have been in the last batch by turn

    def end(self, result: Result | BaseException) -> None:
        """Its caller gets this, or raises it; nothing where there is no caller any more."""
        if self.answer.done():
            return
        if isinstance(result, BaseException):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


@dataclass
class BatchCounters:
    """What has run so far; occupancy, without the newcomers' lane, is `items / slots`."""

    batches: int = 0
    items: int = 0
    slots: int = 0  # places that these batches had
    beside: int = 0  # items in the newcomers' lane
    dropped: int = 0
    wait_s: float = 0.0
    busy_s: float = 0.0  # at least one lane was
