"""Where sentences begin and end: NLTK's punkt, and the full stops of scripts that it does not know."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import regex
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, PunktTokenizer

from serve_app.languages import LANGUAGES

SplitSentences = Callable[[str], Sequence[tuple[int, int]]]  # text -> (first, end) positions of its sentences

_PUNKT_NAMES = LANGUAGES | {"sl": "slovene"}

# Without the last dot, as punkt keeps them: English, German, French, Spanish and Portuguese, Italian.
_ABBREVIATIONS = """
adm approx apt assn ave bldg blvd capt cf cmdr co col corp dept dr e.g esp et al etc fig gen gov hon i.e inc
jr lt ltd maj messrs mr mrs ms mt nos p.m a.m ph.d prof pvt rep rev sen sgt sr st u.k u.s vol vs
bzw d.h dipl geb ggf hr inkl nr str u.a usw vgl z.b mlle mme p.ex dra p.ej sra srta dott ecc sig
"""

# Unicode's sentence terminals (UAX 29) but those that punkt splits at, with closing quotes and brackets.
_OTHER_ENDS = regex.compile(r"""(?V1)[\p{SB=ST}--[!?]]+[\p{Pe}\p{Pf}"']*\s*""")


@lru_cache(128)  # one for each language
def sentence_splitter(language: str) -> SplitSentences:
    """The splitter for a language.

    Uses punkt's trained data for it if they are installed (else the English ones, like whisperx), else a list
    of abbreviations. Never downloads them, unlike whisperx.
    """
    punkt = _punkt(_PUNKT_NAMES.get(language, "english"))

    def split(text: str) -> list[tuple[int, int]]:
        return [part for span in punkt.span_tokenize(text) for part in _cut(text, *span)]

    return split


def _punkt(name: str) -> PunktSentenceTokenizer:
    for trained in (name, "english"):
        try:
            return PunktTokenizer(trained)
        except LookupError:
            continue
    parameters = PunktParameters()
    parameters.abbrev_types = set(_ABBREVIATIONS.split())
    return PunktSentenceTokenizer(parameters)


def _cut(text: str, first: int, end: int) -> list[tuple[int, int]]:
    """The parts of text[first:end] after each of _OTHER_ENDS, without the space between them."""
    parts = []
    for found in _OTHER_ENDS.finditer(text, first, end):
        parts.append((first, found.start() + len(found[0].rstrip())))
        first = found.end()
    return [*parts, (first, end)] if first < end else parts
