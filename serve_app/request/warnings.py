"""What a caller is told about a request that succeeded.

Alignment and diarization may fail without costing the text: their error becomes a warning.
"""

import logging
from collections.abc import Sequence

from serve_app.errors import TranscriptionError
from serve_app.transcript import Diarization, Segment, StageWarning, Window, WindowText, speakers_of

logger = logging.getLogger("ray.serve")  # Serve's logger adds the request id to every line

NO_SPEAKERS_FOUND = StageWarning(
    "diarization", "no_speakers_found", "No speaker was found in the audio. Segments have no speakers."
)

CONFIDENCE_MISSING = StageWarning(
    "asr", "confidence_missing", "The recogniser's model gives no probabilities of tokens, so of no words."
)
UNCERTAIN_BELOW = 0.5  # a window's probability for its own language


def decoding_warnings(
    texts: Sequence[tuple[Window, WindowText]],
    language: str | None,
    *,
    logprobs: bool = False,
    may_mix: bool = False,
    languages_named: bool = False,
) -> list[StageWarning]:
    """One warning for each unusual way in which windows of a file, mostly in `language`, were decoded.

    And one if more speech has no text than noise would explain, or tokens are missing whose `logprobs` are
    wanted. Where languages `may_mix`, other languages are no news, but one that is a guess is.
    """
    cut = max((text.prompt_tokens_cut for _, text in texts), default=0)
    retried = [window for window, text in texts if text.attempts > 1]
    repetitive = [window for window, text in texts if text.is_repetitive]
    invented = [window for window, text in texts if text.is_over_silence]
    silent = [window for window, text in texts if text.was_silence]
    speech_s = sum(window.end_s - window.start_s for window, _ in texts)
    lost_s = sum(window.end_s - window.start_s for window, text in texts if not text.text.strip())
    uncertain = [
        window
        for window, text in texts
        if may_mix and text.text.strip() and (text.language_probability or 0.0) < UNCERTAIN_BELOW
    ]
    foreign: dict[str, list[Window]] = {}
    for window, text in texts:
        if not may_mix and text.language != language and text.text.strip():
            foreign.setdefault(text.language, []).append(window)
    languages = ", and ".join(f"{code} in {_windows(windows)}" for code, windows in foreign.items())
    remedy = "Check its text." if languages_named else "Name those spoken with `languages`."
    messages = {
        "prompt_shortened": cut
        and f"initial_prompt is too long for Whisper: its first {cut} tokens were left out.",
        "fallback_temperature": retried
        and "Text that repeated itself or was unlikely was decoded again at higher temperatures, in "
        f"{_windows(retried)}. Check it.",
        "repetitive_text": repetitive
        and "Text that repeats itself was the best that any attempt gave; it was hardly said like this, in "
        f"{_windows(repetitive)}. Leave it out, or use a larger model.",
        "likely_invented": invented
        and f"There is text over what sounds like no speech, in {_windows(invented)}; it may be invented.",
        "languages_mixed": languages
        and f"Besides {language} there is {languages}, written as such. Name one with `language` to have "
        "every window in it.",
        "language_uncertain": uncertain and f"The language is a guess in {_windows(uncertain)}. {remedy}",
        "no_speech": silent
        and f"Unlikely text over what sounds like silence was left out, in {_windows(silent)}.",
        "logprobs_missing": logprobs
        and any(text.text.strip() and not text.tokens for _, text in texts)
        and "The recogniser's model gives no log-probabilities of tokens.",
        # Less is often noise or music that was taken for speech.
        "speech_without_text": lost_s >= max(5.0, 0.2 * speech_s)
        and f"{lost_s:.0f} of {speech_s:.0f} s of speech came to no text; it may be noise, or another "
        "language than `language`.",
    }
    return [StageWarning("asr", code, str(message)) for code, message in messages.items() if message]


def _windows(windows: Sequence[Window]) -> str:
    """Describes windows such as `2 windows (1.5-7.0 s, 9.1-12.0 s)`."""
    times = [f"{window.start_s:.1f}-{window.end_s:.1f} s" for window in windows[:5]]
    more = ["..."] if len(windows) > 5 else []
    return f"{len(windows)} window{'s' if len(windows) > 1 else ''} ({', '.join(times + more)})"


def without_chars(segments: Sequence[Segment]) -> StageWarning | None:
    """The warning where words have no times of characters, which only wav2vec2 gives."""
    languages = {
        segment.source_text.language
        for segment in segments
        if segment.source_text and not any(word.chars for word in segment.words)
    }
    if not languages:
        return None
    message = (
        f"Some words in {', '.join(sorted(languages))} have no `chars`: no wav2vec2 model has aligned them, "
        "and Whisper's attention gives no times of characters."
    )
    return StageWarning("alignment", "char_timestamps_missing", message)


def embeddings_missing(diarization: Diarization) -> StageWarning | None:
    """The warning about speakers whose voice has no vector, if there are any."""
    vectors = diarization.voices.vectors if diarization.voices else {}
    missing = [name for name in speakers_of(diarization.turns) if vectors.get(name) is None]
    message = f"There is no embedding of {', '.join(missing)}: nothing said alone was long enough for one."
    return StageWarning("diarization", "embeddings_missing", message) if missing else None


def degraded(stage: str, error: Exception, consequence: str) -> StageWarning:
    """The warning that replaces a stage's error; an error that callers must not see is logged instead."""
    if isinstance(error, TranscriptionError):
        return StageWarning(stage, error.code, f"{error.message} {consequence}")
    logger.error("%s failed", stage, exc_info=error)
    return StageWarning(stage, f"{stage}_failed", f"The {stage} stage failed. {consequence}")
