"""What an error says to send instead is taken: nobody is sent in a circle, or to what the route has not."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, get_args

import pytest
from fakes import data_url, recording

from serve_app.errors import InvalidRequest
from serve_app.formats.table import FORMATS
from serve_app.http.asr_webservice.request import Output, parse_asr
from serve_app.http.model_names import ModelNames
from serve_app.http.openai import request as openai_request
from serve_app.http.openai.request import OpenAIFormat
from serve_app.http.without_text import DIARIZATION_OPTIONS, parse_some
from serve_app.options import Options, parse_options

Sent = Mapping[str, Any]
MODELS = ModelNames("large-v2", {}, ("small",))
CLIP = data_url(recording(1, 1).tobytes())
KNOWN = {"known_speaker_names[]": "Ada", "known_speaker_references[]": CLIP}


def _fields(sent: Sent) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in sent.items()]


def _openai(task: Any, sent: Sent) -> object:
    return openai_request.parse(_fields({"model": "small", **sent}), task, MODELS)


def _own(parse: Callable[[dict[str, Any]], object], sent: Sent) -> object:
    return parse(
        {name.removesuffix("[]"): [value] if "[]" in name else value for name, value in sent.items()}
    )


# The routes, how each reads a request, what it calls the format, and the formats.
ROUTES: Mapping[str, tuple[Callable[[Sent], object], str, tuple[str, ...]]] = {
    "/predict": (partial(_own, parse_options), "response_format", tuple(FORMATS)),
    "/v1/audio/diarization": (
        partial(_own, partial(parse_some, DIARIZATION_OPTIONS)),
        "response_format",
        tuple(FORMATS),
    ),
    "/v1/audio/transcriptions": (
        partial(_openai, "transcribe"),
        "response_format",
        get_args(OpenAIFormat),
    ),
    "/v1/audio/translations": (
        partial(_openai, "translate"),
        "response_format",
        get_args(OpenAIFormat),
    ),
    "/asr": (
        lambda sent: parse_asr(_fields(sent), MODELS, ()),
        "output",
        get_args(Output),
    ),
}

OPTIONS: tuple[Sent, ...] = (
    {"model": "small"},
    {"language": "de"},
    {"languages[]": "de"},
    {"channels": "speakers"},
    {"start_s": 1},
    {"encoding": "alaw"},
    {"diarize": True},
    {"diarize": True, "num_speakers": 2},
    {"min_speakers": 2},
    {"num_speakers": 2},
    KNOWN,
    {"embeddings": True},
    {"embeddings": True, "diarize": True},
    {"word_timestamps": True},
    {"confidence": True},
    {"char_timestamps": True},
    {"logprobs": True},
    {"max_line_width": 30},
    {"max_line_count": 2},
    {"highlight_words": True},
    {"split_at_speaker_change": True},
    {"split_at_speaker_change": True, "diarize": True},
    {"temperature": 0.4},
    {"max_segment_s": 5},
    {"align": False},
    {"stream": True},
    {"timestamp_granularities[]": "word"},
    {"include[]": "logprobs"},
)
ADVICE = r"(?:use one of|ask for|needs|send|can be|are in|cannot be streamed;) (.*?)(?:, which.*)?\."


def refusal(parse: Callable[[Sent], object], sent: Sent) -> InvalidRequest | None:
    try:
        parse(sent)
    except InvalidRequest as error:
        return error
    return None


def advised(message: str, field: str, formats: tuple[str, ...]) -> Iterator[Sent]:
    """The fields that an error says to send; none where it says only that something cannot be."""
    if not (advice := re.search(ADVICE, message)):
        return
    pairs = dict(re.findall(r"([\w\[\]]+)=(\w+)", advice[1]))
    names = {name for name in re.findall(r"\w+", advice[1]) if name in {*formats, *FORMATS}}
    yield from ({**pairs, field: name} for name in names)
    option = advice[1].removesuffix(" to be true")
    if option in Options.model_fields:
        yield {option: 40 if option == "max_line_width" else True}
    elif pairs and not names:
        yield pairs


@pytest.mark.parametrize(
    ("route", "sent", "advice"),
    [
        ("/predict", {"confidence": True, "response_format": "json"}, {"word_timestamps": True}),
        ("/predict", {"embeddings": True, "response_format": "srt"}, {"response_format": "json"}),
        ("/asr", {"max_line_width": 30, "output": "json"}, {"output": "vtt"}),
        ("/v1/audio/translations", {"diarize": True}, {"response_format": "verbose_json"}),
    ],
)
def test_advice_is_found_in_errors(route: str, sent: Sent, advice: Sent) -> None:
    """Else the next test would have nothing to follow."""
    parse, field, formats = ROUTES[route]
    error = refusal(parse, sent)
    assert error is not None
    assert advice in advised(error.message, field, formats)


@pytest.mark.parametrize("option", OPTIONS, ids="+".join)
@pytest.mark.parametrize("route", ROUTES)
def test_advice_can_be_followed(route: str, option: Sent) -> None:
    """Whatever is advised to a request in any format: it is taken, and the same error does not come back."""
    parse, field, formats = ROUTES[route]
    waiting: list[tuple[Sent, Sent, tuple[str, ...]]]
    waiting = [({**option, field: name}, {}, ()) for name in formats]
    while waiting:
        sent, advice, before = waiting.pop()
        error = refusal(parse, sent)
        if error is None:
            continue
        told = (*before, f"{dict(sent)}: {error.message}")
        more = list(advised(error.message, field, formats))
        assert more or error.param not in {name.removesuffix("[]") for name in advice}, told
        assert not any(each.endswith(error.message) for each in before), told
        if about := re.search(rf"{field}=(\w+) has no", error.message):
            assert about[1] == sent[field], told
        is_other_format = any(each.get(field, sent[field]) != sent[field] for each in more)
        assert not (is_other_format and field in advice and f": {error.param}:" in before[-1]), told
        waiting += [({**sent, **each}, each, told) for each in more]
