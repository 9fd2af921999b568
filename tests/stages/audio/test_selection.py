"""A stretch, a track, and channels apart: what is decoded of a file where not all of it is wanted."""

import asyncio
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from decoding import decoded, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from sounds import Samples, encode, noise, silence, tone, wav

from benchmarks.decoding import decode_whole
from serve_app.audio import WHOLE, AudioInfo, RawAudio, Selection
from serve_app.errors import AudioTooLong, InvalidRequest
from serve_app.stages.audio import decode as module
from serve_app.stages.audio.ffmpeg_sandbox import running_ffmpeg
from serve_app.transcript import SAMPLE_RATE_HZ

VIDEO_30_S = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=30")
CONTAINERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "wav": (".wav", ()),
    "wav, G.711": (".wav", ("-ar", "8000", "-c:a", "pcm_mulaw")),
    "wav, G.722": (".wav", ("-ar", "16000", "-ac", "1", "-c:a", "g722")),
    "wav, 24 bit": (".wav", ("-c:a", "pcm_s24le")),
    "w64": (".w64", ()),
    "flac": (".flac", ()),
    "mp3": (".mp3", ()),
    "mp3, variable": (".mp3", ("-q:a", "2", "-write_xing", "0")),
    "opus": (".opus", ()),
    "vorbis": (".ogg", ("-c:a", "libvorbis")),
    "flac in ogg": (".ogg", ("-c:a", "flac")),
    "m4a": (".m4a", ()),
    "mp4 with video": (".mp4", VIDEO_30_S),
    "webm": (".webm", ()),
    "aac": (".aac", ()),
    "mpegts": (".ts", ()),
}


@pytest.fixture(scope="module")
def sound() -> Samples:
    """30 s in stereo, no moment of which is like another."""
    return np.stack([noise(30.0, sample_rate_hz=44_100), tone(30.0, sample_rate_hz=44_100)], axis=1)


def whole(content: bytes, selection: Selection = WHOLE) -> tuple[AudioInfo, Samples]:
    with stored(content) as file:
        return asyncio.run(decode_whole(file, max_audio_s=100, timeout_s=30, selection=selection))


STRETCHES: tuple[tuple[float, float | None], ...] = ((17.2371, 24.5), (0.0, 3.0), (3.1, None), (29.0, None))


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_stretch_is_a_cut_of_the_whole(name: str, sound: Samples) -> None:
    """To the sample, in every container, though the decoder may not have begun at the file's start."""
    suffix, args = CONTAINERS[name]
    content = encode(sound, 44_100, suffix, *args)
    _, everything = whole(content)
    for start_s, end_s in STRETCHES:
        info, found = whole(content, Selection(start_s, end_s))
        stop = len(everything) if end_s is None else round(end_s * SAMPLE_RATE_HZ)
        expected = everything[round(start_s * SAMPLE_RATE_HZ) : stop]
        assert np.array_equal(found, expected), start_s
        assert (info.end_s, info.is_last, info.warnings) == (len(expected) / SAMPLE_RATE_HZ, True, ())


@pytest.fixture(scope="module")
def sound_with_gaps() -> tuple[bytes, Samples]:
    """Noise at 0 to 1, 3 to 4, 6 to 7 s and so on, as a file and decoded."""
    gaps = ("-af", "asetpts='PTS+floor(T)*2/TB'", "-c:a", "pcm_s16le")
    content = encode(noise(20.0), SAMPLE_RATE_HZ, ".mka", *gaps)
    return content, whole(content)[1]


