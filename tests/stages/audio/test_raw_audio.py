"""Samples without a header, which mean what their client says they are."""

import asyncio

import numpy as np
import pytest
from decoding import Decoded, decoded
from sounds import tone, wav

from serve_app.audio import ENCODINGS, Encoding, RawAudio
from serve_app.errors import EmptyAudio, InvalidRequest

TALK = tone(2.5)


def decode(body: bytes, raw: RawAudio) -> Decoded:
    return asyncio.run(decoded(body, raw=raw))


def test_samples_as_bazarr_sends_them_are_taken_as_they_are() -> None:
    """s16le, 16 kHz, mono: not one sample changes."""
    found = decode(TALK.astype("<i2").tobytes(), RawAudio())
    assert np.array_equal(found.samples, TALK)
    assert found.codes == []


@pytest.mark.parametrize(
    ("encoding", "dtype", "scale"),
    [("s16be", ">i2", 1), ("s32le", "<i4", 1 << 16), ("f32le", "<f4", 1 / (1 << 15))],
)
def test_encodings(encoding: Encoding, dtype: str, scale: float) -> None:
    """Other encodings of the same sound give the same samples."""
    body = (TALK.astype(np.float64) * scale).astype(dtype).tobytes()
    assert np.array_equal(decode(body, RawAudio(encoding)).samples, TALK)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_second_of_each_encoding_is_a_second(encoding: Encoding) -> None:
    """The number of bytes of a sample is ffmpeg's."""
    body = bytes(8_000 * 2 * ENCODINGS[encoding])
    assert decode(body, RawAudio(encoding, 8_000, 2)).duration_s == pytest.approx(1.0, abs=0.01)


def test_rate_and_channels() -> None:
    """8 kHz is resampled; of channels without a layout none is lost."""
    slow = tone(2, sample_rate_hz=8_000)
    assert decode(slow.tobytes(), RawAudio("s16le", 8_000)).hears(440) == (0, 2)
    quiet = np.zeros_like(TALK)
    four = np.stack([quiet, quiet, TALK, quiet], axis=1)
    assert decode(four.tobytes(), RawAudio(channels=4)).hears(440) == (0, 2.5)


def test_bytes_that_are_no_whole_samples_are_refused() -> None:
    """A cut file would be noise from the cut on; whisper-asr-webservice answers it with a 500."""
    with pytest.raises(InvalidRequest, match="no multiple of 2"):
        decode(TALK.tobytes()[:-1], RawAudio())
    with pytest.raises(InvalidRequest, match="no multiple of 4"):
        decode(TALK.tobytes()[:-2], RawAudio(channels=2))
    with pytest.raises(EmptyAudio):
        decode(b"", RawAudio())


def test_no_container_is_looked_for() -> None:
    """A playlist or a picture that calls itself samples is noise and opens nothing."""
    playlist = b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.ts\n#EXT-X-ENDLIST\n"
    found = decode(playlist + b"\n" * (len(playlist) % 2), RawAudio())
    assert len(found.samples) == -(-len(playlist) // 2)
    assert len(decode(wav(TALK), RawAudio()).samples) == len(TALK) + 22
