"""Which process goes first on a device that several share: short files' work before long files'.

A device gives everybody an equal part, so a clip that is recognised beside a long file's batch would get a
third of it while that file is aligned as well. Whoever works on short files only holds a lock; alignment and
speech detection of long files wait meanwhile, half of the time at most. The kernel lets go of the lock when a
process dies.

On a GPU second comes the search for speech in a long file: it finds work for many devices, and with a third
of one it keeps only four of them busy. It holds another lock; meanwhile alignment waits, and recognition
longer, but only until two full batches wait for it.
"""

import asyncio
import fcntl
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from serve_app.settings import MOST_THREADS

logger = logging.getLogger("ray.serve")

FOLDER = Path("/dev/shm")  # noqa: S108  (of this machine, as the device is; the file in it is checked)

# Seconds that work waits for others on the device, at most and at a time; recognition for a search longer: by
# then that finds two batches for each of four GPUs, and with less they all run halves until it has ended.
MOST_S, MOST_FOR_SEARCH_S = 1.0, 4.0
LINGER_S = 0.1  # and after them: the same clip comes here next, a search takes its next step
LOOK_S = 0.005


class Turns:
    """Those of one device: all processes of one user that name the same file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            os.close(self._open())
        except OSError as error:
            logger.warning("Nobody goes first on this device: %s: %s", path, error)

    @contextmanager
    def first(self) -> Iterator[None]:
        """While this is entered others wait, of whichever threads and processes.

        Where there can be no lock, as without a free descriptor, work goes on without.
        """
        file = None  # anew: a lock belongs to an opened file, and all share it who share that
        try:
            file = self._open()
            fcntl.flock(file, fcntl.LOCK_SH)
        except OSError:
            logger.debug("No turn on %s.", self._path)
        try:
            yield
        finally:
            if file is not None:
                os.close(file)

    def taken(self) -> bool:
        """Whether anybody has entered `first`.

        Two who ask at the very same time may see each other; they wait a little for nobody then.
        """
        try:
            file = self._open()
        except OSError:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return isinstance(error, BlockingIOError)
        finally:
            os.close(file)
        return False

    def _open(self) -> int:
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if os.fstat(file).st_uid != os.geteuid():
            os.close(file)
            raise PermissionError("it is somebody else's")
        return file


class GivingWay:
    """Work that waits for whoever is `first` on the device, for so many seconds at a time at most.

    And for each kind as long as it has not waited before, so that each gets half of the time at most. What is
    left of that is kept for the next time.
    """

    def __init__(self, first: Mapping[Turns, float]) -> None:
        self.now = False
        self._most_s = dict(first)
        self._since_s = dict.fromkeys(first, 0.0)  # from when on time without waiting counts, in such time
        self._waited_s = 0.0
        self._expected_s = -math.inf

    def expect(self) -> None:
        """Somebody will come in a moment, after what has just been done for them here."""
        self._expected_s = time.monotonic()

    async def wait(self, while_so: Callable[[], bool]) -> None:
        """While others work, for each kind of them as long as it was not waited for, at most."""
        if not self._most_s:
            return
        begun_s, last_s, given = time.monotonic(), self._expected_s, set[Turns]()
        worked_s = begun_s - self._waited_s
        allowed_s = {turns: min(s, worked_s - self._since_s[turns]) for turns, s in self._most_s.items()}
        until_s = {turns: begun_s + s for turns, s in allowed_s.items()}
        while while_so():
            now_s = time.monotonic()
            if taken := {turns for turns in until_s if now_s < until_s[turns] and turns.taken()}:
                given, last_s = given | taken, now_s
            most_s = max((until_s[turns] for turns in given), default=math.inf)
            if now_s > last_s + LINGER_S or now_s >= most_s:
                break
            self.now = True
            await asyncio.sleep(LOOK_S)
        self.now = False
        waited_s = time.monotonic() - begun_s
        self._waited_s += waited_s
        for turns in given:
            self._since_s[turns] = worked_s - max(0.0, allowed_s[turns] - waited_s)


@dataclass(frozen=True)
class DeviceTurns:
    """Who goes first on one device, and who comes second."""

    short: Turns
    search: Turns | None  # on CPUs nobody waits for it: they are all there is, and it does not use them all
    most_s: float = MOST_S
    most_for_search_s: float = MOST_FOR_SEARCH_S

    def before(self, newcomers_beside: bool, searches: bool) -> dict[Turns, float]:
        """Whom a stage with a lane for newcomers, or that searches, or neither, waits for, and how long."""
        first = {} if newcomers_beside else {self.short: self.most_s}
        if self.search and not searches:
            first[self.search] = self.most_for_search_s if newcomers_beside else self.most_s
        return first


def of_this_device() -> DeviceTurns | None:
    """Those of the GPU that Ray gave this process, or of CPUs so few that every replica uses all of them."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES") or "cpu"
    if device == "cpu" and len(os.sched_getaffinity(0)) > MOST_THREADS:
        return None
    path = FOLDER / f"whisperx-{os.geteuid()}-{device.replace('/', '_')}"
    search = None if device == "cpu" else Turns(path.with_name(f"{path.name}-search"))
    return DeviceTurns(Turns(path), search)
