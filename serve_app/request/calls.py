"""The stages as a request calls them, and what each call says: one frozen object each.

`audio` is what the caller's `load` gave. On its way to a replica it becomes the references to the parts of
the file that the call is about (`deployments.calls`).
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from serve_app.audio import AudioInfo, Source
from serve_app.languages import LANGUAGES
from serve_app.options.validation import conflict
from serve_app.request.admission import WindowGate
from serve_app.stage_requests import Decoding, SpeechSearch
from serve_app.transcript import Diarization, KnownSpeaker, Segment, SpeakerBounds, Speech, Window, WindowText


class Audio(Protocol):
    """What `load` gives: the audio of one file, maybe not decoded yet."""

    def parts(self) -> AsyncGenerator[AudioInfo]:
        """Gives each part as it is decoded; raises what is wrong with the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCall:
    """What every call says."""

    audio: Any
    request_id: str
    channel: int | None = None  # that it is about, where channels are apart
    runs_alone: bool = False  # in a batch of its own: the calls before it killed their replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectCall(StageCall):
    """Search one more part of a file for speech."""

    part: AudioInfo
    before: Speech | None = None  # what the search of the parts before found, None for the first
    search: SpeechSearch = field(default_factory=SpeechSearch)


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscribeCall(StageCall):
    """Recognise one window; `language` None asks which language it is."""

    window: Window
    decoding: Decoding
    language: str | None = None
    certain_at: float | None = None  # a detected language at least this probable replaces `language`
    is_first: bool = False  # the request's first window, or one that votes on the language: it goes first
    word_times: bool = False  # the text is to have sentences with the times of their words
    only_language: bool = False  # detect the language and recognise nothing: the text is empty


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignCall(StageCall):
    """Find the times of the words in one window."""

    window: Window
    text: WindowText
    is_first: bool = False
    has_chars: bool = False  # words are to have the times of their characters


@dataclass(frozen=True, slots=True, kw_only=True)
class DiarizeCall(StageCall):
    """Tell the speakers of a whole file apart."""

    bounds: SpeakerBounds = field(default_factory=SpeakerBounds)
    known: tuple[KnownSpeaker, ...] = ()


@dataclass(frozen=True)
class OtherModel:
    """One of several models that recognise. A slow one holds back the windows of none but its own."""

    transcribe: Callable[[TranscribeCall], Awaitable[WindowText]]
    window_gate: WindowGate  # shared by all requests


@dataclass(frozen=True)
class Stages:
    """The stages of the graph. Each may be called at any time by any request."""

    load: Callable[[Source], AbstractAsyncContextManager[Audio]]
    detect: Callable[[DetectCall], Awaitable[Speech]]
    transcribe: Callable[[TranscribeCall], Awaitable[WindowText]]
    align: Callable[[AlignCall], Awaitable[tuple[Segment, ...]]] | None  # None: there is no Aligner
    diarize: Callable[[DiarizeCall], Awaitable[Diarization]] | None  # None: the server has no model
    model: str
    window_gate: WindowGate  # shared by all requests
    aligner_languages: Collection[str] = frozenset(LANGUAGES)
    attention: bool = False  # the recogniser gives word times where the Aligner does not
    other_models: Mapping[str, OtherModel] = field(default_factory=dict)  # besides `model`, by their names

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models that recognise, the configured one first."""
        return (self.model, *self.other_models)

    def using(self, model: str | None) -> "Stages":
        """The stages with this model; None is the configured one. Raises InvalidRequest."""
        check_model(model, self.models)
        if model is None or model == self.model:
            return self
        return replace(self, model=model, **vars(self.other_models[model]))

    async def search(
        self, audio: Audio, request_id: str, search: SpeechSearch, channel: int | None = None
    ) -> AsyncGenerator[tuple[AudioInfo, Speech]]:
        """Searches part after part for speech, as the file is decoded; gives each with what was found."""
        found: Speech | None = None
        async for part in audio.parts():
            found = await self.detect(
                DetectCall(
                    audio=audio,
                    request_id=request_id,
                    channel=channel,
                    part=part,
                    before=found,
                    search=search,
                )
            )
            yield part, found


def check_model(model: str | None, names: Collection[str]) -> None:
    """Raises InvalidRequest for a name that is none of these."""
    if model is not None and model not in names:
        raise conflict("model", f"there is no {model!r} here; use one of {', '.join(names)}")
