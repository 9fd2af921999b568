"""The fallback's rules: those of faster-whisper."""

import itertools
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
from faster_whisper import WhisperModel
from faster_whisper.transcribe import TranscriptionOptions
from hypothesis import given
from hypothesis import strategies as st

from serve_app.settings import AsrSettings
from serve_app.stage_requests import Decoding
from serve_app.stages.asr.fallback import Fallback
from serve_app.transcript import WindowText

FALLBACK = Fallback()
TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
PLAIN, REPEATED = " all of it was heard well", " and so" * 200
TEXT = WindowText(PLAIN, "en", None, -0.2, 0.0, 1.0)

texts = st.builds(
    WindowText,
    text=st.sampled_from([PLAIN, REPEATED]),
    language=st.just("en"),
    language_probability=st.none(),
    avg_logprob=st.floats(-2.0, 0.0).filter(lambda value: value != -1.0),  # itself both skipped and not
    no_speech_prob=st.floats(0.0, 1.0),
    compression_ratio=st.just(1.0),
)
attempts_of_a_window = st.lists(texts, min_size=6, max_size=6).map(
    lambda six: [
        replace(
            text,
            compression_ratio=20.0 if text.text == REPEATED else 0.9,
            temperature=temperature,
            no_speech_prob=six[0].no_speech_prob,  # of the audio, so the same at every temperature
        )
        for text, temperature in zip(six, TEMPERATURES, strict=True)
    ]
)


def by_faster_whisper(attempts: list[WindowText]) -> tuple[str, float]:
    """What its own loop makes of a model that gives these texts; the text, and the last temperature."""
    calls = itertools.count()

    def generate(*arguments: object, **options: object) -> list[SimpleNamespace]:
        text = attempts[number := next(calls)]
        assert options.get("sampling_temperature", 0.0) == text.temperature
        score = text.avg_logprob * 2  # of one token; faster-whisper counts the end token, too
        return [SimpleNamespace(sequences_ids=[[number]], scores=[score], no_speech_prob=text.no_speech_prob)]

    options = TranscriptionOptions(**dict.fromkeys(TranscriptionOptions.__dataclass_fields__))
    options.temperatures = list(TEMPERATURES)
    options.compression_ratio_threshold, options.log_prob_threshold = 2.4, -1.0
    options.no_speech_threshold, options.max_initial_timestamp, options.length_penalty = 0.6, 0.0, 1
    whisper = SimpleNamespace(
        model=SimpleNamespace(generate=generate),
        logger=logging.getLogger("unheard"),
        time_precision=0.02,
        max_length=448,
    )
    tokenizer = SimpleNamespace(decode=lambda tokens: attempts[tokens[0]].text)
    result, avg_logprob, temperature, _ = WhisperModel.generate_with_fallback(
        whisper, None, [], tokenizer, options
    )
    skipped = result.no_speech_prob > 0.6 and not avg_logprob > -1.0  # as `generate_segments` has it
    return "" if skipped else attempts[result.sequences_ids[0][0]].text, temperature


@given(attempts_of_a_window)
def test_the_loop_is_faster_whispers(attempts: list[WindowText]) -> None:
    """Whatever a model says at each temperature: as many attempts, and the same text chosen or left out."""
    assert FALLBACK.schedule(Decoding()) == TEMPERATURES
    made = []
    for text in attempts:
        made.append(text)
        if FALLBACK.is_believable(text):
            break
    chosen = FALLBACK.best_attempt(made)
    assert (chosen.text, made[-1].temperature) == by_faster_whisper(attempts)
    assert chosen.attempts == len(made)
    assert chosen.was_silence == (chosen.text == "")


def test_a_requests_own_temperature_is_the_only_one() -> None:
    """Above 0 nothing else is tried; at 0, or without one, the fallback's follow."""
    assert FALLBACK.schedule(Decoding(temperature=0.3)) == (0.3,)
    assert FALLBACK.schedule(Decoding(temperature=0.0)) == TEMPERATURES
    assert Fallback(AsrSettings(temperature_fallback=())).schedule(Decoding()) == (0.0,)


@pytest.mark.parametrize(
    ("temperature", "step", "tried"),
    [
        (None, 0.2, TEMPERATURES),
        (0.0, 0.3, (0.0, 0.3, 0.6, 0.9)),
        (0.4, 0.2, (0.4, 0.6, 0.8, 1.0)),
        (None, 0.1, tuple(n / 10 for n in range(11))),
        (0.0, 1.0, (0.0, 1.0)),
        (0.95, 0.1, (0.95,)),
        (0.0, 0.0, (0.0,)),
        (0.3, 0.0, (0.3,)),
    ],
)
def test_a_request_may_give_the_step(
    temperature: float | None, step: float, tried: tuple[float, ...]
) -> None:
    """From its own temperature up to 1, as whisper.cpp's `temperature_inc`; 0 is no fallback."""
    decoding = Decoding(temperature=temperature, temperature_inc=step)
    assert FALLBACK.schedule(decoding) == pytest.approx(tried)


