"""Times are those that a player shows, and no sound is lost for them."""

import asyncio
import re
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest
from decoding import Decoded, decoded, stored
from sounds import encode, ffmpeg, noise, silence, tone

from serve_app.audio import Selection
from serve_app.errors import AudioTooCostly, AudioTooLong
from serve_app.stages.audio.decode import decode
from serve_app.stages.audio.timed_samples import TimedSamples

FILM = ("-f", "lavfi", "-i", "color=size=64x64:rate=10:duration=18")


def made(name: str, *args: str) -> bytes:
    """What ffmpeg makes of these arguments."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, name)
        ffmpeg(*args, str(target))
        return target.read_bytes()


def beep(frequency_hz: int, duration_s: float, rate_hz: int = 48_000) -> tuple[str, ...]:
    """Arguments of ffmpeg: a tone as an input."""
    return ("-f", "lavfi", "-i", f"sine=frequency={frequency_hz}:duration={duration_s}:sample_rate={rate_hz}")


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".webm", ".ts", ".mpg", ".flv"])
def test_sound_that_starts_after_the_picture(suffix: str) -> None:
    """A track that a player starts at 5 s is heard at 5 s; that it is shorter than the film is no damage."""
    sound = ("-c:a", "mp2") if suffix in (".ts", ".mpg") else ()
    rates = {".flv": ("-ar", "44100"), ".mpg": ("-r", "25")}.get(suffix, ())
    both = ("-map", "0:v", "-map", "1:a", *sound, *rates)
    audio = asyncio.run(decoded(made(f"film{suffix}", *FILM, "-itsoffset", "5", *beep(1000, 4), *both)))
    start_s, end_s = audio.hears(1000)
    assert start_s == pytest.approx(5.0, abs=0.1)
    assert end_s == pytest.approx(9.0, abs=0.1)
    assert audio.codes == []


def test_an_edit_list_that_cuts_the_beginning() -> None:
    """What an editor has cut from a film's beginning, without encoding it again, is not heard."""
    whole = made("whole.mp4", *beep(1000, 4), *beep(3000, 4), "-filter_complex", "concat=n=2:v=0:a=1")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "whole.mp4")
        source.write_bytes(whole)
        cut = made("cut.mp4", "-ss", "3", "-i", str(source), "-c", "copy")
    audio = asyncio.run(decoded(cut))
    assert audio.hears(3000)[0] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".webm", ".ts", ".ogg"])
def test_a_gap_in_the_sound_is_silence(suffix: str) -> None:
    """Packets that are missing in the middle (a muted browser, a lost connection) move nothing."""
    codec = {".ts": "mp2", ".webm": "libopus", ".ogg": "libopus"}.get(suffix, "aac")
    parts = (*beep(1000, 2), *beep(3000, 8))
    gap = "[0][1]concat=n=2:v=0:a=1,aselect='lt(t,2)+gte(t,8)'"
    content = made(f"gap{suffix}", *parts, "-filter_complex", gap, "-c:a", codec)
    audio = asyncio.run(decoded(content))
    assert audio.hears(1000) == pytest.approx((0.0, 2.0), abs=0.15)
    assert audio.hears(3000) == pytest.approx((8.0, 10.0), abs=0.15)
    assert audio.codes == []


@pytest.mark.parametrize("offset_s", ["5", "36000"])
@pytest.mark.parametrize("suffix", [".mkv", ".ts", ".flv", ".mp4", ".webm", ".mpg"])
def test_a_clock_that_began_long_before(suffix: str, offset_s: str) -> None:
    """A broadcast's or a live stream's times begin anywhere; the file begins at 0."""
    codec = ("-c:a", "mp2") if suffix in (".ts", ".mpg") else ()
    rate_hz = 48_000 if suffix == ".webm" else 44_100
    content = made(f"late{suffix}", *beep(1000, 2, rate_hz), *codec, "-output_ts_offset", offset_s)
    audio = asyncio.run(decoded(content))
    assert audio.hears(1000) == pytest.approx((0.0, 2.0), abs=0.1)
    assert audio.codes == []


