"""What a caller is told about a file that was decoded."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.audio import WHOLE, Selection
from serve_app.stages.audio.channels import MIXED_LAYOUTS
from serve_app.stages.audio.ffmpeg_sandbox import FfmpegLog
from serve_app.stages.audio.streams import Streams, Track
from serve_app.transcript import StageWarning

# Recordings of people peak at -24 dBFS and above. Made quieter, clear speech was heard down to -60 dBFS; in a
# recording that was so quiet from the start (-48 dBFS) nothing was.
QUIET_DBFS = -40.0


@dataclass(frozen=True, slots=True)
class Decoded:
    """What came of a sound track."""

    duration_s: float  # of the file, as far as it was looked at
    remixed_s: float  # for which ffmpeg's mix of the channels was not taken
    peak: int
    log: FfmpegLog
    is_all: bool = True  # the file has ended, not what was wanted of it


def warnings_of(
    streams: Streams,
    decoded: Decoded,
    last_s: float,
    sounding: Sequence[Track],
    recordings: int,
    selection: Selection = WHOLE,
) -> tuple[StageWarning, ...]:
    """`last_s` is when any stream ends; `sounding` are the tracks with sound if the chosen one has none."""
    left_out = _left_out(streams, decoded, recordings) if decoded.is_all else ""
    is_whole = left_out or not decoded.is_all
    found = {
        "recordings_left_out": left_out,
        "truncated_audio": "" if is_whole else _truncation(streams, decoded, last_s),
        "end_s_after_end": _ends_early(decoded, selection),
        "channels_remixed": _remixed(streams.track(selection.track), decoded),
        "silent_track": _silent_track(streams, sounding),
        "quiet_audio": "" if sounding else _quietness(decoded.peak),
    }
    return tuple(StageWarning("decode", code, message) for code, message in found.items() if message)


def level_dbfs(peak: int) -> float:
    return 20 * math.log10(peak / 32768) if peak else -math.inf


def is_too_short(streams: Streams, end_s: float) -> bool:
    """Whether the file declares to end later; an estimate is no declaration."""
    declared_s = 0.0 if streams.is_estimate else streams.duration_s
    return declared_s - end_s > max(1.0, 0.02 * declared_s)


def _truncation(streams: Streams, decoded: Decoded, last_s: float) -> str:
    """What shows that more was to come. Exit code 0 proves nothing: half an MP3 decodes without an error."""
    end_s = max(decoded.duration_s, last_s)
    # A pipe's placeholder for the length makes ffmpeg expect more data than there is.
    breaks_off = not streams.has_placeholder and any(
        decoded.log.says(words) for words in (b"corrupt input packet", b"Error during demuxing")
    )
    if is_too_short(streams, end_s):
        problem = f" where the file declares {streams.duration_s:.1f} s; it is cut off or damaged."
    elif breaks_off:
        problem = ": the file breaks off in the middle of its data; send the whole file."
    else:
        return ""
    return f"Only {decoded.duration_s:.1f} s of sound could be decoded{problem}"


def _ends_early(decoded: Decoded, selection: Selection) -> str:
    """Players round lengths up, so up to a second does not matter."""
    if not decoded.is_all or selection.end_s is None or selection.end_s - decoded.duration_s <= 1.0:
        return ""
    return f"The file ends at {decoded.duration_s:.1f} s, before end_s ({selection.end_s:g} s)."


def _left_out(streams: Streams, decoded: Decoded, recordings: int) -> str:
    if not decoded.log.says(b"duplicated MOOV") and (recordings < 2 or streams.has_placeholder):
        return ""
    return (
        "The file is several recordings, one after the other, of which only the first "
        f"({decoded.duration_s:.1f} s) was decoded; send each as a file of its own."
    )


def _remixed(track: Track, decoded: Decoded) -> str:
    if not decoded.remixed_s:
        return ""
    why = "Mixing the channels as usual would lose sound"
    if track.layout not in MIXED_LAYOUTS:
        why = f"No usual mix is known for the channels ({track.layout})"
    return (
        f"{why}; in {decoded.remixed_s:.1f} s they are weighted by their loudness instead. If voices are "
        "missing, send a file with one channel."
    )


def _silent_track(streams: Streams, sounding: Sequence[Track]) -> str:
    if not sounding:
        return ""
    others = " or ".join(str(track.number - 1) for track in sounding)  # as the option `track` counts them
    return (
        f"Sound track {streams.chosen.number - 1} of {len(streams.tracks)}, counted from 0, which players "
        f"play, is silent or very quiet; there is sound in others: ask for one with `track`: {others}."
    )


def _quietness(peak: int) -> str:
    """What is wrong with a file of this loudest sample; nothing is with silence."""
    if not peak or level_dbfs(peak) >= QUIET_DBFS:
        return ""
    return (
        f"The recording is very quiet (its peak is {level_dbfs(peak):.0f} dBFS), and speech in it may be "
        "missed. Record it louder; it is amplified already."
    )
