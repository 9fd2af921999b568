"""The output of a CTC model such as wav2vec2 for a sentence: clear letters between blanks, with times."""

from dataclasses import dataclass

import numpy as np

from serve_app.stages.alignment.forced import Emission, letter_times, spell
from serve_app.stages.alignment.words import word_ranges
from serve_app.transcript import Window

ENGLISH = "-|etaonihsrdlumwcfgypbvk'xjqz"  # of torchaudio's WAV2VEC2_ASR_BASE_960H, the blank first
RUSSIAN = "-|абвгдежзийклмнопрстуфхцчшщъыьэюя"
FRAME_S = 0.02
PAUSE_S = 1.0
MISHEARD, LONG = 0.05, 0.2  # of the letters; the long ones take two frames

Spans = list[tuple[str, float, float]]  # word, start and end in seconds


@dataclass(frozen=True)
class Speech:
    """Spoken words with their times, and the model's output for them."""

    words: Spans
    emission: Emission
    characters: str

    def aligned(self, text: str, language: str = "en") -> Spans:
        """The words of a text with the times that forced alignment finds for them."""
        dictionary = {character: token for token, character in enumerate(self.characters)}
        letters = spell(text, language, dictionary)
        window = Window(0.0, len(self.emission) * FRAME_S)
        times = letter_times(text, letters, self.emission, np.exp(self.emission), dictionary, window)
        assert times is not None
        found = []
        for begin, end in word_ranges(text, language):
            spoken = [times[place] for place in range(begin, end) if place in times and text[place] != " "]
            if not spoken:  # nothing but punctuation
                continue
            span_s = min(each.start_s for each in spoken), max(each.end_s for each in spoken)
            found.append((text[begin:end].strip(), *span_s))
        return found


def spoken(said: str, characters: str = ENGLISH, seed: int = 0) -> Speech:
    """Speech of these words; "_" is a pause, and words joined by "+" are written as one."""
    rng = np.random.default_rng(seed)
    at, letters, words = 5, dict[int, int](), Spans()
    for word in said.split():
        if word == "_":
            at += round(PAUSE_S / FRAME_S)
            continue
        first = at
        for letter in word.replace("+", "|"):
            wrong = rng.random() < MISHEARD
            token = int(rng.integers(2, len(characters))) if wrong else characters.index(letter)
            letters |= {at + more: token for more in range(1 + (rng.random() < LONG))}
            at += int(rng.integers(2, 6))
        words.append((word, first * FRAME_S, at * FRAME_S))
        letters[at] = characters.index("|")
        at += int(rng.integers(2, 5))
    probs = 0.02 * rng.dirichlet(np.full(len(characters), 0.3), at + 5)  # a little of everything
    for frame, row in enumerate(probs):
        row[letters.get(frame, 0)] += 0.98
    return Speech(words, np.log(np.maximum(probs, 1e-12)).astype(np.float32), characters)
