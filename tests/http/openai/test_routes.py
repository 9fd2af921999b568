"""OpenAI's routes in front of the real pipeline on fake stages: fields, formats, errors, streams."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from fakes import data_url, recording
from openai_api import TEXT, TRANSCRIBE, TRANSLATE, Server, events_of
from openai_contract import check

from serve_app.errors import DeadlineExceeded, InvalidRequest, UnusableAudio
from serve_app.http.app import create_app
from serve_app.http.openai import stream as openai_stream
from serve_app.options import Options
from serve_app.request.calls import TranscribeCall
from serve_app.settings.openai import SHIPPED
from serve_app.transcript import WindowText

REFERENCES = ["data:audio/wav;base64,AAAA", "data:audio/wav;base64,BBBB"]


@pytest.mark.parametrize("response_format", ["json", "verbose_json", "diarized_json"])
def test_json_answers_are_openai_s(response_format: str) -> None:
    """Each answer is valid by the published document and has the same text."""
    response = Server().post(response_format=response_format)
    check(response_format, response.json())
    assert response.json()["text"] == TEXT
    assert response.json()["usage"] == {"type": "duration", "seconds": 4.0}
    assert int(response.headers["openai-processing-ms"]) >= 0


@pytest.mark.parametrize(
    ("response_format", "kind", "text"),
    [
        ("text", "text/plain", f"{TEXT}\n"),
        ("srt", "application/x-subrip", "1\n00:00:00,000 --> 00:00:01,000\nword1\n\n2\n"),
        ("vtt", "text/vtt", "WEBVTT\n\n00:00.000 --> 00:01.000\nword1\n\n"),
    ],
)
def test_text_answers(response_format: str, kind: str, text: str) -> None:
    """Plain text is one line, as in the JSON; subtitles have a cue for each segment."""
    response = Server().post(response_format=response_format)
    assert response.headers["content-type"].startswith(kind)
    assert response.text.startswith(text)


def test_verbose_json_has_what_the_recogniser_said() -> None:
    """Names of languages are in full, times are those of the file, statistics those of the window."""
    body = Server().post(response_format="verbose_json").json()
    assert (body["task"], body["language"], body["duration"]) == ("transcribe", "english", 4.0)
    assert "words" not in body
    last = body["segments"][2]
    assert (last["id"], last["seek"], last["start"], last["end"], last["text"]) == (2, 300, 3.0, 4.0, "word3")
    assert (last["avg_logprob"], last["no_speech_prob"], last["compression_ratio"]) == (-0.1, 0.0, 1.0)
    assert (last["temperature"], last["tokens"], "speaker" in last) == (0.0, [], False)


@pytest.mark.parametrize(
    ("granularities", "there"),
    [
        ([], {"segments"}),
        (["segment"], {"segments"}),
        (["word"], {"words"}),
        (["word", "segment"], {"words", "segments"}),
    ],
)
def test_timestamp_granularities(granularities: list[str], there: set[str]) -> None:
    """The answer has words, segments or both, and segments if nothing is asked for."""
    body = Server().post(response_format="verbose_json", timestamp_granularities__=granularities).json()
    check("verbose_json", body)
    assert body.keys() & {"words", "segments"} == there
    if "words" in there:
        assert body["words"][2] == {"word": "word3", "start": 3.0, "end": 4.0}


def test_words_have_characters_on_request() -> None:
    """They are not OpenAI's, and their clients read past them."""
    asked = {"response_format": "verbose_json", "timestamp_granularities__": "word"}
    body = Server().post(**asked, char_timestamps="true").json()
    chars, *_ = [word.pop("chars") for word in body["words"]]
    check("verbose_json", body)
    assert "".join(char["char"] for char in chars) == "word1"
    assert chars[0] == {"char": "w", "start": 0.0, "end": 0.2, "score": 0.9}
    assert "chars" not in Server().post(**asked).json()["words"][0]


