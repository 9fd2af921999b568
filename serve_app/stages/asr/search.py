"""The search for the texts of a batch: what is asked of CTranslate2, and which of its answers are taken."""

from collections.abc import Hashable
from functools import cached_property
from typing import Any

import regex
from faster_whisper.transcribe import get_compression_ratio

from serve_app.settings import AsrSettings
from serve_app.stage_requests import Decoding
from serve_app.transcript import WindowText

BEST_OF = 5  # samples at a temperature above 0, of which the likeliest is taken
# Digits of any script, and what whisperx suppresses with them. It forgets the euro.
NUMERAL = regex.compile(r"[\p{Nd}\p{No}%$£€]")
OF_CONFIG = -1  # the list in the model's own config.json


class Search:
    """How a loaded Whisper is searched. Safe for many threads; no call changes the model."""

    def __init__(self, tokenizer: Any, settings: AsrSettings) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._end_token: int = tokenizer.token_to_id("<|endoftext|>")

    def key(self, decoding: Decoding) -> Hashable:
        """What must be equal in a batch, because CTranslate2 takes one of each for all of its items.

        Its cost: windows with a value of their own wait for a batch of their own, which holds fewer windows
        and is a whole pass of the model all the same. A beam_size that equals the server's, or one at a
        temperature above 0, does not split a batch.
        """
        temperature = decoding.temperature or 0.0
        beam_size = 0 if temperature else self._beam_size(decoding)
        return temperature, beam_size, decoding.suppress_numerals

    def options(self, decoding: Decoding) -> dict[str, Any]:
        """The arguments of `generate` for a batch whose items have this `key`: whisperx's, but for those."""
        suppressed = [OF_CONFIG, *(self._numerals if decoding.suppress_numerals else ())]
        options: dict[str, Any] = {
            "length_penalty": 1,
            "repetition_penalty": 1,
            "no_repeat_ngram_size": 0,
            "suppress_blank": True,
            "suppress_tokens": suppressed,
            "return_scores": True,
            "return_no_speech_prob": True,
        }
        if temperature := decoding.temperature:  # sampling as in faster-whisper
            options |= {"sampling_topk": 0, "sampling_temperature": temperature}
            return options | {"beam_size": 1, "num_hypotheses": BEST_OF}
        return options | {"beam_size": self._beam_size(decoding), "patience": 1}

    def best_text(self, result: Any, decoding: Decoding, **known: Any) -> tuple[WindowText, list[int]]:
        """The likeliest of an item's samples that is not repetitive, else the likeliest; and its tokens.

        faster-whisper takes the likeliest in any case, which is a loop if there is one among them: repeated
        words are always likely. A beam search gives one text. `known` has other fields of the text.
        """
        # CTranslate2 divides the sum of log-probabilities by the tokens alone, whisperx counts the end token.
        texts = []
        for ids, score in zip(result.sequences_ids, result.scores, strict=True):
            spoken = [token for token in ids if token < self._end_token]
            said = self._tokenizer.decode(spoken)
            text = WindowText(
                text=said,
                avg_logprob=score * len(ids) / (len(ids) + 1),
                no_speech_prob=result.no_speech_prob,
                compression_ratio=get_compression_ratio(said.strip()),
                temperature=decoding.temperature or 0.0,
                **known,
            )
            if text.compression_ratio <= self._settings.compression_ratio_threshold:
                return text, spoken
            texts.append((text, spoken))
        return texts[0]

    def _beam_size(self, decoding: Decoding) -> int:
        return decoding.beam_size or self._settings.beam_size

    @cached_property
    def _numerals(self) -> tuple[int, ...]:
        """The tokens with digits or signs of amounts. A character that has several tokens is left out."""
        return tuple(n for n in range(self._end_token) if NUMERAL.search(self._tokenizer.decode([n])))
