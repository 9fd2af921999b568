"""What telephone exchanges record: each codec in the files that they write, and without a header."""

import asyncio
import random

import pytest
from decoding import Decoded, decoded
from sounds import encode, tone

from serve_app.audio import TELEPHONE_RATES_HZ, Encoding, RawAudio

RATE_HZ = 8_000
NARROW = ("-ar", "8000", "-ac", "1")
# Codecs that the build encodes: the file's ending, ffmpeg's arguments.
FILES = {
    "G.711 mu-law": (".wav", (*NARROW, "-c:a", "pcm_mulaw")),
    "G.711 A-law": (".wav", (*NARROW, "-c:a", "pcm_alaw")),
    "G.711 in AU": (".au", (*NARROW, "-c:a", "pcm_mulaw")),
    "G.722": (".wav", ("-ar", "16000", "-ac", "1", "-c:a", "g722")),
    "G.723.1": (".wav", (*NARROW, "-c:a", "g723_1", "-b:a", "6300")),
    "G.726, 32 kbit/s": (".wav", (*NARROW, "-c:a", "g726")),
    "G.726, 16 kbit/s": (".wav", (*NARROW, "-c:a", "g726", "-code_size", "2")),
    "IMA ADPCM": (".wav", (*NARROW, "-c:a", "adpcm_ima_wav")),
    "AMR-NB": (".amr", NARROW),
    "AMR-NB of a telephone": (".3gp", (*NARROW, "-c:a", "libopencore_amrnb")),
    "Opus, 8 kHz": (".opus", (*NARROW, "-c:a", "libopus", "-b:a", "12k", "-application", "voip")),
    "Opus in WebM": (".webm", (*NARROW, "-c:a", "libopus", "-b:a", "12k")),
}
# Frames of 20 ms of codecs that it only decodes: a head, and the bytes that begin each frame, in a frame.
FRAMES = {
    "GSM": (b"", b"\xd8", 33),
    "AMR-WB": (b"#!AMR-WB\n", b"\x44", 61),
}


def heard(content: bytes, raw: RawAudio | None = None) -> Decoded:
    return asyncio.run(decoded(content, raw=raw))


@pytest.mark.parametrize("codec", FILES)
def test_a_call_in_a_file(codec: str) -> None:
    """It is as long as it was, its tone is heard all the time, and nothing is warned of."""
    suffix, args = FILES[codec]
    audio = heard(encode(tone(2.0, sample_rate_hz=RATE_HZ), RATE_HZ, suffix, *args))
    assert audio.duration_s == pytest.approx(2.0, abs=0.1)
    assert audio.hears(440) == pytest.approx((0.0, 2.0), abs=0.1)
    assert audio.codes == []


@pytest.mark.parametrize("codec", FRAMES)
def test_frames_that_only_others_encode(codec: str) -> None:
    """Two seconds of noise, made of random bits in valid frames."""
    head, begin, frame_bytes = FRAMES[codec]
    bits = random.Random(0)
    frames = (begin + bits.randbytes(frame_bytes - len(begin)) for _ in range(100))
    audio = heard(head + b"".join(frames))
    assert audio.duration_s == pytest.approx(2.0, abs=0.05)
    assert audio.level(0.1, 1.9) > 100


@pytest.mark.parametrize(("encoding", "codec"), [("g722", "g722"), ("g726", "g726"), ("g726le", "g726le")])
def test_a_codec_without_a_header(encoding: Encoding, codec: str) -> None:
    """As Asterisk and RTP recorders write it: the request says what it is."""
    rate_hz = TELEPHONE_RATES_HZ[encoding]
    sound = tone(2.0, sample_rate_hz=rate_hz)
    body = encode(sound, rate_hz, f".{encoding}", "-c:a", codec, "-f", "data", "-map", "0:a")
    audio = heard(body, RawAudio(encoding, rate_hz))
    assert audio.duration_s == pytest.approx(2.0, abs=0.05)
    assert audio.hears(440) == pytest.approx((0.0, 2.0), abs=0.1)


def test_g729_without_a_header() -> None:
    """Ten bytes are ten milliseconds."""
    audio = heard(random.Random(0).randbytes(10 * 200), RawAudio("g729", 8_000))
    assert audio.duration_s == pytest.approx(2.0, abs=0.05)
    assert audio.level(0.1, 1.9) > 100


@pytest.mark.parametrize(("encoding", "codec"), [("mulaw", "pcm_mulaw"), ("alaw", "pcm_alaw")])
def test_g711_without_a_header(encoding: Encoding, codec: str) -> None:
    """A byte for each sample, here of two channels."""
    args = ("-ac", "2", "-c:a", codec, "-f", encoding)
    body = encode(tone(2.0, sample_rate_hz=RATE_HZ), RATE_HZ, f".{encoding}", *args)
    audio = heard(body, RawAudio(encoding, RATE_HZ, 2))
    assert audio.duration_s == pytest.approx(2.0, abs=0.01)
    assert audio.hears(440) == pytest.approx((0.0, 2.0), abs=0.1)