def test_segments_are_as_short_as_asked_for() -> None:
    """In formats that have segments, and in a stream."""
    body = Server().post(response_format="verbose_json", align="false", max_segment_s="1").json()
    check("verbose_json", body)
    assert all(segment["end"] - segment["start"] <= 1 for segment in body["segments"])
    for fields in ({"response_format": "srt"}, {"stream": "true"}):
        server = Server()
        assert server.post(max_segment_s="1", align="false", **fields).status_code == 200
        assert {search.window_s for search in server.fakes.searches} == {4.999}


def test_words_of_what_could_not_be_aligned() -> None:
    """Such words have the times of their segment, so that none is missing."""
    server = Server()
    server.fakes.fail["align"] = RuntimeError("broken")
    body = server.post(response_format="verbose_json", timestamp_granularities__="word").json()
    check("verbose_json", body)
    assert body["words"] == [
        {"word": "word1", "start": 0.0, "end": 1.0},
        {"word": "word2", "start": 1.0, "end": 2.0},
        {"word": "word3", "start": 3.0, "end": 4.0},
    ]
    assert [warning["code"] for warning in body["warnings"]] == ["alignment_failed"]


def test_speakers_are_letters_in_order_of_appearance() -> None:
    """The first speaker is A."""
    body = Server().post(response_format="diarized_json").json()
    assert [(s["id"], s["text"], s["speaker"]) for s in body["segments"]] == [
        ("seg_001", "word1", "A"),
        ("seg_002", "word2", "B"),
        ("seg_003", "word3", "A"),
    ]


def test_known_speakers_have_their_names() -> None:
    """A speaker who sounds like the reference has its name; the first of the others is A."""
    references: dict[str, Any] = {
        "known_speaker_names__": ["Ada"],
        "known_speaker_references__": [data_url(recording(1, 1).tobytes())],
    }
    body = Server().post(response_format="diarized_json", **references).json()
    check("diarized_json", body)
    assert [segment["speaker"] for segment in body["segments"]] == ["Ada", "A", "Ada"]
    verbose = Server().post(response_format="verbose_json", diarize="true", **references).json()
    assert [segment["speaker"] for segment in verbose["segments"]] == ["Ada", "SPEAKER_00", "Ada"]


def test_embeddings_have_the_names_of_the_segments() -> None:
    """Letters and known names in diarized_json, streamed or not, labels in verbose_json; never unasked."""
    references: dict[str, Any] = {
        "known_speaker_names__": ["Ada"],
        "known_speaker_references__": [data_url(recording(1, 1).tobytes())],
    }
    body = Server().post(response_format="diarized_json", embeddings="true", **references).json()
    check("diarized_json", body)
    vectors = {"Ada": [1.0, 0.0], "A": [1.0, 1.0]}
    assert body["speaker_embeddings"] == vectors
    assert body["embedding_model"] == {"name": "fake", "dimension": 2}
    stream = {"response_format": "diarized_json", "stream": "true"}
    *_, done, _ = Server().post(**stream, embeddings="true", **references).text.strip().split("\n\n")
    event = json.loads(done.removeprefix("data: "))
    check("transcript.text.done", event)
    assert event["speaker_embeddings"] == vectors
    server = Server()
    verbose = server.post(response_format="verbose_json", embeddings="true").json()
    check("verbose_json", verbose)
    assert verbose["speaker_embeddings"].keys() == {s["speaker"] for s in verbose["segments"]}
    assert server.asked[0].diarize
    assert "speaker_embeddings" not in Server().post(**stream).text


def test_speakers_are_looked_for_only_where_asked_for() -> None:
    """Plain requests do not pay for diarization; diarized_json and our own options do."""
    wanted: list[dict[str, Any]] = [
        {},
        {"response_format": "verbose_json"},
        {"response_format": "srt"},
        {"response_format": "diarized_json"},
        {"response_format": "verbose_json", "diarize": "true"},
        {"response_format": "vtt", "num_speakers": "2"},
    ]
    found = []
    for fields in wanted:
        server = Server()
        response = server.post(**fields)
        assert response.status_code == 200
        found.append((server.fakes.calls["diarize"], "SPEAKER_01" in response.text))
    assert found == [(0, False), (0, False), (0, False), (1, False), (1, True), (1, True)]


