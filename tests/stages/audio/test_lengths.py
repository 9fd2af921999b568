"""Lengths that a program could not know when it wrote the header say nothing about the file."""

import asyncio
import struct
import subprocess
from contextlib import aclosing

import imageio_ffmpeg
import numpy as np
import pytest
from decoding import decoded, stored
from sounds import encode, noise, tone, wav

from benchmarks.decoding import decode_whole
from serve_app.audio import AudioInfo, Selection
from serve_app.stages.audio.decode import decode

# Of the data, as sox, arecord, ffmpeg, GStreamer, mpg123, web services and others write it to pipes.
PLACEHOLDERS = [
    *(0x7FFFFFFF, 0x7FFFFFFF - 36, 0x7FFFFFFE, 0x7FFFF000, 0x7FFF0000, 0x7FFFFF00, 0x7F000000),
    *(0x80000000, 0x80000000 - 36, 0x80000000 + 44, 0x80000024),
    *(0xFFFFFFFF, 0xFFFFFFFF - 36, 0xFFFFFFFE, 0xFFFFF000, 0xFFFF0000, 0xFFFFFFFF - 44),
    0,
]


def with_data_size(content: bytes, size: int) -> bytes:
    """The WAV file with another size of its data, and of itself."""
    at = content.index(b"data")
    sized = bytearray(content)
    struct.pack_into("<I", sized, at + 4, size)
    struct.pack_into("<I", sized, 4, min(size + at, 0xFFFFFFFF) if size else 0)
    return bytes(sized)


@pytest.mark.parametrize("size", PLACEHOLDERS, ids=hex)
def test_a_wav_from_a_pipe_is_whole(size: int) -> None:
    """All of it was decoded, so nothing is warned of, whatever its rate and its samples."""
    sound = np.stack([tone(2.0, sample_rate_hz=44_100)] * 2, axis=1)
    for content in (
        wav(tone(2.0)),
        wav(sound, 44_100),
        encode(tone(2.0), 16_000, ".wav", "-c:a", "pcm_mulaw", "-ar", "8000"),
        encode(tone(2.0), 16_000, ".wav", "-c:a", "pcm_s24le", "-ar", "22050"),
        encode(tone(2.0), 16_000, ".wav", "-c:a", "adpcm_ima_wav"),
    ):
        audio = asyncio.run(decoded(with_data_size(content, size)))
        assert audio.duration_s == pytest.approx(2.0, abs=0.1)
        assert audio.codes == []


@pytest.mark.parametrize("size", [0x7FFFFFFF - 36, 0x80000000, 0xFFFFFFFF])
def test_parts_of_a_pipe_come_while_it_is_decoded(size: int) -> None:
    """The placeholder is no reason to wait for the end, and takes no room from other requests."""

    async def first() -> AudioInfo:
        with stored(with_data_size(wav(noise(100.0)), size)) as file:
            async with aclosing(decode(file, max_audio_s=600.0, timeout_s=30.0)) as parts:
                async for info, _ in parts:
                    return info
        raise AssertionError

    info = asyncio.run(first())
    assert (info.end_s, info.is_last) == (30.0, False)
    assert info.expected_s < 600.0


def test_the_end_of_a_stretch_is_not_the_length_of_a_file() -> None:
    """A browser's recording declares none, and what may be asked for takes no room from other requests."""
    with stored(with_data_size(wav(noise(2.0)), 0x7FFFFFFF)) as file:
        selection = Selection(0.0, 14_400.0)
        info, _ = asyncio.run(decode_whole(file, max_audio_s=60.0, timeout_s=30.0, selection=selection))
    assert (info.end_s, info.expected_s) == (2.0, 0.0)


