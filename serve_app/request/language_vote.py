"""The language of a file: the caller's, or the one for which the file's first windows vote."""

import asyncio
from collections import defaultdict

from serve_app.transcript import StageWarning, WindowText

MAX_VOTERS = 4  # windows


class LanguageVote:
    """The one language of a file; if it is not named, the most probable one of the first windows."""

    def __init__(self, named: str | None) -> None:
        self._decided: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._votes: list[WindowText] = []
        self._voters = MAX_VOTERS
        if named is not None:
            self._decided.set_result(named)

    def asks(self, number: int) -> bool:
        """Whether the window with this number, from 0, votes: its text has the language that it detects."""
        return number < MAX_VOTERS and not self._decided.done()

    def vote(self, text: WindowText) -> StageWarning | None:
        """Counts a window's vote; returns a warning if that decides the language with little certainty."""
        self._votes.append(text)
        return self._decide()

    def no_more_windows(self, found: int) -> StageWarning | None:
        """Says how many windows the file has, since a short file has fewer than MAX_VOTERS."""
        self._voters = min(MAX_VOTERS, found)
        return self._decide()

    async def decided(self) -> str:
        return await asyncio.shield(self._decided)

    def result(self) -> str | None:
        return self._decided.result() if self._decided.done() else None

    def _decide(self) -> StageWarning | None:
        if self._decided.done() or not self._voters or len(self._votes) < self._voters:
            return None
        votes: defaultdict[str, float] = defaultdict(float)
        for text in self._votes:
            votes[text.language] += 1.0 if text.language_probability is None else text.language_probability
        language = max(votes, key=lambda code: votes[code])
        self._decided.set_result(language)
        if votes[language] / len(self._votes) >= 0.5:  # the mean probability
            return None
        message = f"The language was taken to be {language}, with little certainty; name it with `language`."
        return StageWarning("asr", "language_uncertain", message)
