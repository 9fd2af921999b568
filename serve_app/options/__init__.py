"""What a caller can choose for one request. The same names over HTTP, in forms and in Python."""

from dataclasses import replace
from typing import Any, Self

from pydantic import model_validator

from serve_app.audio import RawAudio, Selection, Source
from serve_app.formats.subtitles import SubtitleLayout
from serve_app.options import conflicts
from serve_app.options.fields import MULTIPLE, OptionFields
from serve_app.options.validation import validate_or_400
from serve_app.stage_requests import Decoding, SpeechSearch
from serve_app.transcript import SpeakerBounds

ROUNDING_S = 0.001  # a segment can be this much longer than its window
# A window takes the same time however short it is, while callers are charged by the second.
MIN_WINDOW_S = 5.0
MULTIPLE_WINDOW_S = 10.0  # a window has one language, and what is said in another one in it is lost


class Options(OptionFields):
    """What a caller can choose for one request; its parts, as the stages take them."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        conflicts.check(self)
        return self

    def audio_of(self, source: Source) -> Source:
        """The source, with what of it is wanted and how its bytes are to be read."""
        selection = Selection(self.start_s or 0.0, self.end_s, self.track, self.channels == "speakers")
        raw = source.raw
        if self.encoding:
            raw = RawAudio(self.encoding, self.sample_rate or 0, self.channel_count or 1)
        return replace(source, selection=selection, raw=raw)

    def layout(self) -> SubtitleLayout:
        """How subtitles are laid out."""
        return SubtitleLayout(
            self.max_line_width,
            self.max_line_count,
            self.highlight_words,
            speakers_overlap=self.channels == "speakers",
        )

    def decoding(self) -> Decoding:
        """How windows are decoded."""
        return Decoding(
            self.task,
            self.initial_prompt,
            self.hotwords,
            self.temperature,
            self.temperature_inc,
            self.languages,
            logprobs=self.logprobs or self.confidence,  # a word's confidence is made of its tokens'
            beam_size=self.beam_size,
            suppress_numerals=self.suppress_numerals,
            own_languages=self.language == MULTIPLE,
        )

    def speech_search(self, *, has_words: bool) -> SpeechSearch:
        """How speech is found, in shorter windows for several languages, or for segments without words.

        Of a window that is still longer than `max_segment_s`, the segments are parts.
        """
        bounds_s = [MULTIPLE_WINDOW_S] if self.language == MULTIPLE else []
        if self.max_segment_s is not None and not has_words:
            bounds_s.append(max(MIN_WINDOW_S, self.max_segment_s) - ROUNDING_S)
        window_s = min(bounds_s, default=None)
        return SpeechSearch(self.vad_onset, self.vad_offset, self.vad_min_silence_s, window_s)

    def named_language(self) -> str | None:
        """The language, where there is one only that it may be."""
        only = self.languages[0] if len(self.languages) == 1 else self.language
        return None if only == MULTIPLE else only

    @property
    def tells_languages(self) -> bool:
        """Whether the answer has the languages found, and that of each segment: they were asked about."""
        return bool(self.languages) or self.language == MULTIPLE

    def speaker_bounds(self) -> SpeakerBounds:
        """How many speakers the caller expects."""
        return SpeakerBounds(self.num_speakers, self.min_speakers, self.max_speakers)


def parse_options(fields: dict[str, Any]) -> Options:
    """Form fields or keyword arguments as options. Raises InvalidRequest naming the one that is wrong."""
    return validate_or_400(Options, fields)
