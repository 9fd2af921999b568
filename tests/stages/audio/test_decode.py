"""Decoding: the same samples as whisperx, from every container, and nothing that hurts."""

import asyncio
import io
import logging
import os
import resource
import signal
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import psutil
import pytest
from decoding import Decoded, decoded, stored
from sounds import ONLY_VIDEO, VIDEO, Samples, encode, ffmpeg, noise, silence, tone, wav

from benchmarks.decoding import decode_whole
from serve_app.audio import AudioInfo
from serve_app.errors import (
    AudioTooCostly,
    AudioTooLong,
    EmptyAudio,
    EncryptedAudio,
    NoAudioStream,
    Overloaded,
    TranscriptionError,
    UnusableAudio,
)
from serve_app.stages.audio import decode as module
from serve_app.stages.audio import ffmpeg_sandbox as sandbox
from serve_app.stages.audio.decode import PART_S, decode
from serve_app.stages.audio.ffmpeg_sandbox import MAX_LOG_BYTES, FfmpegLog, network_namespace_command
from serve_app.stages.audio.file_marks import is_encrypted
from serve_app.transcript import SAMPLE_RATE_HZ

CONTAINERS = {
    "wav": ("", ()),
    "mp3": (".mp3", ()),
    "flac": (".flac", ()),
    "opus": (".opus", ()),
    "ogg": (".ogg", ()),
    "webm": (".webm", ()),
    "aac": (".aac", ()),
    "aiff": (".aiff", ()),
    "wma": (".wma", ()),
    "mpegts": (".ts", ()),
    "m4a, index at the end": (".m4a", ()),
    "m4a, index first": (".m4a", ("-movflags", "+faststart")),
    "mp4 with video": (".mp4", VIDEO),
    "matroska with video": (".mkv", VIDEO),
}


