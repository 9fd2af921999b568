"""The story of one request, top to bottom: audio, speech, text, word times, speakers.

Windows are transcribed and aligned side by side, each as soon as it can be, and diarization of the whole file
runs beside them. Stages are plain async callables: calls of deployment handles in the graph, coroutines in a
test. `audio` is opaque here: in the graph it is references, so that samples never pass through this process.
"""

import asyncio
import math
import time
import uuid
from base64 import b64encode
from dataclasses import replace
from typing import Any

from serve_app.audio import Source
from serve_app.formats.table import FORMATS
from serve_app.options import Options
from serve_app.request.assign_speakers import assign_speakers, split_at_speaker_change
from serve_app.request.calls import AlignCall, Audio, DetectCall, DiarizeCall, Stages, TranscribeCall
from serve_app.request.known_speakers import check_clips, known_speakers, not_heard
from serve_app.request.language_vote import LanguageVote
from serve_app.request.progress import Report, Timings, ignore_progress
from serve_app.request.warnings import (
    NO_SPEAKERS_FOUND,
    Deadline,
    decoding_warnings,
    degraded,
    diarization_timeout,
    wants_speakers,
)
from serve_app.stages.diarization.diarizer import REFERENCES
from serve_app.transcript import (
    Diarization,
    KnownSpeaker,
    Progress,
    Segment,
    Speech,
    StageWarning,
    Transcript,
    Window,
    WindowText,
)

# Why a language may have no wav2vec2 model: nothing to warn about where attention gives the times.
NO_ALIGNER_YET = ("alignment_unavailable", "alignment_downloading")


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
                diarizing.result()  # a reference that cannot be used is known long before the text
            segments = await recognising
            diarization = None
            if diarizing and (request.windows_found or known):  # who is known and silent is warned about
                if await deadline.comes_in_time(diarizing):
                    diarization = diarizing.result()
                else:
                    request.go_without_speakers(diarization_timeout())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    speakers_are_all = FORMATS[options.response_format].needs_speakers
    if speakers_are_all and request.windows_found and request.diarization_error:
        raise request.diarization_error
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
        peaks=b64encode(request.peaks).decode(),
    )


