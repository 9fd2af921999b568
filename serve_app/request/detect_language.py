"""The language of a file alone, as `pipeline` would detect it, without recognising anything.

The file is decoded and searched only until it has as many windows of speech as vote: music, silence and
titles at its start have no say, and the rest of it costs nothing.
"""

import asyncio
import uuid
from dataclasses import dataclass

from serve_app.audio import Source
from serve_app.options import Options
from serve_app.request.calls import DetectCall, Stages, TranscribeCall
from serve_app.request.language_vote import MAX_VOTERS, LanguageVote
from serve_app.transcript import Speech, Window


@dataclass(frozen=True, slots=True)
class DetectedLanguage:
    """The language that a file's speech has voted for."""

    code: str | None  # None where no speech was found
    confidence: float  # its share of the votes: the mean probability, weighted by the length of the windows


async def detect_language(stages: Stages, source: Source, options: Options) -> DetectedLanguage:
    """Has the first windows of speech vote, for one of the option `languages` if there are any.

    Raises TranscriptionError, also for a model of English only.
    """
    stages, search = stages.using(options.model), options.speech_search(has_words=True)
    request_id = uuid.uuid4().hex
    windows: list[Window] = []
    found: Speech | None = None
    async with stages.load(options.audio_of(source)) as audio:
        async for part in audio.parts():
            call = DetectCall(audio=audio, request_id=request_id, part=part, before=found, search=search)
            found = await stages.detect(call)
            windows += found.windows
            if len(windows) >= MAX_VOTERS:
                break
        voters = windows[:MAX_VOTERS]
        vote = LanguageVote(None)
        vote.no_more_windows(len(voters))

        async def ask(window: Window) -> None:
            call = TranscribeCall(
                audio=audio,
                request_id=request_id,
                window=window,
                decoding=options.decoding(),
                is_first=True,
                only_language=True,
            )
            async with stages.window_gate.place(request_id):
                vote.vote(window, await stages.transcribe(call))

        asking = [asyncio.create_task(ask(window)) for window in voters]
        try:
            await asyncio.gather(*asking)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
    return DetectedLanguage(vote.result(), vote.share)
