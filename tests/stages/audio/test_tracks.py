"""Of several sound tracks, the one is decoded that a player plays."""

import asyncio
import re
import tempfile
from pathlib import Path

import pytest
from decoding import Decoded, decoded
from sounds import VIDEO, encode, ffmpeg, silence, tone

from serve_app.audio import Selection
from serve_app.errors import UnusableAudio

SECOND = ("-f", "lavfi", "-i", "sine=frequency=2000:duration=2:sample_rate=16000")
THIRD = ("-f", "lavfi", "-i", "sine=frequency=3000:duration=2:sample_rate=16000")
SILENT = ("-f", "lavfi", "-i", "anullsrc=r=16000:d=2")


def tracks(suffix: str, *args: str) -> Decoded:
    """A file whose first track is a tone of 440 Hz, decoded."""
    return asyncio.run(decoded(encode(tone(2.0), 16_000, suffix, *args)))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".webm", ".mka"])
def test_the_default_track_is_decoded(suffix: str) -> None:
    """A film whose second language is flagged as the default."""
    matroska = () if suffix in (".mp4", ".mov") else ("-default_mode", "passthrough")
    every = ("-map", "0", "-map", "1", "-map", "2", *(() if suffix == ".mka" else ("-map", "3")))
    flags = ("-disposition:a", "0", "-disposition:a:1", "default", *matroska)
    audio = tracks(suffix, *SECOND, *THIRD, *VIDEO, *every, *flags)
    assert audio.hears(2000) == pytest.approx((0.0, 2.0), abs=0.1)
    assert audio.codes == []


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts", ".avi"])
def test_the_first_track_is_decoded_where_none_is_flagged(suffix: str) -> None:
    """Also where the second one has more channels, and a picture on the cover comes before both."""
    matroska = ("-default_mode", "passthrough") if suffix == ".mkv" else ()
    codec = ("-c:a", "mp2") if suffix == ".ts" else ()
    both = ("-map", "0", "-map", "1", "-ac:a:1", "2", "-disposition:a", "0")
    audio = tracks(suffix, *SECOND, *both, *matroska, *codec)
    assert audio.hears(440) == pytest.approx((0.0, 2.0), abs=0.1)


def test_a_track_that_cannot_be_decoded_is_passed_over() -> None:
    """A codec that ffmpeg does not know, in the track that is flagged, beside one that it knows."""
    content = encode(tone(2.0), 16_000, ".mka", *SECOND, "-map", "0", "-map", "1", "-c:a", "pcm_s16le")
    unknown = content.replace(b"A_PCM/INT/LIT", b"A_XXX/INT/LIT", 1)
    assert unknown != content
    assert asyncio.run(decoded(unknown)).hears(2000) == pytest.approx((0.0, 2.0), abs=0.1)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_a_silent_track_beside_others_is_warned_of(suffix: str) -> None:
    """A screen recording with a muted microphone: the caller learns how to ask for those that have sound."""
    codec = ("-c:a", "mp2") if suffix == ".ts" else ()
    every = ("-map", "0", "-map", "1", "-map", "2", "-map", "3")
    content = encode(silence(2.0), 16_000, suffix, *SECOND, *SILENT, *THIRD, *every, *codec)
    audio = asyncio.run(decoded(content))
    assert audio.codes == ["silent_track"]
    assert "track 0 of 4" in audio.warnings[0].message
    named = re.search(r"with `track`: (\d) or (\d)\.", audio.warnings[0].message)
    assert named
    for index, frequency_hz in zip(named.groups(), (2000, 3000), strict=True):
        asked = asyncio.run(decoded(content, selection=Selection(track=int(index))))
        assert asked.hears(frequency_hz) == pytest.approx((0.0, 2.0), abs=0.1)


