"""The story of one request, top to bottom: audio, speech, text, word times, speakers.

Windows are transcribed and aligned side by side, each as soon as it can be, and diarization of the
whole file runs beside them. Stages are plain async callables: deployment handles in the graph,
coroutines in a test. `audio` is opaque here: in the graph it is a reference, so that the samples
never pass through the process that runs this.
"""

import asyncio
import math
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace
from typing import Any

from serve_app.options import Options
from serve_app.request.assign_speakers import assign_speakers, split_at_speaker_change
from serve_app.request.coverage import coverage_warnings
from serve_app.request.degradation import Deadline, degraded, diarization_timeout
from serve_app.request.known_speakers import is_about_reference, known_speakers, not_heard, without_clips
from serve_app.request.language_vote import Language
from serve_app.request.speaker_wishes import NO_SPEAKERS_FOUND, wants_speakers
from serve_app.request.timings import Timings
from serve_app.request.window_gate import WindowGate
from serve_app.stages.asr.fallback import decoding_warnings
from serve_app.transcript import (
    Decoding,
    Diarization,
    KnownSpeaker,
    Progress,
    Segment,
    Source,
    Speech,
    StageWarning,
    Transcript,
    Window,
    WindowText,
)


@dataclass(frozen=True)
class Stages:
    """The stages of the graph. Each may be called at any time from any request."""

    load: Callable[[Source], AbstractAsyncContextManager[Any]]  # audio, maybe not there yet, while entered
    detect_speech: Callable[[Any, str], AsyncGenerator[Speech, None]]  # audio, request id -> part after part
    transcribe: Callable[
        [Any, Window, str | None, Decoding, str], Awaitable[WindowText]
    ]  # language, how, request id
    align: Callable[[Any, Window, WindowText, str], Awaitable[tuple[Segment, ...]]]  # request id
    diarize: (
        Callable[[Any, Options, str, tuple[KnownSpeaker, ...]], Awaitable[Diarization]] | None
    )  # whom the caller knows; None: the server has no model
    model: str
    window_gate: WindowGate  # shared by all requests


def unheard(progress: Progress) -> None:
    """For callers who only want the transcript."""


async def transcribe(
    stages: Stages,
    source: Source,
    options: Options,
    report: Callable[[Progress], None] = unheard,
    limit_s: float = math.inf,
) -> Transcript:
    """Runs one request and tells `report` of every window that is done.

    Its caller ends it after `limit_s`: shortly before, a text that is there goes without its speakers.
    Raises TranscriptionError when there is no text to give, or a known speaker's reference is of no use. A
    failing alignment or diarization does not lose the text: it comes back with a warning.
    """
    diarize = wants_speakers(options, available=stages.diarize is not None)
    request = _Request(stages, options, report)
    begun_s = time.monotonic()
    deadline = Deadline(limit_s)
    async with known_speakers(stages.load, options) as known, stages.load(source) as audio:
        recognising = asyncio.create_task(request.segments(audio))
        diarizing = asyncio.create_task(request.diarize(audio, known)) if diarize else None
        tasks: list[asyncio.Task[Any]] = [recognising, *([diarizing] if diarizing else [])]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if diarizing and diarizing.done():
                diarizing.result()  # a reference of no use is known long before the text
            segments = await recognising
            diarization = None
            if diarizing and (request.windows_found or known):
                if await deadline.comes_in_time(diarizing):
                    diarization = diarizing.result()
                else:
                    request.without_speakers(diarization_timeout())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    if options.response_format == "rttm" and request.windows_found and request.diarization_error:
        raise request.diarization_error  # speakers are all that this caller wants
    if diarization is not None:
        segments = await asyncio.to_thread(assign_speakers, segments, diarization)
        if any(segment.speaker is None for segment in segments):
            request.warn(NO_SPEAKERS_FOUND)
        if options.split_at_speaker_change is not False:
            segments = await asyncio.to_thread(split_at_speaker_change, segments)
    return Transcript(
        segments=segments,
        language=request.language.result() if request.windows_found else None,
        duration_s=request.duration_s,
        model=stages.model,
        turns=diarization.turns if diarization else (),
        warnings=tuple(request.warnings),
        timings={**request.load_timings, **request.timings.wall_s(), "total": time.monotonic() - begun_s},
    )


