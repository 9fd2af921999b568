"""Whether a request has speakers looked for, and what it hears where there are none."""

from serve_app.errors import InvalidRequest
from serve_app.options import SPEAKER_OPTIONS, Options
from serve_app.transcript import StageWarning

NO_SPEAKERS_FOUND = StageWarning(
    "diarization", "no_speakers_found", "No speaker was found in the audio. Segments have no speakers."
)


def wants_speakers(options: Options, *, available: bool) -> bool:
    """Whether to look for speakers; raises InvalidRequest where somebody must have them and cannot."""
    asked = next((name for name in SPEAKER_OPTIONS if getattr(options, name)), None)
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
    # What the answer has no place for is not looked for.
    return available and options.diarize is not False and options.response_format != "tsv"