@pytest.mark.parametrize(
    "suffix", [".mp3", ".aac", ".ogg", ".opus", ".flac", ".ts", ".mpg", ".mkv", ".webm", ".au", ".ac3"]
)
def test_recordings_in_one_file_keep_all_their_sound(suffix: str) -> None:
    """Two files that somebody joined with `cat`: time goes back, and both are heard to their end."""
    codec = ("-c:a", "mp2") if suffix in (".ts", ".mpg") else ()
    first = made(f"first{suffix}", *beep(1000, 2), *codec)
    second = made(f"second{suffix}", *beep(3000, 3), *codec)
    audio = asyncio.run(decoded(first + second))
    assert audio.hears(1000) == pytest.approx((0.0, 2.0), abs=0.2)
    assert audio.hears(3000) == pytest.approx((2.0, 5.0), abs=0.3)
    assert audio.codes == []


FRAGMENTED = ("-movflags", "+frag_keyframe+empty_moov", "-frag_duration", "500000")


@pytest.mark.parametrize(
    ("suffix", "args"),
    [
        (".wav", ()),
        (".wav", ("-rf64", "always")),
        (".w64", ()),
        (".aiff", ()),
        (".caf", ()),
        (".mp4", ()),
        (".mp4", FRAGMENTED),
        (".flv", ("-ar", "44100")),
        (".wma", ()),
        (".tta", ()),
    ],
)
def test_recordings_that_are_left_out_are_named(suffix: str, args: tuple[str, ...]) -> None:
    """Of some containers only the first recording can be read; the caller learns that there is more."""
    first, second = (made(f"part{suffix}", *beep(hz, 2), *args) for hz in (1000, 3000))
    assert asyncio.run(decoded(first)).codes == []
    audio = asyncio.run(decoded(first + second))
    assert audio.codes == ["recordings_left_out"]
    assert f"({audio.duration_s:.1f} s)" in audio.warnings[0].message


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".flv", ".avi", ".webm"])
def test_a_film_that_is_longer_than_its_sound_is_whole(suffix: str) -> None:
    """Credits without sound are no damage."""
    rate = ("-ar", "44100") if suffix == ".flv" else ()
    content = made(f"film{suffix}", *FILM, *beep(1000, 6), "-map", "0:v", "-map", "1:a", *rate)
    audio = asyncio.run(decoded(content))
    assert audio.duration_s == pytest.approx(6.0, abs=0.2)
    assert audio.codes == []


def test_a_track_that_is_longer_than_the_chosen_one_is_no_damage() -> None:
    """Nor is a commentary that goes on."""
    content = made("two.mka", *beep(1000, 4), *beep(3000, 9), "-map", "0", "-map", "1")
    assert asyncio.run(decoded(content)).codes == []


