"""The language of a file: the caller's, the one for which the file's first windows vote, or many.

A window that is certain of another language keeps it: an interview may change languages, and German that is
written as English is lost. Where each window is to have its own, there is no vote.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable

from serve_app.transcript import Segment, StageWarning, Window, WindowText

MAX_VOTERS = 4  # windows
# A window's probability for a language of its own. Of 138 cuts of 1 to 4 s no wrong language was above 0.76.
CERTAIN_AT = 0.9
# An English-only model's mean log-probability over English: from -0.42 on, and once -0.78 where it heard
# hardly a word; over seven files in other languages: -0.77 and below. Shorter speech says too little.
IMPROBABLE_ENGLISH, MIN_ENGLISH_S = -0.65, 3.0


def language_shares(segments: Iterable[Segment]) -> dict[str, float]:
    """The languages that were heard, each with its share of the seconds that have text, most first."""
    spoken_s: defaultdict[str, float] = defaultdict(float)
    for segment in segments:
        if segment.source_text:
            spoken_s[segment.source_text.language] += segment.end_s - segment.start_s
    total_s = sum(spoken_s.values()) or 1.0
    by_share = sorted(spoken_s, key=lambda code: -spoken_s[code])
    return {code: spoken_s[code] / total_s for code in by_share}


class LanguageVote:
    """The language of a file; if it is not named, the most probable one of the first windows' speech."""

    def __init__(self, named: str | None, *, each_its_own: bool = False) -> None:
        self._decided: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()
        self._votes: list[tuple[float, WindowText]] = []  # seconds and what they voted for
        self._voters = MAX_VOTERS
        self.certain_at = CERTAIN_AT if named is None and not each_its_own else None
        self.share = 0.0  # of the votes, for the language that they have decided on
        if named is not None or each_its_own:
            self._decided.set_result(named)

    def is_voter(self, number: int) -> bool:
        """Whether the window with this number, from 0, votes: it has the language detected on it."""
        return number < MAX_VOTERS and not self._decided.done()

    def vote(self, window: Window, text: WindowText) -> StageWarning | None:
        """Counts a window's vote; returns a warning if that decides the language with little certainty."""
        self._votes.append((window.end_s - window.start_s, text))
        return self._decide()

    def no_more_windows(self, found: int) -> StageWarning | None:
        """Says how many windows the file has, since a short file has fewer than MAX_VOTERS."""
        self._voters = min(MAX_VOTERS, found)
        return self._decide()

    async def decided(self) -> str | None:
        """The language to recognise windows in; None: each in its own."""
        return await asyncio.shield(self._decided)

    def fits(self, text: WindowText) -> bool:
        """Whether a voter's text stays: it has the file's language, or is certain of its own."""
        own = dict(text.languages).get(text.language, 0.0)
        return text.language == self._decided.result() or own >= CERTAIN_AT

    def result(self) -> str | None:
        return self._decided.result() if self._decided.done() else None

    def _decide(self) -> StageWarning | None:
        if self._decided.done() or not self._voters or len(self._votes) < self._voters:
            return None
        spoken_s: defaultdict[str, float] = defaultdict(float)
        for seconds, text in self._votes:
            for language, probability in text.languages or ((text.language, 1.0),):
                spoken_s[language] += probability * seconds
        language = max(spoken_s, key=lambda code: spoken_s[code])
        self.share = spoken_s[language] / sum(seconds for seconds, _ in self._votes)
        self._decided.set_result(language)
        if not any(text.languages for _, text in self._votes):
            return self._doubtful_english()
        if self.share >= 0.5:
            return None
        message = f"The language was taken to be {language}, with little certainty; name it with `language`."
        return StageWarning("asr", "language_uncertain", message)

    def _doubtful_english(self) -> StageWarning | None:
        """A model that knows English only writes English whatever it hears, but it is unsure of it then."""
        seconds = sum(seconds for seconds, _ in self._votes)
        avg_logprob = sum(seconds * text.avg_logprob for seconds, text in self._votes) / seconds
        if seconds < MIN_ENGLISH_S or avg_logprob >= IMPROBABLE_ENGLISH:
            return None
        message = (
            "The model knows English only, and its text is improbable. If another language is spoken, choose "
            "a multilingual model."
        )
        return StageWarning("asr", "language_uncertain", message)
