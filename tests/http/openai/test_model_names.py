"""Names of models and what they stand for; fields of other Whisper servers; Azure's paths; whisper.cpp's."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai_api import TEXT, TRANSCRIBE, TRANSLATE, Server
from pydantic import ValidationError

from serve_app.errors import InvalidRequest, ModelNotFound
from serve_app.http.model_names import ModelNames
from serve_app.http.openai.request import ParsedForm, check_aliases, parse
from serve_app.request.admission import WindowGate
from serve_app.request.calls import OtherModel
from serve_app.settings import Settings
from serve_app.settings.openai import SHIPPED, OpenAISettings

AZURE = "/openai/deployments/whisper/audio/transcriptions"


def aliased(**options: Any) -> dict[str, Any]:
    """Settings in which the model `mine` stands for these options."""
    return {"aliases": {"mine": options}}


@pytest.mark.parametrize("name", SHIPPED)
def test_openais_names_work_without_configuration(name: str) -> None:
    """All of them, and the one that tells speakers apart does so where the format shows them."""
    server = Server()
    assert server.post(model=name).json()["text"] == TEXT
    assert server.fakes.calls["diarize"] == 0
    verbose = server.post(model=name, response_format="verbose_json").json()
    assert ("speaker" in verbose["segments"][0]) == (name == "gpt-4o-transcribe-diarize")


def test_any_name_may_stand_for_the_model() -> None:
    """With `*`, which is not listed itself; a name that is listed keeps what it stands for."""
    server = Server(openai={"aliases": {"*": {"language": "de"}, "whisper-1": None}})
    assert server.post(model="Systran/faster-whisper-large-v3").status_code == 200
    assert server.post(model="gpt-4o-transcribe").status_code == 200
    assert server.post(model="whisper-1").status_code == 200
    assert [options.language for options in server.asked] == ["de", None, "de"]
    listed = [model["id"] for model in server.request("GET", "/v1/models").json()["data"]]
    assert ("*" in listed, "whisper-1" in listed, listed[0]) == (False, False, "large-v2")
    assert server.request("GET", "/v1/models/any/name").json()["id"] == "any/name"


def test_a_name_can_be_taken_away() -> None:
    """With null it is a 404, like any other."""
    server = Server(openai={"aliases": {"whisper-1": None}})
    assert server.post(model="whisper-1").status_code == 404
    assert server.post(model="gpt-4o-transcribe").status_code == 200


def test_what_a_client_sends_wins() -> None:
    """Each option of the name gives way to the same one of the request, also by another name."""
    options = {
        "language": "de",
        "initial_prompt": "Ada",
        "hotwords": "Bob",
        "diarize": True,
        "max_speakers": 3,
    }
    server = Server(openai=aliased(response_format="verbose_json", **options))
    assert "speaker" in server.post(model="mine").json()["segments"][0]
    server.post(model="mine", language="fr", prompt="Cy", keywords__="Di", max_speakers="2")
    server.post(model="mine", languages__=["fr", "en"], diarize="false")
    found = [
        (each.language, each.languages, each.initial_prompt, each.hotwords, each.diarize, each.max_speakers)
        for each in server.asked
    ]
    assert found == [
        ("de", (), "Ada", "Bob", True, 3),
        ("fr", (), "Cy", "Di", True, 2),
        (None, ("fr", "en"), "Ada", "Bob", False, None),
    ]


def test_what_a_format_cannot_show_is_left_out() -> None:
    """A name that tells speakers apart works with a format without speakers; its other options stay."""
    server = Server(openai=aliased(diarize=True, max_line_width=40, language="de"))
    for response_format in ("json", "srt"):
        assert server.post(model="mine", response_format=response_format).status_code == 200
    found = [(each.diarize, each.max_line_width, each.language) for each in server.asked]
    assert found == [(False, None, "de"), (True, 40, "de")]


def test_only_what_is_in_the_way_is_left_out() -> None:
    """A format that cannot be streamed, say, though the error would name `stream`."""
    options = {"response_format": "verbose_json", "language": "de", "hotwords": "Ada"}
    server = Server(openai=aliased(**options))
    assert server.post(model="mine", stream="true").status_code == 200
    assert (server.asked[0].language, server.asked[0].hotwords) == ("de", "Ada")


def test_a_server_that_cannot_do_it_names_the_model() -> None:
    """Its name asked for speakers, the request did not."""
    response = Server(diarizes=False).post(model="gpt-4o-transcribe-diarize", response_format="srt")
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "model", "diarization_unavailable")
    assert "gpt-4o-transcribe-diarize stands for diarize" in error["message"]
    server = Server(diarizes=False, openai=aliased(response_format="diarized_json"))
    error = server.post(model="mine").json()["error"]
    assert (error["param"], "mine stands for response_format" in error["message"]) == ("model", True)


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "language": st.sampled_from(["de", "en"]),
    "languages": st.just(["de", "en"]),
    "diarize": st.booleans(),
    "num_speakers": st.integers(1, 3),
    "min_speakers": st.integers(1, 3),
    "split_at_speaker_change": st.booleans(),
    "max_line_width": st.integers(20, 60),
    "max_line_count": st.integers(1, 3),
    "logprobs": st.booleans(),
    "embeddings": st.booleans(),
    "response_format": st.sampled_from(["json", "text", "srt", "verbose_json", "diarized_json"]),
    "temperature": st.sampled_from([0.0, 0.4, 1.5]),
}
some = st.fixed_dictionaries({}, optional=OPTIONS)


def parsed(fields: dict[str, Any], aliases: dict[str, Any]) -> ParsedForm | str | None:
    """The form, or the name of the field that is refused."""
    sent = [("model", "mine")]
    for name, value in fields.items():
        values = value if isinstance(value, list) else [value]
        sent += [(f"{name}[]" if isinstance(value, list) else name, str(each)) for each in values]
    try:
        return parse(sent, "transcribe", ModelNames("large-v2", aliases))
    except InvalidRequest as error:
        return error.param


@given(some, some)
def test_a_name_spoils_no_request(sent: dict[str, Any], defaults: dict[str, Any]) -> None:
    """What is valid by itself is so with any name, and keeps all that was sent."""
    alone, named = parsed(sent, {"mine": {}}), parsed(sent, {"mine": defaults})
    if not isinstance(alone, ParsedForm):
        return
    assert isinstance(named, ParsedForm)
    for name in sent.keys() - {"response_format"}:
        assert getattr(named.options, name) == getattr(alone.options, name)
    if "response_format" in sent:
        assert named.fields.response_format == sent["response_format"]


@given(some, some)
def test_no_option_of_a_name_is_lost_without_need(sent: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Where all fit together, the request is the same as if all had been sent."""
    languages = {"language", "languages"}
    wanted = {
        name: value
        for name, value in defaults.items()
        if name not in sent and not (name in languages and languages & sent.keys())
    }
    together, named = parsed({**wanted, **sent}, {"mine": {}}), parsed(sent, {"mine": defaults})
    if isinstance(together, ParsedForm):
        assert isinstance(named, ParsedForm)
        assert (named.options, named.from_model) == (together.options, frozenset(wanted))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"diarise": True}, "diarise"),
        ({"temperature": 2}, "temperature"),
        ({"language": "klingon"}, "language"),
        ({"response_format": "xml"}, "response_format"),
        ({"vad_filter": False}, "vad_filter"),
    ],
)
def test_a_name_that_no_request_could_use_is_refused_at_start(options: dict[str, Any], says: str) -> None:
    """The message has the alias and the option."""
    settings = OpenAISettings.model_validate(aliased(**options))
    with pytest.raises(InvalidRequest, match=f"openai.aliases: mine: {says}"):
        check_aliases(ModelNames("large-v2", settings.names()))


