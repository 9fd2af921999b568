"""Who speaks when in one file, and what happens to the request where that cannot be found out."""

from serve_app.errors import DeadlineExceeded, InvalidRequest
from serve_app.formats.table import FORMATS
from serve_app.options import Options
from serve_app.options.conflicts import SPEAKER_OPTIONS
from serve_app.request.calls import Audio, DiarizeCall
from serve_app.request.file_times import moved_turns
from serve_app.request.known_speakers import check_clips, not_heard
from serve_app.request.state import RequestState
from serve_app.request.warnings import degraded, embeddings_missing
from serve_app.stages.diarization.diarizer import REFERENCES
from serve_app.transcript import Diarization, KnownSpeaker


def no_diarizer(remedy: str, param: str | None) -> InvalidRequest:
    """The error for a request that a server without diarization cannot answer."""
    message = f"This server does not tell speakers apart (its diarization.model is off): {remedy}."
    return InvalidRequest(message, param, "diarization_unavailable")


def wants_speakers(options: Options, *, available: bool) -> bool:
    """Whether a request needs diarization; raises InvalidRequest if it insists on it and there is none."""
    if options.channels == "speakers":
        return False
    form = FORMATS[options.response_format]
    demanded = next((name for name in SPEAKER_OPTIONS if getattr(options, name)), None)
    remedy = f"leave out {demanded}"
    if form.needs_speakers:
        demanded, remedy = "response_format", "ask for another response_format"
    if demanded and not available:
        raise no_diarizer(remedy, demanded)
    return available and options.diarize is not False and form.has_speakers


def diarization_timeout() -> DeadlineExceeded:
    return DeadlineExceeded(
        "Telling the speakers apart took too long; send a shorter file.", None, "diarization_timeout"
    )


class SpeakerTurns:
    """The diarization of one request."""

    def __init__(self, request: RequestState) -> None:
        self._request = request
        self.error: Exception | None = None  # why there are no speakers

    async def find(self, audio: Audio, known: tuple[KnownSpeaker, ...]) -> Diarization | None:
        """Who speaks when, or None with a warning. Raises what is wrong with a known speaker's reference."""
        request = self._request
        assert request.stages.diarize is not None
        await check_clips(known)
        bounds = request.options.speaker_bounds()
        try:
            with request.timings.stage("diarization"):
                diarization = await request.stages.diarize(
                    DiarizeCall(audio=audio, request_id=request.id, bounds=bounds, known=known)
                )
        except Exception as error:
            if getattr(error, "param", None) == REFERENCES:
                raise  # the caller must mend it; going on without speakers would hide that
            self.go_without(error)
            return None
        request.warnings.extend(not_heard(known, diarization))
        if request.options.embeddings:
            request.warn(embeddings_missing(diarization))
        return moved_turns(diarization, request.options.start_s or 0.0)

    def go_without(self, error: Exception) -> None:
        """Notes why there are no speakers; the text is not lost."""
        self.error = error
        self._request.warn(degraded("diarization", error, "Segments have no speakers."))