@pytest.mark.parametrize(
    ("suffix", "args"), [(".mkv", ()), (".flv", ("-ar", "44100")), (".mp4", ("-movflags", "+faststart"))]
)
def test_half_a_film_is_called_cut_off(suffix: str, args: tuple[str, ...]) -> None:
    """Where the picture ends early, too, the file is incomplete."""
    sound = ("-f", "lavfi", "-i", "anoisesrc=duration=18:amplitude=0.3")
    content = made(f"film{suffix}", *FILM, *sound, "-map", "0:v", "-map", "1:a", *args)
    audio = asyncio.run(decoded(content[: len(content) // 2]))
    assert audio.codes == ["truncated_audio"]


def test_hours_declared_in_a_small_file_are_stopped() -> None:
    """A gap of ten hours costs neither memory nor time: the file is too long."""
    gap = "[0][1]concat=n=2:v=0:a=1,asetpts='PTS+if(gte(T,2),36000/TB,0)'"
    content = made("gap.mka", *beep(1000, 2), *beep(3000, 2), "-filter_complex", gap, "-c:a", "libopus")
    assert len(content) < 100_000
    with pytest.raises(AudioTooLong):
        asyncio.run(decoded(content, max_audio_s=3600.0))


def sound_and_gaps(sound_s: int, gap_s: int) -> bytes:
    """A small file whose times jump after each second of sound but the last."""
    gaps = ("-af", f"asetpts='PTS+floor(T)*{gap_s}/TB'", "-c:a", "libopus", "-b:a", "6k")
    return made("gaps.mka", *beep(1000, sound_s), *gaps)


def test_weeks_declared_in_a_small_file_cost_no_time() -> None:
    """Nothing is done for a gap before the stretch that is wanted, and others go on meanwhile."""
    content, latest_s = sound_and_gaps(20, 100_000), 0.0
    assert len(content) < 25_000

    async def work() -> Decoded:
        beating = asyncio.create_task(beat())
        try:
            return await decoded(content, selection=Selection(1_800_000.0, 1_800_050.0))
        finally:
            beating.cancel()

    async def beat() -> None:
        nonlocal latest_s
        while True:
            before_s = time.process_time()  # not what others do on this machine
            await asyncio.sleep(0.01)
            latest_s = max(latest_s, time.process_time() - before_s)

    audio = asyncio.run(work())
    assert audio.hears(1000) == pytest.approx((18.0, 19.0), abs=0.2)
    assert audio.duration_s == 50.0
    assert latest_s < 2.0


def test_others_get_their_turn_while_silence_is_made() -> None:
    """And a decoder that has no time left ends, though it does not wait for ffmpeg."""

    async def work() -> None:
        loop, turns = asyncio.get_running_loop(), 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            loop.call_soon(turn)

        turn()
        with stored(sound_and_gaps(2, 3600)) as file:
            async with aclosing(decode(file, max_audio_s=4000.0, timeout_s=60.0)) as parts:
                for _ in range(20):
                    before = turns
                    await anext(parts)
                    assert turns > before
                late_s = loop.time() + 60.0
                loop.time = lambda: late_s  # type: ignore[method-assign]
                with pytest.raises(AudioTooCostly):
                    await anext(parts)

    asyncio.run(work())


def test_a_time_after_the_declared_end_is_not_believed() -> None:
    """One damaged time stamp does not turn a short recording into hours."""
    content = bytearray(
        encode(noise(12.0), 16_000, ".mka", "-c:a", "pcm_s16le", "-cluster_time_limit", "1000")
    )
    clusters = [match.start() for match in re.finditer(rb"\x1f\x43\xb6\x75", content)]
    assert len(clusters) > 3
    time_at = content.index(b"\xe7\x82", clusters[3])
    content[time_at + 2] ^= 0x80  # 32.768 s more
    audio = asyncio.run(decoded(bytes(content)))
    assert audio.duration_s == pytest.approx(12.0, abs=0.1)


def test_a_cover_picture_has_no_time() -> None:
    """A picture in an M4A or MP3, which is shown all the time, moves no sound."""
    picture = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=0.2", "-c:v", "png")
    attached = ("-map", "0:a", "-map", "1:v", "-disposition:v", "attached_pic")
    for suffix in (".mp3", ".m4a", ".flac"):
        plain, with_cover = (
            asyncio.run(decoded(made(f"song{suffix}", *beep(1000, 2), *args)))
            for args in ((), (*picture, *attached))
        )
        assert (plain.samples == with_cover.samples).all(), suffix
        assert with_cover.codes == [], suffix


def test_silence_at_the_start_of_the_sound_stays() -> None:
    """Silence that a track holds counts as before."""
    audio = asyncio.run(decoded(encode(np.concatenate([silence(3.0), tone(1.0)]), 16_000, ".m4a")))
    assert audio.hears(440)[0] == pytest.approx(3.0, abs=0.1)


def test_samples_of_a_large_block_are_given_before_it_has_come() -> None:
    """A few bytes can declare a block of minutes, and it is not to be collected in memory."""
    head = bytes.fromhex("1f43b675 01ffffffffffffff e7 81 00 a3 08000000".replace(" ", ""))
    size = (4 + 2 * 16_000 * 600) | 1 << 28
    block = head[:-4] + size.to_bytes(4) + b"\x81\x00\x00\x80"
    timed = TimedSamples(0.0, 0.0)
    given = [samples for chunk in (block, b"\x01\x00" * 5, b"\x02") for samples in timed.feed(chunk)]
    assert given == [b"\x01\x00" * 5]
    assert list(timed.feed(b"\x00")) == [b"\x02\x00"]