class _Request:
    """What the steps of one request share."""

    def __init__(self, stages: Stages, options: Options, report: Callable[[Progress], None]) -> None:
        self.stages = stages
        self.options = options
        self.decoding = Decoding(options.task, options.initial_prompt, options.hotwords, options.temperature)
        self.id = uuid.uuid4().hex
        self.report = report
        self.timings = Timings()
        self.load_timings: dict[str, float] = {}
        self.warnings: list[StageWarning] = []
        self.diarization_error: Exception | None = None
        self.duration_s = 0.0
        self.windows_found = 0
        self.all_found = False
        self.language = Language(options.language)
        self.done: dict[int, tuple[Segment, ...]] = {}  # window's number -> its segments
        self.heard: dict[int, tuple[Window, WindowText]] = {}
        self.reported = 0  # so many windows, from the first

    async def segments(self, audio: Any) -> tuple[Segment, ...]:
        """All segments in order. Windows are worked on side by side, from the first on, as they are found."""
        windows: list[asyncio.Task[None]] = []
        failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        search = asyncio.create_task(self._search(audio, windows, failed))
        try:
            watched: set[asyncio.Future[Any]] = {search, failed}
            await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
            if failed.done():
                raise failed.result()
            await search
            await asyncio.gather(*windows)
        finally:
            for task in (search, *windows):
                task.cancel()
            await asyncio.gather(search, *windows, return_exceptions=True)
        heard = [self.heard[number] for number in sorted(self.heard)]
        self.warnings += [*decoding_warnings(heard), *coverage_warnings(heard)]
        return tuple(segment for number in sorted(self.done) for segment in self.done[number])

    async def _search(
        self, audio: Any, windows: list[asyncio.Task[None]], failed: asyncio.Future[BaseException]
    ) -> None:
        """Follows the search for speech and starts a task for every window; `failed` gets the first error."""

        def note_error(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and not failed.done() and (error := task.exception()):
                failed.set_result(error)

        with self.timings.stage("speech"):
            async with aclosing(self.stages.detect_speech(audio, self.id)) as parts:
                async for part in parts:
                    self.duration_s = part.duration_s
                    self.load_timings |= part.timings
                    self.warnings.extend(part.warnings)
                    for window in part.windows:
                        task = asyncio.create_task(self._window(audio, window, self.windows_found))
                        task.add_done_callback(note_error)
                        windows.append(task)
                        self.windows_found += 1
        self.all_found = True
        self.warn(self.language.no_more_windows(self.windows_found))

    async def _window(self, audio: Any, window: Window, number: int) -> None:
        text = None
        if self.language.asks(number):
            async with self.stages.window_gate.place(self.id):
                text = await self._transcribe(audio, window, None)
            self.warn(self.language.vote(text))
        language = await self.language.decided()
        async with self.stages.window_gate.place(self.id):
            if text is None or text.language != language:
                text = await self._transcribe(audio, window, language)
            self.heard[number] = window, text
            segments = await self._align(audio, window, text)
        self.done[number] = tuple(
            replace(segment, text=said, window=window, heard=text)
            for segment in segments
            if (said := segment.text.strip())
        )
        self._report()

    async def _transcribe(self, audio: Any, window: Window, language: str | None) -> WindowText:
        with self.timings.stage("asr"):
            return await self.stages.transcribe(audio, window, language, self.decoding, self.id)

    async def _align(self, audio: Any, window: Window, text: WindowText) -> tuple[Segment, ...]:
        if not text.text.strip():
            return ()
        whole = Segment(
            round(window.start_s, 3), round(window.end_s, 3), text.text, avg_logprob=text.avg_logprob
        )
        if self.options.task == "translate":
            return (whole,)  # the English words were never spoken, so there is nothing to align them to
        try:
            with self.timings.stage("alignment"):
                return await self.stages.align(audio, window, text, self.id)
        except Exception as error:  # noqa: BLE001  (whatever went wrong, the text is not lost)
            self.warn(degraded("alignment", error, "Segments have window times and no words."))
            return (whole,)

    def _report(self) -> None:
        """Hands on what is final: the segments of all windows up to the first one still being worked on."""
        segments: list[Segment] = []
        while self.reported in self.done:
            segments += self.done[self.reported]
            self.reported += 1
        self.report(Progress(len(self.done), self.windows_found, self.all_found, tuple(segments)))

    async def diarize(self, audio: Any, known: tuple[KnownSpeaker, ...]) -> Diarization | None:
        """Who speaks when, or None with a warning. Raises what is wrong with a known speaker's reference."""
        assert self.stages.diarize is not None
        try:
            with self.timings.stage("diarization"):
                diarization = await self.stages.diarize(audio, without_clips(self.options), self.id, known)
        except Exception as error:  # whatever else went wrong, the text is not lost
            if is_about_reference(error):
                raise
            self.without_speakers(error)
            return None
        self.warnings.extend(not_heard(known, diarization))
        return diarization

    def without_speakers(self, error: Exception) -> None:
        self.diarization_error = error
        self.warn(degraded("diarization", error, "Segments have no speakers."))

    def warn(self, warning: StageWarning | None) -> None:
        if warning is not None and warning not in self.warnings:  # once, not once per window
            self.warnings.append(warning)
