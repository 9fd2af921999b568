"""Which models the settings mean, and the sentence for one that cannot be had. No network."""

from pathlib import Path

import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from requests import Response

from serve_app.errors import ModelUnavailable
from serve_app.models import hub as hub_module
from serve_app.models import names as models
from serve_app.models.catalogue import catalogue
from serve_app.models.hub import COMMUNITY
from serve_app.models.store import RECORD, Record, Store
from serve_app.settings import AlignmentSettings, DiarizationSettings, Settings


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A hub that has everything, and an empty store; returns the repositories that were asked for."""
    asked: list[str] = []

    def not_cached(repository: str, **_: object) -> None:
        raise LocalEntryNotFoundError(repository)

    monkeypatch.setattr(hub_module, "snapshot_download", not_cached)
    monkeypatch.setattr(hub_module, "_ask", lambda repository, **_: asked.append(repository))
    monkeypatch.setattr(hub_module, "answers", lambda url: True)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))
    return asked


def put(store: Store, name: str) -> None:
    """Makes the store say that it has the model: sizes are what it looks at."""
    model = catalogue().get(name)
    assert model is not None
    files = {name: file.model_copy(update={"members": ()}) for name, file in model.files.items()}
    (store.root / model.name).mkdir(parents=True)
    for file, known in files.items():
        with (store.root / model.name / file).open("wb") as empty:
            empty.truncate(known.size)
    record = Record(source="test", revision=None, licence="", files=files)
    (store.root / model.name / RECORD).write_text(record.model_dump_json())


@pytest.fixture
def store(hub: list[str], tmp_path: Path) -> Store:
    """The store, with what the demo runs."""
    store = Store(tmp_path / "models")
    put(store, "base")
    put(store, "speakers")
    return store


def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "answers", lambda url: False)


def diarization(model: str) -> Settings:
    return Settings(model="base", diarization=DiarizationSettings(model=model))


def test_every_name_has_a_repository(hub: list[str], store: Store) -> None:
    """It is looked up once, also by an alias; a replica gets the name."""
    assert models.resolve(Settings(model="turbo")).asr == "large-v3-turbo"
    assert models.resolve(Settings(model="Systran/faster-whisper-large-v2")).asr == "large-v2"
    assert hub == ["mobiuslabsgmbh/faster-whisper-large-v3-turbo", "Systran/faster-whisper-large-v2"]


def test_speakers_need_no_token(hub: list[str], store: Store) -> None:
    """CAM++ tells speakers apart where there is no token, and answers name the model as the settings do."""
    found = models.resolve(Settings(model="large"))
    assert (found.name, found.asr, found.diarization) == ("large", "large-v3", "campplus")
    assert (
        models.resolve(Settings(model="large", diarization=DiarizationSettings(model="off"))).diarization
        is None
    )


def test_diarization_is_community_with_a_token(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """auto = community-1 as soon as there is a token."""
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    assert models.resolve(Settings(model="small")).diarization == "community-1"


def test_a_prefetched_machine_asks_nobody(
    hub: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything is in the store; how early the attention of the model is comes with it."""
    no_hub(monkeypatch)
    put(store, "wav2vec2-de")
    found = models.resolve(Settings(model="base"))
    assert (found.asr, found.attention_shift_s, found.diarization) == ("base", 0.04, "campplus")
    assert found.aligners == {"de": "wav2vec2-de"}
    assert hub == []


