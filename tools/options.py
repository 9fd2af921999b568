"""`make docs`: docs/options.md, where each option can be sent, and the tests that fail if it is ignored."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from typer.main import get_command

from serve_app.__main__ import cli
from serve_app.http.jobs.assemblyai_request import THEIR_NAMES
from serve_app.http.openai.request import OUR_FIELDS, Fields
from serve_app.http.without_text import DIARIZATION_OPTIONS, SPEECH_OPTIONS
from serve_app.options import Options
from serve_app.options.fields import LISTS

FILE = Path(__file__).parents[1] / "docs" / "options.md"

INTRODUCTION = """# Where each option can be sent

One row for each [option](api.md#options), in the order of [reference.md](reference.md#options). `make docs` \
writes this page; do not edit it. Its test sends a valid value of every option to every route of the table.

✓: under the option's own name. Another name: under that one, beside ✓ under both. 400: refused, and the \
error names it. In words: it is said otherwise, or always so. `/predict` is its form, its JSON and \
`POST /v1/models/whisperx:predict`; jobs are `POST /v1/jobs`, also their `items`; the handle is that of \
[Python](api.md#python). OpenAI is `POST /v1/audio/transcriptions` and Azure's path; translations have no \
options of words and speakers. `/asr` takes its options in the URL or in the form, where the clips of \
`known_speaker_references` must be: no URL can be so long. On the two paths without a text no Whisper runs, \
and `model` is only the name whose defaults apply. The flags are those of [`transcribe`](transcribe.md).

The last column has the tests that fail if the option is ignored, on its way through the service or in \
the stage that works with it. What options do to the words of real people is in tests/models/, over HTTP in \
tests/models/test_real_graph.py."""

PIPELINE = "tests/request/test_pipeline.py::"
AUDIO, FORMS = "tests/http/test_audio_options.py::", "tests/http/test_app_formats.py::"
DECODING, RECOGNIZER = "tests/http/test_decoding_options.py::", "tests/stages/asr/test_recognizer.py::"
SPEECH = "tests/stages/speech/test_detector.py::"

_REACHES_WINDOWS = f"{PIPELINE}test_decoding_options_reach_every_window"
_REACHES_SPEECH = f"{PIPELINE}test_every_part_is_searched_as_the_request_wants"
_RAW = (f"{AUDIO}test_channels_are_speakers", "tests/stages/audio/test_raw_audio.py::test_rate_and_channels")
_BOUNDS = (f"{PIPELINE}test_the_number_of_speakers_reaches_the_diarizer",)
_KNOWN = (f"{PIPELINE}test_known_speakers_have_their_names",)
_LINES = (
    f"{FORMS}test_subtitle_options_arrive_from_json_and_from_forms",
    "tests/formats/test_subtitles.py::test_lines_are_as_long_and_as_many_as_asked_for",
)
_SEARCH = f"{DECODING}test_the_search_is_as_asked_for"

TESTS: Mapping[str, tuple[str, ...]] = {
    "model": ("tests/request/test_several_models.py::test_the_model_that_is_named_is_used",),
    "language": (f"{PIPELINE}test_a_named_language_reaches_every_window_and_detection_does_not_run",),
    "languages": (f"{PIPELINE}test_only_allowed_languages_are_written",),
    "task": (f"{PIPELINE}test_translation_is_not_aligned", _REACHES_WINDOWS),
    "channels": (f"{AUDIO}test_channels_are_speakers",),
    "start_s": (f"{AUDIO}test_a_stretch_has_the_times_of_the_file",),
    "end_s": (f"{AUDIO}test_a_stretch_has_the_times_of_the_file",),
    "track": (
        f"{AUDIO}test_what_makes_no_sense_is_refused",
        "tests/stages/audio/test_selection.py::test_a_track_by_its_number",
    ),
    "encoding": (
        f"{AUDIO}test_channels_are_speakers",
        "tests/stages/audio/test_raw_audio.py::test_encodings",
    ),
    "sample_rate": _RAW,
    "channel_count": _RAW,
    "diarize": (f"{PIPELINE}test_diarization_is_off_on_request_or_without_a_model",),
    "num_speakers": _BOUNDS,
    "min_speakers": _BOUNDS,
    "max_speakers": _BOUNDS,
    "known_speaker_names": _KNOWN,
    "known_speaker_references": _KNOWN,
    "embeddings": (f"{PIPELINE}test_embeddings_come_with_their_model_where_they_are_wanted",),
    "response_format": (f"{FORMS}test_text_formats_have_their_type_and_keep_their_warnings",),
    "word_timestamps": ("tests/http/test_app.py::test_word_timestamps_add_words",),
    "confidence": (f"{DECODING}test_each_word_has_the_recognisers_confidence",),
    "logprobs": ("tests/http/test_asr_webservice.py::test_log_probabilities_stand_in_json",),
    "max_line_width": _LINES,
    "max_line_count": _LINES,
    "highlight_words": (_LINES[0], "tests/formats/test_writers.py::test_files_are_as_they_were"),
    "initial_prompt": (_REACHES_WINDOWS, f"{RECOGNIZER}test_prompts_stand_before_the_start_token"),
    "hotwords": (_REACHES_WINDOWS, f"{RECOGNIZER}test_prompts_stand_before_the_start_token"),
    "temperature": (_REACHES_WINDOWS, f"{RECOGNIZER}test_a_temperature_samples_five_times"),
    "temperature_inc": (
        _REACHES_WINDOWS,
        "tests/stages/asr/test_fallback.py::test_a_request_may_give_the_step",
    ),
    "beam_size": (_SEARCH, f"{RECOGNIZER}test_the_beam_is_the_requests_or_the_servers"),
    "suppress_numerals": (_SEARCH, f"{RECOGNIZER}test_numerals_are_suppressed_for_one_request"),
    "split_at_speaker_change": (
        f"{PIPELINE}test_a_sentence_of_two_speakers_is_split_unless_that_is_switched_off",
    ),
    "vad_onset": (_REACHES_SPEECH, f"{SPEECH}test_requests_with_other_criteria_share_a_call"),
    "vad_offset": (_REACHES_SPEECH, f"{SPEECH}test_speech_switches_with_hysteresis"),
    "vad_min_silence_s": (_REACHES_SPEECH, f"{SPEECH}test_short_silences_do_not_end_speech"),
    "max_segment_s": (f"{PIPELINE}test_segments_are_split_where_they_are_longer_than_asked_for",),
    "align": (f"{PIPELINE}test_without_alignment_no_stage_gives_word_times",),
    "char_timestamps": (f"{PIPELINE}test_words_have_characters_where_asked_for",),
}

# Where a name stands in words, the route cannot be asked for the option: it is always so, or said otherwise.
THE_PATH, ALWAYS = "the path", "always"
OPENAI = {
    "task": (THE_PATH,),
    "word_timestamps": ("timestamp_granularities[]",),
    "logprobs": ("logprobs", "include[]"),
    "initial_prompt": ("initial_prompt", "prompt"),
    "hotwords": ("hotwords", "keywords[]"),
    **{name: (f"{name}[]",) for name in LISTS},
}
ASR = {
    "response_format": ("output",),
    "diarize": ("diarize", "enable_diarization"),
    "embeddings": ("embeddings", "return_speaker_embeddings"),
}

Names = tuple[str, ...]


def _openai(option: str) -> Names:
    known = OUR_FIELDS | Fields.model_fields.keys()
    return OPENAI.get(option, (option,) if option in known else ())


def _inference(option: str) -> Names:
    return ("translate",) if option == "task" else _openai(option)


def _asr(option: str) -> Names:
    return ASR.get(option, (option,))


def _assemblyai(option: str) -> Names:
    if option == "word_timestamps":
        return (ALWAYS,)
    return (THEIR_NAMES[option],) if option in THEIR_NAMES else ()


def _one_of(names: tuple[str, ...]) -> Callable[[str], Names]:
    return lambda option: (option,) if option in ("model", *names) else ()


def _flag(option: str) -> Names:
    if option == "word_timestamps":
        return (ALWAYS,)
    command: Any = get_command(cli)
    flags = {each.name: each.opts[0] for each in command.commands["transcribe"].params}
    name = {"response_format": "output_format", "align": "no_align"}.get(option, option)
    return (flags[name],) if name in flags else ()


ROUTES: Mapping[str, Callable[[str], Names]] = {
    "`/predict`, jobs, handle": lambda option: (option,),
    "OpenAI": _openai,
    "`/inference`": _inference,
    "`/asr`": _asr,
    "AssemblyAI": _assemblyai,
    "`/v1/audio/diarization`": _one_of(DIARIZATION_OPTIONS),
    "`/v1/audio/speech/timestamps`": _one_of(SPEECH_OPTIONS),
    "command": _flag,
}


def page() -> str:
    """The whole page."""
    heads = ["option", *ROUTES, "tests"]
    rows = [heads, ["---"] * len(heads)]
    for option in Options.model_fields:
        cells = [_cell(option, route, names_of(option)) for route, names_of in ROUTES.items()]
        tests = "<br>".join(f"`{test}`" for test in TESTS[option])
        rows.append([f"`{option}`", *cells, tests])
    return INTRODUCTION + "\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(option: str, route: str, names: Names) -> str:
    if not names:
        return "no flag" if route == "command" else "400"
    shown = {option: "✓", f"{option}[]": "✓", THE_PATH: THE_PATH, ALWAYS: ALWAYS}
    return ", ".join(shown.get(name, f"`{name}`") for name in names)


if __name__ == "__main__":
    FILE.write_text(page())
