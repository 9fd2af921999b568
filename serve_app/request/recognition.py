"""The text of one file, or of a channel of it: speech, windows, their texts and the times of their words.

Windows are transcribed and aligned side by side, each as soon as it can be.
"""

import asyncio
import math
from dataclasses import replace
from typing import Any

from serve_app.request.calls import AlignCall, Audio, TranscribeCall
from serve_app.request.file_times import moved_segment, moved_window
from serve_app.request.language_vote import LanguageVote, language_shares
from serve_app.request.progress import Report
from serve_app.request.segment_length import shortened
from serve_app.request.state import RequestState
from serve_app.request.warnings import CONFIDENCE_MISSING, degraded
from serve_app.request.word_confidence import with_confidence
from serve_app.transcript import Progress, Segment, Window, WindowText

# Why a language may have no wav2vec2 model: nothing to warn about where attention gives the times.
NO_ALIGNER_YET = ("alignment_unavailable", "alignment_downloading")


def speaker_of(channel: int) -> str:
    """The speaker whom a channel has, named as diarization names them."""
    return f"SPEAKER_{channel:02d}"


def spoken_by(segment: Segment, speaker: str | None) -> Segment:
    """The segment and its words with this speaker, if there is one."""
    if speaker is None:
        return segment
    words = tuple(replace(word, speaker=speaker) for word in segment.words)
    return replace(segment, speaker=speaker, words=words)


