"""The story of one request, top to bottom: audio, speech, text, word times, speakers.

Windows are transcribed and aligned side by side, each as soon as it can be, and diarization of the whole file
runs beside them. Stages are plain async callables: calls of deployment handles in the graph, coroutines in a
test. `audio` is opaque here: in the graph it is references, so that samples never pass through this process.
"""

import asyncio
import math
import time
from base64 import b64encode
from typing import Any

from serve_app.audio import Source
from serve_app.formats.table import FORMATS
from serve_app.options import Options
from serve_app.request.assign_speakers import assign_speakers, split_at_speaker_change
from serve_app.request.calls import Stages
from serve_app.request.known_speakers import known_speakers
from serve_app.request.progress import Report, ignore_progress
from serve_app.request.recognition import Recognition
from serve_app.request.speaker_channels import SpeakerChannels, turns_of
from serve_app.request.speaker_turns import SpeakerTurns, diarization_timeout, wants_speakers
from serve_app.request.state import RequestDeadline, RequestState
from serve_app.request.warnings import NO_SPEAKERS_FOUND, decoding_warnings, without_chars
from serve_app.transcript import Progress, Transcript


async def transcribe(
    stages: Stages,
    source: Source,
    options: Options,
    report: Report = ignore_progress,
    limit_s: float = math.inf,
) -> Transcript:
    """Runs one request and tells `report` of every window that is done.

    The caller ends it after `limit_s`; shortly before, a text that is there goes without its speakers. Raises
    TranscriptionError when there is no text to give, or a known speaker's reference cannot be used. A failing
    alignment or diarization does not lose the text: it comes back with a warning.
    """
    stages = stages.using(options.model)
    diarize = wants_speakers(options, available=stages.diarize is not None)
    request = RequestState(stages, options, report)
    by_channel = options.channels == "speakers"
    recognition = SpeakerChannels(request) if by_channel else Recognition(request)
    speakers = SpeakerTurns(request)
    begun_s = time.monotonic()
    deadline = RequestDeadline(limit_s)
    async with known_speakers(stages.load, options) as known, stages.load(options.audio_of(source)) as audio:
        recognising = asyncio.create_task(recognition.segments(audio))
        diarizing = asyncio.create_task(speakers.find(audio, known)) if diarize else None
        tasks: list[asyncio.Task[Any]] = [recognising, *([diarizing] if diarizing else [])]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if diarizing and diarizing.done():
                diarizing.result()  # a reference that cannot be used is known long before the text
            segments = await recognising
            diarization = None
            windows = recognition.windows_found
            if diarizing and (windows or known):  # who is known and silent is warned about
                if not diarizing.done():
                    report(Progress(windows, windows, all_found=True, segments=(), stage="diarization"))
                if await deadline.comes_in_time(diarizing):
                    diarization = diarizing.result()
                else:
                    speakers.go_without(diarization_timeout())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    request.warnings += decoding_warnings(
        recognition.texts,
        recognition.spoken_language,
        logprobs=options.logprobs,
        may_mix=options.decoding().own_languages,
        languages_named=bool(options.languages),
    )
    if options.char_timestamps:
        request.warn(without_chars(segments))
    speakers_are_all = FORMATS[options.response_format].needs_speakers
    if speakers_are_all and recognition.windows_found and speakers.error:
        raise speakers.error
    if diarization is not None:
        segments = await asyncio.to_thread(assign_speakers, segments, diarization)
        if any(segment.speaker is None for segment in segments):
            request.warn(NO_SPEAKERS_FOUND)
        if options.split_at_speaker_change is not False:
            segments = await asyncio.to_thread(split_at_speaker_change, segments)
    return Transcript(
        segments=segments,
        language=recognition.spoken_language,
        duration_s=request.duration_s,
        model=stages.model,
        turns=diarization.turns if diarization else turns_of(segments if by_channel else ()),
        warnings=tuple(request.warnings),
        timings={**request.load_timings, **request.timings.wall_s(), "total": time.monotonic() - begun_s},
        peaks=b64encode(request.peaks).decode(),
        voices=diarization.voices if diarization and options.embeddings else None,
        tokens=tuple(token for _, text in recognition.texts for token in text.tokens),
    )
