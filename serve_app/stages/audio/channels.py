"""One channel out of many, so that no speech is lost.

Stereo, and surround sound as films have it, is mixed by ffmpeg as whisperx does it, and that mix is taken
wherever it keeps the sound. Anything else is taken for the tracks of a recorder.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serve_app.audio import MAX_SPEAKER_CHANNELS
from serve_app.errors import InvalidRequest, UnusableAudio
from serve_app.transcript import SAMPLE_RATE_HZ, Samples

MAX_CHANNELS = 64  # of ffmpeg's resampler
# The layouts that ffmpeg mixes to mono well, and players know.
_FRONT = ("stereo", "downmix", "2.1", "3.0", "3.0(back)", "3.1")
_AROUND = ("4.0", "4.1", "quad", "quad(side)", "5.0", "5.0(side)", "5.1", "5.1(side)")
_FAR_AROUND = ("6.1", "6.1(back)", "7.0", "7.1", "7.1(wide)", "7.1(wide-side)")
MIXED_LAYOUTS = frozenset((*_FRONT, *_AROUND, *_FAR_AROUND))
BLOCK = SAMPLE_RATE_HZ // 4
SILENCE_DBFS = -80.0  # whether the mix keeps quieter sound does not matter
_Levels = npt.NDArray[np.float64]


def filter_graph(stream: int, layout: str) -> str:
    """ffmpeg's filters from a stream to [out], at 16 kHz: its mix, that and the channels, or the channels."""
    # s16, not float: ffmpeg's float downmix is 3 dB louder than whisperx's.
    mix = f"aresample={SAMPLE_RATE_HZ}:osf=s16:ochl=mono"
    if layout == "mono":
        return f"[0:{stream}]{mix}[out]"
    if layout not in MIXED_LAYOUTS:
        count = re.match(r"(\d+) channels", layout)
        if count and int(count[1]) > MAX_CHANNELS:
            raise UnusableAudio(f"The sound track has {layout}; send at most {MAX_CHANNELS} in a file.")
        return f"[0:{stream}]aresample={SAMPLE_RATE_HZ}:osf=s16[out]"
    # The layout is named because a broadcast may change its own. amerge puts the mix first only if it is
    # labelled as a channel that the layout has, too.
    return (
        f"[0:{stream}]asplit[a][b];[a]{mix},channelmap=FC-FL[mix];"
        f"[b]aresample={SAMPLE_RATE_HZ}:osf=s16:ochl={layout}[channels];[mix][channels]amerge[out]"
    )


def filter_of_channels(stream: int, layout: str) -> str:
    """ffmpeg's filters from a stream to [out], at 16 kHz, with all of its channels as they are."""
    many = re.match(r"(\d+) channels", layout)
    refuse_channels(int(many[1]) if many else MAX_SPEAKER_CHANNELS)
    named = f":ochl={layout}" if layout in MIXED_LAYOUTS else ""
    return f"[0:{stream}]aresample={SAMPLE_RATE_HZ}:osf=s16{named}[out]"


def refuse_channels(count: int) -> None:
    """Raises InvalidRequest for a number of channels of which none can be a speaker."""
    if not 2 <= count <= MAX_SPEAKER_CHANNELS:
        found = f"the sound track has {count} channel{'s' if count > 1 else ''}"
        message = f"channels: {found}; speakers needs 2 to {MAX_SPEAKER_CHANNELS}, so leave it out."
        raise InvalidRequest(message, "channels")


def apart(interleaved: Samples) -> Samples:
    """The channels one after the other: a row for each."""
    return _read_only(np.ascontiguousarray(interleaved.T))


def keep_sound(interleaved: Samples, layout: str) -> tuple[Samples, bool]:
    """One channel out of what `filter_graph` gives, and whether it is another mix than ffmpeg's."""
    channels = interleaved.T
    if len(channels) == 1:
        return interleaved[:, 0], False
    if layout not in MIXED_LAYOUTS:
        return _mix_by_level(channels, [_levels(channel) for channel in channels]), True
    mix, channels = channels[0], channels[1:]
    levels = [_levels(channel) for channel in channels]
    if not _loses_sound(_levels(mix), levels):
        return _read_only(mix), False
    return _mix_by_level(channels, levels), True


def _levels(channel: Samples) -> _Levels:
    """The power of each block, with little of what is below speech: rumble and hum are not missed."""
    emphasised = np.diff(channel.astype(np.float32), prepend=np.float32(channel[:1]))
    emphasised.resize(-(-len(channel) // BLOCK) * BLOCK, refcheck=False)
    levels: _Levels = np.mean(np.square(emphasised.reshape(-1, BLOCK), dtype=np.float64), axis=1)
    return levels


def _loses_sound(mix: _Levels, channels: Sequence[_Levels]) -> bool:
    """Whether for a second the mix is weaker than half of what one channel brings to an even mix."""
    loudest = np.max(channels, axis=0)
    is_loud = loudest > max(loudest.max() / 1000, (32768 * 10 ** (SILENCE_DBFS / 20)) ** 2)
    is_lost = is_loud & (mix < loudest / (2 * len(channels)) ** 2)
    second = min(SAMPLE_RATE_HZ // BLOCK, len(is_lost))
    return bool(np.convolve(is_lost, np.ones(second, int)).max() == second)


def _mix_by_level(channels: Sequence[Samples] | Samples, levels: Sequence[_Levels]) -> Samples:
    """Weights each channel by its share of the sound above its own noise.

    A channel that cancels the loudest one is left out for as long as it does. It is not turned over: in films
    whose surround sound is stored like that, this would cancel the voices in the middle instead.
    """
    above_noise = np.array([level - 0.99 * np.percentile(level, 10) for level in levels]).clip(min=1e-3)
    loudest = channels[int(np.argmax(above_noise.sum(axis=1)))].astype(np.float32)
    above_noise[[_correlation(channel.astype(np.float32), loudest) < -0.5 for channel in channels]] = 0.0
    shares = above_noise / above_noise.sum(axis=0)
    count = len(loudest)
    middles = (np.arange(shares.shape[1]) + 0.5) * BLOCK
    mixed = np.zeros(count, np.float32)
    for channel, share in zip(channels, shares, strict=True):
        weights = np.interp(np.arange(count), middles, share).astype(np.float32)
        mixed += channel.astype(np.float32) * weights
    return _read_only(np.clip(np.rint(mixed), -32768, 32767))


def _read_only(samples: npt.NDArray[Any]) -> Samples:
    contiguous = samples.astype(np.int16)
    contiguous.flags.writeable = False
    return contiguous


def _correlation(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> _Levels:
    """Of each block, between -1 and 1."""
    starts = np.arange(0, len(a), BLOCK)
    power_of_a, power_of_b, product = (
        np.add.reduceat(values, starts, dtype=np.float64) for values in (a * a, b * b, a * b)
    )
    correlation: _Levels = product / np.sqrt(power_of_a * power_of_b).clip(min=1.0)
    return correlation
