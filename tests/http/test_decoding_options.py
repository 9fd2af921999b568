"""Options of the recogniser on every route that has them: what reaches it, what is shown, what is refused."""

from typing import Any

import pytest
from openai_api import SPOKEN, TRANSCRIBE, Server

from serve_app.stage_requests import Decoding

OWN = "/predict"
WORDS = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
CONFIDENCE = 0.29  # the fake's words have five letters, with probabilities of 1/2 to 1/6
MIXED = {0.0: "de", 1.0: "en", 3.0: "de"}


def post(server: Server, path: str, **fields: Any) -> Any:
    named = {"model": "whisper-1"} if path == TRANSCRIBE else {}
    response = server.request("POST", path, files={"file": server.file}, data=named | fields)
    return response.json() if response.status_code == 200 else response.json()["error"]


@pytest.mark.parametrize("path", [OWN, TRANSCRIBE, "/inference"])
def test_the_search_is_as_asked_for(path: str) -> None:
    """With every window, under the same names."""
    server = Server()
    post(server, path, beam_size="3", suppress_numerals="true")
    assert set(server.fakes.decodings) == {Decoding(beam_size=3, suppress_numerals=True)}
    for value in ("0", "21", "2.5", "wide"):
        assert post(Server(), path, beam_size=value)["param"] == "beam_size"
    refused = post(Server(), path, beam_size="3", temperature="0.4")
    assert (refused["param"], "sampled" in refused["message"]) == ("beam_size", True)


def test_whisper_cpps_default_beam_is_the_servers() -> None:
    """Its server has -1 for a beam that is not chosen, and clients send that along."""
    server = Server()
    post(server, "/inference", beam_size="-1", temperature="0.4")
    assert {decoding.beam_size for decoding in server.fakes.decodings} == {None}
    assert post(Server(), TRANSCRIBE, beam_size="-1")["param"] == "beam_size"


def test_each_word_has_the_recognisers_confidence() -> None:
    """Where words are shown, beside the aligner's score; nowhere by default."""
    server = Server()
    words = post(server, OWN, word_timestamps="true", confidence="true")["model_output"][0]["words"]
    assert words == [
        {"word": "word1", "start": 0.0, "end": 1.0, "score": 0.9, "speaker": "SPEAKER_01"}
        | {"confidence": CONFIDENCE}
    ]
    flat = post(server, OWN, response_format="words", confidence="true")["words"]
    assert [word["confidence"] for word in flat] == [CONFIDENCE] * 3
    verbose = post(server, TRANSCRIBE, confidence="true", **WORDS)["words"]
    assert [word["confidence"] for word in verbose] == [CONFIDENCE] * 3
    for answer in (post(server, OWN, response_format="words"), post(server, TRANSCRIBE, **WORDS)):
        assert not any("confidence" in word for word in answer["words"])


@pytest.mark.parametrize(
    ("path", "fields", "says"),
    [
        (OWN, {}, "send word_timestamps"),
        (OWN, {"response_format": "srt"}, "use one of json, words"),
        (OWN, {"task": "translate"}, "which task=translate does not give"),
        (TRANSCRIBE, {}, "send timestamp_granularities[]=word with response_format=verbose_json"),
        (TRANSCRIBE, {"response_format": "srt"}, "use one of verbose_json"),
    ],
)
def test_confidence_without_words_is_refused(path: str, fields: dict[str, str], says: str) -> None:
    """It would be found out and not shown."""
    server = Server()
    error = post(server, path, confidence="true", **fields)
    assert (error["param"], says in error["message"]) == ("confidence", True)
    assert server.asked == []


def test_languages_are_told_where_they_were_asked_about() -> None:
    """Those of the file with their shares, and that of each segment; not in other answers."""
    server = Server()
    server.fakes.languages, server.fakes.certainties = MIXED, {}
    for fields in ({"language": "multiple"}, {"language": "multiple", "languages": "de,en"}):
        answer = post(server, OWN, **fields)
        assert answer["language"] == "de"
        assert answer["languages"] == [{"code": "de", "share": 0.667}, {"code": "en", "share": 0.333}]
        assert [segment["language"] for segment in answer["model_output"]] == ["de", "en", "de"]
    assert post(server, OWN, languages="de,en")["languages"] == [{"code": "de", "share": 1.0}]
    assert "languages" in post(server, OWN, language="multiple", response_format="words")
    plain = post(server, OWN)
    assert ("languages" in plain, "language" in plain["model_output"][0]) == (False, False)


def test_openais_answer_has_the_language_of_each_segment() -> None:
    """With `language=multiple`, in verbose_json; the whole answer has the one of most speech, by name."""
    server = Server()
    server.fakes.languages = MIXED
    answer = post(server, TRANSCRIBE, language="multiple", response_format="verbose_json")
    assert [segment["language"] for segment in answer["segments"]] == ["de", "en", "de"]
    assert (answer["language"], answer["languages"]) == ("german", [{"code": "de"}, {"code": "en"}])
    plain = post(server, TRANSCRIBE, response_format="verbose_json")
    assert not any("language" in segment for segment in plain["segments"])


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"languages": "de"}, "language=multiple needs several"), ({"language": "multi"}, "or multiple")],
)
def test_what_multiple_cannot_mean_is_refused(fields: dict[str, str], says: str) -> None:
    """A single language, and names that other services have for it."""
    error = post(Server(*SPOKEN), OWN, **{"language": "multiple", **fields})
    assert says in error["message"]
