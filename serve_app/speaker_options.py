"""Whether a request gets speakers."""

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


def wants_speakers(options: Options, has_model: bool) -> bool:
    """Yes where the server has a diarization model, unless the caller does not want them.

    Raises InvalidRequest for options that need a model where there is none.
    """
    asked = next((name for name in _NEED_SPEAKERS if getattr(options, name)), None)
    if options.response_format == "rttm":
        asked = "response_format"
    if asked and not has_model:
        raise InvalidRequest(
            "This server has no diarization model. Start it with HF_TOKEN set to a Hugging Face token that "
            f"may use pyannote/speaker-diarization-community-1, or leave out {asked}.",
            asked,
            "diarization_unavailable",
        )
    return has_model and options.diarize is not False
