"""A file of a common container to mono 16 kHz samples, part by part, by ffmpeg in a sandbox.

What ffmpeg gives is counted while it comes, because headers lie about length in both directions. Whatever a
file does to ffmpeg is the file's fault, an UnusableAudio (422).
"""

import asyncio
import math
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import BinaryIO

import numpy as np

from serve_app import errors
from serve_app.audio import PEAKS_PER_S, WHOLE, AudioInfo, RawAudio, Selection
from serve_app.stages.audio.channels import (
    apart,
    filter_graph,
    filter_of_channels,
    keep_sound,
    refuse_channels,
)
from serve_app.stages.audio.decode_warnings import (
    QUIET_DBFS,
    Decoded,
    is_too_short,
    level_dbfs,
    warnings_of,
)
from serve_app.stages.audio.ffmpeg_sandbox import FfmpegLog, output_of, raise_for_failure, running_ffmpeg
from serve_app.stages.audio.file_marks import is_encrypted, recordings
from serve_app.stages.audio.streams import Streams, Track, last_time_s, list_streams
from serve_app.stages.audio.timed_samples import MATROSKA, Stretch, TimedSamples
from serve_app.transcript import SAMPLE_RATE_HZ, Samples, StageWarning

PART_S = 30.0
PART_SAMPLES = int(PART_S * SAMPLE_RATE_HZ)
PEAK_SAMPLES = SAMPLE_RATE_HZ // PEAKS_PER_S
# In these containers ffmpeg finds a time to the sample; from this long before it on, it is decoded.
SEEKABLE = ("wav", "w64", "flac", "mp3")
PREROLL_S = 5.0
MAX_OTHER_TRACKS = 8  # that are searched for sound where the chosen one has none


@dataclass(frozen=True, slots=True)
class _Limits:
    max_audio_s: float
    timeout_s: float
    until_s: float  # of the loop's time
    raw: RawAudio | None = None
    selection: Selection = WHOLE


async def decode(
    file: BinaryIO,
    *,
    max_audio_s: float,
    timeout_s: float,
    raw: RawAudio | None = None,
    selection: Selection = WHOLE,
) -> AsyncGenerator[tuple[AudioInfo, Samples], None]:
    """Decodes the sound track that a player plays of `file`, which is on disk (it must have a descriptor).

    With a `selection` it is that track, from its start to its end, and times are counted from its start.
    Channels that are wanted apart are the rows of the samples.

    Each part but the last is PART_S long and comes as soon as ffmpeg has decoded more than it. All parts
    together are what `whisperx.load_audio` gives, as int16 and read-only, but for two things: silence stands
    where the file's times have a gap, and channels that cancel each other are mixed in another way. A file
    that holds less than it declares is decoded as far as it goes. The last part has the warnings. The
    position of `file` is neither used nor changed. A file without a header is read as `raw` says.

    Raises InvalidRequest (`raw` cannot be true, or there is no such `selection`) and EncryptedAudio, and
    maybe after some parts EmptyAudio, NoAudioStream, AudioTooLong (over `max_audio_s` of decoded sound),
    AudioTooCostly (too slow, or more memory than a file needs), UnusableAudio, Overloaded (no process or
    descriptor left). A file that declares to be longer than `max_audio_s` is decoded twice where that
    is not true: the first time nothing is kept.
    """
    file.flush()
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes == 0:
        raise errors.EmptyAudio("The file is empty; send a file that holds audio.")
    if raw:
        raw.refuse_part_of_a_sample(size_bytes)
    limits = _Limits(max_audio_s, timeout_s, asyncio.get_running_loop().time() + timeout_s, raw, selection)
    try:
        streams = await list_streams(file, timeout_s, limits.until_s, raw)
        if streams.container.startswith("mov,mp4") and await asyncio.to_thread(is_encrypted, file):
            raise errors.EncryptedAudio("The sound track is encrypted; send a file without copy protection.")
        chosen = streams.track(selection.track)
        expected_s, start_s = _expected_s(streams, selection), 0.0
        if expected_s > max_audio_s:
            async with aclosing(_TrackDecoder(file, streams, chosen, limits).parts()) as parts:
                async for _ in parts:  # AudioTooLong, unless it is not true
                    pass
        track = _TrackDecoder(file, streams, chosen, limits)
        async with aclosing(track.parts()) as parts:
            async for part, is_last in parts:
                end_s = (round(start_s * SAMPLE_RATE_HZ) + part.shape[-1]) / SAMPLE_RATE_HZ
                warnings = await _warnings(file, streams, track, limits) if is_last else ()
                info = AudioInfo(start_s, end_s, is_last, expected_s, warnings, skipped_s=track.skipped_s)
                channels = len(part) if part.ndim > 1 else 1
                yield replace(info, channels=channels, peaks=peaks(part)), part
                start_s = end_s
    except TimeoutError:
        raise errors.AudioTooCostly(
            f"Decoding took longer than {timeout_s:g} s; send a shorter file or a simpler format such as WAV."
        ) from None


