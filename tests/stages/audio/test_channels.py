"""Of many channels the speech is kept; ordinary stereo and surround sound are mixed as whisperx does it."""

import asyncio
import struct
from uuid import UUID

import numpy as np
import pytest
from decoding import Decoded, decoded
from sounds import Samples, encode, noise, silence, tone, wav

from serve_app.errors import UnusableAudio

PCM = UUID("00000001-0000-0010-8000-00aa00389b71").bytes_le
SPEECH = np.concatenate([np.concatenate([tone(0.5), silence(0.3)]) for _ in range(5)])  # 4 s with pauses


def masked_wav(channels: list[Samples], mask: int) -> bytes:
    """A WAV file that declares where its channels belong; 0 is nowhere."""
    data = np.stack(channels, axis=1).astype("<i2").tobytes()
    count = len(channels)
    layout = (
        struct.pack("<HHIIHHHHI", 0xFFFE, count, 16_000, 32_000 * count, 2 * count, 16, 22, 16, mask) + PCM
    )
    chunks = (
        b"WAVEfmt " + struct.pack("<I", len(layout)) + layout + b"data" + struct.pack("<I", len(data)) + data
    )
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def recorder(count: int, at: int, *, noise_amplitude: float = 0.0) -> list[Samples]:
    """Channels of which one has the speech, and the others their own noise."""
    others = [noise(4.0, amplitude=noise_amplitude, seed=seed) for seed in range(count)]
    return [SPEECH if number == at else channel for number, channel in enumerate(others)]


def signal_to_noise_db(audio: Decoded) -> float:
    """Of SPEECH: its first tone against its first pause."""
    return float(20 * np.log10(audio.level(0.1, 0.4) / audio.level(0.55, 0.75)))


@pytest.mark.parametrize("right", [-1.0, -0.8])
def test_an_inverted_channel_does_not_silence_the_other(right: float) -> None:
    """A microphone cable that was soldered wrong: mixing gives silence, the channels hold the speech."""
    audio = asyncio.run(decoded(wav(np.stack([SPEECH, (SPEECH * right).astype(np.int16)], axis=1))))
    assert audio.level(0.1, 0.4) == pytest.approx(0.3 * 32768 / np.sqrt(2), rel=0.2)
    assert audio.codes == ["channels_remixed"]
    assert "4.0 s" in audio.warnings[0].message


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".opus"])
def test_inverted_channels_of_lossy_files(suffix: str) -> None:
    """Nor does it in what phones and sites make of it."""
    content = encode(np.stack([SPEECH, -SPEECH], axis=1), 16_000, suffix)
    audio = asyncio.run(decoded(content))
    assert audio.level(0.15, 0.4) > 3000
    assert audio.codes == ["channels_remixed"]


def test_a_channel_that_is_inverted_for_a_while() -> None:
    """A cut in the middle: before and after it, the speech is as loud as ever."""
    long = np.tile(SPEECH, 2)
    right = np.concatenate([SPEECH, -SPEECH])
    audio = asyncio.run(decoded(wav(np.stack([long, right], axis=1))))
    for start_s in (0.1, 0.9, 3.3, 4.9, 7.3):
        assert audio.level(start_s, start_s + 0.3) == pytest.approx(0.3 * 32768 / np.sqrt(2), rel=0.3), (
            start_s
        )


def test_an_inverted_part_of_a_long_file() -> None:
    """Only the parts of 30 s where the mix loses sound are mixed anew; the others stay as they are."""
    left = noise(65.0)
    right = np.concatenate([left[: 32 * 16_000], -left[32 * 16_000 :]])
    audio = asyncio.run(decoded(wav(np.stack([left, right], axis=1)), max_audio_s=100.0))
    assert np.array_equal(audio.samples[: 30 * 16_000], left[: 30 * 16_000])
    assert audio.level(40.0, 41.0) == pytest.approx(audio.level(1.0, 2.0), rel=0.2)
    assert "35.0 s" in audio.warnings[0].message


def test_stereo_with_speech_on_one_side_is_mixed_as_ever() -> None:
    """Half as loud is loud enough; nothing is warned of."""
    audio = asyncio.run(decoded(wav(np.stack([SPEECH, silence(4.0)], axis=1))))
    assert audio.level(0.1, 0.4) == pytest.approx(0.15 * 32768 / np.sqrt(2), rel=0.1)
    assert audio.codes == []


def test_one_loud_moment_of_wide_stereo_is_no_reason() -> None:
    """Half a second of an effect that cancels leaves the mix as whisperx has it."""
    left = noise(4.0)
    right = left.copy()
    right[16_000:24_000] *= -1
    audio = asyncio.run(decoded(wav(np.stack([left, right], axis=1))))
    assert not audio.samples[17_000:23_000].any()
    assert audio.codes == []


