"""Bytes of a common container to mono 16 kHz samples, in a child process.

The bytes are hostile: ffmpeg runs with an empty environment and hard limits, its whitelists forbid it file
names and addresses, it can write no file, and has no network where the kernel allows that. It is still the
service's user: who takes over ffmpeg itself can read what that user may read. What it gives is counted
while it comes, because headers lie about length in both directions. Whatever a file does to ffmpeg is the
file's fault, an UnusableAudio (422).
"""

import asyncio
import math
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from time import monotonic
from typing import BinaryIO

import imageio_ffmpeg
import numpy as np

from serve_app.deadline import timeout
from serve_app.errors import (
    AudioTooCostly,
    AudioTooLong,
    EmptyAudio,
    EncryptedAudio,
    NoAudioStream,
    Overloaded,
    UnusableAudio,
)
from serve_app.stages.audio.ffmpeg_log import Log
from serve_app.stages.audio.ffmpeg_sandbox import seclusion
from serve_app.transcript import SAMPLE_RATE_HZ, Audio, Samples, StageWarning

# Containers only: playlists (hls, concat, dash, sdp) name other files and addresses.
FORMATS = "wav,w64,mp3,flac,ogg,mov,matroska,aac,aiff,caf,amr,asf,avi,flv,mpegts,mpeg,ac3,eac3,au,wv,ape,tta"
MAX_MEMORY_BYTES = 1 << 30  # address space; 300 MB is enough for every container measured
BYTES_PER_SAMPLE = 2
BYTES_PER_S = SAMPLE_RATE_HZ * BYTES_PER_SAMPLE
EARLY_S = 120.0  # of sound: from then on a file's beginning is worked on while the rest is decoded,
GROWTH = 2  # and again whenever twice as much is there
NO_DECODER = "The server cannot start a decoder now; try again later."


async def decode(file: BinaryIO, *, max_audio_s: float, timeout_s: float) -> Audio:
    """Decodes the first sound track of `file`, a file on disk (it must have a descriptor).

    The samples are what `whisperx.load_audio` gives, as int16 and read-only. A file that holds
    less than it declares is decoded as far as it goes, with a warning. The position of `file` is
    neither used nor changed.

    Raises EmptyAudio, NoAudioStream, EncryptedAudio, AudioTooLong (more than `max_audio_s` decoded
    seconds), AudioTooCostly (more than `timeout_s` or more memory than a file needs), UnusableAudio,
    Overloaded (no process or descriptor left).
    """
    parts = decoding(file, max_audio_s=max_audio_s, timeout_s=timeout_s, early_s=math.inf)
    async with aclosing(parts):
        return await anext(parts)


async def decoding(
    file: BinaryIO, *, max_audio_s: float, timeout_s: float, early_s: float = EARLY_S
) -> AsyncGenerator[Audio, None]:
    """`decode` as it gets on: the first `early_s` seconds, `GROWTH` times as much, and so on; then all of it.

    Raises what `decode` raises, maybe after the beginning has been given. Of a file that says itself that it
    is longer than `max_audio_s` there is no beginning, only all of it if that is not true.
    """
    file.flush()
    if os.fstat(file.fileno()).st_size == 0:
        raise EmptyAudio("The file is empty; send a file that holds audio.")
    process = await _start(file, timeout_s)
    log = Log()
    reading_log = asyncio.create_task(log.read(process))
    try:
        pcm, begun = bytearray(), False
        async with aclosing(_chunks(process, timeout_s)) as chunks:
            async for chunk in chunks:
                pcm += chunk
                if len(pcm) > max_audio_s * BYTES_PER_S:
                    raise AudioTooLong(
                        f"The audio is longer than {max_audio_s:g} s, the most this server takes; "
                        "send it in shorter parts."
                    )
                if len(pcm) > early_s * BYTES_PER_S:
                    expected_s = log.duration_s()
                    if expected_s > max_audio_s:
                        early_s = math.inf
                        continue
                    if not begun:
                        await _refuse_encrypted(file, log)
                        begun = True
                    beginning = bytes(memoryview(pcm)[: int(early_s * BYTES_PER_S)])
                    yield Audio(_samples(beginning), whole=False, expected_s=expected_s)
                    del beginning  # up to as much again as there is
                    early_s *= GROWTH
    finally:
        await _end(process, reading_log)
    if not begun:
        await _refuse_encrypted(file, log)
    yield _judge(pcm, log, process.returncode)


