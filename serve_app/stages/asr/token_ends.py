"""Which characters of a text came from which of its tokens."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def token_ends(tokenizer: "Tokenizer", tokens: Sequence[int], text: str) -> tuple[int, ...]:
    """How many characters of `text` are whole after each of its tokens.

    A character may take several tokens; all but the last of them end before it. Empty where the tokens,
    one after the other, do not give the text: what a tokenizer makes of bytes that are not UTF-8.
    """
    from tokenizers.decoders import DecodeStream

    stream, so_far, ends = DecodeStream(skip_special_tokens=True), "", []
    for token in tokens:
        so_far += stream.step(tokenizer, token) or ""
        ends.append(len(so_far))
    missing = text.removeprefix(so_far)
    if (
        not ends
        or len(so_far) + len(missing) != len(text)
        or (missing and missing[-1] != "\N{REPLACEMENT CHARACTER}")
    ):
        return ()
    if missing:
        ends[-1] = len(text)  # a window that ends within a character
    return tuple(ends)


def tokens_between(tokens: Sequence[int], ends: Sequence[int], first: int, end: int) -> tuple[int, ...]:
    """The tokens that start at the characters from `first` to before `end`, of `token_ends`' text."""
    starts = (begun for begun, _ in pairwise([0, *ends]))
    return tuple(token for token, start in zip(tokens, starts, strict=True) if first <= start < end)
