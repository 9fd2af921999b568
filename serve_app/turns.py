"""Which process goes first on a device that several share: short files' work before long files'.

A device gives everybody an equal part, so a clip that is recognised beside a long file's batch would get a
third of it while that file is aligned as well. Whoever computes for a short file holds a lock; what can wait
does, for half of the time at most. The kernel lets go of the lock when a process dies.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger("ray.serve")

FOLDER = Path("/dev/shm")  # noqa: S108  (of this machine, as the device is; the file in it is checked)


class Turns:
    """Those of one device: all processes of one user that name the same file."""

    def __init__(self, path: Path) -> None:
        self._file: int | None = None
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            if os.fstat(file).st_uid != os.geteuid():
                os.close(file)
                raise PermissionError("it is somebody else's")
            self._file = file
        except OSError as error:
            logger.warning("Short files do not go first on this device: %s: %s", path, error)

    @contextmanager
    def first(self) -> Iterator[None]:
        """While this is entered the device is for short work, of whichever processes."""
        if self._file is None:
            yield
            return
        fcntl.flock(self._file, fcntl.LOCK_SH)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def taken(self) -> bool:
        """Whether another process has entered `first`."""
        if self._file is None:
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._file, fcntl.LOCK_UN)
        return False


def of_this_device() -> Turns:
    """Those of the GPU that Ray has given this process, or of the CPUs."""
    device = os.environ.get("CUDA_VISIBLE_DEVICES") or "cpu"
    return Turns(FOLDER / f"whisperx-{os.geteuid()}-{device.replace('/', '_')}")
