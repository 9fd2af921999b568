"""A namespace without network for decoders, where the kernel allows one."""

import logging
import subprocess
import threading
from time import monotonic

import imageio_ffmpeg

logger = logging.getLogger("ray.serve")

RETRY_S = 60.0  # between two questions whether the kernel allows it after all


class Seclusion:
    """What to put before a command so that it has no network and no capabilities, where that is allowed.

    Containers often forbid it. ffmpeg's whitelists, which hold anyway, are the barrier then. A refusal may
    be a moment's lack of something, so it is not for ever.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # decodes that come meanwhile wait, and do not go without
        self._prefix: tuple[str, ...] = ()
        self._asked_s: float | None = None

    def prefix(self) -> tuple[str, ...]:
        """Empty where it is forbidden. May take seconds, so not for the event loop."""
        with self._lock:
            if not self._prefix and (self._asked_s is None or monotonic() - self._asked_s >= RETRY_S):
                self._prefix = self._ask()
                self._asked_s = monotonic()
            return self._prefix

    def _ask(self) -> tuple[str, ...]:
        # No user is mapped there: not even root keeps a capability. To files it is the same user as before.
        prefix = ("unshare", "--user", "--net")
        command = [*prefix, imageio_ffmpeg.get_ffmpeg_exe(), "-version"]
        try:
            subprocess.run(command, env={}, capture_output=True, check=True, timeout=10)  # noqa: S603 - ours
        except (OSError, subprocess.SubprocessError) as error:
            if self._asked_s is None:
                logger.warning("Decoders keep the network, which only ffmpeg's whitelist forbids: %s", error)
            return ()
        return prefix


seclusion = Seclusion()