def encrypted(sound: Samples, codec: str) -> bytes:
    """An MP4 whose sound track is copy-protected."""
    key = ("-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "0" * 32)
    return encode(sound, 16_000, ".mp4", "-c:a", codec, "-encryption_scheme", "cenc-aes-ctr", *key)


def decoders() -> list[int]:
    """Decoders that this process started, also those that are not ffmpeg yet, or dead but unreaped."""
    found = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            if child.name().startswith(("sh", "unshare", "ffmpeg")):
                found.append(child.pid)
    return found


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """24 hours of silence in 130 KB."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "bomb.flac")
        ffmpeg("-f", "lavfi", "-i", "anullsrc=r=100:cl=mono:d=86400", str(target))
        return target.read_bytes()


@pytest.fixture
def whisperx_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Samples]:
    """What `whisperx.load_audio` reads from the same bytes, as the int16 it came from."""
    (tmp_path / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    from whisperx.audio import load_audio

    def load(content: bytes) -> Samples:
        (tmp_path / "sound").write_bytes(content)
        return np.asarray(load_audio(str(tmp_path / "sound")) * 32768.0, dtype=np.int16)

    return load


def test_samples_are_those_of_whisperx(whisperx_samples: Callable[[bytes], Samples]) -> None:
    """Every container gives bit by bit what whisperx.load_audio gives."""
    sound = np.stack([noise(2.0, sample_rate_hz=44_100), tone(2.0, sample_rate_hz=44_100)], axis=1)
    for name, (suffix, args) in CONTAINERS.items():
        content = encode(sound, 44_100, suffix, *args) if suffix else wav(sound, 44_100)
        audio = asyncio.run(decoded(content))
        assert np.array_equal(audio.samples, whisperx_samples(content)), name
        assert audio.duration_s == pytest.approx(2.0, abs=0.1), name
        assert audio.warnings == (), name


def test_samples_of_16_khz_mono_are_untouched() -> None:
    """A mono 16 kHz WAV comes back sample by sample, as read-only int16."""
    sound = noise(1.0)
    audio = asyncio.run(decoded(wav(sound)))
    assert audio.samples.dtype == np.int16
    assert np.array_equal(audio.samples, sound)
    assert not audio.samples.flags.writeable


def test_stereo_is_the_mean_of_both_channels() -> None:
    """Two channels are averaged, not added: no sample is louder than in the file."""
    left, right = tone(1.0, amplitude=0.9), tone(1.0, frequency_hz=700.0, amplitude=0.9)
    audio = asyncio.run(decoded(wav(np.stack([left, right], axis=1))))
    mean = (left.astype(np.int32) + right) / 2
    assert np.abs(audio.samples - mean).max() <= 1


@pytest.mark.parametrize(
    ("amplitudes", "codes"),
    [((0.009, 0.009), ["quiet_audio"]), ((0.009, 0.011), []), ((0.011, 0.009), []), ((0.0, 0.0), [])],
)
def test_a_quiet_recording_is_warned_of(amplitudes: tuple[float, float], codes: list[str]) -> None:
    """Below -40 dBFS from beginning to end, over all parts; silence is silence."""
    sound = np.concatenate([tone(PART_S, amplitude=amplitude) for amplitude in amplitudes])
    audio = asyncio.run(decoded(wav(sound), max_audio_s=3 * PART_S))
    assert [warning.code for warning in audio.warnings] == codes


def test_8_khz_is_resampled() -> None:
    """Telephone speech keeps its duration and its pitch."""
    audio = asyncio.run(decoded(wav(tone(2.0, frequency_hz=500.0, sample_rate_hz=8_000), 8_000)))
    assert audio.duration_s == pytest.approx(2.0, abs=0.01)
    assert np.argmax(np.abs(np.fft.rfft(audio.samples))) / audio.duration_s == pytest.approx(500.0, abs=1.0)


def test_position_of_the_file_does_not_matter() -> None:
    """The file is read from its start wherever its position is, and the position stays."""
    with stored(wav(tone(1.0))) as file:
        file.seek(1_000)
        info, _ = asyncio.run(decode_whole(file, max_audio_s=60.0, timeout_s=30.0))
        assert file.tell() == 1_000
        assert info.end_s == 1.0


def test_one_file_decodes_twice_at_once() -> None:
    """Two decoders of one file do not take each other's bytes."""

    async def both() -> list[tuple[AudioInfo, Samples]]:
        with stored(encode(tone(5.0), 16_000, ".m4a")) as file:
            decoding = (decode_whole(file, max_audio_s=60.0, timeout_s=30.0) for _ in range(2))
            return await asyncio.gather(*decoding)

    (info, first), (_, second) = asyncio.run(both())
    assert np.array_equal(first, second)
    assert info.end_s == pytest.approx(5.0, abs=0.1)


Parts = list[tuple[AudioInfo, Samples]]


async def parts_of(
    content: bytes, *, max_audio_s: float = 600.0, limit: int | None = None
) -> tuple[Parts, Exception | None]:
    """The parts that come of a file, at most `limit`, and the error that ends them."""
    found: Parts = []
    with stored(content) as file:
        async with aclosing(decode(file, max_audio_s=max_audio_s, timeout_s=30.0)) as parts:
            try:
                async for part in parts:
                    found.append(part)
                    if len(found) == limit:
                        break
            except TranscriptionError as error:
                return found, error
    return found, None


@pytest.fixture(scope="module")
def long_flac() -> bytes:
    """100 s of noise; its header says so."""
    return encode(noise(100.0), 16_000, ".flac")


def with_declared_s(flac: bytes, declared_s: float) -> bytes:
    """The file with another length in its header; 0 is unknown."""
    count = round(declared_s * 16_000)
    return flac[:21] + bytes([flac[21] & 0xF0 | count >> 32]) + (count & 0xFFFFFFFF).to_bytes(4) + flac[26:]


@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
def test_a_long_file_comes_in_parts(suffix: str) -> None:
    """Parts of 30 s and a rest follow each other without a gap; together they are the whole file."""
    sound = noise(100.0)
    content = wav(sound) if suffix == ".wav" else encode(sound, 16_000, suffix)
    whole = asyncio.run(decoded(content, max_audio_s=600.0)).samples
    parts, error = asyncio.run(parts_of(content))
    assert error is None
    assert [info.start_s for info, _ in parts] == [0.0, 30.0, 60.0, 90.0]
    assert [info.end_s for info, _ in parts] == [30.0, 60.0, 90.0, len(whole) / 16_000]
    assert [info.is_last for info, _ in parts] == [False, False, False, True]
    assert all(info.expected_s == pytest.approx(100.0, abs=1.0) for info, _ in parts)
    assert np.array_equal(np.concatenate([samples for _, samples in parts]), whole)
    assert not any(samples.flags.writeable for _, samples in parts)


def test_parts_have_the_peaks_of_their_waveform() -> None:
    """A byte for each twentieth of a second, loud or soft, above zero or below, also at the ragged end."""
    sound = np.zeros(30 * SAMPLE_RATE_HZ + 801, np.int16)
    sound[800], sound[1700], sound[-1] = 32767, -32768, 16384
    parts, _ = asyncio.run(parts_of(wav(sound)))
    first, second = (info.peaks for info, _ in parts)
    assert first == bytes([0, 127, 128, *[0] * 597])
    assert second == bytes([0, 64])


@pytest.mark.parametrize(("samples", "count"), [(1, 1), (480_000, 1), (480_001, 2), (960_000, 2)])
def test_a_part_is_given_only_when_it_is_known_whether_more_follows(samples: int, count: int) -> None:
    """A file that ends with a full part has no empty one behind it."""
    parts, error = asyncio.run(parts_of(wav(np.ones(samples, np.int16))))
    assert error is None
    assert [info.is_last for info, _ in parts] == [False] * (count - 1) + [True]
    assert sum(len(part) for _, part in parts) == samples
    assert all(len(part) == PART_S * SAMPLE_RATE_HZ for _, part in parts[:-1])


def test_an_error_may_come_after_some_parts(long_flac: bytes) -> None:
    """A file that turns out to be too long, or breaks off, has given its beginning by then."""
    parts, error = asyncio.run(parts_of(with_declared_s(long_flac, 0.0), max_audio_s=70.0))
    assert [info.is_last for info, _ in parts] == [False, False]
    assert isinstance(error, AudioTooLong)


def test_the_warnings_come_with_the_last_part(long_flac: bytes) -> None:
    """Only the end shows that there is less than the file declares."""
    parts, error = asyncio.run(parts_of(long_flac[: len(long_flac) * 3 // 4]))
    assert error is None
    assert [[warning.code for warning in info.warnings] for info, _ in parts] == [[], [], ["truncated_audio"]]


def test_a_file_that_declares_to_be_too_long_gives_no_part(long_flac: bytes) -> None:
    """Nothing is worked on that ends as an error anyway; a header that lies costs only the early parts."""
    parts, error = asyncio.run(parts_of(long_flac, max_audio_s=70.0))
    assert parts == []
    assert isinstance(error, AudioTooLong)
    parts, error = asyncio.run(parts_of(with_declared_s(long_flac, 100_000.0), max_audio_s=110.0))
    assert error is None
    assert [info.is_last for info, _ in parts] == [False, False, False, True]
    assert [warning.code for warning in parts[-1][0].warnings] == ["truncated_audio"]


def test_no_part_of_an_encrypted_file_is_given() -> None:
    """However long it is: its sound is noise from the first second on."""
    parts, error = asyncio.run(parts_of(encrypted(tone(100.0), "aac")))
    assert parts == []
    assert isinstance(error, EncryptedAudio)


def test_a_caller_that_has_enough_ends_the_decoder(bomb: bytes) -> None:
    """Also between two parts."""
    parts, _ = asyncio.run(parts_of(bomb, max_audio_s=1e6, limit=2))
    assert len(parts) == 2
    assert decoders() == []


@pytest.mark.parametrize("in_thread", [False, True], ids=["main thread", "other thread"])
def test_runs_under_uvloop(in_thread: bool) -> None:
    """Ray Serve replicas run uvloop, and user code in a thread that is not the main one."""
    uvloop = pytest.importorskip("uvloop")
    results: list[Decoded] = []

    def run() -> None:
        loop = uvloop.new_event_loop()
        try:
            results.append(loop.run_until_complete(decoded(wav(tone(1.0)))))
            with pytest.raises(AudioTooLong):
                loop.run_until_complete(decoded(wav(silence(300.0)), max_audio_s=0.5))
        finally:
            loop.close()

    if in_thread:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    else:
        run()
    assert [audio.duration_s for audio in results] == [1.0]
    assert decoders() == []


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"", EmptyAudio),
        (wav(silence(0.0)), EmptyAudio),
        (b"\0", UnusableAudio),
        (b"fLaC", UnusableAudio),
        (b"<!doctype html><html><body>Sign in</body></html>", UnusableAudio),
        (b'{"error": "no such object"}', UnusableAudio),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", UnusableAudio),
        (noise(1.0).tobytes(), UnusableAudio),
    ],
    ids=["0 bytes", "no samples", "1 byte", "magic bytes only", "HTML", "JSON", "PDF", "random bytes"],
)
def test_bytes_without_audio_are_refused(content: bytes, error: type[UnusableAudio]) -> None:
    """What holds no audio is a typed error whose message shows nothing of the server."""
    with pytest.raises(error) as caught:
        asyncio.run(decoded(content))
    assert "/" not in caught.value.message
    assert "fd:" not in caught.value.message
    assert ";" in caught.value.message  # what is wrong; what to do


def test_video_without_sound_is_refused() -> None:
    """A film without a sound track is not "undecodable": the error names the reason."""
    with pytest.raises(NoAudioStream):
        asyncio.run(decoded(encode(tone(1.0), 16_000, ".mp4", *ONLY_VIDEO)))


def test_cut_off_mp4_says_so() -> None:
    """An MP4 whose index at the end is missing is called incomplete."""
    content = encode(tone(2.0), 16_000, ".m4a")
    with pytest.raises(UnusableAudio, match="incomplete"):
        asyncio.run(decoded(content[: len(content) // 2]))


@pytest.mark.parametrize(
    ("suffix", "args"),
    [
        (".mp3", ()),
        (".flac", ()),
        (".webm", ()),
        (".wav", ()),
        (".aiff", ()),
        (".m4a", ("-movflags", "+faststart")),
    ],
)
def test_truncated_file_gives_audio_and_a_warning(suffix: str, args: tuple[str, ...]) -> None:
    """Half a file is decoded as far as it goes, and the caller learns that the rest is missing."""
    content = encode(noise(20.0), 16_000, suffix, *args)
    audio = asyncio.run(decoded(content[: len(content) // 2 + 1]))
    assert 1.0 < audio.duration_s < 15.0
    assert [(warning.stage, warning.code) for warning in audio.warnings] == [("decode", "truncated_audio")]


def test_wav_of_unknown_length_is_no_truncation() -> None:
    """A recorder that writes to a pipe cannot know the length; its header's maximum means nothing."""
    content = bytearray(wav(tone(2.0)))
    struct.pack_into("<I", content, 4, 0xFFFFFFFF)
    struct.pack_into("<I", content, 40, 0xFFFFFFFF)
    audio = asyncio.run(decoded(bytes(content)))
    assert audio.duration_s == 2.0
    assert audio.warnings == ()


def test_duration_in_the_metadata_is_not_believed() -> None:
    """A title that looks like ffmpeg's own duration line gives no warning."""
    title = "title=x\n  Duration: 09:00:00.00, start"
    audio = asyncio.run(decoded(encode(tone(2.0), 16_000, ".mp3", "-metadata", title)))
    assert audio.warnings == ()


@pytest.mark.parametrize(
    "title", ["How a filter matches no streams", "moov atom not found", "corrupt input packet"]
)
def test_a_title_in_ffmpegs_words_decides_nothing(title: str) -> None:
    """What ffmpeg shows of a file's text is not taken for what it says about the file."""
    audio = asyncio.run(decoded(encode(tone(2.0), 16_000, ".mp3", "-metadata", f"title=x\n{title}")))
    assert audio.duration_s == pytest.approx(2.0, abs=0.1)
    assert audio.warnings == ()


def test_a_title_in_ffmpegs_words_hides_no_truncation() -> None:
    """Nor is a warning left out for it."""
    title = "title=Estimating duration from bitrate\nIgnoring maximum wav data size"
    content = encode(noise(20.0), 16_000, ".flac", "-metadata", title)
    audio = asyncio.run(decoded(content[: len(content) // 2 + 1]))
    assert [warning.code for warning in audio.warnings] == ["truncated_audio"]


def test_24_hours_in_a_small_file_are_stopped(bomb: bytes) -> None:
    """Length is counted in decoded samples: a small file cannot unfold beyond the limit."""
    assert len(bomb) < 200_000
    with pytest.raises(AudioTooLong, match="60 s"):
        asyncio.run(decoded(bomb, max_audio_s=60.0))
    assert decoders() == []


def test_1_hz_wav_is_stopped() -> None:
    """A forged sample rate makes hours of 100 KB; they count as hours."""
    with pytest.raises(AudioTooLong):
        asyncio.run(decoded(wav(noise(50_000, sample_rate_hz=1), 1)))


def test_limit_is_exact() -> None:
    """Audio of exactly the allowed length passes; one sample more does not."""
    assert asyncio.run(decoded(wav(silence(2.0)), max_audio_s=2.0)).duration_s == 2.0
    with pytest.raises(AudioTooLong):
        asyncio.run(decoded(wav(silence(2.0))[:-2] + b"\0\0\0\0", max_audio_s=1.9999))


def test_first_of_several_tracks_is_decoded() -> None:
    """Of a file with two sound tracks the first one counts, as it does for whisperx."""
    sound = tone(2.0, frequency_hz=500.0)
    second = ("-f", "lavfi", "-i", "sine=frequency=2000:duration=2", "-map", "0:a", "-map", "1:a")
    for suffix in (".mp4", ".mkv"):
        audio = asyncio.run(decoded(encode(sound, 16_000, suffix, *second)))
        loudest = np.argmax(np.abs(np.fft.rfft(audio.samples)))
        assert loudest / audio.duration_s == pytest.approx(500.0, abs=5.0), suffix


def test_cover_art_is_no_obstacle() -> None:
    """A song with a picture in it is decoded whole."""
    picture = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=0.2", "-c:v", "png")
    attached = ("-map", "0:a", "-map", "1:v", "-disposition:v", "attached_pic")
    for suffix in (".mp3", ".m4a"):
        content = encode(tone(2.0), 16_000, suffix, *picture, *attached)
        assert b"PNG" in content
        audio = asyncio.run(decoded(content))
        assert audio.duration_s == pytest.approx(2.0, abs=0.1), suffix


@pytest.mark.parametrize("codec", ["aac", "libopus"])
def test_encrypted_sound_is_called_encrypted(codec: str) -> None:
    """Copy-protected sound is not transcribed as the noise that it decodes to."""
    with pytest.raises(EncryptedAudio):
        asyncio.run(decoded(encrypted(tone(2.0), codec)))


def test_encryption_is_found_wherever_it_stands() -> None:
    """Also where the mark lies across two of the pieces in which the file is searched."""
    mark = b"enca" + bytes(7) + b"\x01"
    for before in (0, (1 << 20) - 5, 1 << 20, (2 << 20) - 11):
        with stored(bytes(before) + mark + bytes(10)) as file:
            file.flush()
            assert is_encrypted(file), before
    with stored(bytes(3 << 20) + mark[:-1]) as file:
        file.flush()
        assert not is_encrypted(file)


def test_slow_decoding_passes_its_deadline(bomb: bytes) -> None:
    """The wall clock ends a decoder that is still busy, and leaves no child; the file is to blame."""
    with pytest.raises(AudioTooCostly, match=r"0\.1 s") as caught:
        asyncio.run(decoded(bomb, max_audio_s=1e6, timeout_s=0.1))
    assert (caught.value.status, caught.value.code) == (422, "audio_too_costly")
    assert decoders() == []


def test_kernel_limits_hold_from_the_start(bomb: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """ffmpeg runs under limits that the kernel keeps, without our environment."""
    read, seen = sandbox.output_of, list[tuple[int, int]]()

    async def looking(process: asyncio.subprocess.Process, until_s: float) -> AsyncGenerator[bytes, None]:
        limits = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE)
        async for chunk in read(process, until_s):
            if not seen:  # it is ffmpeg by now
                with open(f"/proc/{process.pid}/environ", "rb") as environment:  # noqa: ASYNC230 - not on a disk
                    assert b"HOME" not in environment.read()
                seen.extend(resource.prlimit(process.pid, limit) for limit in limits)
            yield chunk

    monkeypatch.setenv("HOME", "/home/us")
    monkeypatch.setattr(module, "output_of", looking)
    with pytest.raises(AudioTooLong):
        asyncio.run(decoded(bomb))
    assert seen == [(sandbox.MAX_MEMORY_BYTES,) * 2, (60, 60), (0, 0), (0, 0)]


@pytest.mark.parametrize(
    ("by", "code"),
    [
        (signal.SIGKILL, "audio_too_costly"),  # processor time, or the kernel ran out of memory
        (signal.SIGSEGV, "undecodable_audio"),
        (signal.SIGABRT, "undecodable_audio"),
        (signal.SIGILL, "undecodable_audio"),
    ],
)
def test_file_that_kills_its_decoder_is_unusable(
    by: signal.Signals, code: str, bomb: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever signal ends ffmpeg, the file is to blame (422), not the server."""
    read = sandbox.output_of

    async def killed(process: asyncio.subprocess.Process, until_s: float) -> AsyncGenerator[bytes, None]:
        is_alive = True
        async for chunk in read(process, until_s):
            if is_alive:
                process.send_signal(by)
            is_alive = False
            yield chunk

    monkeypatch.setattr(module, "output_of", killed)
    with pytest.raises(UnusableAudio) as caught:
        asyncio.run(decoded(bomb, max_audio_s=1e6))
    assert (caught.value.status, caught.value.code) == (422, code)


def test_file_that_needs_too_much_memory_is_unusable() -> None:
    """A block that unfolds to 4 GB is refused by the kernel's limit on memory, at once."""
    block = ("-af", "asetrate=1", "-frame_size", "65535")
    with pytest.raises(AudioTooCostly, match="memory"):
        asyncio.run(decoded(encode(noise(5.0), 16_000, ".flac", *block), max_audio_s=1e6))


def test_decoder_has_no_network() -> None:
    """Even an ffmpeg that may use every protocol reaches no address from where decoders run."""
    if not network_namespace_command():
        pytest.skip("this kernel or container allows no network namespaces")
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.setblocking(False)
        address = f"http://127.0.0.1:{canary.getsockname()[1]}/"
        fetch = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-rw_timeout", "100000", "-i", address]
        subprocess.run([*network_namespace_command(), *fetch], check=False, capture_output=True, timeout=60)
        with pytest.raises(BlockingIOError):
            canary.accept()
        subprocess.run(fetch, check=False, capture_output=True, timeout=60)
        canary.accept()[0].close()  # with the network it does


@pytest.fixture
def fresh_sandbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is known yet about namespaces, and afterwards as little; warnings can be captured."""
    caches = (sandbox.tried_namespace_command, sandbox._warn_once)
    monkeypatch.setattr(sandbox, "logger", logging.getLogger("decode"))  # Serve's own is not captured
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def test_decoding_goes_on_where_namespaces_are_forbidden(
    fresh_sandbox: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Containers often forbid them: one line in the log, and the same samples."""

    def forbid(*args: object, **kwargs: object) -> None:
        raise subprocess.CalledProcessError(1, "unshare")

    monkeypatch.setattr(subprocess, "run", forbid)
    for _ in range(2):
        assert asyncio.run(decoded(wav(tone(1.0)))).duration_s == 1.0
    (line,) = caplog.messages
    assert "unshare" in line


def test_a_refused_namespace_is_asked_for_again(fresh_sandbox: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad moment of the machine does not leave a replica's decoders with the network for ever."""
    answers: list[Exception | None] = [subprocess.TimeoutExpired("unshare", 10), None]

    def run(*args: object, **kwargs: object) -> None:
        if (answer := answers.pop(0)) is not None:
            raise answer

    monkeypatch.setattr(subprocess, "run", run)
    expected = ("unshare", "--user", "--net")
    assert [network_namespace_command() for _ in range(3)] == [(), expected, expected]
    assert answers == []  # and the kernel is not asked a third time


def test_asking_for_a_namespace_holds_up_nobody(fresh_sandbox: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the kernel takes its time over the first file, the replica answers others."""
    others = threading.Event()

    async def scenario() -> None:
        loop, asked = asyncio.get_running_loop(), asyncio.Event()

        def run(*args: object, **kwargs: object) -> None:
            loop.call_soon_threadsafe(asked.set)
            assert others.wait(10)

        monkeypatch.setattr(subprocess, "run", run)
        question = asyncio.create_task(decoded(wav(tone(1.0))))
        await asked.wait()
        others.set()
        assert (await question).duration_s == 1.0

    asyncio.run(scenario())


@pytest.mark.parametrize("missing", ["unshare", "ffmpeg"])
def test_decoder_that_cannot_start_is_not_the_files_fault(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the kernel refuses another namespace or program, the caller may try again later."""
    refused = ("unshare", "--no-such-namespace") if missing == "unshare" else ("/nonexistent/ffmpeg",)
    monkeypatch.setattr(sandbox, "network_namespace_command", lambda: refused)
    with pytest.raises(Overloaded, match="later"):
        asyncio.run(decoded(wav(tone(0.1))))


@pytest.mark.parametrize("new_loop", ["asyncio", "uvloop"])
def test_cancellation_kills_the_child(new_loop: str, bomb: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the caller goes, the decoder goes: no running child, no zombie, no open pipe."""
    make_loop: Callable[[], asyncio.AbstractEventLoop] = pytest.importorskip(new_loop).new_event_loop
    started = asyncio.Event()
    read = sandbox.output_of

    async def reading(*args: Any) -> AsyncGenerator[bytes, None]:
        started.set()
        async for chunk in read(*args):
            yield chunk

    async def cancelled() -> None:
        task = asyncio.create_task(decoded(bomb, max_audio_s=1e6))
        await started.wait()
        assert len(decoders()) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert decoders() == []

    monkeypatch.setattr(module, "output_of", reading)
    loop = make_loop()
    try:
        loop.run_until_complete(cancelled())
    finally:
        loop.close()


def test_endless_log_is_cut() -> None:
    """Of what the child says only the beginning and the end are kept."""

    async def read() -> bytes:
        process = await asyncio.create_subprocess_exec(
            *["sh", "-c", "echo begin; yes | head -c 1000000; echo end"],
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        process.stderr, process.stdout = process.stdout, process.stderr
        log = FfmpegLog()
        await asyncio.gather(log.read(process), process.wait())
        return log.content

    log = asyncio.run(read())
    assert log.startswith(b"begin")
    assert log.endswith(b"end\n")
    assert len(log) <= MAX_LOG_BYTES


def test_no_process_left_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that cannot start a child asks to try again later."""

    async def refuse(*args: object, **kwargs: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    with pytest.raises(Overloaded, match="later"):
        asyncio.run(decoded(wav(tone(0.1))))


def test_file_without_descriptor_is_a_mistake() -> None:
    """Only files on disk are taken; bytes in memory are a mistake of ours, not of the caller."""
    with pytest.raises(io.UnsupportedOperation):
        asyncio.run(decode_whole(io.BytesIO(b"RIFF"), max_audio_s=1.0, timeout_s=1.0))
