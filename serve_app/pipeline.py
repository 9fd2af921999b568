"""The story of one request, top to bottom: audio, speech, text, word times, speakers.

Windows are transcribed and aligned side by side, each as soon as it can be, and diarization of the
whole file runs beside them. Stages are plain async callables: deployment handles in the graph,
coroutines in a test. `audio` is opaque here: in the graph it is a reference, so that the samples
never pass through the process that runs this.
"""

import asyncio
import logging
import time
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, TypeVar

from serve_app.errors import InvalidRequest, TranscriptionError
from serve_app.schemas import Options
from serve_app.stages.speakers import assign_speakers
from serve_app.transcript import (
    Diarization,
    Segment,
    Speech,
    StageWarning,
    Transcript,
    Window,
    WindowText,
)

logger = logging.getLogger("ray.serve")  # Serve's logger adds the request id to every line

LANGUAGE_VOTERS = 4  # windows that decide the language when the caller does not
UNSURE_BELOW = 0.5  # mean probability under which the detected language comes with a warning

Result = TypeVar("Result")


@dataclass(frozen=True)
class Source:
    """Where the audio comes from: a URL with fetch headers, or an open file."""

    url: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    file: BinaryIO | None = None


@dataclass(frozen=True)
class Stages:
    """The stages of the graph. Each may be called at any time from any request."""

    load: Callable[[Source], Awaitable[Any]]  # -> audio, possibly not there yet
    detect_speech: Callable[[Any, str], Awaitable[Speech]]  # audio, request id
    transcribe: Callable[
        [Any, Window, str | None, str, str], Awaitable[WindowText]
    ]  # language, task, request id
    align: Callable[[Any, Window, WindowText, str], Awaitable[tuple[Segment, ...]]]  # request id
    diarize: Callable[[Any, Options, str], Awaitable[Diarization]] | None  # None: the server has no model
    model: str
    windows_in_flight: int = 64


async def transcribe(stages: Stages, source: Source, options: Options) -> Transcript:
    """Runs one request. Raises TranscriptionError when there is no text to give.

    A failing alignment or diarization does not lose the text: it comes back with a warning.
    """
    diarize = _wants_speakers(stages, options)
    request = _Request(stages, options, uuid.uuid4().hex, asyncio.Semaphore(stages.windows_in_flight))
    begun_s = time.monotonic()
    audio = await stages.load(source)
    diarizing = asyncio.create_task(request.diarize(audio)) if diarize else None
    try:
        with request.timings.stage("speech"):
            speech = await stages.detect_speech(audio, request.id)
        request.warnings.extend(speech.warnings)
        segments, language = await request.segments(audio, speech.windows)
        diarization = await diarizing if diarizing and speech.windows else None
    finally:
        if diarizing:
            diarizing.cancel()
    if diarization is not None:
        segments = await asyncio.to_thread(assign_speakers, segments, diarization)
    return Transcript(
        segments=tuple(replace(segment, text=segment.text.strip()) for segment in segments),
        language=language,
        duration_s=speech.duration_s,
        model=stages.model,
        turns=diarization.turns if diarization else (),
        warnings=tuple(request.warnings),
        timings={**speech.timings, **request.timings.wall_s(), "total": time.monotonic() - begun_s},
    )


def _wants_speakers(stages: Stages, options: Options) -> bool:
    counts = (options.num_speakers, options.min_speakers, options.max_speakers)
    asked = options.diarize is True or any(count is not None for count in counts)
    if asked and stages.diarize is None:
        raise InvalidRequest(
            "This server has no diarization model. Start it with HF_TOKEN set to a Hugging Face token that "
            "may use pyannote/speaker-diarization-community-1, or send diarize=false.",
            "diarize",
            "diarization_unavailable",
        )
    return stages.diarize is not None and options.diarize is not False


