"""Text to word times: the arithmetic of whisperx.align in numpy and plain Python, without the model.

One dynamic programme per window finds the frame where each character starts; then characters become words,
and words sentences. Times, scores, words and segments are whisperx 3.8.6's to the last bit (tests/models
compares them), at about a sixteenth of its cost: whisperx runs torch operations frame by frame and
assembles with pandas. Two things differ: in Thai, Lao, Khmer, Burmese, Tibetan and Cantonese every written
character is a word, and full stops of other scripts than Latin end sentences (`sentences`).

Trellis and backtrack are those of torchaudio's forced alignment tutorial, in whisperx's variant where staying
always costs the blank, so that a character is one frame and a pause belongs to the word before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import regex

from serve_app.languages import LANGUAGES_WITHOUT_SPACES, NO_SPACE_BETWEEN_WORDS
from serve_app.transcript import Segment, Window, Word

Emission = npt.NDArray[np.float32]  # (frames, tokens)

_CHARACTER = regex.compile(r"\X", regex.DOTALL)


class LetterTime(NamedTuple):
    """When a character is spoken, in seconds from the start of the file, and its mean probability."""

    start_s: float
    end_s: float
    score: float


def blank_token(dictionary: Mapping[str, int]) -> int:
    """CTC's blank token: `[pad]` or `<pad>` in Hugging Face vocabularies, else 0."""
    named = [token for name, token in dictionary.items() if name in ("[pad]", "<pad>")]
    return named[-1] if named else 0


def spell(text: str, language: str, dictionary: Mapping[str, int]) -> dict[int, int | None]:
    """Position in the text -> token, None for the wildcard, of the characters to find in the audio.

    Spaces between words are among them if the dictionary has a word separator. Everything else that the
    model does not know (digits, symbols, foreign scripts) is represented by the wildcard.
    """
    first = len(text) - len(text.lstrip())
    letters = {}
    for position in range(first, len(text.rstrip())):
        character = text[position].lower()
        if language not in LANGUAGES_WITHOUT_SPACES:
            character = character.replace(" ", "|")
        if character in dictionary or character not in (" ", "|"):
            letters[position] = dictionary.get(character)
    return letters


def with_wildcard(emission: Emission, blank: int) -> Emission:
    """(frames, tokens) to (frames, tokens + 1); the last column is each frame's best non-blank token."""
    return np.column_stack([emission, np.delete(emission, blank, axis=1).max(axis=1)])


def first_frames(log_probs: Emission, tokens: Sequence[int], blank: int) -> list[int] | None:
    """The frame where each token starts, followed by the frame where the last one ends.

    `log_probs` is (frames, tokens of the model). Returns len(tokens) + 1 numbers, or None if no path reaches
    the first token because there are more characters than frames. This is whisperx's get_trellis and
    backtrack with the same float32 arithmetic, but it keeps the decisions instead of the trellis.
    """
    n_frames, n_tokens = len(log_probs), len(tokens)
    blank_costs, token_costs = log_probs[:, blank], log_probs[:, np.asarray(tokens)]
    before_first = np.zeros(n_frames + 1, np.float32)  # trellis[:, 0], nothing said yet
    before_first[1:] = np.cumsum(blank_costs, dtype=np.float64)  # torch.cumsum sums in double
    before_first[-n_tokens:] = np.inf  # whisperx forbids starting so late that the rest cannot follow
    row = np.full(n_tokens + 1, -np.inf, np.float32)
    row[0] = before_first[0]
    finished = np.empty(n_frames + 1, np.float32)  # trellis[:, -1], everything said
    finished[0] = row[-1]
    changes = np.empty((n_frames, n_tokens), bool)
    for frame in range(n_frames):
        stayed = row[1:] + blank_costs[frame]
        changed = row[:-1] + token_costs[frame]
        np.greater(changed, stayed, out=changes[frame])
        np.maximum(stayed, changed, out=row[1:])
        row[0] = before_first[frame + 1]
        finished[frame + 1] = row[-1]
    end = int(finished.argmax())
    starts = [end]
    for frame in range(end - 1, -1, -1):
        if changes[frame, n_tokens - len(starts)]:
            starts.append(frame)
            if len(starts) > n_tokens:
                return starts[::-1]
    return None