@settings(max_examples=10)
@given(start_s=st.floats(0.0, 57.0), length_s=st.floats(0.1, 60.0))
def test_a_stretch_of_sound_with_gaps(
    sound_with_gaps: tuple[bytes, Samples], start_s: float, length_s: float
) -> None:
    """Wherever it begins and ends, in the sound or in the silence between."""
    content, everything = sound_with_gaps
    assert len(everything) == pytest.approx(58 * SAMPLE_RATE_HZ, abs=SAMPLE_RATE_HZ // 10)
    _, found = whole(content, Selection(start_s, start_s + length_s))
    first, last = round(start_s * SAMPLE_RATE_HZ), round((start_s + length_s) * SAMPLE_RATE_HZ)
    assert np.array_equal(found, everything[first:last])


def test_a_stretch_of_an_ogg_that_begins_in_the_middle_of_a_stream(sound: Samples) -> None:
    """As recorders of web radio write it, with the times of the stream: ffmpeg would find another place."""
    content = encode(sound, 44_100, ".ogg", "-c:a", "flac", "-output_ts_offset", "20")
    _, everything = whole(content)
    _, found = whole(content, Selection(17.2371, 24.5))
    assert np.array_equal(found, everything[round(17.2371 * SAMPLE_RATE_HZ) : round(24.5 * SAMPLE_RATE_HZ)])


def test_a_stretch_after_weeks(tmp_path: Path) -> None:
    """Its start has more digits than a float is usually written with."""
    rate_hz, start_s = 1000, 1_234_567
    end = np.random.default_rng(0).integers(0, 256, 20 * rate_hz, np.uint8)
    path = tmp_path / "weeks.wav"
    data_bytes = start_s * rate_hz + len(end)
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, rate_hz, 1, 8)
    header = struct.pack("<4sI4s", b"RIFF", 36 + data_bytes, b"WAVE") + form
    with path.open("w+b") as file:
        file.write(header + struct.pack("<4sI", b"data", data_bytes))
        file.seek(start_s * rate_hz, os.SEEK_CUR)  # a hole, which takes no space
        file.write(end.tobytes())
        selection = Selection(start_s + 5.0, start_s + 15.0)
        decoding = decode_whole(file, max_audio_s=100, timeout_s=30, selection=selection)
        _, found = asyncio.run(decoding)
    raw = RawAudio("u8", rate_hz)
    _, expected = asyncio.run(_of_raw(end.tobytes(), raw, Selection(5.0, 15.0)))
    edge = SAMPLE_RATE_HZ // 10  # the resampler has other sound before it
    assert len(found) == len(expected)
    assert np.abs(found[edge:-edge].astype(int) - expected[edge:-edge]).max() < 3


async def _of_raw(content: bytes, raw: RawAudio, selection: Selection) -> tuple[AudioInfo, Samples]:
    with stored(content) as file:
        return await decode_whole(file, max_audio_s=100, timeout_s=30, raw=raw, selection=selection)


@pytest.mark.parametrize(("suffix", "skipped_s"), [(".flac", 5.25), (".m4a", 17.25)])
def test_what_was_decoded_before_a_stretch_is_told(suffix: str, skipped_s: float) -> None:
    """A decoder was busy with it, whether it is wanted or not."""
    content = encode(noise(20.0), SAMPLE_RATE_HZ, suffix)
    assert whole(content, Selection(17.25))[0].skipped_s == skipped_s
    assert whole(content)[0].skipped_s == 0.0


def test_times_beyond_all_samples() -> None:
    """No time is too large to be counted in samples."""
    content = wav(tone(2.0))
    info, samples = whole(content, Selection(1.0, 1e308))
    assert len(samples) == SAMPLE_RATE_HZ
    assert [warning.code for warning in info.warnings] == ["end_s_after_end"]
    with pytest.raises(InvalidRequest, match=r"the file ends at 2\.0 s"):
        whole(content, Selection(1e305))