class _Request:
    """What the steps of one request share."""

    def __init__(self, stages: Stages, options: Options, report: Report) -> None:
        self.stages = stages
        self.options = options
        self.id = uuid.uuid4().hex
        self.report = report
        self.timings = Timings()
        self.load_timings: dict[str, float] = {}
        self.warnings: list[StageWarning] = []
        self.diarization_error: Exception | None = None
        self.duration_s, self.peaks = 0.0, b""
        self.windows_found, self.all_found = 0, False
        self.language = LanguageVote(options.named_language())
        self.done: dict[int, tuple[Segment, ...]] = {}  # number of the window -> its segments
        self.texts: dict[int, tuple[Window, WindowText]] = {}
        self.windows_reported = 0

    async def segments(self, audio: Audio) -> tuple[Segment, ...]:
        """All segments in order; windows are worked on side by side as soon as they are found."""
        try:
            async with asyncio.TaskGroup() as windows:
                await self._search(audio, windows)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others are of the same request
        if len(self.done) < self.windows_found:
            raise RuntimeError("a window ended without its text")  # nothing is lost silently
        texts = [self.texts[number] for number in sorted(self.texts)]
        language, logprobs = self.language.result(), self.options.logprobs
        self.warnings += decoding_warnings(texts, language, logprobs=logprobs)
        return tuple(segment for number in sorted(self.done) for segment in self.done[number])

    async def _search(self, audio: Audio, windows: asyncio.TaskGroup) -> None:
        """Searches part after part for speech, as the file is decoded, and starts a task for each window."""
        found: Speech | None = None
        with self.timings.stage("speech"):
            async for part in audio.parts():
                self.duration_s = part.end_s
                self.peaks += part.peaks
                self.load_timings |= part.timings
                self.warnings.extend(part.warnings)
                call = DetectCall(audio=audio, request_id=self.id, part=part, before=found)
                found = await self.stages.detect(call)
                for window in found.windows:
                    windows.create_task(self._window(audio, window, self.windows_found))
                    self.windows_found += 1
        self.all_found = True
        self.warn(self.language.no_more_windows(self.windows_found))

    async def _window(self, audio: Audio, window: Window, number: int) -> None:
        text = None
        if self.language.asks(number):
            async with self.stages.window_gate.place(self.id):
                text = await self._transcribe(audio, window, None, is_first=True)
            self.warn(self.language.vote(window, text))
        language = await self.language.decided()
        async with self.stages.window_gate.place(self.id):
            if text is None or not self.language.accepts(text):
                text = await self._transcribe(audio, window, language, is_first=number == 0)
            self.texts[number] = window, replace(text, sentences=())
            segments = await self._align(audio, window, text, is_first=number == 0)
        self.done[number] = tuple(
            replace(segment, text=said, window=window, source_text=self.texts[number][1])
            for segment in segments
            if (said := segment.text.strip())
        )
        self._report()

    async def _transcribe(
        self, audio: Audio, window: Window, language: str | None, *, is_first: bool
    ) -> WindowText:
        call = TranscribeCall(
            audio=audio,
            request_id=self.id,
            window=window,
            decoding=self.options.decoding(),
            language=language,
            certain_at=self.language.certain_at,
            is_first=is_first,
            word_times=self.stages.attention and self.options.task == "transcribe",
        )
        with self.timings.stage("asr"):
            return await self.stages.transcribe(call)

    async def _align(
        self, audio: Audio, window: Window, text: WindowText, *, is_first: bool
    ) -> tuple[Segment, ...]:
        if not text.text.strip():
            return ()
        start_s, end_s = round(window.start_s, 3), round(window.end_s, 3)
        # Translated English words were never spoken, so there is nothing to align them to.
        segments = text.sentences or (Segment(start_s, end_s, text.text, avg_logprob=text.avg_logprob),)
        is_aligned = self.options.task == "transcribe" and text.language in self.stages.aligner_languages
        if self.stages.align is None or not is_aligned:
            return segments
        call = AlignCall(audio=audio, request_id=self.id, window=window, text=text, is_first=is_first)
        try:
            with self.timings.stage("alignment"):
                aligned = await self.stages.align(call)
            # A text with more letters than the audio has frames comes back without words.
            return aligned if any(segment.words for segment in aligned) else segments
        except Exception as error:  # noqa: BLE001  (no error of alignment may lose the text)
            if not text.sentences:
                self.warn(degraded("alignment", error, "Segments have window times and no words."))
            elif getattr(error, "code", None) not in NO_ALIGNER_YET:
                self.warn(degraded("alignment", error, "Word times are those of Whisper's attention."))
            return segments

    def _report(self) -> None:
        """Reports what is final: the segments of all windows before the first one still being worked on."""
        segments: list[Segment] = []
        while self.windows_reported in self.done:
            segments += self.done[self.windows_reported]
            self.windows_reported += 1
        self.report(Progress(len(self.done), self.windows_found, self.all_found, tuple(segments)))

    async def diarize(self, audio: Audio, known: tuple[KnownSpeaker, ...]) -> Diarization | None:
        """Who speaks when, or None with a warning. Raises what is wrong with a known speaker's reference."""
        assert self.stages.diarize is not None
        await check_clips(known)
        bounds = self.options.speaker_bounds()
        try:
            with self.timings.stage("diarization"):
                diarization = await self.stages.diarize(
                    DiarizeCall(audio=audio, request_id=self.id, bounds=bounds, known=known)
                )
        except Exception as error:
            if getattr(error, "param", None) == REFERENCES:
                raise  # the caller must mend it; going on without speakers would hide that
            self.go_without_speakers(error)
            return None
        self.warnings.extend(not_heard(known, diarization))
        return diarization

    def go_without_speakers(self, error: Exception) -> None:
        """Notes why there are no speakers; the text is not lost."""
        self.diarization_error = error
        self.warn(degraded("diarization", error, "Segments have no speakers."))

    def warn(self, warning: StageWarning | None) -> None:
        """Adds a warning once, not once per window."""
        if warning is not None and warning not in self.warnings:
            self.warnings.append(warning)