def test_without_a_fallback_a_text_stays_as_it_is() -> None:
    """An operator who wants whisperx's text gets it, be it ever so repetitive."""
    never = Fallback(AsrSettings(temperature_fallback=(), no_speech_threshold=1.0))
    bad = replace(TEXT, avg_logprob=-3.0, compression_ratio=20.0, no_speech_prob=0.999)
    assert never.best_attempt([bad]) == replace(bad, is_repetitive=True)


@pytest.mark.parametrize(
    ("ratios", "is_repetitive"), [((9.0, 2.5, 3.0), True), ((9.0, 2.3), False), ((9.0, 2.4, 9.0), False)]
)
def test_a_loop_that_no_attempt_ended_is_marked(ratios: tuple[float, ...], is_repetitive: bool) -> None:
    """Only where every attempt was repetitive; else one that was not is taken."""
    attempts = [replace(TEXT, compression_ratio=ratio, avg_logprob=-0.5) for ratio in ratios]
    assert FALLBACK.best_attempt(attempts).is_repetitive == is_repetitive


@pytest.mark.parametrize(
    ("text", "is_repetitive"),
    [
        (" I'm afraid of the poor. I'm afraid of the poor. I'm afraid of the poor.", True),
        (" and the battery of the battery of the battery of the battery", True),
        (" No, no, no, no, no. Ten, ten, ten. Hello. Hello. Oh, hello.", False),
        (" We shall fight on the beaches, we shall fight on the landing grounds, we shall fight.", False),
    ],
)
def test_a_phrase_three_times_running_is_marked(text: str, is_repetitive: bool) -> None:
    """A short loop compresses no better than speech, so it is not decoded again, but it is not believed."""
    attempt = replace(TEXT, text=text, compression_ratio=2.0)
    assert FALLBACK.best_attempt([attempt]).is_repetitive == is_repetitive


@pytest.mark.parametrize(
    ("text", "no_speech_prob", "avg_logprob", "was_silence", "is_over_silence"),
    [
        (" Thank you.", 0.93, -0.92, True, False),  # over pink noise
        (" you", 0.91, -0.89, True, False),  # over a sweep
        (" Yeah.", 0.47, -0.57, False, False),  # said
        (" A A A A A A A A A A A A", 0.76, -0.58, False, True),  # over barking
        (" Thank you.", 0.93, -0.2, False, True),  # likely text may have been said
        (" Thank you for all that you have done.", 0.93, -0.6, False, True),
        ("", 0.93, -0.2, False, False),
    ],
)
def test_stock_phrases_over_silence_are_left_out(
    text: str, no_speech_prob: float, avg_logprob: float, was_silence: bool, is_over_silence: bool
) -> None:
    """What is kept over silence is marked; figures are of Whisper `base`."""
    attempt = replace(TEXT, text=text, no_speech_prob=no_speech_prob, avg_logprob=avg_logprob)
    best = FALLBACK.best_attempt([attempt])
    assert (best.was_silence, best.is_over_silence) == (was_silence, is_over_silence)
    assert best.text == ("" if was_silence else text)
    assert FALLBACK.is_believable(attempt)


def test_the_first_attempts_language_probability_stays() -> None:
    """Later attempts are told the language, so only the first one measured it."""
    first = replace(TEXT, avg_logprob=-1.5, language_probability=0.7)
    assert FALLBACK.best_attempt([first, replace(TEXT, temperature=0.2)]).language_probability == 0.7


@pytest.mark.parametrize("wordless", ["", " .", " ..."])
def test_where_nothing_was_said_nothing_is_invented(wordless: str) -> None:
    """A blip that is heard as a full stop stays one, however unlikely."""
    blip = replace(TEXT, text=wordless, avg_logprob=-2.2)
    assert FALLBACK.is_believable(blip)
    assert FALLBACK.best_attempt([blip]) == blip
    assert not FALLBACK.is_believable(replace(blip, text=" 是"))


def test_an_empty_window_is_no_loss() -> None:
    """Where nothing was heard, nothing was left out."""
    nothing = replace(TEXT, text="", avg_logprob=-3.0, no_speech_prob=0.9)
    assert not FALLBACK.best_attempt([nothing]).was_silence