@pytest.mark.parametrize(
    "args",
    [
        ("wav",),
        ("wav", "-c:a", "pcm_f32le"),
        ("au",),
        ("caf",),
        ("flac",),
        ("matroska",),
        ("webm",),
        ("ogg",),
        ("mp3",),
        ("adts",),
        ("mpegts", "-c:a", "mp2"),
        ("mp4", "-movflags", "frag_keyframe+empty_moov"),
        ("flv", "-ar", "44100"),
        ("avi",),
        ("asf",),
        ("wv",),
    ],
    ids=" ".join,
)
def test_what_ffmpeg_writes_to_a_pipe_is_whole(args: tuple[str, ...]) -> None:
    """Every container of which ffmpeg could not mend the header."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", "-f", "wav", "-i", "pipe:0"]
    sound = wav(tone(3.0, sample_rate_hz=48_000), 48_000)
    piped = subprocess.run([*command, "-f", *args, "pipe:1"], input=sound, capture_output=True, check=True)
    audio = asyncio.run(decoded(piped.stdout))
    assert audio.duration_s == pytest.approx(3.0, abs=0.2)
    assert audio.codes == []


def aiff(samples: bytes, count: int, size: int) -> bytes:
    """An AIFF of 16 kHz, mono, that declares this."""
    rate = struct.pack(">HQ", 16_383 + 13, 16_000 << 50)
    common = b"COMM" + struct.pack(">IhIh", 18, 1, count, 16) + rate
    sound = b"SSND" + struct.pack(">III", size, 0, 0) + samples
    return b"FORM" + struct.pack(">I", size) + b"AIFF" + common + sound


def test_other_headers_of_unknown_length() -> None:
    """AIFF as sox and QuickTime write it to a pipe, AU, CAF, W64 and RF64 without a length."""
    sound = tone(2.0)
    big = sound.astype(">i2").tobytes()
    caf_format = struct.pack(">d4sIIIII", 16_000.0, b"lpcm", 0, 2, 1, 1, 16)
    caf = b"caff\0\1\0\0desc" + struct.pack(">q", 32) + caf_format + b"data" + struct.pack(">qI", -1, 0) + big
    files: dict[str, bytes] = {
        "AIFF 0x7f000000": aiff(big, 0x7F000000 // 2, 0x7F000000 + 8),
        "AIFF 0x7fffffff": aiff(big, 0x7FFFFFFF // 2, 0x7FFFFFFF),
        "AU 0xffffffff": b".snd" + struct.pack(">5I", 24, 0xFFFFFFFF, 3, 16_000, 1) + big,
        "AU 0x7fffffff": b".snd" + struct.pack(">5I", 24, 0x7FFFFFFF, 3, 16_000, 1) + big,
        "CAF -1": caf,
    }
    for size in (0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF):
        content = bytearray(encode(sound, 16_000, ".wav", "-rf64", "always"))
        struct.pack_into("<QQ", content, content.index(b"ds64") + 8, size, size)
        files[f"RF64 {size:#x}"] = bytes(content)
    for size in (0x7FFFFFFF, 0xFFFFFFFF):
        content = bytearray(encode(sound, 16_000, ".w64"))
        struct.pack_into("<Q", content, content.index(b"data\xf3\xac\xd3\x11") + 16, size)
        files[f"W64 {size:#x}"] = bytes(content)
    for name, file in files.items():
        audio = asyncio.run(decoded(file))
        assert audio.duration_s == pytest.approx(2.0, abs=0.1), name
        assert audio.codes == [], name


def test_a_flac_of_unknown_length_is_whole() -> None:
    """Its header has 0 samples then."""
    content = bytearray(encode(noise(3.0), 16_000, ".flac"))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    assert asyncio.run(decoded(bytes(content))).codes == []


@pytest.mark.parametrize("declared_bytes", [640_000, 3_000_000_000, 1_500_000_000])
def test_a_wav_that_is_cut_off_is_still_warned_of(declared_bytes: int) -> None:
    """Half of a file is half of a file, also of a very large one."""
    content = with_data_size(wav(noise(10.0)), declared_bytes)
    audio = asyncio.run(decoded(content))
    assert audio.codes == ["truncated_audio"]