@pytest.mark.parametrize("response_format", ["json", "text", "srt", "verbose_json"])
@pytest.mark.parametrize("name", ["diarize", "split_at_speaker_change"])
def test_no_speakers_can_be_asked_for_in_every_format(response_format: str, name: str) -> None:
    """An option set to false is accepted in every format, and starts no diarization."""
    server = Server()
    assert server.post(response_format=response_format, **{name: "false"}).status_code == 200
    assert server.fakes.calls["diarize"] == 0


def test_a_model_that_cannot_translate_is_what_is_wrong() -> None:
    """The error names the model, because the route fixes the task."""
    server = Server()
    server.fakes.fail["asr"] = InvalidRequest("The model tiny.en is English-only.", "task")
    response = server.post(TRANSLATE)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert response.json()["error"]["message"] == "The model tiny.en is English-only."


def test_a_server_without_diarization_says_so() -> None:
    """The answer is a 400 that names the field which asked for speakers, streamed or not."""
    for fields, param in (
        ({"response_format": "diarized_json"}, "response_format"),
        ({"response_format": "diarized_json", "stream": "true"}, "response_format"),
        ({"response_format": "srt", "diarize": "true"}, "diarize"),
        ({"response_format": "srt", "num_speakers": "2"}, "num_speakers"),
        ({"response_format": "verbose_json", "split_at_speaker_change": "1"}, "split_at_speaker_change"),
    ):
        response = Server(diarizes=False).post(**fields)
        check("error", response.json())
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (400, "diarization_unavailable")
        assert (error["param"], f"leave out {param}" in error["message"]) == (param, True)


@pytest.mark.parametrize(
    ("sent", "own"), [("prompt", "initial_prompt"), ("initial_prompt",) * 2, ("keywords", "hotwords")]
)
def test_what_the_recogniser_refuses_is_named_as_it_was_sent(sent: str, own: str) -> None:
    """An error that the recogniser raises about a prompt names the client's own field."""
    server = Server()
    server.fakes.fail["asr"] = InvalidRequest(f"{own}: holds a token of Whisper's own.", own)
    response = server.post(**{sent + ("__" if sent == "keywords" else ""): "x"})
    check("error", response.json())
    assert response.status_code == 400
    assert response.json()["error"]["param"] == sent
    assert response.json()["error"]["message"].startswith(f"{sent}: ")


def test_failed_diarization_costs_the_speakers_only() -> None:
    """The text is there with a warning; each speaker is `unknown`, as OpenAI's clients need a name."""
    server = Server()
    server.fakes.fail["diarize"] = RuntimeError("broken")
    body = server.post(response_format="diarized_json").json()
    check("diarized_json", body)
    assert {segment["speaker"] for segment in body["segments"]} == {"unknown"}
    assert [warning["code"] for warning in body["warnings"]] == ["diarization_failed"]
    for diarize, codes in (("true", ["diarization_failed"]), ("false", [])):
        response = server.post(response_format="vtt", diarize=diarize)
        warnings = json.loads(response.headers.get("x-warnings", "[]"))
        assert [warning["code"] for warning in warnings] == codes


def test_translations() -> None:
    """The text's language is english, whatever was spoken."""
    server = Server()
    body = server.post(TRANSLATE, response_format="verbose_json", language="de").json()
    check("verbose_json", body)
    assert (body["task"], body["language"], body["text"]) == ("translate", "english", TEXT)
    assert (server.asked[0].task, server.asked[0].language) == ("translate", "de")


