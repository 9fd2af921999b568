"""Audio on its way in: where it is, how its bytes are read, what is known of a decoded part."""

import math
from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from serve_app.errors import InvalidRequest
from serve_app.transcript import StageWarning

PEAKS_PER_S = 20  # of a waveform to look at

MAX_SPEAKER_CHANNELS = 8  # that are transcribed apart

Encoding = Literal[
    "s16le", "s16be", "s24le", "s32le", "f32le", "u8", "mulaw", "alaw", "g722", "g726", "g726le", "g729"
]

# Encodings of samples, by the names of ffmpeg's demuxers, and the bytes of one sample.
ENCODINGS: dict[Encoding, int] = {
    "s16le": 2,
    "s16be": 2,
    "s24le": 3,
    "s32le": 4,
    "f32le": 4,
    "u8": 1,
    "mulaw": 1,
    "alaw": 1,
}
# Codecs of telephones, which have one channel and one rate; the names are ffmpeg's, too.
TELEPHONE_RATES_HZ: dict[Encoding, int] = {"g722": 16_000, "g726": 8_000, "g726le": 8_000, "g729": 8_000}


@dataclass(frozen=True, slots=True)
class RawAudio:
    """How samples without a header are to be read; channels are interleaved."""

    encoding: Encoding = "s16le"
    sample_rate_hz: int = 16_000
    channels: int = 1

    def refuse_part_of_a_sample(self, size_bytes: int) -> None:
        """Raises InvalidRequest unless so many bytes are whole samples of all channels.

        A file that was cut, or that is no raw audio at all, shows here; as noise it would be transcribed.
        """
        frame_bytes = ENCODINGS.get(self.encoding, 1) * self.channels
        if size_bytes % frame_bytes:
            raise InvalidRequest(
                f"The audio has {size_bytes} bytes, which is no multiple of {frame_bytes}, as samples of "
                f"{self.encoding} in {self.channels} channel(s) are: send it whole, and without a header."
            )

    def ffmpeg_input(self) -> tuple[str, ...]:
        """ffmpeg's options for such a file."""
        if self.encoding in TELEPHONE_RATES_HZ:
            return ("-f", self.encoding)
        # As for files, two channels are stereo, and more of them are not taken for surround sound.
        layout = {1: "mono", 2: "stereo"}.get(self.channels, f"{self.channels} channels")
        return ("-f", self.encoding, "-ar", str(self.sample_rate_hz), "-ch_layout", layout)


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a file is wanted."""

    start_s: float = 0.0
    end_s: float | None = None  # None: to its end
    track: int | None = None  # of its sound tracks, from 0; None: the one that a player plays
    channels_apart: bool = False  # not mixed: samples have a row for each channel

    @property
    def length_s(self) -> float:
        """The most that is decoded; infinite where the end of the file is."""
        return math.inf if self.end_s is None else self.end_s - self.start_s


WHOLE = Selection()


@dataclass(frozen=True, slots=True)
class Source:
    """Where the audio comes from: a URL with fetch headers, or an open file."""

    url: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    file: BinaryIO | None = None
    max_audio_s: float | None = None  # where less than the server takes is enough
    raw: RawAudio | None = None  # what its bytes are, where they have no header
    selection: Selection = WHOLE
    name: str = field(default="", compare=False)  # of an uploaded file, as its client calls it


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the loader knows when one more part of a file is decoded. It travels beside the part's samples.

    Times are counted from where the selection starts.
    """

    start_s: float  # of the part, in the file
    end_s: float
    is_last: bool
    expected_s: float = 0.0  # length that is to come by what the file declares; 0 where it is not known
    warnings: tuple[StageWarning, ...] = ()  # about the whole file, with its last part
    timings: dict[str, float] = field(default_factory=dict)  # stage -> wall seconds so far
    peaks: bytes = b""  # of the part's waveform: the loudest samples, in 128ths
    skipped_s: float = 0.0  # of the file, before the selection, that were decoded to find its start
    channels: int = 1  # rows of the samples; 1 where they are mixed
    checksum: int = 0  # CRC-32 of what a URL gave: whether it gives the same when it is fetched again
