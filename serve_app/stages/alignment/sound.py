"""Where words begin and end in the sound of a window, when attention tells only roughly.

Attention turns to a word as soon as the one before it has ended, so a word begins with the pause before it,
and with what was said in between but is not in the text. And it turns to a full stop before a word has faded.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import regex

FRAMES_PER_S = 100  # of the log-mels
MAX_FRAMES = 3000

# Tuned on three half-minute recordings of spontaneous speech (MFA's examples), tested on others.
QUIET = 0.2  # of the way from a window's quiet tenth to its loud tenth
CLICK_FRAMES = 15  # a sound that fills less than half of them is part of the pause around it
MIN_PAUSE_FRAMES = 40  # no word has such a pause inside
MIN_WORD_FRAMES = 4
# The longest that the first word of a sentence lasts: so much, and for each letter, and for any other character.
MAX_WORD_FRAMES, PER_LETTER, PER_CHARACTER = 30, 8, 50

_PUNCTUATION = regex.compile(r"\p{P}")
_LETTER = regex.compile(r"(?V1)[[\p{L}\p{M}]--[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]]")

Loudness = npt.NDArray[np.float32]  # of each 10 ms of a window
Span = tuple[float, float]  # start and end, in seconds from the start of the window


def loudness(features: npt.NDArray[np.float32], length_s: float) -> Loudness:
    """The loudness of each 10 ms of a window, from its log-mels (n_mels, 3000): their mean over 50 ms."""
    n_frames = max(1, min(MAX_FRAMES, round(length_s * FRAMES_PER_S)))
    mean = features[:, :n_frames].mean(axis=0)
    return np.convolve(np.pad(mean, 2, "edge"), np.full(5, 0.2), "valid").astype(np.float32)


def spoken_in_sound(
    text: str, words: Sequence[Sequence[int]], edges_s: Sequence[Span], loud: Loudness
) -> list[Span]:
    """The spans of words, moved out of the silence around them and into the sound that is theirs.

    `words` are the positions in the text of each word's characters, `edges_s` its span by attention.
    """
    is_quiet = _quiet(loud)
    begins = [min(round(start_s * FRAMES_PER_S), len(loud)) for start_s, _ in edges_s] + [len(loud)]
    moved: list[Span] = []
    late: tuple[int, int] | None = None  # the word before, if it is more likely behind the pause: letters, end
    for number, (letters, (start_s, end_s)) in enumerate(zip(words, edges_s, strict=True)):
        first, last = begins[number], min(round(end_s * FRAMES_PER_S), len(loud)) - 1
        longest = _longest(text, letters)
        starts_sentence = not number or _PUNCTUATION.search(text, words[number - 1][-1] + 1, letters[0])
        is_overlong = starts_sentence and last - first > 2 * longest
        while last + 1 < begins[number + 1] and last - first < longest and not is_quiet[last + 1]:
            last += 1
        if last - first >= MIN_WORD_FRAMES:
            first, last = _without_pause(is_quiet[first : last + 1], first, last, longest)
            while last > first - 1 + MIN_WORD_FRAMES and is_quiet[last]:
                last -= 1
            if starts_sentence:
                first = max(first, last + 1 - longest)
            while first < last + 1 - MIN_WORD_FRAMES and is_quiet[first]:
                first += 1
            start_s = first / FRAMES_PER_S
        end_s = max(start_s, (last + 1) / FRAMES_PER_S)
        if late and not starts_sentence and first - late[1] >= MIN_PAUSE_FRAMES:
            begun_s = start_s
            start_s += (end_s - start_s) * late[0] / (late[0] + len(letters))
            moved[-1] = begun_s, start_s
        late = (len(letters), last) if is_overlong else None
        moved.append((start_s, end_s))
    return moved


def _quiet(loud: Loudness) -> npt.NDArray[np.bool_]:
    """Whether each frame is quiet, as most of the frames around it are."""
    quiet, noisy = np.percentile(loud, [10, 90])
    half = CLICK_FRAMES // 2
    around = np.pad(loud < quiet + QUIET * (noisy - quiet), half, "edge")
    return np.convolve(around, np.ones(CLICK_FRAMES), "valid") > half


def _longest(text: str, letters: Sequence[int]) -> int:
    n_letters = sum(_LETTER.match(text[place]) is not None for place in letters)
    return MAX_WORD_FRAMES + PER_LETTER * n_letters + PER_CHARACTER * (len(letters) - n_letters)


def _without_pause(
    is_quiet: npt.NDArray[np.bool_], first: int, last: int, longest: int
) -> tuple[int, int]:
    """The frames of a word after its longest pause, or before it where they are more than twice as many."""
    changes = np.flatnonzero(np.diff(np.concatenate([[False], is_quiet, [False]]).astype(np.int8)))
    pauses = list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))
    begin, end = max(pauses, key=lambda pause: pause[1] - pause[0], default=(0, 0))
    if end - begin < MIN_PAUSE_FRAMES:
        return first, last
    before, after = begin, len(is_quiet) - end
    if before > 2 * after and MIN_WORD_FRAMES <= before <= longest:
        return first, first + begin - 1
    return min(first + end, last), last
