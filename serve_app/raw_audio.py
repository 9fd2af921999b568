"""Samples without a header: what a client says of them, since the bytes say nothing."""

from dataclasses import dataclass
from typing import Literal

from serve_app.errors import InvalidRequest

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
