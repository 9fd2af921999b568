"""A file of a common container to mono 16 kHz samples, part by part, by ffmpeg in a sandbox.

What ffmpeg gives is counted while it comes, because headers lie about length in both directions. Whatever a
file does to ffmpeg is the file's fault, an UnusableAudio (422).
"""

import asyncio
import math
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import BinaryIO

import numpy as np

from serve_app import errors
from serve_app.stages.audio.ffmpeg_sandbox import NO_DECODER, FfmpegLog, end_ffmpeg, start_ffmpeg
from serve_app.transcript import SAMPLE_RATE_HZ, AudioInfo, Samples, StageWarning

PART_S = 30.0
BYTES_PER_SAMPLE = 2
BYTES_PER_S = SAMPLE_RATE_HZ * BYTES_PER_SAMPLE
PART_BYTES = int(PART_S * BYTES_PER_S)
# Recordings of people peak at -24 dBFS and above. Made quieter, clear speech was heard down to -60 dBFS; in a
# recording that was so quiet from the start (-48 dBFS) nothing was.
QUIET_DBFS = -40.0


async def decode(
    file: BinaryIO, *, max_audio_s: float, timeout_s: float
) -> AsyncGenerator[tuple[AudioInfo, Samples], None]:
    """Decodes the first sound track of `file`, a file on disk (it must have a descriptor), in parts.

    Each part but the last is PART_S long and comes as soon as ffmpeg has decoded more than it. All parts
    together are what `whisperx.load_audio` gives, as int16 and read-only. A file that holds less than it
    declares is decoded as far as it goes, with a warning in the last part. The position of `file` is neither
    used nor changed.

    Raises EncryptedAudio before the first part, and maybe after some EmptyAudio, NoAudioStream, AudioTooLong
    (over `max_audio_s` of decoded sound), AudioTooCostly (too slow, or more memory than a file needs),
    UnusableAudio, Overloaded (no process or descriptor left). A file that declares to be longer than
    `max_audio_s` gives no part before its end has shown that this is not true.
    """
    file.flush()
    if os.fstat(file.fileno()).st_size == 0:
        raise errors.EmptyAudio("The file is empty; send a file that holds audio.")
    process = await start_ffmpeg(file, timeout_s)
    log = FfmpegLog()
    reading_log = asyncio.create_task(log.read(process))
    pcm, start_s = bytearray(), 0.0  # what is decoded and in no part yet
    peaks: list[int] = []  # of each part
    is_checked = is_held_back = False
    try:
        async with aclosing(_chunks(process, timeout_s)) as chunks:
            async for chunk in chunks:
                pcm += chunk
                if start_s + len(pcm) / BYTES_PER_S > max_audio_s:
                    raise errors.AudioTooLong(
                        f"The audio is longer than {max_audio_s:g} s, the most this server takes; "
                        "send it in shorter parts."
                    )
                if len(pcm) > PART_BYTES and not is_checked:
                    await _refuse_encrypted(file, log)
                    is_checked, is_held_back = True, log.duration_s() > max_audio_s
                while len(pcm) > PART_BYTES and not is_held_back:
                    yield _take_part(pcm, start_s, log, peaks)
                    start_s += PART_S
    finally:
        await end_ffmpeg(process, reading_log)
    if not is_checked:
        await _refuse_encrypted(file, log)
    _raise_for_failure(log, process.returncode)
    while len(pcm) > PART_BYTES:
        yield _take_part(pcm, start_s, log, peaks)
        start_s += PART_S
    if len(pcm) < BYTES_PER_SAMPLE:
        raise errors.EmptyAudio("The file holds no audio samples; send a file that holds audio.")
    yield _take_part(pcm, start_s, log, peaks, is_last=True)