@pytest.mark.parametrize(
    "references",
    [
        [("known_speaker_references[]", value) for value in REFERENCES],
        [("known_speaker_references", value) for value in REFERENCES],
        [(f"known_speaker_references[{i}]", value) for i, value in reversed(list(enumerate(REFERENCES)))],
    ],
    ids=["brackets", "repeated", "indexed, in any order"],
)
def test_arrays_come_in_three_notations(references: list[tuple[str, str]]) -> None:
    """OpenAI's SDK, curl and others write arrays differently."""
    server = Server()
    names = [("known_speaker_names[]", "Ann"), ("known_speaker_names[]", "Bob")]
    parts = [("model", "whisper-1"), ("response_format", "diarized_json"), *names, *references]
    files = [("file", server.file), *[(name, (None, value)) for name, value in parts]]
    server.request("POST", TRANSCRIBE, files=files)
    assert server.asked[0].known_speaker_names == ("Ann", "Bob")
    assert server.asked[0].known_speaker_references == tuple(REFERENCES)


@pytest.mark.parametrize(
    ("names", "references", "param"),
    [
        (["", "Bob"], [REFERENCES[0], ""], "known_speaker_names"),
        (["Ann", "Bob"], [REFERENCES[0], ""], "known_speaker_references"),
        (["Ann", "Bob"], ["", REFERENCES[0]], "known_speaker_references"),
        (["Ann"], ["", REFERENCES[0]], "known_speaker_references"),
    ],
)
def test_nobody_gets_the_voice_of_another(names: list[str], references: list[str], param: str) -> None:
    """An empty name or reference keeps its place in the list, and the request is a 400."""
    fields: dict[str, Any] = {"known_speaker_names__": names, "known_speaker_references__": references}
    status, named, _ = Server().error(response_format="diarized_json", **fields)
    assert (status, named) == (400, param)


@pytest.mark.parametrize("numbers", [(0, 2), (1, 2), (0, 0), (1, None)])
def test_numbers_of_an_array_have_no_gaps(numbers: tuple[int | None, ...]) -> None:
    """Indices other than 0, 1 and so on, each once, are a 400 that names the field."""
    server = Server()
    files: list[Any] = [("file", server.file), ("model", (None, "whisper-1"))]
    for number in numbers:
        files.append((f"keywords[{'' if number is None else number}]", (None, "word")))
    response = server.request("POST", TRANSCRIBE, files=files)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "keywords")
    assert server.asked == []


def test_arrays_of_empty_inputs_are_none() -> None:
    """A browser's form sends its empty inputs, too."""
    server = Server()
    empty: dict[str, Any] = {
        name: ["", ""] for name in ("known_speaker_names__", "known_speaker_references__", "keywords__")
    }
    assert server.post(**empty).status_code == 200
    assert server.post(keywords__=["", "Maier"]).status_code == 200
    assert [options.hotwords for options in server.asked] == [None, "Maier"]
    assert server.asked[0].known_speaker_names == ()


def test_fields_become_options() -> None:
    """OpenAI's fields and our own reach the pipeline; the default chunking is accepted."""
    server = Server()
    fields: dict[str, Any] = {
        "language": "de",
        "prompt": "Herr Müller",
        "temperature": "0.4",
        "chunking_strategy": '{"type": "server_vad"}',
        "keywords__": ["Müller", "Maier"],
        "stream": "false",
        "response_format": "verbose_json",
        "min_speakers": "2",
    }
    assert server.post(**fields).status_code == 200
    assert server.asked == [
        Options(
            language="de",
            initial_prompt="Herr Müller",
            temperature=0.4,
            hotwords="Müller, Maier",
            min_speakers=2,
            diarize=True,
        )
    ]


@pytest.mark.parametrize(
    ("name", "code"), [("pt_BR", "pt"), ("Portuguese", "pt"), ("português", "pt"), ("auto", None), ("", None)]
)
def test_a_language_has_the_names_that_it_has_everywhere(name: str, code: str | None) -> None:
    """OpenAI's own clients send codes, others what their users chose."""
    server = Server()
    assert server.post(language=name).status_code == 200
    assert server.asked[0].language == code


def test_of_a_long_prompt_the_end_is_read() -> None:
    """Clients send all text so far, and Whisper reads its end."""
    server = Server()
    assert server.post(prompt="a" * 5000 + " the end").status_code == 200
    [options] = server.asked
    assert options.initial_prompt is not None
    assert options.initial_prompt.endswith("a the end")


