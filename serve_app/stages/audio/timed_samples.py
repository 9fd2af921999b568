"""Samples with their times: what ffmpeg writes as PCM in Matroska, read while it comes.

No simpler container of ffmpeg's has times. Those are counted from the earliest start of all streams that a
player plays, pictures included.
"""

from collections.abc import Iterator

from serve_app.errors import UnusableAudio
from serve_app.transcript import SAMPLE_RATE_HZ

MATROSKA = ("-map_metadata", "-1", "-map_chapters", "-1", "-c:a", "pcm_s16le", "-f", "matroska", "pipe:1")
LEAST_GAP_S = 0.1  # times jitter, and decoders begin some milliseconds early or late
_MAX_ELEMENT_BYTES = 1 << 24  # that is no block; those are read as they come
# Matroska's elements: Segment, Tracks, TrackEntry, Audio, Cluster, BlockGroup hold others.
_PARENTS = frozenset((0x18538067, 0x1654AE6B, 0xAE, 0xE1, 0x1F43B675, 0xA0))
_CHANNELS, _CLUSTER_TIME, _SIMPLE_BLOCK, _BLOCK = 0x9F, 0xE7, 0xA3, 0xA1
_BLOCK_HEAD_BYTES = 4


class Stretch:
    """What is wanted of samples that come one after the other."""

    def __init__(self, begin: float, end: float) -> None:
        self._begin, self._end = begin, end
        self.position = 0  # of all that has come, in samples of each channel

    @property
    def is_over(self) -> bool:
        """Whether nothing that is still to come is wanted."""
        return self.position >= self._end

    def cut(self, samples: bytes | int, frame_bytes: int) -> Iterator[bytes]:
        """Those of the next samples that are wanted; `frame_bytes` has one of each channel.

        A number means that many samples of silence; only those that are wanted are made, a second at a time.
        """
        count = samples if isinstance(samples, int) else len(samples) // frame_bytes
        first = int(min(count, max(0, self._begin - self.position)))
        stop = int(min(count, self._end - self.position))
        self.position += count
        if not isinstance(samples, int):
            yield samples[first * frame_bytes : max(first, stop) * frame_bytes]
            return
        for at in range(first, stop, SAMPLE_RATE_HZ):
            yield bytes(min(SAMPLE_RATE_HZ, stop - at) * frame_bytes)


class TimedSamples:
    """One track of interleaved int16, put where its times say.

    Silence fills what the times leave out. Where they go back, another recording begins: no sound is dropped.
    A gap that would end after `declared_s` (unless that is 0) is a wrong time, and is not filled. The first
    samples are at `start_s`: in some containers ffmpeg counts from the first stream that it decodes.
    """

    def __init__(self, start_s: float, declared_s: float) -> None:
        self._start_s: float | None = start_s
        self._shift_s = 0.0
        self.channels = 1
        self._declared_s = declared_s
        self._buffer = bytearray()
        self._cluster_ms = 0
        self._block_bytes = 0  # of samples that are still to come of a block
        self._position = 0  # in samples of each channel

    def feed(self, chunk: bytes) -> Iterator[bytes | int]:
        """Takes what comes next and gives the samples in it, after the silence before them.

        Silence is given as a number of samples, because a few bytes of a file can declare years of it.
        """
        self._buffer += chunk
        at = 0
        while True:
            if self._block_bytes:  # a block may be large, so its samples are given as they come
                count = min(self._block_bytes, len(self._buffer) - at) // (2 * self.channels)
                if not count:
                    break
                end = at + 2 * self.channels * count
                yield bytes(memoryview(self._buffer)[at:end])
                self._position += count
                self._block_bytes -= end - at
                at = end
                continue
            if not (element := self._element(at)):
                break
            name, start, end = element
            if name in _PARENTS:
                at = start
                continue
            is_block = name in (_SIMPLE_BLOCK, _BLOCK)
            if (start + _BLOCK_HEAD_BYTES if is_block else end) > len(self._buffer):
                break
            if name == _CHANNELS:
                self.channels = max(1, int.from_bytes(self._buffer[start:end]))
            elif name == _CLUSTER_TIME:
                self._cluster_ms = int.from_bytes(self._buffer[start:end])
            elif is_block:  # the track's number, 16 bits of time, flags
                time_ms = self._cluster_ms + int.from_bytes(self._buffer[start + 1 : start + 3], signed=True)
                if gap := self._gap_until(time_ms / 1000):
                    yield gap
                self._block_bytes = end - start - _BLOCK_HEAD_BYTES
                end = start + _BLOCK_HEAD_BYTES
            at = end
        del self._buffer[:at]

    def _gap_until(self, time_s: float) -> int:
        if self._start_s is not None:
            self._shift_s, self._start_s = max(0.0, self._start_s - time_s), None
        time_s += self._shift_s
        gap = round(time_s * SAMPLE_RATE_HZ) - self._position
        is_credible = not self._declared_s or time_s < self._declared_s + 1.0
        if not is_credible or gap < LEAST_GAP_S * SAMPLE_RATE_HZ:
            return 0
        self._position += gap
        return gap

    def _element(self, at: int) -> tuple[int, int, int] | None:
        """Name, start and end of the content of the element at `at`; None until its header has come."""
        buffer = self._buffer
        if at >= len(buffer):
            return None
        size_at = at + 9 - buffer[at].bit_length()
        if size_at >= len(buffer):
            return None
        start = size_at + 9 - buffer[size_at].bit_length()
        if start > len(buffer):
            return None
        name, size = int.from_bytes(buffer[at:size_at]), int.from_bytes(buffer[size_at:start])
        size &= (1 << 7 * (start - size_at)) - 1
        if name not in (*_PARENTS, _SIMPLE_BLOCK, _BLOCK) and size > _MAX_ELEMENT_BYTES:
            raise UnusableAudio("The file cannot be decoded; send it in another format, such as WAV.")
        return name, start, start + size
