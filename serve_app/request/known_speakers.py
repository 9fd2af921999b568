"""Voices that the caller knows: each name comes with a clip, which is loaded beside the file.

A clip is hostile bytes like any upload: the loader's child process decodes it, and what is wrong with it is
an error of the request that names `known_speaker_references` and the clip's number, counted from 0.
"""

import asyncio
import base64
import binascii
import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from serve_app.errors import AudioTooLong, InvalidRequest, TranscriptionError
from serve_app.options import Options
from serve_app.transcript import (
    SAMPLE_RATE_HZ,
    Audio,
    Diarization,
    KnownSpeaker,
    Samples,
    Source,
    StageWarning,
)

PARAM = "known_speaker_references"
SHORTEST_S, LONGEST_S = 2.0, 10.0
SLACK_S = 0.1  # encoders add some samples at the ends, or cut some off

# Media type and parameters may be anything: what is in the bytes is what counts.
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,", re.IGNORECASE)


@asynccontextmanager
async def known_speakers(
    load: Callable[[Source], AbstractAsyncContextManager[Any]], options: Options
) -> AsyncIterator[tuple[KnownSpeaker, ...]]:
    """The named speakers with their clips, maybe not decoded yet, while entered.

    Raises InvalidRequest for a reference that is no data: URL with base64.
    """
    clips = [
        await asyncio.to_thread(reference_bytes, reference, number)
        for number, reference in enumerate(options.known_speaker_references)
    ]
    async with AsyncExitStack() as loading:
        yield tuple(
            [
                KnownSpeaker(name, await loading.enter_async_context(load(_clip_source(clip))))
                for name, clip in zip(options.known_speaker_names, clips, strict=True)
            ]
        )


def _clip_source(clip: bytes) -> Source:
    return Source(file=io.BytesIO(clip), max_audio_s=LONGEST_S + SLACK_S)


def reference_bytes(url: str, number: int) -> bytes:
    """The file in a data: URL with base64, or InvalidRequest."""
    head = _DATA_URL.match(url)
    if head is None:
        raise _wrong(number, "send a data: URL with base64, such as data:audio/wav;base64,UklGR...")
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters that are not ASCII
        raise _wrong(number, "what comes after base64, is not valid base64") from None


async def reference_samples(audio: Awaitable[Audio], number: int) -> Samples:
    """The decoded clip. Whatever went wrong with it is raised as this reference's error."""
    try:
        samples = (await audio).samples
    except AudioTooLong:
        raise _wrong_length(number) from None
    except TranscriptionError as error:
        raise type(error)(f"{PARAM}[{number}]: {error.message}", PARAM, error.code) from None
    if len(samples) < (SHORTEST_S - SLACK_S) * SAMPLE_RATE_HZ:
        raise _wrong_length(number)
    return samples


def no_voice(number: int) -> TranscriptionError:
    """The error for a clip in which the diarization model hears nobody."""
    return _wrong(
        number, "no voice is heard in it; send a clip in which the speaker speaks alone", "no_voice"
    )


def no_voices_to_compare() -> TranscriptionError:
    """The error where the diarization model tells only when somebody speaks, not how they sound."""
    return InvalidRequest(
        f"{PARAM}: this server's diarization model gives no voices to compare; leave the known speakers out.",
        PARAM,
    )


def is_about_reference(error: Exception) -> bool:
    """Whether this is the caller's to mend, and not one more reason to go without speakers."""
    return isinstance(error, TranscriptionError) and error.param == PARAM


def without_clips(options: Options) -> Options:
    """The options without the references' megabytes of text, for where the decoded clips come beside them."""
    return options.model_copy(update={"known_speaker_references": ()})


def not_heard(known: Sequence[KnownSpeaker], diarization: Diarization) -> list[StageWarning]:
    """A warning for each known speaker that no turn carries the name of."""
    heard = {turn.speaker for turn in diarization.turns}
    return [
        StageWarning(
            "diarization",
            "known_speaker_not_found",
            f"The voice of {speaker.name!r} was not heard; a longer or clearer reference may help.",
        )
        for speaker in known
        if speaker.name not in heard
    ]


def _wrong(number: int, what: str, code: str | None = None) -> InvalidRequest:
    return InvalidRequest(f"{PARAM}[{number}]: {what}.", PARAM, code)


def _wrong_length(number: int) -> InvalidRequest:
    seconds = f"{SHORTEST_S:g} to {LONGEST_S:g} s"
    return _wrong(number, f"send a clip of {seconds} in which the speaker speaks alone", "reference_length")