KNOWN = {"known_speaker_names__": "Ann", "known_speaker_references__": "data:audio/wav;base64,AAAA"}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"model": ""}, "model", "required"),
        ({"response_format": "xml"}, "response_format", "verbose_json"),
        ({"response_format": "tsv"}, "response_format", "verbose_json"),
        ({"language": "klingon"}, "language", "language code"),
        ({"temperature": "1.5"}, "temperature", "less than or equal to 1"),
        ({"temperature": "warm"}, "temperature", "number"),
        ({"include__": "logprobs", "response_format": "text"}, "include", "json"),
        ({"include__": "usage"}, "include", "logprobs"),
        ({"logprobs": "true", "response_format": "verbose_json"}, "logprobs", "json"),
        ({"include__": "logprobs", "logprobs": "true"}, "include", "same"),
        ({"embeddings": "true"}, "embeddings", "ask for diarized_json, verbose_json"),
        ({"embeddings": "true", "response_format": "srt"}, "embeddings", "no embeddings"),
        (
            {"embeddings": "true", "diarize": "false", "response_format": "verbose_json"},
            "embeddings",
            "diarize",
        ),
        ({"chunking_strategy": "none"}, "chunking_strategy", "auto"),
        ({"chunking_strategy": "auto", "chunking_strategy[type]": "server_vad"}, "chunking_strategy", "once"),
        ({"chunking_strategy": '{"type": "server_vad", "threshold": 0.7}'}, "chunking_strategy", "auto"),
        (
            {"chunking_strategy[type]": "server_vad", "chunking_strategy[threshold]": "0.7"},
            "chunking_strategy[threshold]",
            "unknown field",
        ),
        ({"timestamp_granularities__": "word"}, "timestamp_granularities", "verbose_json"),
        (
            {"response_format": "verbose_json", "timestamp_granularities__": "letter"},
            "timestamp_granularities",
            "word",
        ),
        ({"stream": "true", "response_format": "srt"}, "stream", "cannot be streamed"),
        ({"stream": "true", "response_format": "verbose_json"}, "stream", "cannot be streamed"),
        ({"stream": "maybe"}, "stream", "boolean"),
        (KNOWN, "known_speaker_names", "diarized_json"),
        ({**KNOWN, "response_format": "verbose_json"}, "known_speaker_names", "diarized_json"),
        ({"diarize": "true"}, "diarize", "shows no speakers"),
        ({"num_speakers": "2", "response_format": "text"}, "num_speakers", "shows no speakers"),
        ({"diarize": "false", "response_format": "diarized_json"}, "diarize", "true"),
        ({"prompt": "a", "initial_prompt": "b"}, "prompt", "initial_prompt"),
        ({"keywords__": ["a" * 3000, "b" * 3000]}, "keywords", "4000"),
        ({"max_line_width": "40"}, "max_line_width", "srt"),
        ({"highlight_words": "true", "response_format": "diarized_json"}, "highlight_words", "srt"),
        ({"languages__": ["en", "klingon"]}, "languages", "language code"),
        ({"languages__": ["en", "de"], "language": "en"}, "languages", "language"),
        ({"word_timestamps": "true"}, "word_timestamps", "timestamp_granularities"),
        ({"task": "translate"}, "task", "task=transcribe"),
        ({"vad_filter": "false"}, "vad_filter", "only be true"),
        ({"without_timestamps": "false"}, "without_timestamps", "only be true"),
        ({"condition_on_previous_text": "true"}, "condition_on_previous_text", "only be false"),
        ({"temperature_inc": "0.05"}, "temperature_inc", "0.1"),
        ({"vad_onset": "0.3", "vad_offset": "0.4"}, "vad_offset", "above vad_onset"),
        ({"vad_parameters": '{"threshold": 0.5}'}, "vad_parameters", "vad_onset"),
        ({"max_segment_s": "5"}, "max_segment_s", "no segments"),
        ({"max_segment_s": "5", "response_format": "text"}, "max_segment_s", "no segments"),
        (
            {"max_segment_s": "5", "response_format": "verbose_json", "timestamp_granularities__": "word"},
            "max_segment_s",
            "no segments are shown; ask for timestamp_granularities[]=segment, too.",
        ),
        ({"char_timestamps": "true"}, "char_timestamps", "timestamp_granularities[]=word"),
        (
            {"char_timestamps": "true", "response_format": "verbose_json"},
            "char_timestamps",
            "timestamp_granularities[]=word",
        ),
        (
            {"align": "false", "response_format": "verbose_json", "timestamp_granularities__": "word"},
            "timestamp_granularities",
            "align=false",
        ),
        ({"beam": "3"}, "beam", "unknown field"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_a_400_that_names_it(
    fields: dict[str, Any], param: str, says: str
) -> None:
    """No field is accepted and then ignored."""
    status, named, message = Server().error(**fields)
    assert (status, named) == (400, param)
    assert says in message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"stream": "true"}, "stream"),
        ({"timestamp_granularities__": "word"}, "timestamp_granularities"),
        ({"response_format": "diarized_json"}, "response_format"),
    ],
)
def test_translations_have_fewer_fields(fields: dict[str, Any], param: str) -> None:
    """OpenAI has no streams, granularities or speakers there."""
    status, named, _ = Server().error(TRANSLATE, **fields)
    assert (status, (named or "").removesuffix("[]")) == (400, param)


