"""What ffmpeg says while it decodes. Files write in it, too: their titles, their tracks' names."""

import asyncio
import re

MAX_LOG_BYTES = 1 << 16

# Two spaces: the banner's own line. Lines from the file's metadata are indented further.
_DURATION = re.compile(rb"^  Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)", re.MULTILINE)


class Log:
    """The first and the last half of what fits: the banner and the reason of the end."""

    def __init__(self) -> None:
        self._head = self._tail = b""

    @property
    def said(self) -> bytes:
        return self._head + self._tail

    async def read(self, process: asyncio.subprocess.Process) -> None:
        """Until the process has closed it."""
        assert process.stderr is not None
        half = MAX_LOG_BYTES // 2
        while chunk := await process.stderr.read(half):
            self._tail += chunk
            if not self._head and len(self._tail) >= half:
                self._head, self._tail = self._tail[:half], self._tail[half:]
            self._tail = self._tail[-half:]

    def says(self, words: bytes) -> bool:
        """Whether ffmpeg itself says so: its lines begin at the left, what it shows of a file is indented."""
        return re.search(rb"^(?=\S).*" + re.escape(words), self.said, re.MULTILINE) is not None

    def duration_s(self) -> float:
        """What the file says, or what ffmpeg makes of its bit rate; 0: not known."""
        duration = _DURATION.search(self.said)
        if not duration:
            return 0.0
        hours, minutes, seconds = (float(part) for part in duration.groups())
        return 3600 * hours + 60 * minutes + seconds