class Recognition:
    """The windows of one file, from the search for speech to their segments.

    With `channel` it recognises that channel alone, names its speaker, and reports to `report`. Stages count
    times from where decoding begins, callers from the start of the file.
    """

    def __init__(
        self, request: RequestState, channel: int | None = None, report: Report | None = None
    ) -> None:
        self.request = request
        self._channel, self._on_progress = channel, report or request.report
        self._speaker = None if channel is None else speaker_of(channel)
        self._begin_s = request.options.start_s or 0.0
        self.final_until_s = 0.0  # no segment that is still to be reported starts before
        self.windows_found, self.all_found = 0, False
        stages, self.wants_words = request.stages, request.options.wants_words()
        has_words = self.wants_words and (stages.attention or stages.align is not None)
        self.search = request.options.speech_search(has_words=has_words)
        each_its_own = request.options.decoding().own_languages
        self.language = LanguageVote(request.options.named_language(), each_its_own=each_its_own)
        self.done: dict[int, tuple[Segment, ...]] = {}  # number of the window -> its segments
        self._texts: dict[int, tuple[Window, WindowText]] = {}
        self.windows_reported = 0

    @property
    def texts(self) -> list[tuple[Window, WindowText]]:
        """The windows and their texts, in order."""
        return [self._texts[number] for number in sorted(self._texts)]

    @property
    def spoken_language(self) -> str | None:
        """The language of the text, or of most of it; None where there is no speech."""
        if not self.windows_found:
            return None
        return self.language.result() or next(iter(language_shares(self._all_done())), None)

    @property
    def speech_s(self) -> float:
        """Seconds of speech that came to a text."""
        return sum(window.end_s - window.start_s for window, text in self.texts if text.text.strip())

    async def segments(self, audio: Audio) -> tuple[Segment, ...]:
        """All segments in order; windows are worked on side by side as soon as they are found."""
        try:
            async with asyncio.TaskGroup() as windows:
                await self._search(audio, windows)
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # the others are of the same request
        if len(self.done) < self.windows_found:
            raise RuntimeError("a window ended without its text")  # nothing is lost silently
        self.final_until_s = math.inf
        return self._all_done()

    async def _search(self, audio: Audio, windows: asyncio.TaskGroup) -> None:
        """Starts a task for each window of speech as it is found."""
        request = self.request
        with request.timings.stage("speech"):
            async for part, found in request.stages.search(audio, request.id, self.search, self._channel):
                request.loaded(part)
                for window in found.windows:
                    windows.create_task(self._window(audio, window, self.windows_found))
                    self.windows_found += 1
        self.all_found = True
        self.request.warn(self.language.no_more_windows(self.windows_found))

    async def _window(self, audio: Audio, window: Window, number: int) -> None:
        text = None
        if self.language.is_voter(number):
            async with self.request.stages.window_gate.place(self.request.id):
                text = await self._transcribe(audio, window, None, is_first=True)
            self.request.warn(self.language.vote(window, text))
        language = await self.language.decided()
        async with self.request.stages.window_gate.place(self.request.id):
            if text is None or not self.language.fits(text):
                text = await self._transcribe(audio, window, language, is_first=number == 0)
            tokens = text.tokens if self.request.options.logprobs else ()
            in_file = moved_window(window, self._begin_s)
            self._texts[number] = in_file, replace(text, sentences=(), tokens=tokens)
            segments = await self._align(audio, window, text, is_first=number == 0)
        if self.request.options.confidence and text.text.strip():
            self.request.warn(None if text.tokens else CONFIDENCE_MISSING)
            segments = with_confidence(segments, text)
        about: dict[str, Any] = {"window": in_file, "source_text": replace(text, sentences=(), tokens=())}
        found = tuple(
            replace(spoken_by(moved_segment(segment, self._begin_s), self._speaker), text=said, **about)
            for segment in segments
            if (said := segment.text.strip())
        )
        longest_s = self.request.options.max_segment_s
        self.done[number] = found if longest_s is None else shortened(found, longest_s)
        self._report()

    async def _transcribe(
        self, audio: Audio, window: Window, language: str | None, *, is_first: bool
    ) -> WindowText:
        call = TranscribeCall(
            audio=audio,
            request_id=self.request.id,
            channel=self._channel,
            window=window,
            decoding=self.request.options.decoding(),
            language=language,
            certain_at=self.language.certain_at,
            is_first=is_first,
            word_times=self.request.stages.attention and self.wants_words,
        )
        with self.request.timings.stage("asr"):
            return await self.request.stages.transcribe(call)

    async def _align(
        self, audio: Audio, window: Window, text: WindowText, *, is_first: bool
    ) -> tuple[Segment, ...]:
        if not text.text.strip():
            return ()
        start_s, end_s = round(window.start_s, 3), round(window.end_s, 3)
        segments = text.sentences or (Segment(start_s, end_s, text.text, avg_logprob=text.avg_logprob),)
        is_aligned = self.wants_words and text.language in self.request.stages.aligner_languages
        if self.request.stages.align is None or not is_aligned:
            return segments
        call = AlignCall(
            audio=audio,
            request_id=self.request.id,
            channel=self._channel,
            window=window,
            text=text,
            is_first=is_first,
            has_chars=self.request.options.char_timestamps,
        )
        try:
            with self.request.timings.stage("alignment"):
                aligned = await self.request.stages.align(call)
            # A text with more letters than the audio has frames comes back without words.
            return aligned if any(segment.words for segment in aligned) else segments
        except Exception as error:  # noqa: BLE001  (no error of alignment may lose the text)
            if not text.sentences:
                self.request.warn(degraded("alignment", error, "Segments have window times and no words."))
            elif getattr(error, "code", None) not in NO_ALIGNER_YET:
                self.request.warn(
                    degraded("alignment", error, "Word times are those of Whisper's attention.")
                )
            return segments

    def _all_done(self) -> tuple[Segment, ...]:
        return tuple(segment for number in sorted(self.done) for segment in self.done[number])

    def _report(self) -> None:
        """Reports what is final: the segments of all windows before the first one still being worked on."""
        segments: list[Segment] = []
        while self.windows_reported in self.done:
            segments += self.done[self.windows_reported]
            self.final_until_s = self._texts[self.windows_reported][0].end_s
            self.windows_reported += 1
        self._on_progress(Progress(len(self.done), self.windows_found, self.all_found, tuple(segments)))