async def _start(file: BinaryIO, timeout_s: float) -> asyncio.subprocess.Process:
    # The shell sets the limits before ffmpeg exists, so no byte is read without them, and the kernel keeps
    # them when this process is gone. Where a limit cannot be set there is a stricter one already.
    memory_kib, cpu_s = MAX_MEMORY_BYTES >> 10, 2 * math.ceil(timeout_s)
    limits = f"ulimit -v {memory_kib}; ulimit -t {cpu_s}; ulimit -f 0; ulimit -c 0"
    secluded = await asyncio.to_thread(seclusion.prefix)
    try:
        source = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)  # again: a position of its own
        try:
            return await asyncio.create_subprocess_exec(
                *["/bin/sh", "-c", f'{{ {limits}; }} 2>/dev/null; exec "$@"', "decoder", *secluded],
                *[imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-nostats"],
                *["-threads", "1", "-filter_threads", "1"],
                # A descriptor is the only thing ffmpeg will open: `file:` is not on the list.
                *["-protocol_whitelist", "fd", "-format_whitelist", FORMATS],
                *[*_packets(os.pread(source, 28, 0)), "-fd", str(source), "-i", "fd:"],
                # s16le, not f32le: ffmpeg's float downmix is 3 dB louder than whisperx's.
                *["-map", "0:a:0", "-vn", "-sn", "-dn"],
                *["-f", "s16le", "-ac", "1", "-ar", str(SAMPLE_RATE_HZ), "pipe:1"],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={},
                start_new_session=True,
                pass_fds=(source,),
                limit=1 << 20,
            )
        finally:
            os.close(source)
    except OSError as error:
        raise Overloaded(NO_DECODER) from error


def _packets(head: bytes) -> tuple[str, ...]:
    """For an ordinary WAV file larger packets than ffmpeg's 4 KiB, which take a quarter of the time, and 128
    KiB to find out whether it is something else (DTS may pass for WAV): looking at 5 MiB of such packets, as
    ffmpeg would, takes half of its time for a clip of 10 s.
    """
    is_wav = head[:4] == b"RIFF" and head[8:16] == b"WAVEfmt "
    is_pcm = int.from_bytes(head[20:22], "little") in (1, 3, 6, 7, 0xFFFE)  # or floats, A-law, mu-law, any
    # At a low rate, resampling a packet would need much memory.
    if not (is_wav and is_pcm) or int.from_bytes(head[24:28], "little") < 8000:
        return ()
    return ("-max_size", str(1 << 16), "-probesize", str(1 << 17))


async def _chunks(process: asyncio.subprocess.Process, timeout_s: float) -> AsyncGenerator[bytes, None]:
    """What the process gives until it ends, or AudioTooCostly."""
    assert process.stdout is not None
    until_s = monotonic() + timeout_s
    try:
        while True:
            async with timeout(until_s - monotonic()):
                chunk = await process.stdout.read(1 << 20)
            if not chunk:
                break
            yield chunk
        async with timeout(until_s - monotonic()):
            await process.wait()
    except asyncio.TimeoutError:
        raise AudioTooCostly(
            f"Decoding took longer than {timeout_s:g} s; send a shorter file or a simpler format such as WAV."
        ) from None


async def _end(process: asyncio.subprocess.Process, log: "asyncio.Task[None]") -> None:
    """Leaves neither a process nor an open pipe behind."""
    assert process.stdout is not None
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    await process.stdout.read()
    await log
    await process.wait()


async def _refuse_encrypted(file: BinaryIO, log: Log) -> None:
    if log.says(b"Input #0, mov,mp4") and await asyncio.to_thread(_is_encrypted, file):
        raise EncryptedAudio("The sound track is encrypted; send a file without copy protection.")


def _is_encrypted(file: BinaryIO) -> bool:
    """Whether an MP4 holds an encrypted sound track, which ffmpeg takes for noise without a word."""
    box = b"enca" + bytes(7) + b"\x01"  # a sample entry: type, six reserved bytes, index 1
    offset, tail = 0, b""
    while chunk := os.pread(file.fileno(), 1 << 20, offset):
        if box in tail + chunk:
            return True
        offset, tail = offset + len(chunk), chunk[-len(box) :]
    return False


def _judge(pcm: bytearray, log: Log, exit_code: int | None) -> Audio:
    """Audio with its warnings, or the error that ffmpeg's end means. Shows nothing of the log."""
    if log.said.startswith((b"decoder: ", b"unshare: ")):  # ffmpeg never ran: nothing is known about the file
        raise Overloaded(NO_DECODER)
    # Killed by the kernel: what `decode` kills never comes this far.
    if exit_code == -signal.SIGKILL or (exit_code != 0 and log.says(b"Cannot allocate memory")):
        raise AudioTooCostly("Decoding took too much time or memory; send a shorter or simpler file.")
    if exit_code != 0 and log.says(b"matches no streams"):
        raise NoAudioStream("The file has no sound track; send one that has.")
    if exit_code != 0 and log.says(b"moov atom not found"):
        raise UnusableAudio("The MP4 file is incomplete (its index is missing); send the whole file.")
    if exit_code != 0:  # or a signal: a file that crashes ffmpeg
        raise UnusableAudio(
            "The file cannot be decoded; send intact audio or video in a common format such as "
            "MP3, M4A, MP4, WAV, FLAC, OGG or WEBM."
        )
    samples = _samples(pcm)
    if not len(samples):
        raise EmptyAudio("The file holds no audio samples; send a file that holds audio.")
    return Audio(samples, _warnings(len(samples) / SAMPLE_RATE_HZ, log))


def _samples(pcm: bytes | bytearray) -> Samples:
    samples = np.frombuffer(pcm, dtype="<i2", count=len(pcm) // BYTES_PER_SAMPLE)
    samples.flags.writeable = False  # as it will be once it has crossed a replica
    return samples


def _warnings(decoded_s: float, log: Log) -> tuple[StageWarning, ...]:
    """Exit code 0 proves nothing: half an MP3 decodes without an error."""
    missing = f"Only {decoded_s:.1f} s of sound could be decoded"
    # An estimate from the bit rate is no declaration.
    declared_s = 0.0 if log.says(b"Estimating duration from bitrate") else log.duration_s()
    if declared_s - decoded_s > max(1.0, 0.02 * declared_s):
        message = (
            f"{missing} where the file declares {declared_s:.1f} s; it is cut off or damaged, "
            "or its sound track is shorter than the file."
        )
        return (StageWarning("decode", "truncated_audio", message),)
    # A WAV header written to a pipe declares the largest size there is; that is no truncation.
    if log.says(b"corrupt input packet") and not log.says(b"Ignoring maximum wav data size"):
        message = f"{missing}: the file breaks off in the middle of its data; send the whole file."
        return (StageWarning("decode", "truncated_audio", message),)
    return ()
