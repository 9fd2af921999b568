"""Options that depend on each other and on the response format."""

import tracemalloc
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio import WHOLE, RawAudio, Selection, Source
from serve_app.errors import InvalidRequest
from serve_app.formats.table import FORMATS, FormatName
from serve_app.languages import LANGUAGES, language_code
from serve_app.options import Options, parse_options
from serve_app.request.speaker_turns import wants_speakers
from serve_app.stage_requests import Decoding, SpeechSearch
from serve_app.transcript import SpeakerBounds

CLIP = "data:audio/wav;base64,AAAA"


def refused(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse_options(fields)
    return caught.value


@pytest.mark.parametrize(
    ("code", "names"),
    [
        (
            "en",
            "en EN en-US en_GB eng en_US.UTF-8|English|english| ENGLISH |\tEnglish\n|British English|inglés",
        ),
        ("de", "de deu ger de-AT gsw|German|Deutsch|allemand|Swiss German"),
        ("es", "es es-419 spa|Spanish|Castilian|español|ESPAÑOL|castellano|espan\u0303ol"),
        ("pt", "pt_BR por|Brazilian Portuguese|Português|Portuguese (Brazil)"),
        ("fr", "fra fre fr-CA|français"),
        (
            "zh",
            "zh zh-Hant-TW zh_CN zh-HK zho chi cmn|Chinese|Mandarin|中文|汉语|漢語|Chinese (Simplified)",
        ),
        ("yue", "yue zh-yue yue-HK|Cantonese|粵語|廣東話"),
        ("ja", "ja jpn ja_JP.eucJP|日本語|Japanese"),
        ("ru", "rus|русский"),
        ("hi", "hin hi-Latn|हिन्दी"),
        ("ar", "ara arb arz ar-EG|العربية|Egyptian Arabic"),
        ("fa", "per fas prs|Farsi|Dari|فارسی"),
        ("no", "no nb nob nor nb-NO|Norwegian|Bokmål|norsk"),
        ("nn", "nn nno|Nynorsk|Norwegian Nynorsk|Norwegian (Nynorsk)"),
        ("jw", "jw jv jav|Javanese|Jawa"),
        ("tl", "tl tgl fil|Tagalog|Filipino"),
        ("ro", "ro mo|Moldovan|română"),
        ("sr", "sr sh hbs|Serbo-Croatian|српски"),
        ("he", "he iw heb|עברית"),
        ("id", "id in ind|Indonesia"),
        ("nl", "nl-BE dut|Flemish"),
        ("ht", "hat|Haitian Creole|haitian creole|Kreyòl Ayisyen"),
        ("my", "bur mya|Myanmar|Burmese|မြန်မာ"),
        ("lo", "lao|Lao|ລາວ"),
        ("th", "tha|Thai|ไทย"),
        ("haw", "haw|Hawaiian|ʻŌlelo Hawaiʻi"),
        (None, "auto AUTO||  | auto "),
    ],
)
def test_a_language_has_many_names(code: str | None, names: str) -> None:
    """ISO 639-1, -2 and -3, locales, names in any language, in capitals or not, or none to detect it."""
    codes, _, others = names.partition("|")
    for name in [*codes.split(" "), *others.split("|")]:
        assert parse_options({"language": name}).language == code, name
    assert parse_options({"language": None}).language is None


def test_every_language_of_whisper_can_be_named() -> None:
    """By its code, and by the name that whisperx and OpenAI's answers have for it."""
    for code, name in LANGUAGES.items():
        assert {parse_options({"language": each}).language for each in (code, name, name.title())} == {code}


@pytest.mark.parametrize(
    "name",
    [
        *("klingon", "tlh", "xx", "xx-US", "C", "eo", "Frisian", "ku", "Old English", "en,de", "-"),
        *("German or French", "english,german", "Thai food", "Germanic", "\0\0en"),
        *("\ud800", "\0", 5, True, ["en"], "en" * 100_000, "a b " * 100_000),
    ],
)
def test_another_language_is_refused(name: object) -> None:
    """In a moment, with examples of what can be given."""
    error = refused(language=name)
    assert error.param == "language"
    assert "en, pt-BR, German or Deutsch" in error.message
    assert len(error.message) < 200


@given(st.text(max_size=70))
def test_no_language_breaks_the_server(name: str) -> None:
    """Whatever is given, it is a language, none, or refused."""
    with suppress(InvalidRequest):
        assert parse_options({"language": name}).language in (None, *LANGUAGES)


def test_a_long_list_of_languages_is_refused_before_any_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name takes up to 0.1 ms, and a text field may have megabytes: the server would do nothing else."""

    def never(name: str) -> str:
        raise AssertionError(f"{name} was looked up")

    monkeypatch.setattr("serve_app.options.validation.language_code", never)
    for many in ("portuguese (brazil)," * 200_000, ["de"] * 101, ["de,en"] * 1000):
        error = refused(languages=many)
        assert (error.param, error.message) == ("languages", "languages: give at most 100.")


def test_all_languages_may_be_allowed() -> None:
    """Which is as many as may be given."""
    assert parse_options({"languages": ",".join(LANGUAGES)}).languages == tuple(LANGUAGES)
    assert refused(languages=[*LANGUAGES, "en"]).param == "languages"


def test_null_is_an_option_that_is_left_out() -> None:
    """Many clients send all of their fields, also those that nobody has filled in."""
    assert parse_options(dict.fromkeys(Options.model_fields)) == Options()
    assert refused(nonsense=None).param == "nonsense"


def test_known_speakers_are_lists_in_the_same_order() -> None:
    """What JSON and Python send as lists arrives as given, in any script."""
    options = parse_options(
        {"known_speaker_names": ["Ada", "李雷"], "known_speaker_references": [CLIP, CLIP]}
    )
    assert options.known_speaker_names == ("Ada", "李雷")
    assert options.known_speaker_references == (CLIP, CLIP)


@pytest.mark.parametrize(
    ("names", "clips", "param"),
    [
        (["a"], None, "known_speaker_references"),
        (["a"], [CLIP, CLIP], "known_speaker_references"),
        (None, [CLIP], "known_speaker_references"),
        (["a", "a"], [CLIP, CLIP], "known_speaker_names"),
        (["a", ""], [CLIP, CLIP], "known_speaker_names"),
        ([" a"], [CLIP], "known_speaker_names"),
        (["a\nb"], [CLIP], "known_speaker_names"),
        (["a\u2028b"], [CLIP], "known_speaker_names"),
        (["x" * 65], [CLIP], "known_speaker_names"),
        (list("abcde"), [CLIP] * 5, "known_speaker_names"),
        ([3], [CLIP], "known_speaker_names"),
    ],
)
def test_known_speakers_that_make_no_sense_are_refused(names: Any, clips: Any, param: str) -> None:
    """Unequal numbers, too many, and names that are empty, long, given twice or more than one line."""
    fields = {"known_speaker_names": names, "known_speaker_references": clips}
    error = refused(**{name: value for name, value in fields.items() if value is not None})
    assert error.param == param
    assert CLIP not in error.message


def test_a_format_without_speakers_takes_no_options_of_speakers() -> None:
    """Nor are speakers looked for, unless something else asks for them."""
    known = {"known_speaker_names": ["a"], "known_speaker_references": [CLIP]}
    assert refused(response_format="tsv", **known).param == "known_speaker_names"
    tsv = parse_options({"response_format": "tsv", "split_at_speaker_change": False})
    assert not wants_speakers(tsv, available=True)
    assert wants_speakers(parse_options({"response_format": "rttm"}), available=True)


def test_what_needs_speakers_is_refused_without_them() -> None:
    """diarize=false contradicts known speakers and splitting; a translation has no words to split at."""
    known = {"known_speaker_names": ["a"], "known_speaker_references": [CLIP]}
    assert refused(diarize=False, **known).param == "known_speaker_names"
    assert refused(diarize=False, min_speakers=2).param == "min_speakers"
    assert refused(diarize=False, split_at_speaker_change=True).param == "split_at_speaker_change"
    assert refused(task="translate", split_at_speaker_change=True).param == "split_at_speaker_change"
    parse_options({"diarize": False, "task": "translate", "split_at_speaker_change": False})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"vad_onset": 0}, "vad_onset"),
        ({"vad_offset": 1}, "vad_offset"),
        ({"vad_onset": 0.4, "vad_offset": 0.5}, "vad_offset"),
        ({"vad_min_silence_s": -1}, "vad_min_silence_s"),
        ({"vad_min_silence_s": "nan"}, "vad_min_silence_s"),
        ({"max_segment_s": 0.5}, "max_segment_s"),
        ({"max_segment_s": "inf"}, "max_segment_s"),
        ({"max_segment_s": 5, "response_format": "words"}, "max_segment_s"),
        ({"max_segment_s": 5, "response_format": "rttm"}, "max_segment_s"),
        (
            {"max_segment_s": 5, "response_format": "srt", "max_line_width": 9, "max_line_count": 1},
            "max_segment_s",
        ),
        ({"align": False, "word_timestamps": True}, "word_timestamps"),
        ({"align": False, "response_format": "words"}, "response_format"),
        ({"align": False, "response_format": "srt", "max_line_width": 9}, "max_line_width"),
        ({"align": False, "response_format": "vtt", "highlight_words": True}, "highlight_words"),
        ({"align": False, "split_at_speaker_change": True}, "split_at_speaker_change"),
        ({"align": False, "char_timestamps": True}, "char_timestamps"),
        ({"char_timestamps": True}, "char_timestamps"),
        ({"char_timestamps": True, "response_format": "srt"}, "char_timestamps"),
        ({"char_timestamps": True, "task": "translate"}, "char_timestamps"),
    ],
)
def test_options_of_segments_are_refused_where_they_cannot_be_honoured(
    fields: dict[str, Any], param: str
) -> None:
    """By name; none is accepted and ignored."""
    assert refused(**fields).param == param


def test_how_speech_is_found_is_as_asked_for() -> None:
    """Windows are as short as segments only where there are no words to split those at."""
    options = parse_options({"vad_onset": 0.6, "vad_min_silence_s": 0.0, "max_segment_s": 5})
    assert options.speech_search(has_words=True) == SpeechSearch(0.6, None, 0.0, None)
    assert options.speech_search(has_words=False) == SpeechSearch(0.6, None, 0.0, 4.999)
    assert parse_options({}).speech_search(has_words=False) == SpeechSearch()


def test_every_format_in_the_table_can_be_asked_for() -> None:
    """And every name that can be asked for has an entry."""
    assert get_args(FormatName) == tuple(FORMATS)
    for name in FORMATS:
        assert parse_options({"response_format": name}).response_format == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"diarize": True}, "diarize"),
        ({"max_line_width": 40}, "max_line_width"),
        ({"word_timestamps": True}, "word_timestamps"),
    ],
)
def test_the_error_names_the_formats_that_can_show_an_option(fields: dict[str, Any], param: str) -> None:
    """A caller who asks for it in one of those gets it."""
    error = refused(response_format="tsv", **fields)
    assert error.param == param
    for name in error.message.rstrip(".").partition("use one of ")[2].split(", "):
        parse_options({"response_format": name, **fields})


def test_stages_get_their_part_of_the_options() -> None:
    """How to decode, and how many speakers to expect."""
    options = parse_options(
        {"task": "translate", "initial_prompt": "a", "hotwords": "b", "temperature": 0.25, "min_speakers": 2}
    )
    assert options.decoding() == Decoding("translate", "a", "b", 0.25)
    given = {"temperature_inc": 0.3, "languages": ["de", "en"], "logprobs": True}
    assert parse_options(given).decoding() == Decoding(
        temperature_inc=0.3, languages=("de", "en"), logprobs=True
    )
    given = {"beam_size": 2, "suppress_numerals": True, "language": "multiple"}
    assert parse_options(given).decoding() == Decoding(
        beam_size=2, suppress_numerals=True, own_languages=True
    )
    assert options.speaker_bounds() == SpeakerBounds(min_speakers=2)
    assert parse_options({"num_speakers": 3}).speaker_bounds() == SpeakerBounds(num_speakers=3)


@pytest.mark.parametrize(
    "given",
    [["de", "en"], "de, en", '["de","en"]', ["German", "en-US", "de"], ["de,en"], ("Deutsch", "English")],
)
def test_languages_are_written_in_many_ways(given: object) -> None:
    """Each in any of a language's names, and each once."""
    assert parse_options({"languages": given}).languages == ("de", "en")


@pytest.mark.parametrize("given", ["klingon", ["en", "auto"], 3, [None]])
def test_an_allowed_language_is_one_that_whisper_knows(given: object) -> None:
    """The error names the option."""
    assert refused(languages=given).param == "languages"


def test_the_only_allowed_language_is_named() -> None:
    """There is nothing to detect then."""
    assert parse_options({"languages": "de"}).named_language() == "de"
    assert parse_options({"languages": "de,en"}).named_language() is None
    assert parse_options({"language": "de"}).named_language() == "de"


def test_multiple_is_no_name_of_a_language() -> None:
    """Several may be allowed then; answers tell languages where they were asked about, and only there."""
    for name in ("multiple", " Multiple\n"):
        options = parse_options({"language": name, "languages": "de,en"})
        assert (options.language, options.named_language()) == ("multiple", None)
        assert options.tells_languages
    assert refused(language="multiple", languages="de").param == "languages"
    assert refused(languages="multiple").param == "languages"
    assert parse_options({"languages": "de"}).tells_languages
    assert not parse_options({"language": "de"}).tells_languages


def test_no_list_of_odd_languages_fills_the_memory() -> None:
    """langcodes keeps whatever it was asked for, and anybody may ask."""
    language_code("en-US")
    tracemalloc.start()
    for number in range(5000):
        assert language_code(f"en-x-{number:08d}") == "en"
    for letters in product("qwxyz", repeat=3):
        language_code("".join(letters))
    grown_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown_bytes < 500_000


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"channels": "left"}, "channels"),
        ({"channels": "speakers", "diarize": True}, "diarize"),
        ({"channels": "speakers", "min_speakers": 2}, "min_speakers"),
        ({"channels": "speakers", "split_at_speaker_change": True}, "split_at_speaker_change"),
        ({"channels": "speakers", "response_format": "tsv"}, "channels"),
        ({"start_s": -1}, "start_s"),
        ({"start_s": "nan"}, "start_s"),
        ({"start_s": 1e306}, "start_s"),
        ({"end_s": 1e308}, "end_s"),
        ({"end_s": 0}, "end_s"),
        ({"start_s": 3, "end_s": 2.5}, "end_s"),
        ({"start_s": 3, "end_s": 3.00001}, "end_s"),  # less than a sample
        ({"track": -1}, "track"),
        ({"encoding": "mp3", "sample_rate": 8000}, "encoding"),
        ({"encoding": "s16le"}, "encoding"),
        ({"sample_rate": 8000}, "sample_rate"),
        ({"channel_count": 2}, "channel_count"),
        ({"encoding": "s16le", "sample_rate": 8}, "sample_rate"),
        ({"encoding": "g722", "sample_rate": 8000}, "sample_rate"),
        ({"encoding": "g729", "channel_count": 2}, "channel_count"),
    ],
)
def test_audio_that_makes_no_sense_is_refused(fields: dict[str, Any], param: str) -> None:
    """By the name of one of the options that contradict each other."""
    assert refused(**fields).param == param