@pytest.mark.parametrize("count", [3, 4, 6, 8, 9, 16, 24, 32, 64])
def test_tracks_of_a_recorder(count: int) -> None:
    """A WAV of many microphones: whichever has the speech is heard, as clear as it is there."""
    for at in {0, 3, count // 2, count - 1} & set(range(count)):
        audio = asyncio.run(decoded(wav(np.stack(recorder(count, at, noise_amplitude=0.01), axis=1))))
        assert audio.level(0.1, 0.4) == pytest.approx(0.3 * 32768 / np.sqrt(2), rel=0.2), at
        assert signal_to_noise_db(audio) > 25, at
        assert audio.codes == ["channels_remixed"]


def test_people_take_turns_at_microphones() -> None:
    """Each is heard in turn, and both when they speak at once; a microphone that only hums is left out."""
    first, second = tone(3.0, frequency_hz=600.0), tone(3.0, frequency_hz=900.0)
    hum = tone(9.0, frequency_hz=100.0, amplitude=0.5)
    one = np.concatenate([first, silence(3.0), first])
    other = np.concatenate([silence(3.0), second, second])
    rest = [noise(9.0, amplitude=0.001, seed=seed) for seed in range(5)]
    audio = asyncio.run(decoded(wav(np.stack([one, hum, other, *rest], axis=1))))
    spectrum = [np.abs(np.fft.rfft(audio.samples[s * 16_000 : (s + 1) * 16_000])) / 8000 for s in range(9)]
    assert spectrum[1][600] > 5000
    assert spectrum[4][900] > 5000
    assert min(spectrum[7][600], spectrum[7][900]) > 2000
    assert max(second[100] for second in spectrum) < 3000


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        (0x5, 2),  # front left and centre: ffmpeg refuses to mix it
        (0x30, 2),  # back left and right: the same
        (0x3, 6),  # two places for six channels
        (0x8, 1),  # low frequencies alone
        (0x2D63F, 12),  # 7.1.4
        (0xFFFF, 16),  # a recorder that names the first places there are
        (0x13F, 7),  # 6.1
    ],
)
def test_layouts_that_nobody_mixes(mask: int, count: int) -> None:
    """Whatever the file says about its places, speech in any channel is found."""
    for at in range(count):
        audio = asyncio.run(decoded(masked_wav(recorder(count, at), mask)))
        assert audio.level(0.1, 0.4) > 700, at


@pytest.mark.parametrize(("mask", "count"), [(0x3F, 6), (0xB, 3), (0x63F, 8), (0x107, 4)])
def test_a_recorder_that_calls_its_tracks_surround_sound(mask: int, count: int) -> None:
    """Speech in the channel for low frequencies, which a film's mix leaves out, is found, and warned of."""
    low = mask & 0x7
    at = bin(low).count("1") if mask & 0x8 else count - 1
    audio = asyncio.run(decoded(masked_wav(recorder(count, at), mask)))
    assert audio.level(0.1, 0.4) > 700
    assert audio.codes == (["channels_remixed"] if mask & 0x8 else [])


def test_a_film_is_mixed_for_its_dialogue() -> None:
    """The centre is louder than the sides, rumble is left out, and nothing is warned of."""
    rumble = tone(4.0, frequency_hz=40.0, amplitude=0.9)
    sides = [noise(4.0, amplitude=0.02, seed=seed) for seed in range(4)]
    film = [sides[0], sides[1], SPEECH, rumble, sides[2], sides[3]]
    audio = asyncio.run(decoded(masked_wav(film, 0x3F)))
    assert audio.level(0.1, 0.4) == pytest.approx(0.293 * 0.3 * 32768 / np.sqrt(2), rel=0.05)
    assert audio.level(0.55, 0.75) < 200
    assert audio.codes == []


def test_a_broadcast_changes_its_channels() -> None:
    """Stereo news, then a film in 5.1, then mono: all of it is heard."""
    parts = (np.stack([tone(2.0)] * 2, axis=1), np.stack([tone(2.0, frequency_hz=1000.0)] * 6, axis=1))
    last = tone(2.0, frequency_hz=3000.0)
    content = b"".join(encode(sound, 16_000, ".ac3", "-ar", "48000") for sound in (*parts, last))
    audio = asyncio.run(decoded(content))
    for number, frequency_hz in enumerate((440, 1000, 3000)):
        assert audio.hears(frequency_hz) == pytest.approx((2.0 * number, 2.0 * number + 2), abs=0.2)


def test_more_channels_than_can_be_resampled() -> None:
    """The file is not called broken: the error names the number."""
    with pytest.raises(UnusableAudio, match="65 channels; send at most 64"):
        asyncio.run(decoded(wav(np.zeros((1600, 65), np.int16))))


@pytest.mark.parametrize("speech_over_ambience", [1.0, 0.3, 0.15])
def test_voices_in_the_middle_survive_ambience_that_cancels_itself(speech_over_ambience: float) -> None:
    """Films store their surround sound so: the usual mix is rid of it, and what is taken must keep voices."""
    middle = np.concatenate([SPEECH, silence(2.0), SPEECH]).astype(np.float64) * speech_over_ambience
    around = noise(len(middle) / 16_000, amplitude=0.2, seed=1).astype(np.float64)
    left, right = ((middle + sign * around) / 2 for sign in (1, -1))
    audio = asyncio.run(decoded(wav(np.stack([left, right], axis=1).astype(np.int16))))
    spoken = middle / 2
    gain = float(audio.samples @ spoken / (spoken @ spoken))
    assert 0.7 < gain < 2.1
