"""When a window's text is decoded again at a higher temperature: openai/whisper's rules, window by window.

whisperx's batched path has none: a window whose decoder repeats one word two hundred times stays as it is.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from serve_app.settings import AsrSettings
from serve_app.stage_requests import Decoding
from serve_app.transcript import WindowText

# The same phrase three times running; a short text of that kind compresses no better than a long real one.
LOOP = re.compile(r"(.{8,80}?)\1\1")

# "Thank you." and the like, which Whisper invents over noise, are likelier than most that it invents. They
# had a no-speech probability of 0.91 and more and a log-probability below -0.48; words of people had at most
# 0.71, also a single word, and within noise as loud as it.
STOCK_PHRASE_BYTES = len("Thank you for watching!")  # bytes: a script may say much in few characters
STOCK_PHRASE_LOG_PROB = -0.4


@dataclass(frozen=True, slots=True)
class Fallback:
    """The limits of a believable text, and the temperatures to try where a text is beyond them."""

    limits: AsrSettings = AsrSettings()  # noqa: RUF009  (frozen)

    def schedule(self, decoding: Decoding) -> tuple[float, ...]:
        """The temperatures for a window: the request's own alone, or 0 and those of the fallback.

        A request may give the step from one to the next instead.
        """
        first, step = decoding.temperature or 0.0, decoding.temperature_inc
        if step:
            attempts = int((1 - first) / step + 1e-6) + 1
            return tuple(round(first + step * number, 2) for number in range(attempts))
        others = () if first or step is not None else self.limits.temperature_fallback
        return (first, *others)

    def is_believable(self, text: WindowText) -> bool:
        """Whether there is no need to decode again: the text is likely and fluent, or there is only silence.

        Text without a letter, such as " .", says that nothing was said. openai/whisper would try again, and
        take an invented word for likelier.
        """
        if self._is_silence(text) or not any(character.isalnum() for character in text.text):
            return True
        return not (self._is_repetitive(text) or self._is_unlikely(text))

    def best_attempt(self, attempts: Sequence[WindowText]) -> WindowText:
        """The last text if it is believable, else the likeliest: of those that are not repetitive, if any."""
        best = attempts[-1]
        if not self.is_believable(best):
            fluent = [text for text in attempts if not self._is_repetitive(text)]
            best = max(fluent or attempts, key=lambda text: text.avg_logprob)
        was_silence = self._is_silence(best) and bool(best.text.strip())
        return replace(
            best,
            text="" if was_silence else best.text,
            language_probability=attempts[0].language_probability,  # later ones were told the language
            languages=attempts[0].languages,
            attempts=len(attempts),
            was_silence=was_silence,
            is_over_silence=self._is_over_silence(best) and not was_silence and bool(best.text.strip()),
            is_repetitive=not was_silence and (self._is_repetitive(best) or bool(LOOP.search(best.text))),
        )

    def _is_repetitive(self, text: WindowText) -> bool:
        return text.compression_ratio > self.limits.compression_ratio_threshold

    def _is_unlikely(self, text: WindowText) -> bool:
        return text.avg_logprob < self.limits.log_prob_threshold

    def _is_over_silence(self, text: WindowText) -> bool:
        return text.no_speech_prob > self.limits.no_speech_threshold

    def _is_silence(self, text: WindowText) -> bool:
        """Whether it is unlikely text over silence, or a stock phrase over what is silence almost surely."""
        is_stock_phrase = (
            text.no_speech_prob > (1 + self.limits.no_speech_threshold) / 2
            and text.avg_logprob < STOCK_PHRASE_LOG_PROB
            and len(text.text.strip().encode()) <= STOCK_PHRASE_BYTES
        )
        return is_stock_phrase or (self._is_over_silence(text) and self._is_unlikely(text))