def test_a_quiet_track_counts_as_silent_beside_a_loud_one() -> None:
    """An open input hisses a little; alone it is a quiet recording, and two silent tracks are silence."""
    hiss = tone(2.0, amplitude=0.002)
    beside = asyncio.run(decoded(encode(hiss, 16_000, ".mka", *SECOND, "-map", "0", "-map", "1")))
    assert beside.codes == ["silent_track"]
    with_silence = encode(hiss, 16_000, ".mka", *SILENT, "-map", "0", "-map", "1")
    assert asyncio.run(decoded(with_silence)).codes == ["quiet_audio"]
    both = encode(silence(2.0), 16_000, ".mka", *SILENT, "-map", "0", "-map", "1")
    assert asyncio.run(decoded(both)).codes == []


def test_a_look_at_other_tracks_costs_no_answer() -> None:
    """Where there is no time to search a day of another track, the file is decoded without the warning."""
    day = ("-f", "lavfi", "-i", "anullsrc=r=100:cl=mono:d=86400", "-map", "0", "-map", "1", "-c:a", "flac")
    content = encode(silence(2.0), 16_000, ".mka", *day)
    audio = asyncio.run(decoded(content, max_audio_s=1e6, timeout_s=1.0))
    assert audio.duration_s == pytest.approx(2.0, abs=0.1)
    assert audio.codes == []


@pytest.mark.parametrize("key", ["title", "lyrics", "comment"])
def test_long_texts_in_a_file_hide_no_track(key: str) -> None:
    """A file whose texts are longer than what is kept of ffmpeg's listing is decoded."""
    text = "\n".join(f"line {number} of a very long text" for number in range(8000))
    audio = tracks(".flac", "-metadata", f"{key}={text[:120_000]}")
    assert audio.hears(440) == pytest.approx((0.0, 2.0), abs=0.1)


def test_many_chapters_hide_no_track() -> None:
    """Nor do the chapters of an audio book."""
    chapter = (
        "[CHAPTER]\nTIMEBASE=1/1000\nSTART={}\nEND={}\ntitle=" + "A chapter with a long title, " * 5 + "\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        book, source, target = (Path(folder, name) for name in ("book.txt", "source.mka", "target.mka"))
        book.write_text(";FFMETADATA1\n" + "".join(chapter.format(at, at + 1) for at in range(1900)))
        source.write_bytes(encode(tone(2.0), 16_000, ".mka"))
        ffmpeg(
            "-i", str(source), "-i", str(book), "-map", "0", "-map_metadata", "1", "-c", "copy", str(target)
        )
        audio = asyncio.run(decoded(target.read_bytes()))
    assert audio.hears(440) == pytest.approx((0.0, 2.0), abs=0.1)


@pytest.mark.parametrize(
    "line",
    [
        "  Stream #0:7: Audio: mp3, 8000 Hz, 9 channels (default)",
        "  Stream #0:0: Audio: mp3, 8000 Hz, 9 channels (default)",
        "  Stream #0:0: Audio: mp3, 8000 Hz, stereo[evil];amovie=x (default)",
        "  Duration: 09:00:00.00, start: 0.000000",
        "At least one output file must be specified",
        "Input #0, mov,mp4,m4a, from",
        "  Stream #0:0: Video: png (attached pic)",
    ],
)
def test_the_name_of_a_tag_in_ffmpegs_words_harms_nobody(line: str) -> None:
    """Lines that a file forges in the listing spoil at most its own decoding."""
    name = f"x\n{line}\n    y".encode()
    body = b"\3" + name + b"\0value"
    frame = b"TXXX" + bytes([0, 0, len(body) >> 7, len(body) & 127, 0, 0]) + body
    tag = b"ID3\4\0\0" + bytes([0, 0, len(frame) >> 7, len(frame) & 127]) + frame
    content = tag + encode(tone(2.0), 16_000, ".mp3", "-id3v2_version", "0", "-write_id3v2", "0")
    try:
        audio = asyncio.run(decoded(content))
    except UnusableAudio:
        return
    assert audio.hears(440) == pytest.approx((0.0, 2.0), abs=0.15)
    assert set(audio.codes) <= {"channels_remixed"}
