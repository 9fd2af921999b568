"""Which language a file has, by what its first windows say."""

import asyncio
from collections.abc import Sequence

import pytest

from serve_app.request.language_vote import LanguageVote
from serve_app.transcript import StageWarning, Window, WindowText

Heard = tuple[float, Sequence[tuple[str, float]]]  # seconds of a window, and its languages


def decide(*heard: Heard) -> tuple[str | None, StageWarning | None]:
    """The language of a file of these windows, and the warning."""

    async def run() -> tuple[str | None, StageWarning | None]:
        vote = LanguageVote(None)
        for seconds, languages in heard:
            likeliest, probability = languages[0]
            text = WindowText("x", likeliest, probability, -0.1, 0.0, 1.0, languages=tuple(languages))
            assert vote.vote(Window(0.0, seconds), text) is None
        return (vote.no_more_windows(len(heard)), vote.result())[::-1]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("heard", "language"),
    [
        # One long window outweighs two short ones.
        (((20.0, [("de", 0.9)]), (2.0, [("en", 0.9)]), (2.0, [("en", 0.9)])), "de"),
        # Second choices count: two related languages do not split the vote of a third.
        (((5.0, [("nn", 0.5), ("sv", 0.45)]), (5.0, [("da", 0.5), ("sv", 0.45)])), "sv"),
    ],
)
def test_the_language_of_most_speech_wins(heard: tuple[Heard, ...], language: str) -> None:
    """Each window adds its probabilities, weighted by its length."""
    assert decide(*heard)[0] == language


@pytest.mark.parametrize(("probability", "codes"), [(0.5, []), (0.49, ["language_uncertain"])])
def test_a_language_of_less_than_half_of_the_speech_is_uncertain(
    probability: float, codes: list[str]
) -> None:
    """The answer says that it is a guess."""
    _, warning = decide((5.0, [("en", probability), ("de", 0.3)]), (5.0, [("en", probability)]))
    assert [found.code for found in [warning] if found] == codes


@pytest.mark.parametrize(
    ("seconds", "avg_logprob", "codes"),
    [(20.0, -0.42, []), (20.0, -0.77, ["language_uncertain"]), (2.8, -0.77, [])],
)
def test_an_english_only_model_doubts_improbable_english(
    seconds: float, avg_logprob: float, codes: list[str]
) -> None:
    """It detects no language, so its windows have no probabilities; a short one proves nothing."""

    async def run() -> tuple[str | None, StageWarning | None]:
        vote = LanguageVote(None)
        vote.vote(Window(0.0, seconds), WindowText("x", "en", None, avg_logprob, 0.0, 1.0))
        return (vote.no_more_windows(1), vote.result())[::-1]

    language, warning = asyncio.run(run())
    assert language == "en"
    assert [found.code for found in [warning] if found] == codes