def test_options_of_every_format_can_be_those_of_a_name() -> None:
    """Speakers, subtitle lines, log-probabilities; and the shipped ones are fine."""
    for options in (
        {"diarize": True},
        {"max_line_width": 40},
        {"logprobs": True},
        {"languages": ["de", "en"]},
        {"confidence": True},
        {"language": "multiple", "beam_size": 1},
    ):
        check_aliases(ModelNames("large-v2", OpenAISettings.model_validate(aliased(**options)).names()))


@pytest.mark.parametrize("aliases", [{"": {}}, {"mine": {"model": True}}, {"mine": ["diarize"]}])
def test_a_name_stands_for_options_only(aliases: dict[str, Any]) -> None:
    """And no name is empty."""
    with pytest.raises(ValidationError):
        OpenAISettings.model_validate({"aliases": aliases})


@pytest.mark.parametrize(
    ("aliases", "says"),
    [
        ({"mine": {"model": "medium"}}, "mine: there is no such model; there are large-v2, small"),
        ({"small": {"model": "large-v2"}}, "small: this is a model itself"),
        ({"large-v2": {"model": "small"}}, "large-v2: this is a model itself"),
    ],
)
def test_a_name_of_a_model_that_is_not_there_is_refused_at_start(aliases: dict[str, Any], says: str) -> None:
    """So is one that would hide a model."""
    with pytest.raises(ValidationError, match=f"openai.aliases: {says}"):
        Settings.model_validate({"models": {"small": {}}, "openai": {"aliases": aliases}})


