"""How much of a file's speech has come to text."""

from collections.abc import Sequence

from serve_app.transcript import StageWarning, Window, WindowText

MOST_SHARE = 0.2  # of the speech may come to nothing: noise and music are often taken for speech
LEAST_S = 5.0  # of speech that came to nothing, for a warning about it


def coverage_warnings(heard: Sequence[tuple[Window, WindowText]]) -> list[StageWarning]:
    """Says how much speech has no text, where that is more than noise would explain."""
    speech_s = sum(window.end_s - window.start_s for window, _ in heard)
    silent_s = sum(window.end_s - window.start_s for window, text in heard if not text.text.strip())
    if silent_s < LEAST_S or silent_s < MOST_SHARE * speech_s:
        return []
    message = (
        f"{silent_s:.0f} of {speech_s:.0f} s of speech came to no text; it may be noise, or another language "
        "than `language`."
    )
    return [StageWarning("asr", "speech_without_text", message)]
