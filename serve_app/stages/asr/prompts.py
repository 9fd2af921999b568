"""What the decoder reads before a window: hotwords, the initial prompt, then language and task.

The prompt is faster-whisper's, which is whisperx's too, as long as it fits. What does not fit would shorten
the text of a window, or fail the whole batch; so it is cut or refused here.
"""

from collections.abc import Sequence
from functools import lru_cache

from faster_whisper import WhisperModel
from faster_whisper.tokenizer import Tokenizer

from serve_app.errors import InvalidRequest
from serve_app.stage_requests import Decoding


class Prompts:
    """Prompts for a loaded Whisper. Safe for many threads."""

    def __init__(self, whisper: WhisperModel) -> None:
        self._whisper = whisper
        self._multilingual: bool = whisper.model.is_multilingual
        self._plain = self._tokenizer("en", "transcribe")
        self.max_context_tokens: int = whisper.max_length // 2 - 1
        self._tokens = lru_cache(256)(self._encode)  # a request has the same prompt with every window

    def prompt(self, language: str, decoding: Decoding) -> list[int]:
        """All tokens before a window's text; raises InvalidRequest as `context` does."""
        tokenizer, (previous, _) = self._tokenizer(language, decoding.task), self.context(decoding)
        prompt: list[int] = self._whisper.get_prompt(
            tokenizer, list(previous), without_timestamps=True, hotwords=decoding.hotwords
        )
        return prompt

    def start(self, language: str, decoding: Decoding) -> list[int]:
        """The tokens from the start token to the task."""
        return list(self._tokenizer(language, decoding.task).sot_sequence)

    def start_index(self, decoding: Decoding) -> int:
        """Where the start token stands in the prompt; raises InvalidRequest as `context` does."""
        return self.prompt("en", decoding).index(self._plain.sot)

    def context(self, decoding: Decoding) -> tuple[Sequence[int], int]:
        """The last tokens of the initial prompt, as many as fit, and how many before them are cut off.

        Raises InvalidRequest for hotwords that do not fit, and for Whisper's own tokens in a text: they would
        be taken for commands.
        """
        hotwords = self._checked("hotwords", decoding.hotwords)
        previous = self._checked("initial_prompt", decoding.initial_prompt)
        if len(hotwords) > self.max_context_tokens:
            raise InvalidRequest(
                f"hotwords: {len(hotwords)} tokens, and Whisper reads {self.max_context_tokens}; send fewer.",
                "hotwords",
            )
        cut = max(0, len(hotwords) + len(previous) - self.max_context_tokens)
        return previous[cut:], cut

    def _checked(self, name: str, text: str | None) -> tuple[int, ...]:
        tokens = self._tokens(text) if text else ()
        if any(token >= self._plain.eot for token in tokens):
            raise InvalidRequest(
                f"{name}: must not hold Whisper's own tokens, such as <|endoftext|>; send plain text.", name
            )
        return tokens

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(" " + text.strip()))

    def _tokenizer(self, language: str, task: str) -> Tokenizer:
        return Tokenizer(self._whisper.hf_tokenizer, self._multilingual, task=task, language=language)
