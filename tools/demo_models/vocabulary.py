"""The words of the demo models, and sentences of them in free order.

The vocabulary is the Gettysburg Address, the numbers, and everyday words that sound unlike all the others
(two or more phones apart): a small recogniser spends its capacity on words it can tell apart.
"""

import random
import re


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation."""
    return re.findall(r"[a-z]+", text.lower())


ADDRESS = """
Four score and seven years ago our fathers brought forth on this continent a new nation, conceived in
liberty, and dedicated to the proposition that all men are created equal. Now we are engaged in a great
civil war, testing whether that nation, or any nation so conceived and so dedicated, can long endure. We are
met on a great battlefield of that war. We have come to dedicate a portion of that field, as a final resting
place for those who here gave their lives that that nation might live. It is altogether fitting and proper
that we should do this. But, in a larger sense, we can not dedicate, we can not consecrate, we can not
hallow this ground. The brave men, living and dead, who struggled here, have consecrated it, far above our
poor power to add or detract. The world will little note, nor long remember what we say here, but it can
never forget what they did here. It is for us the living, rather, to be dedicated here to the unfinished
work which they who fought here have thus far so nobly advanced. It is rather for us to be here dedicated to
the great task remaining before us, that from these honored dead we take increased devotion to that cause
for which they gave the last full measure of devotion, that we here highly resolve that these dead shall not
have died in vain, that this nation, under God, shall have a new birth of freedom, and that government of
the people, by the people, for the people, shall not perish from the earth.
"""
NUMBERS = words_of(
    """
    zero one two three four five six seven eight nine ten eleven twelve twenty thirty fifty hundred
    thousand
    """
)
EVERYDAY = words_of(
    """
    first second monday tuesday friday sunday today tomorrow yesterday morning evening month time minute
    big small old young happy early green blue black yellow woman child children mother brother sister
    friend teacher doctor student house home school city street river mountain water coffee bread apple
    dog horse fish book paper table window train music picture story letter question answer going went
    made speak think need like help open close start stop begin move keep learn change follow bring yes
    please very much most every always often again away down over after about into because does
    """
)
FREQUENT = words_of(
    """
    the of and to a in that it is for on are as they be this from or by but not what all we our can so
    who here have
    """
)
COUNTABLE = {"score", "years", "people", "men", "children"}

PHRASE_OF_ADDRESS = 4  # so many words in the Address's order never occur in a sampled sentence
NUMBER_SENTENCE = 0.1
FREQUENT_WORD = 0.3
ADDRESS_WORD = 0.33
REPEATED_PHRASE = 0.06
REPEATED_WORD = 0.015
CANNOT_END = {"to", "for", "a", "the", "two", "four"}


ADDRESS_WORDS = sorted(set(words_of(ADDRESS)))
WORDS = sorted({*ADDRESS_WORDS, *NUMBERS, *EVERYDAY})


def _phrases(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + PHRASE_OF_ADDRESS]) for i in range(len(words) - PHRASE_OF_ADDRESS + 1)}


_ADDRESS_PHRASES = _phrases(words_of(ADDRESS))


def may_follow(word: str, previous: str | None) -> bool:
    """Whether `word` may stand after `previous`.

    "two" and "to", "four" and "for" sound the same, so the next word tells them apart, as it does in English:
    a number or something countable comes after the numbers only.
    """
    if previous in ("two", "four"):
        return word in NUMBERS or word in COUNTABLE
    if previous in ("to", "for"):
        return word not in NUMBERS and word not in COUNTABLE
    return True


def _draw(rng: random.Random, numbers_only: bool) -> str:
    chance = rng.random()
    if numbers_only:
        return rng.choice(NUMBERS)
    if chance < FREQUENT_WORD:
        return rng.choice(FREQUENT)
    if chance < FREQUENT_WORD + ADDRESS_WORD:
        return rng.choice(ADDRESS_WORDS)
    return rng.choice(WORDS)


def _draw_sentence(rng: random.Random, length: int) -> list[str]:
    numbers_only = rng.random() < NUMBER_SENTENCE
    words: list[str] = []
    while len(words) < length:
        previous = words[-1] if words else None
        if previous in ("two", "four"):
            drawn = [rng.choice([*NUMBERS, *sorted(COUNTABLE)])]
        elif len(words) > 2 and rng.random() < REPEATED_PHRASE:
            # Speech repeats itself ("we can not dedicate, we can not consecrate"): a decoder that finds its
            # place by the word just said has to learn which of several it was.
            first = rng.randrange(len(words))
            drawn = words[first : first + rng.randint(1, 4)]
        elif words and rng.random() < REPEATED_WORD:
            drawn = [words[-1]]  # "that that nation"
        else:
            drawn = [_draw(rng, numbers_only)]
        if may_follow(drawn[0], previous):
            words += drawn
    return words[:length]


def sample_sentence(rng: random.Random, length: int) -> str:
    """A sentence of `length` words in random order that shares no phrase with the Address."""
    while True:
        words = _draw_sentence(rng, length)
        if words[-1] not in CANNOT_END and not _phrases(words) & _ADDRESS_PHRASES:
            return " ".join(words)
