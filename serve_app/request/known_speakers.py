"""Speakers whose voices the caller knows: each name comes with a clip, which is loaded like the file itself.

A clip is as untrusted as any upload: it is decoded in the loader's sandbox. An error about a clip names
`known_speaker_references` and the clip's number, counted from 0.
"""

import asyncio
import io
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

from serve_app.audio import Source
from serve_app.errors import AudioTooLong, TranscriptionError
from serve_app.options import Options
from serve_app.spool import DATA_URL, decode_base64
from serve_app.stages.diarization.diarizer import REFERENCES, reference_error
from serve_app.transcript import Diarization, KnownSpeaker, StageWarning

MIN_CLIP_S, MAX_CLIP_S = 2.0, 10.0
TOLERANCE_S = 0.1  # encoders add some samples at the ends, or cut some off


@asynccontextmanager
async def known_speakers(
    load: Callable[[Source], AbstractAsyncContextManager[Any]], options: Options
) -> AsyncIterator[tuple[KnownSpeaker, ...]]:
    """The named speakers, each with what `load` gives for the clip: it may still be decoding.

    Raises InvalidRequest for a reference that is not a base64 data: URL.
    """
    clips = [
        await asyncio.to_thread(reference_bytes, reference, number)
        for number, reference in enumerate(options.known_speaker_references)
    ]
    sources = [Source(file=io.BytesIO(clip), max_audio_s=MAX_CLIP_S + TOLERANCE_S) for clip in clips]
    async with AsyncExitStack() as loading:
        loaded = [await loading.enter_async_context(load(source)) for source in sources]
        yield tuple(map(KnownSpeaker, options.known_speaker_names, loaded))


def reference_bytes(url: str, number: int) -> bytes:
    """The file in a base64 data: URL; raises InvalidRequest for anything else."""
    if not DATA_URL.match(url):  # its media type is not looked at: the decoder finds out what the bytes are
        raise reference_error(number, "send a data: URL with base64, such as data:audio/wav;base64,UklGR...")
    clip = io.BytesIO()
    try:
        decode_base64(url, clip.write)
    except ValueError as error:
        raise reference_error(number, f"not valid base64: {error}") from None
    return clip.getvalue()


async def check_clips(known: Sequence[KnownSpeaker]) -> None:
    """Waits until all clips are decoded; any error about one is raised as an error of this reference."""
    for number, speaker in enumerate(known):
        try:
            end_s: float = [part.end_s async for part in speaker.clip.parts()][-1]
        except AudioTooLong:
            end_s = math.inf
        except TranscriptionError as error:
            raise type(error)(f"{REFERENCES}[{number}]: {error.message}", REFERENCES, error.code) from None
        if not MIN_CLIP_S - TOLERANCE_S <= end_s < math.inf:
            what = f"send a clip of {MIN_CLIP_S:g} to {MAX_CLIP_S:g} s in which the speaker speaks alone"
            raise reference_error(number, what, "reference_length")


def not_heard(known: Sequence[KnownSpeaker], diarization: Diarization) -> list[StageWarning]:
    """One warning for each known speaker who has no turn."""
    heard = {turn.speaker for turn in diarization.turns}
    message = "The voice of {!r} was not heard; a longer or clearer reference may help.".format
    missing = [speaker.name for speaker in known if speaker.name not in heard]
    return [StageWarning("diarization", "known_speaker_not_found", message(name)) for name in missing]
