"""How much of a file's speech has come to text."""

from serve_app.transcript import StageWarning, Window

MOST_SHARE = 0.2  # of the speech may come to nothing: noise and music are often taken for speech
LEAST_S = 5.0  # of speech that came to nothing, for a warning about it


class Coverage:
    """Seconds of speech that one request's windows hold, and seconds of it in which nothing was heard."""

    def __init__(self) -> None:
        self._speech_s = 0.0
        self._silent_s = 0.0

    def heard(self, window: Window, text: str) -> None:
        length_s = window.end_s - window.start_s
        self._speech_s += length_s
        if not text.strip():
            self._silent_s += length_s

    def warning(self) -> StageWarning | None:
        """Says how much speech has no text, where that is more than noise would explain."""
        if self._silent_s < LEAST_S or self._silent_s < MOST_SHARE * self._speech_s:
            return None
        return StageWarning(
            "asr",
            "speech_without_text",
            f"{self._silent_s:.0f} of {self._speech_s:.0f} s of speech came to no text; "
            "it may be noise, or another language than `language`.",
        )