def several(**aliases: Any) -> Server:
    """A server with large-v2 and small."""
    server = Server(other_models=("small",), openai={"aliases": aliases})
    small = OtherModel(server.stages.transcribe, WindowGate(1))
    server.stages = replace(server.stages, model="large-v2", other_models={"small": small})
    return server


def test_a_request_names_one_of_several_models() -> None:
    """By its own name or by one that stands for it, also in Azure's path; all are listed."""
    server = several(quick={"model": "small", "language": "de"}, whisper={"model": "small"})
    for name in ("small", "large-v2", "whisper-1", "quick"):
        assert server.post(model=name).status_code == 200
    assert server.request("POST", AZURE, files={"file": server.file}).status_code == 200
    assert server.request("POST", "/inference", files={"file": server.file}).status_code == 200
    found = [(each.model, each.language) for each in server.asked]
    own = (None, None)
    assert found == [("small", None), own, own, ("small", "de"), ("small", None), own]
    listed = [model["id"] for model in server.request("GET", "/v1/models").json()["data"]]
    assert listed[:2] == ["large-v2", "small"]
    assert "quick" in listed
    response = server.post(model="medium")
    assert (response.status_code, response.json()["error"]["param"]) == (404, "model")
    assert "use one of large-v2, small, whisper-1" in response.json()["error"]["message"]


def test_a_path_and_a_field_that_mean_different_models_are_a_400() -> None:
    """Azure's clients send both."""
    server = several()
    files = {"file": server.file}
    path = "/openai/deployments/small/audio/transcriptions"
    response = server.request("POST", path, files=files, data={"model": "whisper-1"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")
    assert server.request("POST", path, files=files, data={"model": "small"}).status_code == 200


def test_a_star_takes_no_model_s_name() -> None:
    """Names of models come before aliases."""
    server = several(**{"*": {"language": "fr"}})
    server.post(model="small")
    server.post(model="any")
    assert [(each.model, each.language) for each in server.asked] == [("small", None), (None, "fr")]


def test_no_name_is_known_without_a_star() -> None:
    """The error lists what can be used."""
    with pytest.raises(ModelNotFound, match="large-v2, a"):
        ModelNames("large-v2", {"a": {}}).defaults("b")


@pytest.mark.parametrize(
    "fields",
    [
        {"vad_filter": "true", "without_timestamps": "true", "condition_on_previous_text": "false"},
        {"task": "transcribe", "word_timestamps": "false"},
        {"word_timestamps": "true", "response_format": "verbose_json", "timestamp_granularities__": "word"},
        {"timestamp_granularities__": "segment", "response_format": "srt"},
        {"timestamp_granularities__": "segment", "response_format": "diarized_json"},
    ],
)
def test_what_other_servers_fields_say_is_so_anyway(fields: dict[str, Any]) -> None:
    """speaches and whisper-asr-webservice have these fields; those that change nothing are accepted."""
    server = Server()
    assert server.post(**fields).status_code == 200


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("timestamp_granularities[]", ["word", "segment"]),
        ("timestamp_granularities", ["word", "segment"]),
        ("timestamp_granularities[0]", ["word"]),
        ("timestamp_granularities", ["word,segment"]),
        ("timestamp_granularities[]", ["word, segment"]),
        ("timestamp_granularities", ['["word", "segment"]']),
    ],
)
def test_lists_of_words_in_every_spelling(name: str, values: list[str]) -> None:
    """As OpenAI's package sends them, as curl's users do, with commas, and as JSON."""
    server = Server()
    body = server.request(
        "POST",
        TRANSCRIBE,
        files={"file": server.file},
        data={"model": "whisper-1", "response_format": "verbose_json", name: values},
    ).json()
    assert len(body["words"]) == 3
    assert ("segments" in body) == ("segment" in "".join(values))


