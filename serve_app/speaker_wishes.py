"""Whether a request has speakers looked for, and what it hears where there are none."""

from serve_app.errors import InvalidRequest
from serve_app.options import Options
from serve_app.transcript import StageWarning

NO_SPEAKERS_FOUND = StageWarning(
    "diarization", "no_speakers_found", "No speaker was found in the audio. Segments have no speakers."
)

_NEED_SPEAKERS = (
    *("diarize", "num_speakers", "min_speakers", "max_speakers"),
    *("known_speaker_names", "split_at_speaker_change"),
)


def wants_speakers(options: Options, *, available: bool) -> bool:
    """Whether to look for speakers; raises InvalidRequest where somebody must have them and cannot."""
    asked = next((name for name in _NEED_SPEAKERS if getattr(options, name)), None)
    if options.response_format == "rttm":
        asked = "response_format"
    if asked and not available:
        raise InvalidRequest(
            "This server has no diarization model. Start it with HF_TOKEN set to a Hugging Face token that "
            "may use pyannote/speaker-diarization-community-1, or "
            + ("ask for another response_format." if asked == "response_format" else f"leave out {asked}."),
            asked,
            "diarization_unavailable",
        )
    return available and options.diarize is not False
