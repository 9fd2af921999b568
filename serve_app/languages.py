"""The languages that Whisper knows, and what else they are called."""

import re
import unicodedata

import langcodes
from langcodes.data_dicts import MACROLANGUAGES
from language_data.names import TRIES, normalize_name

# fmt: off
# In the order of Whisper's language tokens: code to English name.
LANGUAGES = {  # a copy of whisperx.utils.LANGUAGES, since only the stages import whisperx
    "en": "english", "zh": "chinese", "de": "german", "es": "spanish", "ru": "russian", "ko": "korean",
    "fr": "french", "ja": "japanese", "pt": "portuguese", "tr": "turkish", "pl": "polish", "ca": "catalan",
    "nl": "dutch", "ar": "arabic", "sv": "swedish", "it": "italian", "id": "indonesian", "hi": "hindi",
    "fi": "finnish", "vi": "vietnamese", "he": "hebrew", "uk": "ukrainian", "el": "greek", "ms": "malay",
    "cs": "czech", "ro": "romanian", "da": "danish", "hu": "hungarian", "ta": "tamil", "no": "norwegian",
    "th": "thai", "ur": "urdu", "hr": "croatian", "bg": "bulgarian", "lt": "lithuanian", "la": "latin",
    "mi": "maori", "ml": "malayalam", "cy": "welsh", "sk": "slovak", "te": "telugu", "fa": "persian",
    "lv": "latvian", "bn": "bengali", "sr": "serbian", "az": "azerbaijani", "sl": "slovenian",
    "kn": "kannada", "et": "estonian", "mk": "macedonian", "br": "breton", "eu": "basque",
    "is": "icelandic", "hy": "armenian", "ne": "nepali", "mn": "mongolian", "bs": "bosnian",
    "kk": "kazakh", "sq": "albanian", "sw": "swahili", "gl": "galician", "mr": "marathi", "pa": "punjabi",
    "si": "sinhala", "km": "khmer", "sn": "shona", "yo": "yoruba", "so": "somali", "af": "afrikaans",
    "oc": "occitan", "ka": "georgian", "be": "belarusian", "tg": "tajik", "sd": "sindhi", "gu": "gujarati",
    "am": "amharic", "yi": "yiddish", "lo": "lao", "uz": "uzbek", "fo": "faroese", "ht": "haitian creole",
    "ps": "pashto", "tk": "turkmen", "nn": "nynorsk", "mt": "maltese", "sa": "sanskrit",
    "lb": "luxembourgish", "my": "myanmar", "bo": "tibetan", "tl": "tagalog", "mg": "malagasy",
    "as": "assamese", "tt": "tatar", "haw": "hawaiian", "ln": "lingala", "ha": "hausa", "ba": "bashkir",
    "jw": "javanese", "su": "sundanese", "yue": "cantonese",
}
# fmt: on

LANGUAGES_WITHOUT_SPACES = ("ja", "zh")  # of whisperx's alignment: every character is a word
NO_SPACE_BETWEEN_SENTENCES = (*LANGUAGES_WITHOUT_SPACES, "yue")
NO_SPACE_BETWEEN_WORDS = (*NO_SPACE_BETWEEN_SENTENCES, "th", "lo", "km", "my", "bo")

MAX_NAME_CHARS = 64  # langcodes takes minutes for a megabyte, and its tries break on a NUL
_CODE = re.compile(r"[a-z]{2,3}(?:[-_][a-z0-9]+)*")
_EXTENDED = re.compile(r"[a-z]{2,3}[-_]([a-z]{3})\b")  # zh-yue
_NAMES = {name: code for code, name in LANGUAGES.items()}
# These langcodes does not have.
_NAMES |= {"castellano": "es", "башҡорт": "ba", "廣東話": "yue"}
_NAMES |= dict.fromkeys(("汉语", "漢語", "国语", "國語", "普通話"), "zh")
_NEAR = {"gsw": "de", "jv": "jw", "fil": "tl", "sh": "sr"}  # Swiss German, Javanese, Filipino, Serbo-Croatian


def language_code(name: str) -> str | None:
    """Whisper's code for a language.

    `name` is a code of ISO 639, a locale, or a name in any language. None if Whisper does not know it.
    """
    name = name.strip()
    if len(name) > MAX_NAME_CHARS or not name.isprintable():
        return None
    name = unicodedata.normalize("NFC", name.lower())
    if name in LANGUAGES:
        return name
    short = re.split("[.@(]", name)[0].strip()  # en_US.UTF-8, Portuguese (Brazil)
    code = _NAMES.get(name, short)
    found = _of_tag(code) if _CODE.fullmatch(code) else _named(name) or _named(short)
    # A member of what ISO 639 calls one language is taken for it: Bokmål, Egyptian Arabic.
    same = (found, MACROLANGUAGES.get(found), _NEAR.get(found)) if found else ()
    return next((code for code in same if code in LANGUAGES), None)


def _of_tag(tag: str) -> str | None:
    extended = _EXTENDED.match(tag)
    # The language alone, because langcodes keeps every tag that it was ever asked for.
    subtag = extended[1] if extended else re.split("[-_]", tag)[0]
    return langcodes.Language.get(subtag).language


def _named(name: str) -> str | None:
    try:
        found = langcodes.find(name)
    except LookupError:
        return None
    # It takes a beginning for the whole, too: "German or French" would be German.
    return found.language if normalize_name(name) in TRIES["und/name_to_language"] else None