def test_only_allowed_languages_are_found() -> None:
    """A window that sounds like another one is written in one of them; a single one needs no detection."""
    server = Server(1, 2, 3)
    server.fakes.languages = {0.0: "nl", 1.0: "de", 2.0: "en"}
    body = server.post(languages__=["de", "en"]).json()
    assert {each["code"] for each in body["languages"]} <= {"de", "en"}
    server.fakes.transcribed_in.clear()
    assert server.post(languages__="German").json()["languages"] == [{"code": "de"}]
    assert {language for _, language in server.fakes.transcribed_in} == {"de"}


def test_silence_has_no_languages() -> None:
    """The field is left out."""
    assert "languages" not in Server(0, 0).post().json()


def test_translations_refuse_another_task() -> None:
    """`task` may only say what the path says."""
    assert Server().post(TRANSLATE, task="translate").status_code == 200
    assert Server().error(TRANSLATE, task="transcribe")[:2] == (400, "task")


def azure(query: str, server: Server | None = None, **fields: str) -> tuple[int, str | None]:
    server = server or Server()
    response = server.request("POST", AZURE + query, files={"file": server.file}, data=fields)
    return response.status_code, response.json().get("error", {}).get("param")


def test_azures_version_is_a_date() -> None:
    """Any date will do; other parameters of the URL are refused by name, as everywhere."""
    assert azure("?api-version=2024-10-21") == azure("") == (200, None)
    assert azure("?api-version=2025-04-01-preview") == (200, None)
    assert azure("?api-version=latest") == (400, "api-version")
    assert azure("?api-version=2024-10-21&language=de") == (400, "language")
    server = Server()
    sent = server.request(
        "POST",
        f"{TRANSCRIBE}?api-version=2024-10-21",
        files={"file": server.file},
        data={"model": "whisper-1"},
    )
    assert (sent.status_code, sent.json()["error"]["param"]) == (400, "api-version")


def test_azures_path_says_which_model() -> None:
    """A form may repeat it, or say another name for the same."""
    assert azure("", model="whisper") == azure("", model="gpt-4o-transcribe") == (200, None)
    assert azure("", model="gpt-4o-transcribe-diarize") == (400, "model")
    assert azure("", model="large-v3") == (404, "model")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"no_timestamps": "true", "response_format": "srt"}, "no_timestamps"),
        ({"translate": "maybe"}, "translate"),
        ({"translate": ["true", "false"]}, "translate"),
        ({"translate": "true", "task": "transcribe"}, "task"),
        ({"temperature_inc": "3"}, "temperature_inc"),
        ({"best_of": "2"}, "best_of"),
        ({"offset_t": "1000"}, "offset_t"),
        ({"language": "xx"}, "language"),
    ],
)
def test_whisper_cpps_route_refuses_by_name(fields: dict[str, Any], param: str) -> None:
    """What would change the answer and cannot be done is a 400."""
    server = Server()
    response = server.request("POST", "/inference", files={"file": server.file}, data=fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    assert server.asked == []


def test_whisper_cpps_route_has_our_options() -> None:
    """They are fields there, too, and the model's name may stand for some."""
    server = Server()
    fields = {"response_format": "srt", "model": "gpt-4o-transcribe-diarize", "translate": "false"}
    response = server.request("POST", "/inference", files={"file": server.file}, data=fields)
    assert "SPEAKER_01" in response.text
