"""Parts of a text that are spoken but that an alignment model cannot spell: digits, symbols, foreign letters.

"50%" is read aloud with many more letters than are written. whisperx gives each written one a single frame,
so that the rest of the sound is skipped and all words behind it move forward. Here such a part, with its
punctuation, is one stretch of sound of any length. Parts with nothing but spaces between them are one
stretch too, and its words share the sound.
"""

from bisect import bisect
from collections.abc import Mapping, Sequence
from itertools import pairwise

import regex

# What is read aloud; other punctuation is not.
SPOKEN = regex.compile(r"(?V1)[\p{L}\p{M}\p{N}\p{S}%‰&@#§--[♩♪♫♬]]")

# Of letters that are s: spoken but unknown to the model, u: unknown and silent, |: spaces, x: all others.
_STRETCH = regex.compile(r"u*s(?:[us|]*[us])?")


def stretches(text: str, letters: Mapping[int, int | None]) -> list[list[int]]:
    """The positions of each stretch in `text`; `letters` is what `forced.spell` returns for it."""
    kinds = "".join(_kind(text[position], token) for position, token in letters.items())
    positions = list(letters)
    return [positions[found.start() : found.end()] for found in _STRETCH.finditer(kinds)]


def _kind(character: str, token: int | None) -> str:
    if token is not None:
        return "|" if character == " " else "x"
    return "s" if SPOKEN.match(character) else "u"


def share(
    text: str, stretch: Sequence[int], sound: Sequence[int], spaces: Sequence[int]
) -> dict[int, tuple[int, int]]:
    """The first frame of each spoken position of a stretch, and the one behind it.

    `sound` are the frames where the model hears a letter, at least one, and `spaces` those where it hears the
    end of a word. A word ends at a space, where a long pause is and about as much of the sound is said as its
    share of the characters.
    """
    words: list[list[int]] = [[]]
    for position in stretch:
        if text[position] == " ":
            words.append([])
        elif SPOKEN.match(text[position]):
            words[-1].append(position)
    words = [word for word in words if word]
    n_spoken = sum(map(len, words))
    cuts, n_before = [0], 0
    possible = sorted({bisect(sound, space) for space in spaces})
    for word in words[:-1]:
        n_before += len(word)
        wanted = len(sound) * n_before / n_spoken
        later = {cut: sound[cut] - sound[cut - 1] for cut in possible if cuts[-1] < cut < len(sound)}
        cuts.append(
            min(later, key=lambda cut: abs(cut - wanted) - later[cut], default=max(cuts[-1], round(wanted)))
        )
    frames: dict[int, tuple[int, int]] = {}
    for word, (begin, end) in zip(words, pairwise([*cuts, len(sound)]), strict=True):
        own = sound[begin:end] or sound[max(0, begin - 1) :][:1]
        edges = [*(own[number * len(own) // len(word)] for number in range(len(word))), own[-1] + 1]
        # More characters than frames share some.
        spans = ((first, max(last, first + 1)) for first, last in pairwise(edges))
        frames.update(zip(word, spans, strict=True))
    return frames