def test_the_store_may_be_named_in_the_settings(
    hub: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """models_dir goes before MODELS_DIR."""
    no_hub(monkeypatch)
    elsewhere = Store(tmp_path / "elsewhere")
    put(elsewhere, "tiny.en")
    settings = Settings(
        model="tiny.en", models_dir=str(elsewhere.root), diarization=DiarizationSettings(model="off")
    )
    assert models.resolve(settings).attention_shift_s == -0.10


def test_languages_have_their_model_where_its_source_answers(hub: list[str], store: Store) -> None:
    """whisperx's defaults, those of the settings before them; with attention none."""

    def aligners(**settings: object) -> dict[str, str]:
        alignment = AlignmentSettings.model_validate(settings)
        return models.resolve(Settings(model="large", alignment=alignment)).aligners

    assert aligners(models={"ja": "mine/japanese"})["ja"] == "mine/japanese"
    assert aligners()["en"] == "wav2vec2-en"
    assert len(aligners()) == 41
    assert aligners(method="attention") == {}


def test_a_language_that_must_have_wav2vec2_and_cannot_is_one_sentence(
    hub: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence names the language; with auto there is attention instead."""
    no_hub(monkeypatch)
    alignment = AlignmentSettings(method="wav2vec2", preload=("de",))
    with pytest.raises(ModelUnavailable, match=r"wav2vec2 model of de is not on this machine.*--language de"):
        models.resolve(Settings(model="base", alignment=alignment))
    assert models.resolve(Settings(model="base")).aligners == {}


def test_a_local_directory_is_taken_as_it_is(hub: list[str], store: Store, tmp_path: Path) -> None:
    """A CTranslate2 directory needs no hub; one without model.bin is refused."""
    with pytest.raises(ModelUnavailable, match=r"without model\.bin"):
        models.resolve(Settings(model=str(tmp_path)))
    (tmp_path / "model.bin").touch()
    assert models.resolve(Settings(model=str(tmp_path))).asr == str(tmp_path)
    assert hub == []


@pytest.mark.parametrize("model", ["/data/none", "./none", "~/none", "a/b/none"])
def test_a_mistyped_directory_is_not_looked_up_on_the_hub(hub: list[str], store: Store, model: str) -> None:
    """What looks like a path is one, for each kind of model."""
    aligners = AlignmentSettings(models={"de": model})
    for settings in (
        Settings(model=model),
        diarization(model),
        Settings(model="base", alignment=aligners),
    ):
        with pytest.raises(ModelUnavailable, match=f"there is no directory {model}"):
            models.resolve(settings)
    assert hub == []


def test_an_unknown_name_lists_the_known_ones(hub: list[str]) -> None:
    """A typo is answered with the names there are."""
    with pytest.raises(ModelUnavailable, match="large-v3-turbo"):
        models.resolve(Settings(model="larg-v2"))


def gated(repository: str, **_: object) -> None:
    if repository == COMMUNITY:
        raise GatedRepoError("403", response=Response())


def test_a_gated_model_without_a_token_says_how_to_get_it(
    hub: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Naming pyannote's model without HF_TOKEN is refused with what to do."""
    monkeypatch.setattr(hub_module, "_ask", gated)
    with pytest.raises(
        ModelUnavailable, match=r"HF_TOKEN is not set.*Accept the conditions on huggingface\.co"
    ):
        models.resolve(diarization(COMMUNITY))


def test_conditions_that_were_not_accepted_are_named(
    hub: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3.1 also needs segmentation-3.0 and community-1: the one that is missing is named."""
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(hub_module, "_ask", gated)
    with pytest.raises(ModelUnavailable, match=f"{COMMUNITY} is gated and your token"):
        models.resolve(diarization("pyannote/speaker-diarization-3.1"))


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network: the sentence says so and what to do without one."""

    def unreachable(repository: str, **_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub_module, "_ask", unreachable)
    expected = "hub cannot be reached to fetch Systran/faster-whisper-small"
    with pytest.raises(ModelUnavailable, match=expected):
        models.resolve(Settings(model="small"))
    no_hub(monkeypatch)
    monkeypatch.setattr(hub_module, "_ask", lambda *_, **__: pytest.fail("it was asked all the same"))
    with pytest.raises(ModelUnavailable, match=expected):
        models.resolve(Settings(model="small"))


def test_a_directory_that_is_no_pipeline_is_refused(hub: list[str], store: Store, tmp_path: Path) -> None:
    """A diarization directory needs config.yaml."""
    with pytest.raises(ModelUnavailable, match=r"without config\.yaml"):
        models.resolve(diarization(str(tmp_path)))


def test_each_of_several_models_is_resolved(
    hub: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the constant of its own attention; all are needed, each once."""
    no_hub(monkeypatch)
    put(store, "tiny.en")
    settings = Settings.model_validate(
        {"model": "base", "models": {"english": {"model": "tiny.en"}, "fast": {"model": "base"}}}
    )
    found = models.resolve(settings)
    assert found.others == {"english": models.Whisper("tiny.en", -0.10), "fast": models.Whisper("base", 0.04)}
    assert found.needed(("en",)) == ["base", "tiny.en", "campplus"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"smal": None}, "models.smal: smal is no model name; known are base"),
        ({"mine": {"model": "/nowhere"}}, "models.mine: there is no directory /nowhere"),
        ({"small": None}, "small"),
    ],
)
def test_a_model_that_cannot_be_had_is_named_with_its_place(
    given: dict[str, object], says: str, hub: list[str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything starts."""
    no_hub(monkeypatch)
    monkeypatch.setattr(hub_module, "_ask", lambda repository, **_: (_ for _ in ()).throw(OSError("away")))
    with pytest.raises(ModelUnavailable, match=says):
        models.resolve(Settings.model_validate({"model": "base", "models": given}))
