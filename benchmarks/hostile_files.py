"""Files that mean harm, or are only broken, and the traps that show whether they did any.

Names are "kind: what"; what each kind may end as stands in `EXPECTED`.
"""

import ctypes
import io
import os
import socket
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from random import Random

import imageio_ffmpeg

FOLDER = Path(__file__).parents[2] / "shared" / "data" / "malformed"  # other projects' odd files

# Kind to the outcomes that are right: "audio", or the code of an error.
DAMAGED = frozenset({"audio", "undecodable_audio", "empty_audio", "no_audio_stream", "audio_too_long"})
EXPECTED = {
    "no audio": frozenset({"undecodable_audio", "empty_audio"}),
    "damaged": DAMAGED,
    "header": DAMAGED,
    "samples": frozenset({"audio"}),
    "bomb": frozenset({"audio_too_long"}),
    "costly": frozenset({"audio_too_costly"}),
    "playlist": frozenset({"undecodable_audio"}),
    "tracks": frozenset({"audio"}),
    "only video": frozenset({"no_audio_stream"}),
    "encrypted": frozenset({"encrypted_audio"}),
}

_NOISE = ("-f", "lavfi", "-i", "anoisesrc=d=3:a=0.3:r=16000:seed=1")
_TONE = ("-f", "lavfi", "-i", "sine=d=3")
_PICTURE = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=2")
_KEY = ("-encryption_key", "76a6c65c5ea762046bd749a2e632ccbb", "-encryption_kid", "0" * 32)


class Trap:
    """A folder with a neighbour's file, and a port, that no decoder has any business with."""

    def __init__(self, folder: Path) -> None:
        self.neighbour = folder / "neighbour.ts"
        self.neighbour.write_bytes(_encoded(".ts", *_TONE))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/audio.ts"
        libc = ctypes.CDLL(None)
        self._opened = libc.inotify_init1(os.O_NONBLOCK)
        in_open, in_create = 0x20, 0x100
        assert libc.inotify_add_watch(self._opened, os.fsencode(folder), in_open | in_create) >= 0

    def sprung(self) -> list[str]:
        """What was touched since the last call: a file in the folder opened or made, the URL called."""
        found = []
        try:
            os.read(self._opened, 4096)
            found.append("file")
        except BlockingIOError:
            pass
        try:
            self._listener.accept()[0].close()
            found.append("url")
        except BlockingIOError:
            pass
        return found

    def close(self) -> None:
        os.close(self._opened)
        self._listener.close()