def test_what_is_before_a_stretch_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ffmpeg finds its start, but for a few seconds before it."""
    content = encode(noise(60.0), SAMPLE_RATE_HZ, ".flac")
    asked = list[float]()

    def noting(*args: object, seek_s: float = 0.0, **more: object) -> object:
        asked.append(seek_s)
        return running_ffmpeg(*args, seek_s=seek_s, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "running_ffmpeg", noting)
    whole(content, Selection(50.5))
    whole(content)
    assert asked == [45.0, 0.0]


def test_what_is_behind_a_stretch_is_not_decoded() -> None:
    """An end ends the decoder, so a limit of audio concerns the stretch alone."""
    content = wav(noise(120.0))
    with pytest.raises(AudioTooLong):
        whole(content)
    info, samples = whole(content, Selection(100.0, 119.0))
    assert len(samples) == 19 * SAMPLE_RATE_HZ
    assert info.expected_s == 19.0


def test_a_long_stretch_comes_in_parts() -> None:
    """Of 30 s each, from the start of the stretch on."""

    async def infos() -> list[AudioInfo]:
        with stored(wav(noise(100.0))) as file:
            decoding = module.decode(file, max_audio_s=80, timeout_s=30, selection=Selection(10.0, 85.0))
            return [info async for info, _ in decoding]

    found = asyncio.run(infos())
    assert [(info.start_s, info.end_s) for info in found] == [(0.0, 30.0), (30.0, 60.0), (60.0, 75.0)]
    assert {info.expected_s for info in found} == {75.0}


@pytest.mark.parametrize("suffix", [".wav", ".mp3", ".m4a"])
@pytest.mark.parametrize("start_s", [5.5, 1e6])
def test_a_start_behind_the_end(suffix: str, start_s: float) -> None:
    """A plain error says where the file ends."""
    with pytest.raises(InvalidRequest, match=r"start_s: the file ends at (5\.0|5\.1) s") as error:
        whole(encode(tone(5.0), SAMPLE_RATE_HZ, suffix), Selection(start_s))
    assert error.value.param == "start_s"


def test_a_start_behind_the_end_of_a_file_that_declares_more() -> None:
    """It is still the start that is wrong, also where ffmpeg finds nothing at the place that it looks for."""
    content = encode(noise(30.0), SAMPLE_RATE_HZ, ".flac")
    with pytest.raises(InvalidRequest, match=r"start_s: the file has nothing after 20\.0 s") as error:
        whole(content[: len(content) // 3], Selection(25.5))
    assert error.value.param == "start_s"


def test_an_end_behind_the_end_is_told() -> None:
    """All there is is taken; nothing is said of a second, because players round lengths up."""
    content = wav(tone(5.0))
    info, samples = whole(content, Selection(2.0, 60.0))
    assert len(samples) == 3 * SAMPLE_RATE_HZ
    [warning] = info.warnings
    assert (warning.code, warning.message) == (
        "end_s_after_end",
        "The file ends at 5.0 s, before end_s (60 s).",
    )
    assert whole(content, Selection(2.0, 5.9))[0].warnings == ()


def test_a_cut_off_file_is_told_of_only_where_its_end_was_wanted() -> None:
    """Of half a FLAC the first seconds are all there."""
    content = encode(noise(20.0), SAMPLE_RATE_HZ, ".flac")
    half = content[: len(content) // 2]
    assert whole(half, Selection(1.0, 5.0))[0].warnings == ()
    codes = [warning.code for warning in whole(half, Selection(1.0))[0].warnings]
    assert codes == ["truncated_audio"]


def tracks() -> bytes:
    """A video of two tracks: 440 Hz, which is the default, and 1000 Hz."""
    other = ("-f", "lavfi", "-i", "sine=frequency=1000:sample_rate=16000:duration=3")
    maps = ("-map", "0:a", "-map", "1:a", "-disposition:a:0", "default")
    return encode(tone(3.0), SAMPLE_RATE_HZ, ".mkv", *other, *maps)


@pytest.mark.parametrize(("track", "frequency_hz"), [(None, 440), (0, 440), (1, 1000)])
def test_a_track_by_its_number(track: int | None, frequency_hz: int) -> None:
    """From 0; without one it is that which a player plays."""
    _, samples = whole(tracks(), Selection(track=track))
    assert np.argmax(np.abs(np.fft.rfft(samples[:SAMPLE_RATE_HZ]))) == frequency_hz


def test_a_track_that_is_not_there() -> None:
    """The error says how many there are."""
    with pytest.raises(InvalidRequest, match="track: the file has 2 sound tracks that can be decoded: 0, 1"):
        whole(tracks(), Selection(track=2))
    with pytest.raises(InvalidRequest, match="1 sound track that can be decoded: 0"):
        whole(wav(tone(1.0)), Selection(track=1))


def test_a_silent_track_that_was_chosen_is_no_mistake() -> None:
    """Only where the decoder has chosen one it says that there is sound in another."""
    other = ("-f", "lavfi", "-i", "anullsrc=r=16000:cl=mono:d=3")
    content = encode(tone(3.0), SAMPLE_RATE_HZ, ".mkv", *other, "-map", "1:a", "-map", "0:a")
    assert [warning.code for warning in whole(content)[0].warnings] == ["silent_track"]
    assert whole(content, Selection(track=0))[0].warnings == ()


APART = Selection(channels_apart=True)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp3", ".opus", ".m4a", ".mkv"])
def test_channels_apart_are_those_of_the_file(suffix: str) -> None:
    """The left one is the first row; neither has anything of the other."""
    left, right = tone(3.0), tone(3.0, frequency_hz=1000.0)
    info, samples = whole(encode(np.stack([left, right], axis=1), SAMPLE_RATE_HZ, suffix), APART)
    assert (info.channels, samples.shape[0], samples.flags["C_CONTIGUOUS"]) == (2, 2, True)
    assert not samples.flags.writeable
    spectra = np.abs(np.fft.rfft(samples[:, :SAMPLE_RATE_HZ]))
    assert spectra.argmax(axis=1).tolist() == [440, 1000]
    assert spectra[0, 1000] < spectra[1, 1000] / 50
    assert spectra[1, 440] < spectra[0, 440] / 50


@pytest.mark.parametrize("count", [2, 3, 5, 6, 8])
def test_each_of_many_channels(count: int) -> None:
    """Bit by bit, whatever the layout may be called."""
    channels = np.stack([noise(35.0, seed=seed) for seed in range(count)])
    info, samples = whole(wav(channels.T), APART)
    assert info.channels == count
    assert np.array_equal(samples, channels)
    assert info.warnings == ()


def test_channels_that_are_too_long_are_not_kept() -> None:
    """A few bytes of silence in many channels would take gigabytes until the limit is reached."""
    content = encode(np.zeros((300 * 8000, 8), np.int16), 8000, ".flac")
    tracemalloc.start()
    try:
        with stored(content) as file, pytest.raises(AudioTooLong):
            asyncio.run(decode_whole(file, max_audio_s=280, timeout_s=60, selection=APART))
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most_bytes < 280 * 8 * 2 * SAMPLE_RATE_HZ / 2


def test_opposite_channels_stay_as_they_are() -> None:
    """Their mix would be silence, and that is nothing to warn of here."""
    sound = noise(3.0)
    info, samples = whole(wav(np.stack([sound, -sound], axis=1)), APART)
    assert np.array_equal(samples, [sound, -sound])
    assert info.warnings == ()


@pytest.mark.parametrize("count", [1, 9, 16, 65])
def test_no_channels_to_be_speakers(count: int) -> None:
    """One is nobody to tell apart, and many are a recorder's."""
    content = wav(np.zeros((1600, count), np.int16))
    with pytest.raises(InvalidRequest, match=f"has {count} channels?; speakers needs 2 to 8") as error:
        whole(content, APART)
    assert error.value.param == "channels"


def test_peaks_are_those_of_the_louder_channel() -> None:
    """A player draws one waveform."""
    loud_then_silent = np.concatenate([tone(1.0, amplitude=0.8), silence(1.0)])
    silent_then_quiet = np.concatenate([silence(1.0), tone(1.0, amplitude=0.2)])
    info, samples = whole(wav(np.stack([loud_then_silent, silent_then_quiet], axis=1)), APART)
    rows = [module.peaks(row) for row in samples]
    assert info.peaks == bytes(max(pair) for pair in zip(*rows, strict=True))
    assert min(info.peaks[:20]) == 102
    assert min(info.peaks[20:]) == 25


def test_all_at_once() -> None:
    """A stretch of the channels of bytes without a header."""
    left, right = noise(10.0, seed=1), noise(10.0, seed=2)
    content = np.stack([left, right], axis=1).astype("<i2").tobytes()
    selection = Selection(6.0, 8.0, track=0, channels_apart=True)
    audio = asyncio.run(decoded(content, raw=RawAudio("s16le", 16_000, 2), selection=selection))
    assert np.array_equal(audio.samples, [left[96_000:128_000], right[96_000:128_000]])
