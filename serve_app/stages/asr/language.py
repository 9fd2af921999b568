"""Which language is spoken in a window: one step of Whisper's decoder, for a whole batch."""

from typing import Any

from serve_app.stage_requests import AsrRequest
from serve_app.transcript import WindowText

PROBABLE = 0.01  # languages below this are not told
Ranking = tuple[tuple[str, float], ...]  # languages and their probabilities, likeliest first


def rankings(model: Any, encoded: Any) -> list[Ranking]:
    """Each encoded window's languages; `model` is CTranslate2's."""
    detected = model.detect_language(encoded)
    return [tuple((token.strip("<|>"), value) for token, value in ranking) for ranking in detected]


def choose_language(request: AsrRequest, ranking: Ranking) -> tuple[str, Ranking]:
    """The likeliest language that the request allows, unless it has one and is not certain of another."""
    if request.language and request.certain_at is None:
        return request.language, ()
    ranking = allowed(request, ranking)
    likeliest, probability = ranking[0]
    is_certain = request.certain_at is not None and probability >= request.certain_at
    return (likeliest if is_certain else request.language or likeliest), ranking


def allowed(request: AsrRequest, ranking: Ranking) -> Ranking:
    """The languages that the request allows: all, or those that it names, with probabilities among these."""
    named = request.decoding.languages
    if not named:
        return ranking
    found = [each for each in ranking if each[0] in named]
    total = sum(probability for _, probability in found) or 1.0
    return tuple((language, probability / total) for language, probability in found)


def probable(ranking: Ranking) -> Ranking:
    """The languages that are worth telling: the likeliest one always is."""
    return tuple(each for each in ranking if each[1] >= PROBABLE or each == ranking[0])


def without_text(ranking: Ranking) -> WindowText:
    """What is known of a window of which the language alone was wanted."""
    language, probability = ranking[0]
    return WindowText(
        text="",
        language=language,
        language_probability=probability,
        avg_logprob=0.0,
        no_speech_prob=0.0,
        compression_ratio=0.0,
        languages=probable(ranking),
    )
