"""One file has one language. Where the caller does not name it, the file's first windows vote."""

import asyncio
from collections import defaultdict

from serve_app.transcript import StageWarning, WindowText

VOTERS = 4  # windows that decide
UNSURE_BELOW = 0.5  # mean probability under which the detected language comes with a warning


class Language:
    """The language of one file: named by the caller, or the most probable one of its first windows."""

    def __init__(self, named: str | None) -> None:
        self._decided: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._votes: list[WindowText] = []
        self._voters = VOTERS
        if named is not None:
            self._decided.set_result(named)

    def asks(self, number: int) -> bool:
        """Whether the window of this number, from 0, is transcribed in the language it seems to have."""
        return number < VOTERS and not self._decided.done()

    def vote(self, text: WindowText) -> StageWarning | None:
        """Counts a window; a warning where that decides the language with little certainty."""
        self._votes.append(text)
        return self._decide()

    def no_more_windows(self, found: int) -> StageWarning | None:
        """Says how many windows the whole file has, in case it has fewer than there are voters."""
        self._voters = min(VOTERS, found)
        return self._decide()

    async def decided(self) -> str:
        """Waits for enough votes."""
        return await asyncio.shield(self._decided)

    def result(self) -> str | None:
        """None where no window has been heard."""
        return self._decided.result() if self._decided.done() else None

    def _decide(self) -> StageWarning | None:
        if self._decided.done() or not self._voters or len(self._votes) < self._voters:
            return None
        votes: dict[str, float] = defaultdict(float)
        for text in self._votes:
            votes[text.language] += 1.0 if text.language_probability is None else text.language_probability
        language = max(votes, key=lambda code: votes[code])
        self._decided.set_result(language)
        if votes[language] / len(self._votes) >= UNSURE_BELOW:
            return None
        message = f"The language was taken to be {language}, with little certainty; name it with `language`."
        return StageWarning("asr", "language_uncertain", message)