def peaks(part: Samples) -> bytes:
    """The loudest sample of each twentieth of a second, of any channel, in 128ths."""
    rows = np.atleast_2d(part)
    blocks = np.zeros((len(rows), -(-rows.shape[1] // PEAK_SAMPLES), PEAK_SAMPLES), np.int16)
    blocks.reshape(len(rows), -1)[:, : rows.shape[1]] = rows
    low, high = blocks.min(axis=(0, 2)).astype(np.int32), blocks.max(axis=(0, 2)).astype(np.int32)
    return bytes((np.maximum(high, -low) >> 8).astype(np.uint8))


def _expected_s(streams: Streams, selection: Selection) -> float:
    """How much sound is to come; 0 where it is not known."""
    return max(0.0, min(streams.duration_s - selection.start_s, selection.length_s))


class _TrackDecoder:
    """Decodes one sound track of a file, once."""

    def __init__(self, file: BinaryIO, streams: Streams, track: Track, limits: _Limits) -> None:
        self._file, self._streams, self._track, self._limits = file, streams, track, limits
        self._log = FfmpegLog()
        self._remixed = self._peak = 0
        selection = limits.selection
        self._seek_s = _seek_s(streams, track, selection)
        self.skipped_s = selection.start_s - self._seek_s  # that are decoded, and not wanted
        self._stretch = Stretch(_samples_in(self.skipped_s), _samples_in(self.skipped_s + selection.length_s))

    @property
    def decoded(self) -> Decoded:
        looked_at_s = self._seek_s + self._stretch.position / SAMPLE_RATE_HZ
        remixed_s = self._remixed / SAMPLE_RATE_HZ
        return Decoded(looked_at_s, remixed_s, self._peak, self._log, not self._stretch.is_over)

    async def parts(self) -> AsyncGenerator[tuple[Samples, bool]]:
        """Gives the samples of each part, and whether it is the last. Raises as `decode` does."""
        streams, limits = self._streams, self._limits
        declared_s = 0.0 if streams.is_estimate else streams.duration_s
        timed = TimedSamples(
            max(0.0, self._track.start_s - self._seek_s), max(0.0, declared_s - self._seek_s)
        )
        pcm, total, stretch = bytearray(), 0, self._stretch
        filters = filter_of_channels if limits.selection.channels_apart else filter_graph
        graph = filters(self._track.stream, self._track.layout)
        arguments = ("-filter_complex", graph, "-map", "[out]", *MATROSKA)
        ffmpeg = running_ffmpeg(self._file, limits.timeout_s, *arguments, raw=limits.raw, seek_s=self._seek_s)
        async with ffmpeg as (process, self._log):
            async for chunk in output_of(process, limits.until_s):
                cuts = (stretch.cut(samples, 2 * timed.channels) for samples in timed.feed(chunk))
                for wanted in chain.from_iterable(cuts):
                    pcm += wanted
                    total += len(wanted) // (2 * timed.channels)
                    if total > limits.max_audio_s * SAMPLE_RATE_HZ:
                        raise errors.AudioTooLong(
                            f"The audio is longer than {limits.max_audio_s:g} s, the most this server takes; "
                            "send it in shorter parts."
                        )
                    while len(pcm) > 2 * timed.channels * PART_SAMPLES:
                        yield await self._take_part(pcm, timed.channels), False
                if stretch.is_over:
                    break
        if not stretch.is_over:
            raise_for_failure(self._log, process.returncode)
        if len(pcm) < 2 * timed.channels:
            if ends_s := self.decoded.duration_s:
                ends = "ends at" if stretch.position else "has nothing after"  # nothing where it was sought
                raise errors.InvalidRequest(
                    f"start_s: the file {ends} {ends_s:.1f} s; choose a start before that.", "start_s"
                )
            raise errors.EmptyAudio("The file holds no audio samples; send a file that holds audio.")
        yield await self._take_part(pcm, timed.channels), True

    async def _take_part(self, pcm: bytearray, channels: int) -> Samples:
        """Cuts a part off the beginning of `pcm`, or takes all of it if there is no more.

        Other tasks run first, as making silence awaits nothing. Raises TimeoutError.
        """
        async with asyncio.timeout_at(self._limits.until_s):
            await asyncio.sleep(0)
        part = bytes(pcm[: 2 * channels * PART_SAMPLES])
        del pcm[: len(part)]
        count = len(part) // (2 * channels)
        samples = np.frombuffer(part, "<i2", count * channels)  # read-only, as bytes are
        if self._limits.selection.channels_apart:
            refuse_channels(channels)
            samples = await asyncio.to_thread(apart, samples.reshape(count, channels))
        elif channels > 1:
            interleaved = samples.reshape(count, channels)
            samples, is_remixed = await asyncio.to_thread(keep_sound, interleaved, self._track.layout)
            self._remixed += is_remixed * count
        self._peak = max(self._peak, int(samples.max()), -int(samples.min()))
        return samples


def _samples_in(seconds: float) -> float:
    """The number of samples of so many seconds, which may be infinite."""
    count = seconds * SAMPLE_RATE_HZ
    return count if math.isinf(count) else round(count)


def _seek_s(streams: Streams, track: Track, selection: Selection) -> float:
    """Where decoding begins: a while before the selection; at 0 where ffmpeg would not find that place."""
    is_declared = not streams.is_estimate and selection.start_s < streams.duration_s
    is_found = streams.container in SEEKABLE and (
        streams.container != "wav" or track.codec.startswith("pcm_")
    )
    return max(0.0, math.floor(selection.start_s) - PREROLL_S) if is_declared and is_found else 0.0


async def _warnings(
    file: BinaryIO, streams: Streams, track: _TrackDecoder, limits: _Limits
) -> tuple[StageWarning, ...]:
    """About the whole file. What is suspicious is looked at once more, if there is time for it."""
    decoded, sounding, selection = track.decoded, list[Track](), limits.selection
    last_s = 0.0 if streams.has_only_sound else math.inf  # until it is known
    with suppress(TimeoutError, errors.Overloaded):
        if decoded.is_all and not streams.has_only_sound and is_too_short(streams, decoded.duration_s):
            last_s = await last_time_s(file, limits.timeout_s, limits.until_s)
        if level_dbfs(decoded.peak) < QUIET_DBFS and selection.track is None:
            others = [other for other in streams.tracks if other != streams.chosen][:MAX_OTHER_TRACKS]
            sounding = [other for other in others if await _has_sound(file, streams, other, limits)]
    number = await asyncio.to_thread(recordings, file, streams.container)
    return warnings_of(streams, decoded, last_s, sounding, number, selection)


async def _has_sound(file: BinaryIO, streams: Streams, track: Track, limits: _Limits) -> bool:
    decoder = _TrackDecoder(file, streams, track, limits)
    try:
        async with aclosing(decoder.parts()) as parts:
            async for _ in parts:
                if level_dbfs(decoder.decoded.peak) >= QUIET_DBFS:
                    return True
    except (errors.UnusableAudio, errors.InvalidRequest):
        pass
    return False
