"""When a window's text is not believed, and what is done then: openai/whisper's rules, window by window.

whisperx's batched path has none: a window whose decoder repeats one word two hundred times stays as it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from serve_app.transcript import Decoding, StageWarning, Window, WindowText

WINDOWS_NAMED = 5  # in a warning


@dataclass(frozen=True, slots=True)
class Fallback:
    """Limits of what is believed, and the temperatures to try beyond them."""

    temperatures: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)  # after 0; empty: text stays as it is
    compression_ratio_threshold: float = 2.4
    log_prob_threshold: float = -1.0
    no_speech_threshold: float = 0.6

    def schedule(self, decoding: Decoding) -> tuple[float, ...]:
        """The temperatures for a window: the request's own alone, or 0 and those of the fallback."""
        return (decoding.temperature,) if decoding.temperature else (0.0, *self.temperatures)

    def believes(self, text: WindowText) -> bool:
        """Whether there is no need to decode again: the text is good enough, or there is only silence.

        Text without a letter, such as " .", says that nothing was said. openai/whisper would try again, and
        take an invented word for likelier.
        """
        if self._is_silence(text) or not any(character.isalnum() for character in text.text):
            return True
        return not (self._repeats(text) or self._is_unlikely(text))

    def choose(self, attempts: Sequence[WindowText]) -> WindowText:
        """The last text if it is believed, else the likeliest: of those that repeat nothing, if any."""
        chosen = attempts[-1]
        if not self.believes(chosen):
            fluent = [text for text in attempts if not self._repeats(text)]
            chosen = max(fluent or attempts, key=lambda text: text.avg_logprob)
        silence = self._is_silence(chosen) and bool(chosen.text.strip())
        return replace(
            chosen,
            text="" if silence else chosen.text,
            tokens=() if silence else chosen.tokens,
            language_probability=attempts[0].language_probability,  # later ones were told the language
            attempts=len(attempts),
            silence=silence,
        )

    def _repeats(self, text: WindowText) -> bool:
        return text.compression_ratio > self.compression_ratio_threshold

    def _is_unlikely(self, text: WindowText) -> bool:
        return text.avg_logprob < self.log_prob_threshold

    def _is_silence(self, text: WindowText) -> bool:
        return text.no_speech_prob > self.no_speech_threshold and self._is_unlikely(text)


def decoding_warnings(heard: Iterable[tuple[Window, WindowText]]) -> list[StageWarning]:
    """What a caller should know of how a file's windows were decoded."""
    windows = list(heard)
    again = [window for window, text in windows if text.attempts > 1]
    silent = [window for window, text in windows if text.silence]
    warnings = []
    if cut := max((text.prompt_tokens_cut for _, text in windows), default=0):
        message = f"initial_prompt is too long for Whisper: its first {cut} tokens were left out."
        warnings.append(StageWarning("asr", "prompt_shortened", message))
    if again:
        message = (
            f"Text that repeated itself or was unlikely was decoded again at higher temperatures, in "
            f"{_windows(again)}. Check it."
        )
        warnings.append(StageWarning("asr", "fallback_temperature", message))
    if silent:
        message = f"Unlikely text over what sounds like silence was left out, in {_windows(silent)}."
        warnings.append(StageWarning("asr", "no_speech", message))
    return warnings


def _windows(windows: Sequence[Window]) -> str:
    """Such as `2 windows (1.5-7.0 s, 9.1-12.0 s)`."""
    times = [f"{window.start_s:.1f}-{window.end_s:.1f} s" for window in windows[:WINDOWS_NAMED]]
    more = ["..."] if len(windows) > WINDOWS_NAMED else []
    return f"{len(windows)} window{'s' if len(windows) > 1 else ''} ({', '.join(times + more)})"