def _take_part(
    pcm: bytearray, start_s: float, log: FfmpegLog, peaks: list[int], *, is_last: bool = False
) -> tuple[AudioInfo, Samples]:
    """Cuts PART_S off the beginning of `pcm`, or takes all of it. Adds the part's peak to `peaks`."""
    part = bytes(pcm if is_last else pcm[:PART_BYTES])
    del pcm[: len(part)]
    samples = np.frombuffer(part, "<i2", len(part) // BYTES_PER_SAMPLE)  # read-only, as bytes are
    end_s = (round(start_s * SAMPLE_RATE_HZ) + len(samples)) / SAMPLE_RATE_HZ
    peaks.append(max(int(samples.max()), -int(samples.min())))
    warnings = _warnings(end_s, log, max(peaks)) if is_last else ()
    return AudioInfo(start_s, end_s, is_last, log.duration_s(), warnings), samples


async def _chunks(process: asyncio.subprocess.Process, timeout_s: float) -> AsyncGenerator[bytes, None]:
    """The bytes that the process gives until it ends. Raises AudioTooCostly after `timeout_s`."""
    assert process.stdout is not None
    until_s = asyncio.get_running_loop().time() + timeout_s
    try:
        while True:
            async with asyncio.timeout_at(until_s):
                chunk = await process.stdout.read(1 << 20)
                if not chunk:
                    await process.wait()
                    return
            yield chunk
    except TimeoutError:
        raise errors.AudioTooCostly(
            f"Decoding took longer than {timeout_s:g} s; send a shorter file or a simpler format such as WAV."
        ) from None


async def _refuse_encrypted(file: BinaryIO, log: FfmpegLog) -> None:
    if log.says(b"Input #0, mov,mp4") and await asyncio.to_thread(_is_encrypted, file):
        raise errors.EncryptedAudio("The sound track is encrypted; send a file without copy protection.")


def _is_encrypted(file: BinaryIO) -> bool:
    """Whether an MP4 holds an encrypted sound track, which ffmpeg takes for noise without a word."""
    box = b"enca" + bytes(7) + b"\x01"  # a sample entry: type, six reserved bytes, index 1
    offset, tail = 0, b""
    while chunk := os.pread(file.fileno(), 1 << 20, offset):
        if box in tail + chunk:
            return True
        offset, tail = offset + len(chunk), chunk[-len(box) :]
    return False


def _raise_for_failure(log: FfmpegLog, exit_code: int | None) -> None:
    """Raises the error that ffmpeg's end means, if it means one. It shows nothing of the log."""
    if exit_code == 0:
        return
    if log.content.startswith((b"decoder: ", b"unshare: ")):  # the shell or unshare: ffmpeg saw no file
        raise errors.Overloaded(NO_DECODER)
    # Killed by the kernel: what `decode` kills never comes this far.
    if exit_code == -signal.SIGKILL or log.says(b"Cannot allocate memory"):
        raise errors.AudioTooCostly("Decoding took too much time or memory; send a shorter or simpler file.")
    if log.says(b"matches no streams"):
        raise errors.NoAudioStream("The file has no sound track; send one that has.")
    if log.says(b"moov atom not found"):
        raise errors.UnusableAudio("The MP4 file is incomplete (its index is missing); send the whole file.")
    raise errors.UnusableAudio(  # also where the file crashes ffmpeg
        "The file cannot be decoded; send intact audio or video in a common format such as "
        "MP3, M4A, MP4, WAV, FLAC, OGG or WEBM."
    )


def _warnings(decoded_s: float, log: FfmpegLog, peak: int) -> tuple[StageWarning, ...]:
    """About the whole file, of which this much was decoded."""
    found = {"truncated_audio": _truncation(decoded_s, log), "quiet_audio": _quietness(peak)}
    return tuple(StageWarning("decode", code, message) for code, message in found.items() if message)


def _quietness(peak: int) -> str:
    """What is wrong with a file of this loudest sample; nothing is with silence."""
    level_dbfs = 20 * math.log10(peak / 32768) if peak else 0.0
    if level_dbfs >= QUIET_DBFS:
        return ""
    return (
        f"The recording is very quiet (its peak is {level_dbfs:.0f} dBFS), and speech in it may be missed. "
        "Record it louder; it is amplified already."
    )


def _truncation(decoded_s: float, log: FfmpegLog) -> str:
    """What shows that more was to come. Exit code 0 proves nothing: half an MP3 decodes without an error."""
    # An estimate from the bit rate is no declaration.
    declared_s = 0.0 if log.says(b"Estimating duration from bitrate") else log.duration_s()
    # A WAV header written to a pipe declares the largest size there is; that is no truncation.
    breaks_off = log.says(b"corrupt input packet") and not log.says(b"Ignoring maximum wav data size")
    if declared_s - decoded_s > max(1.0, 0.02 * declared_s):
        problem = (
            f" where the file declares {declared_s:.1f} s; it is cut off or damaged, or its sound track is "
            "shorter than the file."
        )
    elif breaks_off:
        problem = ": the file breaks off in the middle of its data; send the whole file."
    else:
        return ""
    return f"Only {decoded_s:.1f} s of sound could be decoded{problem}"