def test_a_model_that_is_not_there_is_a_404() -> None:
    """The message has the names that can be used."""
    status, param, message = Server().error(model="large-v3")
    assert (status, param) == (404, "model")
    assert "large-v2, whisper-1, " in message
    assert Server().post(model="large-v2").status_code == 200


@pytest.mark.parametrize(
    ("kwargs", "param"),
    [
        ({"json": {"model": "whisper-1"}}, None),
        ({"data": {"model": "whisper-1"}, "files": {"audio": b"x"}}, "file"),
        ({"data": {"model": "whisper-1"}}, None),
    ],
)
def test_only_forms_with_a_file(kwargs: dict[str, Any], param: str | None) -> None:
    """A body of another type or without a file is a 400."""
    response = Server().request("POST", TRANSCRIBE, **kwargs)
    check("error", response.json())
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


def test_models() -> None:
    """The list has the configured name and its aliases; a name may have a slash."""
    server = Server()
    listed = server.request("GET", "/v1/models").json()
    check("models", listed)
    assert [item["id"] for item in listed["data"]] == ["large-v2", *SHIPPED]
    check("model", server.request("GET", "/v1/models/large-v2").json())
    missing = server.request("GET", "/v1/models/openai/none")
    check("error", missing.json())
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    app = create_app(server.transcribe, server.readiness, model="Some/repository", max_bytes=1)
    server.app = app
    assert server.request("GET", "/v1/models/Some%2Frepository").json()["id"] == "Some/repository"


def test_truss_s_routes_are_still_there() -> None:
    """Truss asks for readiness at `/v1/models/whisperx`, and `:predict` is not taken for a model's name."""
    server = Server()
    assert server.request("GET", "/v1/models/whisperx").status_code == 200
    server.ready = False
    assert server.request("GET", "/v1/models/whisperx").status_code == 503
    assert server.request("POST", "/v1/models/whisperx:predict", files={"file": server.file}).json()[
        "model_output"
    ]


def test_silence() -> None:
    """There is no text and no segment; the language is the caller's, or unknown."""
    server = Server(0, 0)
    body = server.post(response_format="verbose_json").json()
    check("verbose_json", body)
    assert (body["text"], body["segments"], body["language"]) == ("", [], "unknown")
    assert server.post(response_format="verbose_json", language="fr").json()["language"] == "french"
    events = events_of(server.post(stream="true"))
    assert [event["type"] for event in events] == ["transcript.text.done"]


