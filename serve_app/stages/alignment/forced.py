"""Text to times of its letters: the arithmetic of whisperx.align in numpy and plain Python, without a model.

One dynamic programme per window finds the frame where each character starts; `words` makes words and
sentences of them. Times, scores, words and segments are whisperx 3.8.6's to the last bit (tests/models
compares them), at about a sixteenth of its cost: whisperx runs torch operations frame by frame and assembles
with pandas. Four things differ. In Thai, Lao, Khmer, Burmese, Tibetan and Cantonese every written character
is a word; full stops of other scripts than Latin end sentences (`sentences`); what the model cannot spell
lasts as long as its sound (`unspelled`); and words that are said but not written are skipped as a whole.

Trellis and backtrack are those of torchaudio's forced alignment tutorial, in whisperx's variant where staying
always costs the blank, so that a character is one frame and a pause belongs to the word before it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from serve_app.languages import LANGUAGES_WITHOUT_SPACES
from serve_app.stages.alignment.unspelled import share, stretches
from serve_app.stages.alignment.words import LetterTime
from serve_app.transcript import Window

Emission = npt.NDArray[np.float32]  # (frames, tokens)

# In a row; more of them are words that the text does not have. With 5, letters that were misheard were, too.
MAX_SKIPPED_LETTERS = 6
# What skipping a letter costs, as a share of whisperx's cost. Behind the text it costs a little less than
# before it, so that of two equal words the first is taken where only one is written.
BETWEEN_WORDS, BEHIND_TEXT = 0.5, 0.9


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


def first_frames(
    log_probs: Emission, tokens: Sequence[int], blank: int, skipping: Sequence[float] | None = None
) -> list[int] | None:
    """The frame where each token starts, followed by the frame where the last one ends.

    `log_probs` is (frames, tokens of the model). Returns len(tokens) + 1 numbers, or None if no path reaches
    the first token because there are more characters than frames. This is whisperx's get_trellis and
    backtrack with the same float32 arithmetic, but it keeps the decisions instead of the trellis.

    `skipping` is ours: the cost of skipping a letter that is said, as a share of whisperx's, first outside
    the text and then after each token. With it, letters behind the text cost something too: in whisperx they
    do not, so that a text which is shorter than its speech ends early.
    """
    n_frames, n_tokens = len(log_probs), len(tokens)
    blank_costs, token_costs = log_probs[:, blank], log_probs[:, np.asarray(tokens)]
    stay_costs = blank_costs[:, None]
    if skipping is not None:
        best = log_probs.max(axis=1, keepdims=True)
        costs = best + (stay_costs - best) * np.asarray(skipping, np.float32)
        blank_costs, stay_costs = costs[:, 0], costs[:, 1:]
    before_first = np.zeros(n_frames + 1, np.float32)  # trellis[:, 0], nothing said yet
    before_first[1:] = np.cumsum(blank_costs, dtype=np.float64)  # torch.cumsum sums in double
    after_last = before_first[-1] - before_first
    before_first[-n_tokens:] = np.inf  # whisperx forbids starting so late that the rest cannot follow
    row = np.full(n_tokens + 1, -np.inf, np.float32)
    row[0] = before_first[0]
    finished = np.empty(n_frames + 1, np.float32)  # trellis[:, -1], everything said
    finished[0] = row[-1]
    changes = np.empty((n_frames, n_tokens), bool)
    for frame in range(n_frames):
        stayed = row[1:] + stay_costs[frame]
        changed = row[:-1] + token_costs[frame]
        np.greater(changed, stayed, out=changes[frame])
        np.maximum(stayed, changed, out=row[1:])
        row[0] = before_first[frame + 1]
        finished[frame + 1] = row[-1]
    if skipping is not None:
        finished += BEHIND_TEXT * after_last
    end = int(finished.argmax())
    starts = [end]
    for frame in range(end - 1, -1, -1):
        if changes[frame, n_tokens - len(starts)]:
            starts.append(frame)
            if len(starts) > n_tokens:
                return starts[::-1]
    return None


def _skips_words(best: npt.NDArray[np.int_], blank: int, frames: Sequence[int], long: Sequence[bool]) -> bool:
    """Whether a path leaves out more than a few letters in a row of those that the model hears.

    `best` is the likeliest token of each frame. A model that mostly hears no blank is not trained.
    """
    is_letter = best != blank
    if is_letter.mean() > 0.5:
        return False
    numbers = np.cumsum(is_letter & (best != np.concatenate([[blank], best[:-1]])))  # of letters, from 1
    on_path = np.zeros(len(best), bool)
    on_path[frames[:-1]] = True
    for is_long, first, end in zip(long, frames, frames[1:], strict=False):
        on_path[first:end] |= is_long
    found = np.unique(numbers[on_path & is_letter])
    return bool(np.diff(np.concatenate([[0], found, [numbers[-1] + 1]])).max() > MAX_SKIPPED_LETTERS + 1)


def letter_times(
    text: str,
    letters: Mapping[int, int | None],
    log_probs: Emission,
    probs: Emission,
    dictionary: Mapping[str, int],
    window: Window,
) -> dict[int, LetterTime] | None:
    """Position in the text -> time and score of each letter; None if they cannot be aligned.

    `letters` is what `spell` returns for the text. `log_probs` and `probs` are (frames, tokens); the second
    is the exponential of the first, computed by the acoustic model's library so that scores are equal to the
    last bit. Times and scores are rounded to three digits, as whisperx's are. Punctuation within a stretch of
    `unspelled` has no time.
    """
    blank, separator, best = blank_token(dictionary), dictionary.get("|"), log_probs.argmax(axis=1)
    if None in letters.values():
        log_probs, probs = with_wildcard(log_probs, blank), with_wildcard(probs, blank)
    wildcard = log_probs.shape[1] - 1
    unspelled = {stretch[0]: stretch for stretch in stretches(text, letters)}
    inside = {position for stretch in unspelled.values() for position in stretch[1:]}
    units = {place: wildcard if t is None else t for place, t in letters.items() if place not in inside}
    tokens, long = [*units.values()], [position in unspelled for position in units]
    skipping = np.where(long, 0.0, 1.0)
    frames = first_frames(log_probs, tokens, blank, [1.0, *skipping] if unspelled else None)
    if frames is not None and _skips_words(best, blank, frames, long):
        skipping[[token == separator for token in tokens]] = BETWEEN_WORDS
        frames = first_frames(log_probs, tokens, blank, [BETWEEN_WORDS, *skipping])
    if frames is None:
        return None
    start_s, frame_s = window.start_s, (window.end_s - window.start_s) / len(log_probs)
    blanks = probs[:, blank].tolist()
    times = {}

    def set_time(position: int, first: int, end: int, total: float) -> None:
        times[position] = LetterTime(
            round(first * frame_s + start_s, 3),
            round(end * frame_s + start_s, 3),
            round(total / (end - first), 3),
        )

    for (position, token), first, end in zip(units.items(), frames, frames[1:], strict=False):
        if position not in unspelled:
            set_time(position, first, end, sum([float(probs[first, token]), *blanks[first + 1 : end]]))
            continue
        heard = best[first:end]
        sound = first + np.flatnonzero((heard != blank) & (heard != separator))
        spaces = first + np.flatnonzero(heard == separator)
        shared = share(text, unspelled[position], sound.tolist() or [first], spaces.tolist())
        for each, (begin, stop) in shared.items():
            set_time(each, begin, stop, float(probs[begin:stop].max(axis=1).sum()))
    return times