def letter_times(
    letters: Mapping[int, int | None], log_probs: Emission, probs: Emission, blank: int, window: Window
) -> dict[int, LetterTime] | None:
    """Position in the text -> time and score of each letter; None if they cannot be aligned.

    `log_probs` and `probs` are (frames, tokens); the second is the exponential of the first, computed by the
    acoustic model's library so that scores are equal to the last bit. Times and scores are rounded to three
    digits, as whisperx's are.
    """
    if None in letters.values():
        log_probs, probs = with_wildcard(log_probs, blank), with_wildcard(probs, blank)
    wildcard = log_probs.shape[1] - 1
    tokens = [wildcard if token is None else token for token in letters.values()]
    frames = first_frames(log_probs, tokens, blank)
    if frames is None:
        return None
    start_s, frame_s = window.start_s, (window.end_s - window.start_s) / len(log_probs)
    blanks = probs[:, blank].tolist()
    times = {}
    for position, token, first, end in zip(letters, tokens, frames, frames[1:], strict=False):
        total = sum([float(probs[first, token]), *blanks[first + 1 : end]])
        times[position] = LetterTime(
            round(first * frame_s + start_s, 3),
            round(end * frame_s + start_s, 3),
            round(total / (end - first), 3),
        )
    return times


def fill_nearest(values: Sequence[float | None]) -> list[float | None]:
    """Replaces None by the nearest known value, the earlier one if two are equally near; all None stays None.

    This equals whisperx's `interpolate_nans(method="nearest")` (pandas and scipy).
    """
    known = [i for i, value in enumerate(values) if value is not None]
    if len(known) in (0, len(values)):
        return list(values)
    return [values[min(known, key=lambda k: (abs(k - i), k))] for i in range(len(values))]


def word_ranges(text: str, language: str) -> list[tuple[int, int]]:
    """The (first, end) positions of every word with its leading space; together they cover the text.

    Where no spaces are written every character is a word, with the marks that belong to it.
    """
    if language in NO_SPACE_BETWEEN_WORDS:
        return [found.span() for found in _CHARACTER.finditer(text)]
    ends = [i + 1 for i in range(len(text)) if i + 1 == len(text) or text[i + 1] == " "]
    return list(zip([0, *ends], ends, strict=False))


def _word(text: str, positions: range, times: Mapping[int, LetterTime]) -> Word | None:
    """The word at these positions, with None for unknown times and score; None for white space."""
    name = text[positions.start : positions.stop].strip() if positions else ""
    if not name:
        return None
    printed = [i for i in positions if text[i] != " "]
    found = [times[i] for i in printed if i in times]
    if not found:
        return Word(name)
    # pandas sums with missing values as zeros; numpy's order of summing depends on their places
    total = np.sum([times[i].score if i in times else 0.0 for i in printed])
    score = float(np.round(total / len(found), 3))
    return Word(name, min(f.start_s for f in found), max(f.end_s for f in found), score)


def assemble(
    text: str,
    language: str,
    times: Mapping[int, LetterTime],
    sentences: Sequence[tuple[int, int]],
    avg_logprob: float | None,
) -> tuple[Segment, ...]:
    """One segment per sentence, in order of time; sentences with equal times become one segment.

    `times` is what letter_times returns, `sentences` are (first, end) positions in `text`.
    """
    starts: list[float | None] = []
    ends: list[float | None] = []
    spoken: list[tuple[Word, ...]] = []
    ranges = word_ranges(text, language)
    next_begins = [begin for begin, _ in sentences[1:]] + [len(text)]
    for (begin, end), next_begin in zip(sentences, next_begins, strict=False):
        stop = min(end + 1, next_begin)  # whisperx counts the space after the sentence
        starts.append(min((times[i].start_s for i in range(begin, stop) if i in times), default=None))
        ends.append(
            max((times[i].end_s for i in range(begin, stop) if i in times and text[i] != " "), default=None)
        )
        inside = (range(max(first, begin), min(last, stop)) for first, last in ranges)
        found = [word for place in inside if (word := _word(text, place, times))]
        filled = fill_nearest([w.start_s for w in found]), fill_nearest([w.end_s for w in found])
        spoken.append(tuple(replace(w, start_s=s, end_s=e) for w, s, e in zip(found, *filled, strict=True)))
    joint = "" if language in LANGUAGES_WITHOUT_SPACES else " "
    segments: dict[tuple[float, float], Segment] = {}
    for (begin, end), start_s, end_s, words in zip(
        sentences, fill_nearest(starts), fill_nearest(ends), spoken, strict=True
    ):
        if start_s is None or end_s is None:
            continue
        segment = Segment(start_s, end_s, text[begin:end], words, avg_logprob=avg_logprob)
        if same := segments.get((start_s, end_s)):
            segment = replace(same, text=f"{same.text}{joint}{segment.text}", words=same.words + words)
        segments[start_s, end_s] = segment
    return tuple(segments[key] for key in sorted(segments))