@pytest.mark.parametrize("response_format", ["json", "text", "diarized_json"])
@pytest.mark.parametrize(("language", "gap"), [("en", " "), ("zh", ""), ("yue", ""), ("th", " ")])
def test_deltas_together_are_the_text(response_format: str, language: str, gap: str) -> None:
    """They equal the answer without a stream, with spaces between sentences if the language has them."""
    server = Server(*range(1, 10))
    whole = server.post(language=language).json()["text"]
    response = server.post(language=language, response_format=response_format, stream="true")
    events = events_of(response)
    deltas = [event["delta"] for event in events if event["type"] == "transcript.text.delta"]
    assert "".join(deltas) == events[-1]["text"] == whole == gap.join(f"word{n}" for n in range(1, 10))
    assert len(deltas) == 9
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"


def test_a_stream_of_speakers_has_them_at_its_end() -> None:
    """Text comes first, then the same segments as without a stream, then `done`."""
    server = Server()
    whole = server.post(response_format="diarized_json").json()
    events = events_of(server.post(response_format="diarized_json", stream="true"))
    kinds = [event["type"].removeprefix("transcript.text.") for event in events]
    assert kinds == ["delta"] * 3 + ["segment"] * 3 + ["done"]
    assert events[3:6] == whole["segments"]


def test_an_error_before_the_first_event_is_an_ordinary_one() -> None:
    """A file that cannot be used is a 422, streamed or not."""
    server = Server()
    server.fakes.fail["load"] = UnusableAudio("No audio.")
    for stream in ("false", "true"):
        response = server.post(stream=stream)
        check("error", response.json())
        assert (response.status_code, response.json()["error"]["code"]) == (422, "undecodable_audio")


def test_what_took_too_long_is_not_asked_for_again() -> None:
    """Otherwise the package would upload the file twice more."""
    server = Server()
    server.fakes.fail["load"] = DeadlineExceeded("Too long.")
    response = server.post()
    assert (response.status_code, response.headers["x-should-retry"]) == (504, "false")
    server.fakes.fail["load"] = UnusableAudio("No audio.")
    assert "x-should-retry" not in server.post().headers