class Timings:
    """Wall time per stage: from the first call's begin to the last call's end."""

    def __init__(self) -> None:
        self._spans: dict[str, tuple[float, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begun_s = time.monotonic()
        try:
            yield
        finally:
            first_s, _ = self._spans.get(name, (begun_s, begun_s))
            self._spans[name] = (min(first_s, begun_s), time.monotonic())

    def wall_s(self) -> dict[str, float]:
        return {name: end_s - begun_s for name, (begun_s, end_s) in self._spans.items()}


@dataclass
class _Request:
    """What the steps of one request share."""

    stages: Stages
    options: Options
    id: str
    in_flight: asyncio.Semaphore
    timings: Timings = field(default_factory=Timings)
    warnings: list[StageWarning] = field(default_factory=list)

    async def segments(
        self, audio: Any, windows: tuple[Window, ...]
    ) -> tuple[tuple[Segment, ...], str | None]:
        """All segments in order, and the language they are in (None without speech)."""
        if not windows:
            return (), None
        language, heard = await self._language(audio, windows)
        per_window = await in_parallel(
            self._window(audio, window, language, heard.get(window)) for window in windows
        )
        segments = tuple(segment for window in per_window for segment in window if segment.text.strip())
        return segments, language

    async def _language(
        self, audio: Any, windows: tuple[Window, ...]
    ) -> tuple[str, dict[Window, WindowText]]:
        """The file's language, and the windows already transcribed in it.

        One file has one language. Where the caller does not name it, the first windows are
        transcribed in the language each seems to have, and the most probable one wins.
        """
        if self.options.language is not None:
            return self.options.language, {}
        voters = windows[:LANGUAGE_VOTERS]
        texts = await in_parallel(self._transcribe(audio, window, None) for window in voters)
        votes: dict[str, float] = defaultdict(float)
        for text in texts:
            votes[text.language] += 1.0 if text.language_probability is None else text.language_probability
        language = max(votes, key=lambda code: votes[code])
        if votes[language] / len(texts) < UNSURE_BELOW:
            message = (
                f"The language was taken to be {language}, with little certainty; name it with `language`."
            )
            self.warnings.append(StageWarning("asr", "language_uncertain", message))
        pairs = zip(voters, texts, strict=True)
        return language, {window: text for window, text in pairs if text.language == language}

    async def _window(
        self, audio: Any, window: Window, language: str, text: WindowText | None
    ) -> tuple[Segment, ...]:
        if text is None:
            text = await self._transcribe(audio, window, language)
        if not text.text.strip():
            return ()
        whole = Segment(
            round(window.start_s, 3), round(window.end_s, 3), text.text, avg_logprob=text.avg_logprob
        )
        if self.options.task == "translate":
            return (whole,)  # the English words were never spoken, so there is nothing to align them to
        try:
            async with self.in_flight:
                with self.timings.stage("alignment"):
                    return await self.stages.align(audio, window, text, self.id)
        except Exception as error:  # noqa: BLE001  (whatever went wrong, the text is not lost)
            self._degrade("alignment", error, "Segments have window times and no words.")
            return (whole,)

    async def _transcribe(self, audio: Any, window: Window, language: str | None) -> WindowText:
        async with self.in_flight:
            with self.timings.stage("asr"):
                return await self.stages.transcribe(audio, window, language, self.options.task, self.id)

    async def diarize(self, audio: Any) -> Diarization | None:
        """Who speaks when, or None with a warning."""
        assert self.stages.diarize is not None
        try:
            with self.timings.stage("diarization"):
                return await self.stages.diarize(audio, self.options, self.id)
        except Exception as error:  # noqa: BLE001  (whatever went wrong, the text is not lost)
            self._degrade("diarization", error, "Segments have no speakers.")
            return None

    def _degrade(self, stage: str, error: Exception, consequence: str) -> None:
        known = isinstance(error, TranscriptionError)
        if not known:
            logger.error("%s failed", stage, exc_info=error)
        message = error.message if isinstance(error, TranscriptionError) else f"The {stage} stage failed."
        code = error.code if isinstance(error, TranscriptionError) else f"{stage}_failed"
        warning = StageWarning(stage, code, f"{message} {consequence}")
        if warning not in self.warnings:  # once, not once per window
            self.warnings.append(warning)


async def in_parallel(coroutines: Iterable[Awaitable[Result]]) -> list[Result]:
    """All results in order; the first error cancels the others and is raised once they have ended."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
