"""Decoding: the same samples as whisperx, from every container, and nothing that hurts."""

import asyncio
import io
import os
import resource
import signal
import struct
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, BinaryIO

import imageio_ffmpeg
import numpy as np
import pytest
from sounds import ONLY_VIDEO, VIDEO, Samples, encode, ffmpeg, noise, silence, tone, wav

from serve_app.errors import (
    AudioTooLong,
    DeadlineExceeded,
    EmptyAudio,
    NoAudioStream,
    Overloaded,
    UnusableAudio,
)
from serve_app.stages import decode as module
from serve_app.stages.decode import decode
from serve_app.transcript import Audio

MALFORMED = Path(__file__).parents[2] / "shared" / "data" / "malformed"

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


def stored(content: bytes) -> BinaryIO:
    """The bytes as a file on disk, without a name."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(content)
    return file


async def decoded(content: bytes, *, max_audio_s: float = 60.0, timeout_s: float = 30.0) -> Audio:
    """Decodes bytes with limits that no harmless test reaches."""
    with stored(content) as file:
        return await decode(file, max_audio_s=max_audio_s, timeout_s=timeout_s)


def ffmpeg_children() -> list[int]:
    """Processes of ffmpeg that this process started, the dead but unreaped included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        except OSError:  # it ended meanwhile
            continue
        if name.startswith("ffmpeg") and int(rest.split()[1]) == os.getpid():
            found.append(int(stat.parent.name))
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


def test_8_khz_is_resampled() -> None:
    """Telephone speech keeps its duration and its pitch."""
    audio = asyncio.run(decoded(wav(tone(2.0, frequency_hz=500.0, sample_rate_hz=8_000), 8_000)))
    assert audio.duration_s == pytest.approx(2.0, abs=0.01)
    assert np.argmax(np.abs(np.fft.rfft(audio.samples))) / audio.duration_s == pytest.approx(500.0, abs=1.0)


def test_position_of_the_file_does_not_matter() -> None:
    """The file is read from its start wherever its position is, and the position stays."""
    with stored(wav(tone(1.0))) as file:
        file.seek(1_000)
        first = asyncio.run(decode(file, max_audio_s=60.0, timeout_s=30.0))
        assert file.tell() == 1_000
        assert first.duration_s == 1.0


def test_one_file_decodes_twice_at_once() -> None:
    """Two decoders of one file do not take each other's bytes."""

    async def both() -> list[Audio]:
        with stored(encode(tone(5.0), 16_000, ".m4a")) as file:
            return await asyncio.gather(*(decode(file, max_audio_s=60.0, timeout_s=30.0) for _ in range(2)))

    first, second = asyncio.run(both())
    assert np.array_equal(first.samples, second.samples)
    assert first.duration_s == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize("in_thread", [False, True], ids=["main thread", "other thread"])
def test_runs_under_uvloop(in_thread: bool) -> None:
    """Ray Serve replicas run uvloop, and user code in a thread that is not the main one."""
    uvloop = pytest.importorskip("uvloop")
    results: list[Audio] = []

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
    assert ffmpeg_children() == []


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


def test_24_hours_in_a_small_file_are_stopped(bomb: bytes) -> None:
    """Length is counted in decoded samples: a small file cannot unfold beyond the limit."""
    assert len(bomb) < 200_000
    with pytest.raises(AudioTooLong, match="60 s"):
        asyncio.run(decoded(bomb, max_audio_s=60.0))
    assert ffmpeg_children() == []


def test_1_hz_wav_is_stopped() -> None:
    """A forged sample rate makes hours of 100 KB; they count as hours."""
    with pytest.raises(AudioTooLong):
        asyncio.run(decoded(wav(noise(50_000, sample_rate_hz=1), 1)))


def test_limit_is_exact() -> None:
    """Audio of exactly the allowed length passes; one sample more does not."""
    assert asyncio.run(decoded(wav(silence(2.0)), max_audio_s=2.0)).duration_s == 2.0
    with pytest.raises(AudioTooLong):
        asyncio.run(decoded(wav(silence(2.0))[:-2] + b"\0\0\0\0", max_audio_s=1.9999))


def test_slow_decoding_passes_its_deadline(bomb: bytes) -> None:
    """The wall clock ends a decoder that is still busy, and leaves no child."""
    with pytest.raises(DeadlineExceeded, match=r"0\.1 s"):
        asyncio.run(decoded(bomb, max_audio_s=1e6, timeout_s=0.1))
    assert ffmpeg_children() == []