class Streaming:
    """A client at ASGI level, which sees each piece as it is sent and can disconnect."""

    def __init__(self, server: Server, **fields: str) -> None:
        request = httpx.Request(
            "POST",
            f"http://127.0.0.1{TRANSCRIBE}",
            files={"file": server.file},
            data={"model": "whisper-1", **fields},
        )
        self.body = request.read()
        self.pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self.left = asyncio.Event()
        self.status = 0
        scope = {
            "type": "http",
            "method": "POST",
            "path": TRANSCRIBE,
            "query_string": b"",
            "root_path": "",
            "client": ("127.0.0.1", 50_000),
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
        }
        self.answering = asyncio.create_task(server.app(scope, self.receive, self.send))

    async def receive(self) -> dict[str, Any]:
        if self.body:
            body, self.body = self.body, b""
            return {"type": "http.request", "body": body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.status = message.get("status", self.status)
        if message.get("body"):
            self.pieces.put_nowait(message["body"])

    async def next(self) -> bytes:
        return await asyncio.wait_for(self.pieces.get(), 60)


def holding_back(server: Server, gate: asyncio.Event, number: int) -> asyncio.Event:
    """Holds this window back until the gate opens; the returned event is set when it waits there."""
    transcribe = server.stages.transcribe
    waits = asyncio.Event()

    async def gated(call: TranscribeCall) -> WindowText:
        if int(call.window.start_s) == number - 1:
            waits.set()
            await gate.wait()
        return await transcribe(call)

    object.__setattr__(server.stages, "transcribe", gated)
    return waits


def test_text_is_sent_while_later_windows_are_running() -> None:
    """All text before a window that is held back is sent, and none after it."""

    async def run() -> None:
        server, gate = Server(*range(1, 21)), asyncio.Event()
        holding_back(server, gate, 17)
        client = Streaming(server, stream="true", language="en")
        early = [json.loads((await client.next()).removeprefix(b"data: "))["delta"] for _ in range(16)]
        assert "".join(early) == " ".join(f"word{n}" for n in range(1, 17))
        assert (client.pieces.empty(), server.running) == (True, 1)
        gate.set()
        await asyncio.wait_for(client.answering, 60)
        assert client.pieces.qsize() == 4 + 1 + 1  # deltas, done, [DONE]
        assert server.running == 0

    asyncio.run(run())


def test_an_error_after_the_first_event_is_an_event() -> None:
    """The status was sent by then; OpenAI's clients raise an event that has an `error`."""

    async def run() -> None:
        server, gate = Server(1, 2, 3), asyncio.Event()
        holding_back(server, gate, 3)
        client = Streaming(server, stream="true", language="en")
        assert b"word1" in await client.next()
        assert b"word2" in await client.next()
        server.fakes.fail["asr"] = DeadlineExceeded("Too long.")
        gate.set()
        kind, data = (await client.next()).decode().strip().split("\n")
        assert (client.status, kind) == (200, "event: error")
        body = json.loads(data.removeprefix("data: "))
        check("error", body)
        assert body["error"]["code"] == "deadline_exceeded"
        await asyncio.wait_for(client.answering, 60)
        assert client.pieces.empty()

    asyncio.run(run())


def test_a_client_that_leaves_ends_the_run_and_closes_the_file() -> None:
    """The uploaded file stays open as long as the run, and no descriptor stays open after it."""

    async def run() -> None:
        server, gate = Server(1, 2, 3), asyncio.Event()
        holding_back(server, gate, 3)
        before = len(os.listdir("/proc/self/fd"))
        client = Streaming(server, stream="true", language="en")
        assert b"word1" in await client.next()
        file = server.files[0]
        assert file is not None
        assert (file.closed, server.running) == (False, 1)
        client.left.set()
        await asyncio.wait_for(client.answering, 60)
        assert (file.closed, server.running) == (True, 0)
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(run())


@pytest.mark.parametrize("begun", [False, True], ids=["before the first event", "after it"])
def test_a_cancelled_stream_ends_the_run_and_closes_the_file(begun: bool) -> None:
    """Ray Serve cancels the request of a client that has left."""

    async def run() -> None:
        server, gate = Server(1, 2, 3), asyncio.Event()
        waits = holding_back(server, gate, 2 if begun else 1)
        client = Streaming(server, stream="true", language="en")
        await asyncio.wait_for(waits.wait(), 60)
        if begun:
            assert b"word1" in await client.next()
        client.answering.cancel()
        with suppress(asyncio.CancelledError):
            await client.answering
        assert server.files[0] is not None
        assert (server.files[0].closed, server.running) == (True, 0)

    asyncio.run(run())


def test_silence_on_the_line_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """While there is no event, comments tell proxies that the connection is in use."""
    monkeypatch.setattr(openai_stream, "KEEP_ALIVE_S", 0.02)

    async def run() -> None:
        server, gate = Server(1, 2), asyncio.Event()
        holding_back(server, gate, 1)
        client = Streaming(server, stream="true", language="en")
        assert [(await client.next())[:1] for _ in range(3)] == [b":"] * 3
        gate.set()
        await asyncio.wait_for(client.answering, 60)
        said = [piece async for piece in _drained(client.pieces)]
        assert [piece for piece in said if piece[:1] != b":"][-1] == b"data: [DONE]\n\n"

    asyncio.run(run())


async def _drained(queue: "asyncio.Queue[bytes]") -> AsyncIterator[bytes]:
    while not queue.empty():
        yield queue.get_nowait()


def test_subtitles_have_the_lines_asked_for() -> None:
    """Our line options work next to OpenAI's fields."""
    srt = Server().post(response_format="srt", max_line_width="11", max_line_count="1")
    assert srt.status_code == 200
    assert [cue.split("\n")[2] for cue in srt.text.strip().split("\n\n")] == ["word1 word2", "word3"]
