"""Where sentences end in scripts that have other full stops than Latin, or none.

The class is Unicode's (UAX 29), with what it lacks and what people type in place of these characters. The
sentence breakers of ICU, pysbd and sentencex know fewer of them: neither Tibetan nor Thai, and Burmese and
Khmer only in part.
"""

import regex

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}ー\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}"
_INDIC = r"\p{Deva}\p{Beng}\p{Guru}\p{Gujr}\p{Orya}"
_STOPS = (
    r"[\p{SB=ST}།-༒༔--[!?၊]]",  # punkt splits at ! and ?; ၊ is a comma
    r"(?<!\d)．(?!\d)",
    rf"(?<=[{_UNSPACED}][」』）”]?)(?:[!?]+|\.(?!\S)|\.(?=[{_UNSPACED}]))",  # without a space
    rf"(?<=[{_INDIC}]\s?)\|{{1,2}}",  # for a danda
    r"(?<=\p{Ethiopic})(?:፡፡|::)",
    r"(?<=\p{Armenian}):(?![^\s\p{Pe}\p{Pf}])",
    r"(?<=\p{Greek})[;\u037E](?![^\s\p{Pe}\p{Pf}])",  # a question mark
)
# With closing quotes and brackets, and not before a comma or another full stop.
_STOP = regex.compile(
    rf"""(?V1)(?:{"|".join(_STOPS)})[\p{{SB=ST}}]*+[\p{{Pe}}\p{{Pf}}"']*+\s*+(?![,،、，､;؛；:：།-༒])"""
)
_ANY_STOP = regex.compile(rf"{_STOP.pattern}|[.!?](?!\d)")
# Thai and Lao have no full stop: a space is between clauses, but also beside numbers, Latin and repetitions.
_CLAUSE = r"[[\p{Thai}\p{Lao}]&&[\p{L}\p{M}]--[ๆฯໆຯ]]"
_SPACE = regex.compile(rf"(?V1)(?<={_CLAUSE})\s+(?={_CLAUSE})")
# Chinese and Japanese have spaces where Whisper writes no full stops.
_CHINESE = r"\p{Han}\p{Hiragana}\p{Katakana}ー"
_CHINESE_SPACE = regex.compile(rf"(?<=[{_CHINESE}])\s+(?=[{_CHINESE}「『（“])")


def sentence_ends(text: str) -> list[tuple[int, int]]:
    """Where a sentence ends and the next one begins, but for those that the full stops of Latin end."""
    ends = [*_STOP.finditer(text), *_SPACE.finditer(text)]
    if not _ANY_STOP.search(text):
        ends += _CHINESE_SPACE.finditer(text)
    found = ((end.start() + len(end[0].rstrip()), end.end()) for end in ends)
    return sorted((end, following) for end, following in found if following < len(text))
