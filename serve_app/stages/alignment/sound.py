"""Where words begin and end in the sound of a window; attention tells it only roughly.

Attention turns to a word as soon as the one before it has ended, and so takes the pause before it for a part
of the word, and what was said in the pause but is not in the text. It leaves words for full stops too early.
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
MAX_FADING_FRAMES = 40  # of a word while attention is at the full stop
# How long a word lasts at most: this, and for each letter, and for each other character.
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
    is_quiet = np.append(_quiet(loud), True)  # behind the window
    longest = [_longest(text, letters) for letters in words]
    is_first = [_starts_sentence(text, words, number) for number in range(len(words))]
    begins = [min(round(start_s * FRAMES_PER_S), len(loud)) for start_s, _ in edges_s] + [len(is_quiet)]
    ends = [min(round(end_s * FRAMES_PER_S), len(loud)) for _, end_s in edges_s]
    frames = []
    for number, (begin, end) in enumerate(zip(begins, ends, strict=False)):
        fading = is_quiet[end : min(begins[number + 1], end + MAX_FADING_FRAMES)]
        until_quiet = int(fading.argmax()) if fading.any() else 0
        first, behind = _without_silence(is_quiet, begin, end + until_quiet)
        first, behind = _without_pause(is_quiet, first, behind, longest[number])
        if is_first[number] and behind - first > longest[number]:
            first, behind = _without_silence(is_quiet, behind - longest[number], behind)
        frames.append((first, max(first, behind)))
    for number in range(len(words) - 1):
        (_, end), (first, behind) = frames[number : number + 2]
        is_overlong = is_first[number] and ends[number] - begins[number] > 2 * longest[number]
        is_paused = first - end >= MIN_PAUSE_FRAMES and is_quiet[end:first].all()
        # Over a sentence that is missing, and a pause: it is the first word of the sentence behind the pause.
        if is_overlong and is_paused and not is_first[number + 1]:
            n_letters, n_next = len(words[number]), len(words[number + 1])
            middle = first + (behind - first) * n_letters // (n_letters + n_next)
            frames[number : number + 2] = (first, middle), (middle, behind)
    return [(first / FRAMES_PER_S, end / FRAMES_PER_S) for first, end in frames]


def _starts_sentence(text: str, words: Sequence[Sequence[int]], number: int) -> bool:
    """Whether punctuation, which attention sees in pauses, or nothing is before the word."""
    return not number or bool(_PUNCTUATION.search(text, words[number - 1][-1] + 1, words[number][0]))


def _quiet(loud: Loudness) -> npt.NDArray[np.bool_]:
    """Whether each frame is quiet, as most of the frames around it are."""
    quiet, noisy = np.percentile(loud, [10, 90])
    half = CLICK_FRAMES // 2
    around = np.pad(loud < quiet + QUIET * (noisy - quiet), half, "edge")
    return np.convolve(around, np.ones(CLICK_FRAMES), "valid") > half


def _longest(text: str, letters: Sequence[int]) -> int:
    n_letters = sum(_LETTER.match(text[place]) is not None for place in letters)
    return MAX_WORD_FRAMES + PER_LETTER * n_letters + PER_CHARACTER * (len(letters) - n_letters)


def _without_silence(is_quiet: npt.NDArray[np.bool_], first: int, end: int) -> tuple[int, int]:
    while end > first + MIN_WORD_FRAMES and is_quiet[end - 1]:
        end -= 1
    while first < end - MIN_WORD_FRAMES and is_quiet[first]:
        first += 1
    return first, end


def _without_pause(is_quiet: npt.NDArray[np.bool_], first: int, end: int, longest: int) -> tuple[int, int]:
    """The frames of a word after its longest pause, or before it if it is likelier there."""
    changes = np.flatnonzero(np.diff(np.concatenate([[0], is_quiet[first:end], [0]]).astype(np.int8)))
    pauses = list(zip(changes[::2].tolist(), changes[1::2].tolist(), strict=True))
    before, until = max(pauses, key=lambda pause: pause[1] - pause[0], default=(0, 0))
    if until - before < MIN_PAUSE_FRAMES:
        return first, end
    after = end - first - until
    if before > 2 * after and MIN_WORD_FRAMES <= before <= longest:
        return first, first + before
    return min(first + until, end - 1), end
