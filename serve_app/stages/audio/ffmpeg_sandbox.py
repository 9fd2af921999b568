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
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import BinaryIO

import imageio_ffmpeg

from serve_app.audio import RawAudio
from serve_app.errors import AudioTooCostly, Overloaded, UnusableAudio

logger = logging.getLogger("ray.serve")
_warn_once = cache(logger.warning)

# Containers only: playlists (hls, concat, dash, sdp) name other files and addresses.
FORMATS = (
    "wav,w64,mp3,flac,ogg,mov,matroska,aac,aiff,caf,amr,gsm,asf,avi,flv,mpegts,mpeg,ac3,eac3,au,wv,ape,tta"
)
MAX_MEMORY_BYTES = 1 << 30  # address space; 300 MB is enough for every container measured
MAX_LOG_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 12
LISTED = b"At least one output file must be specified"
NO_DECODER = "The server cannot start a decoder now; try again later."


class FfmpegLog:
    """The beginning and the end of what ffmpeg says. Files write in it, too: titles, names of tracks."""

    def __init__(self) -> None:
        self._head = self._tail = b""

    @property
    def content(self) -> bytes:
        return self._head + self._tail

    async def read(self, process: asyncio.subprocess.Process) -> None:
        """Reads until the process has closed its end. The file's texts, which are indented, are left out."""
        assert process.stderr is not None
        rest = b""
        while chunk := await process.stderr.read(MAX_LOG_BYTES // 2):
            *lines, rest = (rest + chunk).split(b"\n")
            self._add(b"".join(line + b"\n" for line in lines if not line.startswith(b"    ")))
            rest = rest[:MAX_LINE_BYTES]
        self._add(rest)

    def _add(self, lines: bytes) -> None:
        half = MAX_LOG_BYTES // 2
        self._tail += lines
        if not self._head and len(self._tail) >= half:
            self._head, self._tail = self._tail[:half], self._tail[half:]
        self._tail = self._tail[-half:]

    def says(self, words: bytes) -> bool:
        """Whether ffmpeg itself says so: its lines begin at the left, what it shows of a file is indented."""
        return re.search(rb"^(?=\S).*" + re.escape(words), self.content, re.MULTILINE) is not None


def network_namespace_command() -> tuple[str, ...]:
    """What to put before a command so that it has neither network nor capabilities; empty where it may not.

    Containers often forbid it; then ffmpeg's whitelists, which hold anyway, are the barrier. A refusal may be
    a moment's lack of something, so the kernel is asked again for the next file. It may block for seconds.
    """
    try:
        return tried_namespace_command()
    except (OSError, subprocess.SubprocessError) as error:
        _warn_once(f"Decoders keep the network, which only ffmpeg's whitelist forbids: {error}")
        return ()


@cache  # keeps no exceptions
def tried_namespace_command() -> tuple[str, ...]:
    """The command, tried on this machine. Raises OSError or SubprocessError where it may not be used."""
    # No user is mapped there: not even root keeps a capability. To files it is the same user as before.
    command = ("unshare", "--user", "--net")
    trial = [*command, imageio_ffmpeg.get_ffmpeg_exe(), "-version"]
    subprocess.run(trial, env={}, capture_output=True, check=True, timeout=10)  # noqa: S603 - ours
    return command


@asynccontextmanager
async def running_ffmpeg(
    file: BinaryIO, timeout_s: float, *output: str, raw: RawAudio | None = None, seek_s: float = 0.0
) -> AsyncGenerator[tuple[asyncio.subprocess.Process, FfmpegLog]]:
    """ffmpeg on `file` from `seek_s` on; `output` is what it shall write to stdout.

    Its log is complete afterwards.
    `raw` says what the bytes are where they have no header; ffmpeg then looks for no container in them.
    Without `output` it lists the file's streams in its log and ends with LISTED. With it, the log has
    warnings and errors only, and none of the file's texts. Raises Overloaded where no process or descriptor
    is left.
    """
    process, log = await _start_ffmpeg(file, timeout_s, raw, seek_s, *output), FfmpegLog()
    reading_log = asyncio.create_task(log.read(process))
    try:
        yield process, log
    finally:
        await _end_ffmpeg(process, reading_log)


async def output_of(process: asyncio.subprocess.Process, until_s: float) -> AsyncGenerator[bytes]:
    """The bytes that the process gives until it ends. Raises TimeoutError at `until_s` of the loop's time."""
    assert process.stdout is not None
    while True:
        async with asyncio.timeout_at(until_s):
            chunk = await process.stdout.read(1 << 20)
            if not chunk:
                await process.wait()
                return
        yield chunk


def raise_for_failure(log: FfmpegLog, exit_code: int | None) -> None:
    """Raises the error that ffmpeg's end means, if it means one. It shows nothing of the log."""
    if exit_code == 0:
        return
    if log.content.startswith((b"decoder: ", b"unshare: ")):  # the shell or unshare: ffmpeg saw no file
        raise Overloaded(NO_DECODER)
    # Killed by the kernel: what this process kills never comes this far.
    if exit_code == -signal.SIGKILL or log.says(b"Cannot allocate memory"):
        raise AudioTooCostly("Decoding took too much time or memory; send a shorter or simpler file.")
    if log.says(b"moov atom not found"):
        raise UnusableAudio("The MP4 file is incomplete (its index is missing); send the whole file.")
    raise UnusableAudio(  # also where the file crashes ffmpeg
        "The file cannot be decoded; send intact audio or video in a common format such as "
        "MP3, M4A, MP4, WAV, FLAC, OGG or WEBM."
    )


async def _start_ffmpeg(
    file: BinaryIO, timeout_s: float, raw: RawAudio | None, seek_s: float, *output: str
) -> asyncio.subprocess.Process:
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
                *["-loglevel", "warning" if output else "info", "-threads", "1", "-filter_threads", "1"],
                # A descriptor is the only thing ffmpeg will open: `file:` is not on the list.
                *["-protocol_whitelist", "fd", "-format_whitelist", raw.encoding if raw else FORMATS],
                # Two channels without positions are stereo; more of them are not taken for surround sound.
                *["-guess_layout_max", "2", *(raw.ffmpeg_input() if raw else ())],
                *(("-ss", f"{seek_s:.0f}") if seek_s else ()),
                *["-fd", str(source), "-i", "fd:", *output],
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


async def _end_ffmpeg(process: asyncio.subprocess.Process, reading_log: "asyncio.Task[None]") -> None:
    """Leaves neither a process nor an open pipe behind."""
    assert process.stdout is not None
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.stdout.read()
    await reading_log
    await process.wait()
