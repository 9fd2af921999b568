"""How probable the recogniser holds each word, whichever model has found the word's times.

An aligner's score says how well a word fits the sound at its place; what the recogniser would have written
instead it cannot know. Both have the words of one text, so a word is found by its place in that.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from serve_app.formats.cue_words import word_starts
from serve_app.stages.alignment.unspelled import SPOKEN
from serve_app.transcript import Segment, WindowText


def with_confidence(segments: Sequence[Segment], text: WindowText) -> tuple[Segment, ...]:
    """The segments of a window's text, each word with the mean probability of its letters.

    As in the scores of word times by attention, each letter counts, so a long token counts more than a comma
    of its own. A word has None where the text has no tokens for it.
    """
    letters, found = letter_probabilities(text), []
    starts = iter(word_starts(text.text, (word for segment in segments for word in segment.words)))
    for segment in segments:
        words = []
        for word in segment.words:
            begin = next(starts)
            places = range(begin, begin + len(word.text)) if begin >= 0 else ()
            spoken = [place for place in places if SPOKEN.match(text.text[place])] or places
            known = [letters[place] for place in spoken if place in letters]
            words.append(replace(word, confidence=round(float(np.mean(known)), 3) if known else None))
        found.append(replace(segment, words=tuple(words)))
    return tuple(found)


def letter_probabilities(text: WindowText) -> dict[int, float]:
    """The probability of each character: its token's, or that of all tokens together that spell it."""
    letters: dict[int, float] = {}
    complete, probability = 0, 1.0
    for token in text.tokens:
        probability *= token.score
        if token.text_end > complete:
            letters |= dict.fromkeys(range(complete, token.text_end), probability)
            complete, probability = token.text_end, 1.0
    return letters