def test_channels_need_no_diarizer() -> None:
    """A server without one is no reason to refuse them, nor their turns."""
    for chosen in ("json", "rttm", "words"):
        options = parse_options({"channels": "speakers", "response_format": chosen})
        assert not wants_speakers(options, available=False)
        assert not wants_speakers(options, available=True)


@given(st.booleans(), st.one_of(st.none(), st.floats(0, 1e5)), st.one_of(st.none(), st.floats(0.001, 1e5)))
def test_a_source_is_read_as_asked(apart: bool, start_s: float | None, end_s: float | None) -> None:
    """What the options select is what the loader is told; all else of the source stays."""
    source = Source(url="https://example.com/a.wav", headers={"a": "b"}, max_audio_s=5.0, raw=RawAudio("u8"))
    with suppress(InvalidRequest):
        options = parse_options(
            {"channels": "speakers" if apart else "mix", "start_s": start_s, "end_s": end_s}
        )
        read = options.audio_of(source)
        assert read.selection == Selection(start_s or 0.0, end_s, None, apart)
        assert replace(read, selection=WHOLE) == source
        assert read.selection.length_s > 0


@pytest.mark.parametrize("step", [0.004, 0.05, 0.0999])
def test_a_small_step_of_temperature_is_refused(step: float) -> None:
    """None is rounded to 0, which is no fallback at all, or up to what is allowed."""
    with pytest.raises(InvalidRequest, match=r"temperature_inc: .*at least 0\.1"):
        parse_options({"temperature_inc": step})
    assert parse_options({"temperature_inc": 0.256}).temperature_inc == 0.26