def test_kernel_limits_hold(bomb: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child runs under limits of the kernel, and a child that the kernel kills is a typed error."""
    limit = module._limit

    def limited(pid: int, timeout_s: float) -> None:
        limit(pid, timeout_s)
        assert resource.prlimit(pid, resource.RLIMIT_AS)[1] == module.MAX_MEMORY_BYTES
        assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (0, 0)
        assert resource.prlimit(pid, resource.RLIMIT_CPU) == (60, 60)
        os.kill(pid, signal.SIGKILL)  # what the kernel does after 60 s

    monkeypatch.setattr(module, "_limit", limited)
    with pytest.raises(DeadlineExceeded, match="too much time or memory"):
        asyncio.run(decoded(bomb, max_audio_s=1e6))


@pytest.mark.parametrize("new_loop", ["asyncio", "uvloop"])
def test_cancellation_kills_the_child(new_loop: str, bomb: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the caller goes, the decoder goes: no running child, no zombie, no open pipe."""
    make_loop: Callable[[], asyncio.AbstractEventLoop] = pytest.importorskip(new_loop).new_event_loop
    started = asyncio.Event()
    read = module._read_samples

    async def reading(*args: Any) -> bytearray:
        started.set()
        return await read(*args)

    async def cancelled() -> None:
        task = asyncio.create_task(decoded(bomb, max_audio_s=1e6))
        await started.wait()
        assert len(ffmpeg_children()) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ffmpeg_children() == []

    monkeypatch.setattr(module, "_read_samples", reading)
    loop = make_loop()
    try:
        loop.run_until_complete(cancelled())
    finally:
        loop.close()


def test_disguised_playlists_are_refused(tmp_path: Path) -> None:
    """A playlist that names another file on the server decodes nothing of it."""
    neighbour = tmp_path / "neighbour.ts"
    neighbour.write_bytes(encode(tone(2.0), 16_000, ".ts"))
    hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nfile://{neighbour}\n#EXT-X-ENDLIST\n"
    playlists = {
        "hls": hls,
        "hls, relative": hls.replace(f"file://{neighbour}", neighbour.name),
        "ffconcat": f"ffconcat version 1.0\nfile {neighbour.name}\n",
        "ffconcat, absolute": f"ffconcat version 1.0\nfile '{neighbour}'\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
    }
    for name, text in playlists.items():
        path = tmp_path / "song.mp3"
        path.write_text(text)
        with path.open("rb") as file:
            try:
                asyncio.run(decode(file, max_audio_s=60.0, timeout_s=30.0))
            except UnusableAudio:
                continue
        pytest.fail(f"{name} was decoded")


def test_endless_log_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the child says only the beginning and the end are kept."""

    async def read() -> bytes:
        process = await asyncio.create_subprocess_exec(
            *["sh", "-c", "echo begin; yes | head -c 1000000; echo end"],
            stderr=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        process.stderr, process.stdout = process.stdout, process.stderr
        log, _ = await asyncio.gather(module._read_log(process), process.wait())
        return log

    log = asyncio.run(read())
    assert log.startswith(b"begin")
    assert log.endswith(b"end\n")
    assert len(log) <= module.MAX_LOG_BYTES


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
        asyncio.run(decode(io.BytesIO(b"RIFF"), max_audio_s=1.0, timeout_s=1.0))


@pytest.mark.skipif(not MALFORMED.is_dir(), reason="needs the odd files of ../shared/data/malformed")
def test_odd_files_of_others_end_typed() -> None:
    """Hundreds of broken files from other projects: audio or a typed error, never anything else."""
    outcomes: dict[str, int] = {}

    async def each(path: Path, slot: asyncio.Semaphore) -> None:
        async with slot:
            with path.open("rb") as file:
                try:
                    audio = await decode(file, max_audio_s=3600.0, timeout_s=30.0)
                    outcome = "audio"
                    assert len(audio.samples)
                except UnusableAudio as error:
                    outcome = error.code
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    async def every(paths: list[Path]) -> None:
        slot = asyncio.Semaphore(4)
        works: list[Awaitable[None]] = [each(path, slot) for path in paths]
        await asyncio.gather(*works)

    paths = sorted(path for path in MALFORMED.rglob("*") if path.is_file())
    asyncio.run(every(paths))
    assert sum(outcomes.values()) == len(paths)
    assert outcomes["audio"] > 100
    assert ffmpeg_children() == []
