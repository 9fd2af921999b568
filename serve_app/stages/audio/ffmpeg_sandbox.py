"""ffmpeg as a child process for hostile files, and the log that it writes.

The child has an empty environment, hard limits of the kernel, and no network where the kernel allows that.
Whitelists forbid it file names and addresses, and it can write no file. It still runs as the service's user:
an attacker who takes over ffmpeg itself can read what that user may read.
"""

import asyncio
import logging
import math
import os
import re
import signal
import subprocess
from contextlib import suppress
from functools import cache
from typing import BinaryIO

import imageio_ffmpeg

from serve_app.errors import Overloaded
from serve_app.transcript import SAMPLE_RATE_HZ

logger = logging.getLogger("ray.serve")
_warn_once = cache(logger.warning)

# Containers only: playlists (hls, concat, dash, sdp) name other files and addresses.
FORMATS = "wav,w64,mp3,flac,ogg,mov,matroska,aac,aiff,caf,amr,asf,avi,flv,mpegts,mpeg,ac3,eac3,au,wv,ape,tta"
MAX_MEMORY_BYTES = 1 << 30  # address space; 300 MB is enough for every container measured
MAX_LOG_BYTES = 1 << 16
NO_DECODER = "The server cannot start a decoder now; try again later."

# Two spaces: the banner's own line. Lines from the file's metadata are indented further.
_DURATION = re.compile(rb"^  Duration: (\d+):(\d\d):(\d\d(?:\.\d+)?)", re.MULTILINE)


class FfmpegLog:
    """The beginning and the end of what ffmpeg says. Files write in it, too: titles, names of tracks."""

    def __init__(self) -> None:
        self._head = self._tail = b""

    @property
    def content(self) -> bytes:
        return self._head + self._tail

    async def read(self, process: asyncio.subprocess.Process) -> None:
        """Reads until the process has closed its end."""
        assert process.stderr is not None
        half = MAX_LOG_BYTES // 2
        while chunk := await process.stderr.read(half):
            self._tail += chunk
            if not self._head and len(self._tail) >= half:
                self._head, self._tail = self._tail[:half], self._tail[half:]
            self._tail = self._tail[-half:]

    def says(self, words: bytes) -> bool:
        """Whether ffmpeg itself says so: its lines begin at the left, what it shows of a file is indented."""
        return re.search(rb"^(?=\S).*" + re.escape(words), self.content, re.MULTILINE) is not None

    def duration_s(self) -> float:
        """The length that the file declares, or that ffmpeg estimates from its bit rate; 0 where unknown."""
        duration = _DURATION.search(self.content)
        hours, minutes, seconds = map(float, duration.groups()) if duration else (0.0, 0.0, 0.0)
        return 3600 * hours + 60 * minutes + seconds


def network_namespace_command() -> tuple[str, ...]:
    """What to put before a command so that it has neither network nor capabilities; empty where it may not.

    Containers often forbid it; then ffmpeg's whitelists, which hold anyway, are the barrier. A refusal may be
    a moment's lack of something, so the kernel is asked again for the next file. It may block for seconds.
    """
    try:
        return _tried_namespace_command()
    except (OSError, subprocess.SubprocessError) as error:
        _warn_once(f"Decoders keep the network, which only ffmpeg's whitelist forbids: {error}")
        return ()


@cache  # keeps no exceptions
def _tried_namespace_command() -> tuple[str, ...]:
    # No user is mapped there: not even root keeps a capability. To files it is the same user as before.
    command = ("unshare", "--user", "--net")
    trial = [*command, imageio_ffmpeg.get_ffmpeg_exe(), "-version"]
    subprocess.run(trial, env={}, capture_output=True, check=True, timeout=10)  # noqa: S603 - ours
    return command


async def start_ffmpeg(file: BinaryIO, timeout_s: float) -> asyncio.subprocess.Process:
    """Starts ffmpeg on the whole `file`, with int16 samples on stdout. The caller must call `end_ffmpeg`.

    Raises Overloaded where no process or descriptor is left.
    """
    # The shell sets the limits before ffmpeg exists, so no byte is read without them, and the kernel keeps
    # them when this process is gone. Where a limit cannot be set there is a stricter one already.
    memory_kib, cpu_s = MAX_MEMORY_BYTES >> 10, 2 * math.ceil(timeout_s)
    limits = f"ulimit -v {memory_kib}; ulimit -t {cpu_s}; ulimit -f 0; ulimit -c 0"
    namespace = await asyncio.to_thread(network_namespace_command)
    try:
        source = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)  # opened again: its own position
        try:
            return await asyncio.create_subprocess_exec(
                *["/bin/sh", "-c", f'{{ {limits}; }} 2>/dev/null; exec "$@"', "decoder", *namespace],
                *[imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-nostats"],
                *["-threads", "1", "-filter_threads", "1"],
                # A descriptor is the only thing ffmpeg will open: `file:` is not on the list.
                *["-protocol_whitelist", "fd", "-format_whitelist", FORMATS],
                *["-fd", str(source), "-i", "fd:", "-map", "0:a:0", "-vn", "-sn", "-dn"],
                # s16le, not f32le: ffmpeg's float downmix is 3 dB louder than whisperx's.
                *["-f", "s16le", "-ac", "1", "-ar", str(SAMPLE_RATE_HZ), "pipe:1"],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=1 << 20,
                env={},
                start_new_session=True,
                pass_fds=(source,),
            )
        finally:
            os.close(source)
    except OSError as error:
        raise Overloaded(NO_DECODER) from error


async def end_ffmpeg(process: asyncio.subprocess.Process, reading_log: "asyncio.Task[None]") -> None:
    """Leaves neither a process nor an open pipe behind."""
    assert process.stdout is not None
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.stdout.read()
    await reading_log
    await process.wait()
