"""Who speaks when in a file alone, as `pipeline` would find it, without recognising anything."""

import time

from serve_app.audio import Source
from serve_app.options import Options
from serve_app.request.calls import Stages
from serve_app.request.known_speakers import known_speakers
from serve_app.request.progress import ignore_progress
from serve_app.request.speaker_turns import SpeakerTurns, no_diarizer
from serve_app.request.state import RequestState
from serve_app.transcript import Transcript


async def diarize(stages: Stages, source: Source, options: Options) -> Transcript:
    """A transcript without text and language: the turns, of both kinds, and the voices if they are wanted.

    The file is not searched for speech, since the Diarizer does that itself. Raises TranscriptionError, also
    where the Diarizer fails: without speakers there is no answer.
    """
    if stages.diarize is None:
        raise no_diarizer("no request for speakers alone can be answered here", None)
    request = RequestState(stages, options, ignore_progress)
    speakers = SpeakerTurns(request)
    begun_s = time.monotonic()
    async with known_speakers(stages.load, options) as known, stages.load(options.audio_of(source)) as audio:
        async for part in audio.parts():
            request.loaded(part)
        found = await speakers.find(audio, known)
    if found is None:
        assert speakers.error is not None
        raise speakers.error
    return Transcript(
        segments=(),
        language=None,
        duration_s=request.duration_s,
        model=stages.model,
        turns=found.turns,
        warnings=tuple(request.warnings),
        timings={**request.load_timings, **request.timings.wall_s(), "total": time.monotonic() - begun_s},
        voices=found.voices if options.embeddings else None,
        exclusive_turns=found.exclusive_turns,
    )
