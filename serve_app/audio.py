"""Audio on its way in: where it is, how its bytes are read, what is known of a decoded part."""

from dataclasses import dataclass, field
from typing import BinaryIO, Literal

from serve_app.errors import InvalidRequest
from serve_app.transcript import StageWarning

PEAKS_PER_S = 20  # of a waveform to look at

Encoding = Literal["s16le", "s16be", "s24le", "s32le", "f32le", "u8", "mulaw", "alaw"]

# Bytes of a sample. The names are those of ffmpeg's demuxers.
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
        frame_bytes = ENCODINGS[self.encoding] * self.channels
        if size_bytes % frame_bytes:
            raise InvalidRequest(
                f"The audio has {size_bytes} bytes, which is no multiple of {frame_bytes}, as samples of "
                f"{self.encoding} in {self.channels} channel(s) are: send it whole, and without a header."
            )

    def ffmpeg_input(self) -> tuple[str, ...]:
        """ffmpeg's options for such a file."""
        # As for files, two channels are stereo, and more of them are not taken for surround sound.
        layout = {1: "mono", 2: "stereo"}.get(self.channels, f"{self.channels} channels")
        return ("-f", self.encoding, "-ar", str(self.sample_rate_hz), "-ch_layout", layout)


@dataclass(frozen=True, slots=True)
class Source:
    """Where the audio comes from: a URL with fetch headers, or an open file."""

    url: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    file: BinaryIO | None = None
    max_audio_s: float | None = None  # where less than the server takes is enough
    raw: RawAudio | None = None  # what its bytes are, where they have no header
    name: str = field(default="", compare=False)  # of an uploaded file, as its client calls it


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """What the loader knows when one more part of a file is decoded. It travels beside the part's samples."""

    start_s: float  # of the part, in the file
    end_s: float
    is_last: bool
    expected_s: float = 0.0  # length that the file declares; 0 where it is not known
    warnings: tuple[StageWarning, ...] = ()  # about the whole file, with its last part
    timings: dict[str, float] = field(default_factory=dict)  # stage -> wall seconds so far
    peaks: bytes = b""  # of the part's waveform: the loudest samples, in 128ths
    checksum: int = 0  # CRC-32 of what a URL gave: whether it gives the same when it is fetched again
