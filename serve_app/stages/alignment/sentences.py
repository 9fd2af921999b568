"""Where sentences begin and end: NLTK's punkt, and the full stops of scripts that it does not know."""

from collections.abc import Callable, Sequence
from functools import lru_cache

from nltk.data import find
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer, load_punkt_params

from serve_app.languages import LANGUAGES
from serve_app.sentence_ends import sentence_ends

SplitSentences = Callable[[str], Sequence[tuple[int, int]]]  # text -> (first, end) positions of its sentences

_PUNKT_NAMES = LANGUAGES | {"sl": "slovene"}

# Without the last dot, as punkt keeps them: English, German, French, Spanish and Portuguese, Italian.
_ABBREVIATIONS = """
adm approx apt assn ave bldg blvd capt cf cmdr co col corp dept dr e.g esp et al etc fig gen gov hon i.e inc
jr lt ltd maj messrs mr mrs ms mt nos p.m a.m ph.d prof pvt rep rev sen sgt sr st u.k u.s vol vs
bzw d.h dipl geb ggf hr inkl nr str u.a usw vgl z.b mlle mme p.ex dra p.ej sra srta dott ecc sig
"""

# Of scripts for which punkt has no data: Arabic, Devanagari, Bengali, Gujarati, Gurmukhi, Tamil, Telugu,
# Kannada, Malayalam, Armenian.
_MORE_ABBREVIATIONS = """
د أ ا م ص ت هـ ق.م ب.م
डॉ डा प्रो प्रा पं स्व श्री रु रू नं कि.मी कि.ग्रा ई.पू वि.सं ডা ড মো মোঃ প্রফ কি.মি ডঃ ડૉ ડો પ્રો રૂ ਡਾ ਪ੍ਰੋ
திரு திருமதி பேரா கி.மீ கி.பி கி.மு డా ప్రొ శ్రీ కి.మీ ಡಾ ಪ್ರೊ ಶ್ರೀ ಕಿ.ಮೀ ഡോ പ്രൊഫ ശ്രീ കി.മീ թ դ պրն
"""


@lru_cache(128)  # one for each language
def sentence_splitter(language: str) -> SplitSentences:
    """The splitter for a language.

    Uses punkt's trained data for it if they are installed (else the English ones, like whisperx), else a list
    of abbreviations. Never downloads them, unlike whisperx.
    """
    punkt = PunktSentenceTokenizer(_parameters(_PUNKT_NAMES.get(language, "english")))

    def split(text: str) -> list[tuple[int, int]]:
        ends, parts = sentence_ends(text), []
        for first, last in punkt.span_tokenize(text):
            begin = first
            for end, following in ends:
                if begin < end and following < last:
                    parts.append((begin, end))
                    begin = following
            parts.append((begin, last))
        return parts

    return split


def _parameters(name: str) -> PunktParameters:
    for trained in (name, "english"):
        try:
            parameters = load_punkt_params(find(f"tokenizers/punkt_tab/{trained}/"))
            break
        except LookupError:
            continue
    else:
        parameters = PunktParameters()
        parameters.abbrev_types = set(_ABBREVIATIONS.split())
    parameters.abbrev_types.update(_MORE_ABBREVIATIONS.split())
    return parameters