def generated(trap: Trap) -> dict[str, bytes]:
    """Every hostile file that this project makes itself; playlists name what `trap` watches."""
    files = {**_without_audio(), **_headers(), **_tracks(), **playlists(trap)}
    for suffix, content in whole_files().items():
        files[f"damaged: half of {suffix}"] = content[: len(content) // 2]
        files[f"damaged: end of {suffix}"] = content[len(content) // 2 :]
        for per_mille in (1, 20):
            flipped, random = bytearray(content), Random(suffix)
            for _ in range(len(content) * per_mille // 1000):
                flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
            files[f"damaged: {per_mille / 10:g} % flipped in {suffix}"] = bytes(flipped)
    day = ("-f", "lavfi", "-i", "anullsrc=r=100:cl=mono:d=86400")
    block = ("-f", "lavfi", "-i", "anoisesrc=d=5:r=16000", "-af", "asetrate=1", "-frame_size", "65535")
    gap = ("-af", "asetpts='PTS+if(gte(T,1),36000/TB,0)'", "-c:a", "libopus")
    return files | {
        "bomb: a gap of 10 h, Matroska": _encoded(".mka", *_TONE, *gap),
        "costly: FLAC of 1 Hz, one block": _encoded(".flac", *block),
        "bomb: 24 h of FLAC": _encoded(".flac", *day),
        "bomb: WAV of 1 Hz": _wav(1, 1, bytes(100_000)),
    }


def whole_files() -> dict[str, bytes]:
    """Three seconds of noise in common containers, by suffix."""
    return {
        suffix: _encoded(suffix, *_NOISE) for suffix in (".wav", ".mp3", ".flac", ".ogg", ".m4a", ".webm")
    }


def mutated(files: Sequence[bytes], random: Random) -> bytes:
    """One of `files` after one to four accidents: bits flipped, cut off, overwritten, spliced, repeated."""
    content = bytearray(random.choice(files))
    for _ in range(random.randint(1, 4)):
        start = random.randrange(len(content) + 1)
        end = min(len(content), start + random.choice((1, 4, 64, 4096)))
        accident = random.choice(("flip", "cut", "overwrite", "splice", "remove", "repeat"))
        if accident == "flip":
            for at in range(start, end, random.choice((1, 7, 100))):
                content[at] ^= 1 << random.randrange(8)
        elif accident == "cut":
            del content[start:]
        elif accident == "overwrite":
            content[start:end] = random.choice((b"\0", b"\xff", b"\x7f")) * (end - start)
        elif accident == "splice":
            donor = random.choice(files)
            content[start:end] = donor[min(start, len(donor)) :][:4096]
        elif accident == "remove":
            del content[start:end]
        else:
            content[start:start] = content[start:end]
    return bytes(content)


def _encoded(suffix: str, *args: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, f"target{suffix}")
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-v", "error", *args, str(target)]
        subprocess.run(command, check=True, timeout=60)
        return target.read_bytes()


def _wav(rate_hz: int, channels: int, data: bytes, *, bits: int = 16, tag: int = 1) -> bytes:
    frame = channels * bits // 8 & 0xFFFF
    header = struct.pack("<HHIIHH", tag, channels, rate_hz, rate_hz * frame & 0xFFFFFFFF, frame, bits)
    chunks = (
        b"WAVEfmt " + struct.pack("<I", len(header)) + header + b"data" + struct.pack("<I", len(data)) + data
    )
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def _without_audio() -> dict[str, bytes]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writer:
        writer.writestr("song.wav", _wav(16_000, 1, bytes(1 << 16)))
    files = {
        "0 bytes": b"",
        "1 byte": b"\0",
        "HTML": b"<!doctype html><html><body>Sign in</body></html>",
        "JSON": b'{"error": "no such object"}',
        "PDF": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
        "zip": archive.getvalue(),
        "PNG": _encoded(".png", *_PICTURE, "-frames:v", "1"),
        "text": b"Four score and seven years ago. " * 1000,
        "zeros": bytes(1 << 20),
        "random bytes": Random(0).randbytes(1 << 16),
        "WAV without samples": _wav(16_000, 1, b""),
    }
    for magic in (
        b"fLaC",
        b"ID3\4\0\0\0\0\0\0",
        b"OggS",
        b"RIFF\0\0\0\0WAVE",
        b"\x1aE\xdf\xa3",
        b"\0\0\0\x18ftypM4A ",
    ):
        files[f"only {magic!r}"] = magic
    return {f"no audio: {name}": content for name, content in files.items()}


def _headers() -> dict[str, bytes]:
    data = Random(0).randbytes(1 << 16)
    files = {
        "0 Hz": _wav(0, 1, data),
        "655350 Hz": _wav(655_350, 1, data),
        "4294967295 Hz": _wav(0xFFFFFFFF, 1, data),
        "0 channels": _wav(16_000, 0, data),
        "255 channels": _wav(16_000, 255, data),
        "65535 channels": _wav(16_000, 65_535, data),
        "0 bits": _wav(16_000, 1, data, bits=0),
        "65535 bits": _wav(16_000, 1, data, bits=65_535),
    }
    samples = {
        "NaN": _wav(16_000, 1, struct.pack("<f", float("nan")) * 16_000, bits=32, tag=3),
        "infinite": _wav(16_000, 1, struct.pack("<f", float("inf")) * 16_000, bits=32, tag=3),
        "1e300": _wav(16_000, 1, struct.pack("<d", 1e300) * 16_000, bits=64, tag=3),
        "every float": _wav(16_000, 1, data, bits=32, tag=3),
    }
    return {f"header: {name}": content for name, content in files.items()} | {
        f"samples: {name}": content for name, content in samples.items()
    }


def _tracks() -> dict[str, bytes]:
    picture = ("-f", "lavfi", "-i", "testsrc=size=64x64:rate=5:duration=0.2")  # one frame
    cover = (*picture, "-map", "0:a", "-map", "1:v", "-c:v", "png", "-disposition:v", "attached_pic")
    aes = ("-encryption_scheme", "cenc-aes-ctr", *_KEY)
    both = ("-map", "0:a", "-map", "1:a")
    return {
        "tracks: two of sound, MP4": _encoded(".mp4", *_NOISE, *_TONE, *both),
        "tracks: two of sound, Matroska": _encoded(".mkv", *_NOISE, *_TONE, *both),
        "tracks: cover art, MP3": _encoded(".mp3", *_NOISE, *cover),
        "tracks: cover art, M4A": _encoded(".m4a", *_NOISE, *cover),
        "tracks: film": _encoded(".mp4", *_NOISE, *_PICTURE),
        "only video: MP4": _encoded(".mp4", *_PICTURE),
        "only video: WEBM": _encoded(".webm", *_PICTURE),
        "encrypted: AAC": _encoded(".mp4", *_NOISE, *aes),
        "encrypted: Opus": _encoded(".mp4", *_NOISE, "-c:a", "libopus", *aes),
        "encrypted: PCM": _encoded(".mov", *_NOISE, "-c:a", "pcm_s16le", *aes),
    }


def playlists(trap: Trap) -> dict[str, bytes]:
    """Files that lead a player to other files and addresses: to what `trap` watches."""
    files: dict[str, str] = {}
    for kind, target in (
        ("a neighbour", trap.neighbour.name),
        ("a path", str(trap.neighbour)),
        ("a file URL", f"file://{trap.neighbour}"),
        ("a URL", trap.url),
    ):
        dash = f"""<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"
            mediaPresentationDuration="PT2S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>
            <AdaptationSet mimeType="audio/mp4"><Representation id="1" bandwidth="1">
            <BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>"""
        hls = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n{key}#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n"
        files |= {
            f"HLS of {kind}": hls.format(key="", target=target),
            f"HLS with the key in {kind}": hls.format(
                key=f'#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n', target=trap.neighbour.name
            ),
            f"M3U of {kind}": f"#EXTM3U\n{target}\n",
            f"ffconcat of {kind}": f"ffconcat version 1.0\nfile '{target}'\n",
            f"DASH of {kind}": dash,
            f"PLS of {kind}": f"[playlist]\nNumberOfEntries=1\nFile1={target}\n",
            f"SMIL of {kind}": f'<smil><body><audio src="{target}"/></body></smil>',
        }
    port = trap.url.split(":")[2].split("/")[0]
    files["SDP"] = (
        f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"
    )
    return {f"playlist: {name}": text.encode() for name, text in files.items()}
