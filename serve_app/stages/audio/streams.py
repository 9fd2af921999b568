"""What streams a file has, as ffmpeg lists them, and which one is decoded."""

import re
from dataclasses import dataclass
from typing import BinaryIO

from serve_app.audio import RawAudio
from serve_app.errors import InvalidRequest, NoAudioStream
from serve_app.stages.audio.ffmpeg_sandbox import LISTED, output_of, raise_for_failure, running_ffmpeg
from serve_app.stages.audio.file_marks import declares_no_length

# Files write in the listing, too: names of their tags may hold line breaks. Such a file decides nothing but
# which of its own streams is decoded, and its length is not believed.
_DURATION = re.compile(
    rb"^  Duration: (?:N/A|(\d+):(\d\d):(\d\d(?:\.\d+)?))(?:, start: (-?\d+\.\d+))?", re.MULTILINE
)
_STREAM = re.compile(rb"^  Stream #0:(\d+)\S*: (\w+): (.*)$", re.MULTILINE)
_SOUND = re.compile(r" Hz, ([^,]+)")
_START = re.compile(r", start (-?\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class Track:
    """A sound track."""

    number: int  # among the sound tracks, from 1
    stream: int  # among all streams, from 0
    layout: str  # of its channels, in ffmpeg's words
    is_default: bool
    start_s: float  # after the earliest start of all streams
    codec: str = ""  # ffmpeg's name of it


@dataclass(frozen=True, slots=True)
class Streams:
    """The streams of a file."""

    container: str  # ffmpeg's name of it
    duration_s: float  # that the file declares, or that ffmpeg estimates; 0 where unknown
    has_placeholder: bool  # instead of a length, as a program writes it to a pipe
    is_estimate: bool  # so it shows nothing about how much is missing
    tracks: tuple[Track, ...]
    has_only_sound: bool  # one track of it, and maybe a picture on its cover

    @property
    def chosen(self) -> Track:
        """The track that a player plays: the first that is flagged as the default, else the first."""
        return next((track for track in self.tracks if track.is_default), self.tracks[0])

    def track(self, index: int | None) -> Track:
        """The sound track with this index, or the chosen one. Raises InvalidRequest."""
        if index is None:
            return self.chosen
        for track in self.tracks:
            if track.number == index + 1:
                return track
        known = ", ".join(str(track.number - 1) for track in self.tracks)
        count = f"{len(self.tracks)} sound track{'s' if len(self.tracks) > 1 else ''}"
        raise InvalidRequest(f"track: the file has {count} that can be decoded: {known}.", "track")


async def list_streams(
    file: BinaryIO, timeout_s: float, until_s: float, raw: RawAudio | None = None
) -> Streams:
    """Raises what is wrong with the file: UnusableAudio, NoAudioStream, AudioTooCostly; TimeoutError."""
    async with running_ffmpeg(file, timeout_s, raw=raw) as (process, log):
        async for _ in output_of(process, until_s):
            pass
    if not log.says(LISTED):
        raise_for_failure(log, process.returncode)
    durations = _DURATION.findall(log.content)
    length = durations[0] if len(durations) == 1 else ()
    hours, minutes, seconds, file_start_s = (float(part or 0) for part in length or (0, 0, 0, 0))
    known, unknown, others = list[Track](), list[Track](), 0
    for stream, kind, text in dict.fromkeys(_STREAM.findall(log.content)):
        description = text.decode(errors="replace")
        if kind != b"Audio":
            others += "(attached pic)" not in description
            continue
        layout = sound[1].strip() if (sound := _SOUND.search(description)) else "mono"
        start_s = float(start[1]) - file_start_s if (start := _START.search(description)) else 0.0
        number, is_default = len(known) + len(unknown) + 1, "(default)" in description
        tracks = unknown if description.startswith("none") else known  # to ffmpeg
        tracks.append(
            Track(number, int(stream), layout, is_default, start_s, re.split("[ ,]", description)[0])
        )
    if not known + unknown:
        raise NoAudioStream("The file has no sound track; send one that has.")
    found = re.search(rb"^Input #0, (.*), from", log.content, re.MULTILINE)
    container = found[1].decode(errors="replace") if found else ""
    duration_s = 3600 * hours + 60 * minutes + seconds
    if container.startswith(("matroska", "mov", "flv")):  # these declare when they end, not how long they are
        duration_s = max(0.0, duration_s - max(0.0, file_start_s))
    has_placeholder = declares_no_length(file, container)
    return Streams(
        container,
        0.0 if has_placeholder else duration_s,
        has_placeholder,
        # Of MPEG-TS and PS ffmpeg takes the last time for the end.
        log.says(b"Estimating duration from bitrate") or container in ("mpeg", "mpegts"),
        tuple(known or unknown),
        len(known + unknown) + others == 1,
    )


async def last_time_s(file: BinaryIO, timeout_s: float, until_s: float) -> float:
    """When the last packet of any stream ends. Nothing is decoded."""
    unit_s, end_s, rest = dict[bytes, float](), 0.0, b""
    maps = ("-map", "0:v?", "-map", "0:a?", "-map", "0:s?")
    arguments = (*maps, "-c", "copy", "-f", "framecrc", "pipe:1")
    async with running_ffmpeg(file, timeout_s, *arguments) as (process, _):
        async for chunk in output_of(process, until_s):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if unit := re.match(rb"#tb (\d+): (\d+)/(\d+)", line):
                    unit_s[unit[1]] = int(unit[2]) / int(unit[3])
                elif packet := re.match(rb"(\d+), *(-?\d+), *-?\d+, *(\d+),", line):
                    end_s = max(end_s, (int(packet[2]) + int(packet[3])) * unit_s[packet[1]])
    return end_s
