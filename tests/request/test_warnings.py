"""What a caller is told of a file whose request succeeded, and which requests need speakers."""

import asyncio
from dataclasses import replace

import pytest

from serve_app.errors import InvalidRequest
from serve_app.options import parse_options
from serve_app.request.speaker_turns import wants_speakers
from serve_app.request.state import RequestDeadline
from serve_app.request.warnings import decoding_warnings
from serve_app.transcript import Window, WindowText

TEXT = WindowText(" all of it was heard well", "en", None, -0.2, 0.0, 1.0)
NO_TEXT = replace(TEXT, text="")


@pytest.mark.parametrize("count", [1, 2, 6])
def test_decoding_warnings_say_how_many_windows_and_where(count: int) -> None:
    """There is one warning of each kind for a whole file, with the times of the first windows."""
    heard = [(Window(float(n), n + 0.5), replace(TEXT, attempts=3, temperature=0.4)) for n in range(count)]
    heard.append((Window(50.0, 51.0), replace(NO_TEXT, was_silence=True)))
    retried, silent = decoding_warnings(heard, "en")
    assert (retried.stage, retried.code) == ("asr", "fallback_temperature")
    assert f"{count} window" in retried.message
    assert "(0.0-0.5 s" in retried.message
    assert ("..." in retried.message) == (count > 5)
    assert (silent.stage, silent.code) == ("asr", "no_speech")
    assert "1 window (50.0-51.0 s)" in silent.message


def test_a_text_that_still_repeats_itself_is_a_warning() -> None:
    """It names the windows, beside the one that says that they were decoded again."""
    loop = replace(TEXT, attempts=6, is_repetitive=True)
    retried, repetitive = decoding_warnings([(Window(0.0, 1.0), TEXT), (Window(3.0, 4.5), loop)], "en")
    assert (retried.code, repetitive.code) == ("fallback_temperature", "repetitive_text")
    assert "1 window (3.0-4.5 s)" in repetitive.message


def test_text_over_silence_is_a_warning() -> None:
    """It names the windows."""
    [warning] = decoding_warnings([(Window(3.0, 4.5), replace(TEXT, is_over_silence=True))], "en")
    assert (warning.code, "1 window (3.0-4.5 s)" in warning.message) == ("likely_invented", True)


def test_a_prompt_that_was_cut_is_one_warning() -> None:
    """It names the most tokens that any window left out."""
    cut = [(Window(n, n + 1), replace(TEXT, prompt_tokens_cut=n)) for n in range(3)]
    [warning] = decoding_warnings(cut, "en")
    assert (warning.code, "first 2 tokens" in warning.message) == ("prompt_shortened", True)


def test_well_decoded_windows_have_no_warnings() -> None:
    """A file that was decoded at the first attempt has none, and so has one without speech."""
    for heard in ([(Window(0.0, 100.0), TEXT)], []):
        assert decoding_warnings(heard, "en") == []


@pytest.mark.parametrize(
    ("without_text_s", "with_text_s", "warned"), [(5, 20, True), (4.9, 0, False), (5, 21, False)]
)
def test_much_speech_without_text_is_a_warning(
    without_text_s: float, with_text_s: float, warned: bool
) -> None:
    """A fifth of the speech and 5 s of it are too much to be noise."""
    heard = [(Window(0, without_text_s), NO_TEXT), (Window(30, 30 + with_text_s), TEXT)]
    assert [warning.code for warning in decoding_warnings(heard, "en")] == ["speech_without_text"] * warned


@pytest.mark.parametrize(
    ("fields", "param"), [({"diarize": True}, "diarize"), ({"response_format": "rttm"}, "response_format")]
)
def test_speakers_that_are_demanded_of_a_server_without_them_are_an_error(
    fields: dict[str, object], param: str
) -> None:
    """It names the option to leave out; who only would have liked them goes without."""
    options = parse_options(fields)
    assert wants_speakers(options, available=True)
    with pytest.raises(InvalidRequest, match=r"diarization\.model") as caught:
        wants_speakers(options, available=False)
    assert (caught.value.param, caught.value.code) == (param, "diarization_unavailable")
    assert not wants_speakers(parse_options({}), available=False)


def test_speakers_that_have_no_place_in_the_answer_are_not_looked_for() -> None:
    """tsv has none, and diarize=false says so."""
    for fields in ({"response_format": "tsv"}, {"diarize": False}):
        assert not wants_speakers(parse_options(fields), available=True)


def test_the_deadline_leaves_time_for_the_answer() -> None:
    """A task that never ends is given up before the limit; one that has ended is in time, however late."""

    async def run() -> tuple[bool, bool, float]:
        loop = asyncio.get_running_loop()
        never = asyncio.create_task(asyncio.Event().wait())
        begun_s = loop.time()
        deadline = RequestDeadline(0.2)
        missed = await deadline.comes_in_time(never)
        waited_s = loop.time() - begun_s
        ended = asyncio.create_task(asyncio.sleep(0))
        await ended
        in_time = await deadline.comes_in_time(ended)
        never.cancel()
        return missed, in_time, waited_s

    missed, in_time, waited_s = asyncio.run(run())
    assert (missed, in_time) == (False, True)
    assert waited_s >= 0.18
