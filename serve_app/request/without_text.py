"""The language, the speakers or the speech of a file alone, as `pipeline` would find them, without a text."""

import asyncio
import time
import uuid
from dataclasses import dataclass, replace

from serve_app.audio import Source
from serve_app.options import Options
from serve_app.request.calls import Stages, TranscribeCall
from serve_app.request.file_times import moved_window
from serve_app.request.known_speakers import known_speakers
from serve_app.request.language_vote import MAX_VOTERS, LanguageVote
from serve_app.request.progress import ignore_progress
from serve_app.request.speaker_turns import SpeakerTurns, no_diarizer
from serve_app.request.state import RequestState
from serve_app.transcript import StageWarning, Transcript, Window


@dataclass(frozen=True, slots=True)
class DetectedLanguage:
    """The language that a file's speech has voted for."""

    code: str | None  # None where no speech was found
    confidence: float  # its share of the votes: the mean probability, weighted by the length of the windows


@dataclass(frozen=True, slots=True)
class DetectedSpeech:
    """The speech of one file."""

    segments: tuple[Window, ...]  # in order, with a pause between any two
    warnings: tuple[StageWarning, ...]  # about the file


async def detect_language(stages: Stages, source: Source, options: Options) -> DetectedLanguage:
    """Has the first windows of speech vote, for one of the option `languages` if there are any.

    The file is decoded and searched only until it has as many windows of speech as vote: music, silence and
    titles at its start have no say, and the rest of it costs nothing. Raises TranscriptionError, also for a
    model of English only.
    """
    stages, search = stages.using(options.model), options.speech_search(has_words=True)
    request_id = uuid.uuid4().hex
    windows: list[Window] = []
    async with stages.load(options.audio_of(source)) as audio:
        async for _, found in stages.search(audio, request_id, search):
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


async def detect_speech(stages: Stages, source: Source, options: Options) -> DetectedSpeech:
    """Searches part after part, as the file is decoded. Raises TranscriptionError."""
    search, begin_s = options.speech_search(has_words=True), options.start_s or 0.0
    segments: list[Window] = []
    warnings: list[StageWarning] = []
    async with stages.load(options.audio_of(source)) as audio:
        async for part, found in stages.search(audio, uuid.uuid4().hex, search):
            warnings.extend(part.warnings)
            for segment in found.segments:
                append_or_join(segments, moved_window(segment, begin_s))
    return DetectedSpeech(tuple(segments), tuple(warnings))


def append_or_join(segments: list[Window], segment: Window) -> None:
    """Adds a segment, to the last one where that ends no sooner than this begins.

    The detector cuts speech without a pause where it grows too long for the recogniser.
    """
    if segments and segment.start_s <= segments[-1].end_s:
        segments[-1] = replace(segments[-1], end_s=max(segments[-1].end_s, segment.end_s))
    else:
        segments.append(segment)
