"""Which models the settings mean, and the sentence for one that cannot be had. No network."""

from pathlib import Path

import faster_whisper
import pytest
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError
from requests import Response

from serve_app.errors import ModelUnavailable
from serve_app.models import names as models
from serve_app.settings import AlignmentSettings, DiarizationSettings, Settings


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub that has everything; returns the repositories that were asked for."""
    asked: list[str] = []

    def not_cached(repository: str, **_: object) -> None:
        raise LocalEntryNotFoundError(repository)

    monkeypatch.setattr(models, "snapshot_download", not_cached)
    monkeypatch.setattr(models, "auth_check", lambda repository, **_: asked.append(repository))
    monkeypatch.setattr(models, "get_token", lambda: None)
    return asked


def diarization(model: str) -> Settings:
    return Settings(model="bundled", diarization=DiarizationSettings(model=model))


def test_bundled_needs_no_hub(hub: list[str]) -> None:
    """The demo brings recogniser, aligner and diarization, and windows as short as it was trained on."""
    found = models.resolve(Settings(model="bundled"))
    assert (found.diarization, list(found.aligners), found.window_s) == ("bundled", ["en"], 6.0)
    assert (Path(found.asr) / "model.bin").is_file()
    assert hub == []


def test_the_names_are_those_of_faster_whisper(hub: list[str]) -> None:
    """Every name that faster-whisper knows is known here, with a repository."""
    for name in faster_whisper.available_models():
        assert models.resolve(Settings(model=name)).asr in hub


def test_a_name_is_looked_up_and_windows_are_30_s(hub: list[str]) -> None:
    """large-v2 means its repository, and diarization is off without a token."""
    found = models.resolve(Settings(model="large-v2"))
    assert (found.asr, found.window_s, found.diarization) == ("Systran/faster-whisper-large-v2", 30.0, None)
    assert hub == ["Systran/faster-whisper-large-v2"]


def test_diarization_is_on_with_a_token(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """auto = community-1 as soon as there is a token."""
    monkeypatch.setattr(models, "get_token", lambda: "hf_x")
    assert models.resolve(Settings(model="small")).diarization == models.COMMUNITY


def test_a_local_directory_is_taken_as_it_is(hub: list[str], tmp_path: Path) -> None:
    """A CTranslate2 directory needs no hub; one without model.bin is refused."""
    with pytest.raises(ModelUnavailable, match=r"without model\.bin"):
        models.resolve(Settings(model=str(tmp_path)))
    (tmp_path / "model.bin").touch()
    assert models.resolve(Settings(model=str(tmp_path))).asr == str(tmp_path)
    assert hub == []


@pytest.mark.parametrize("model", ["/data/none", "./none", "~/none", "a/b/none"])
def test_a_mistyped_directory_is_not_looked_up_on_the_hub(hub: list[str], model: str) -> None:
    """What looks like a path is one, for each kind of model."""
    aligners = AlignmentSettings(models={"de": model})
    for settings in (
        Settings(model=model),
        diarization(model),
        Settings(model="bundled", alignment=aligners),
    ):
        with pytest.raises(ModelUnavailable, match=f"there is no directory {model}"):
            models.resolve(settings)
    assert hub == []


def test_an_unknown_name_lists_the_known_ones(hub: list[str]) -> None:
    """A typo is answered with the names there are."""
    with pytest.raises(ModelUnavailable, match="large-v3-turbo"):
        models.resolve(Settings(model="larg-v2"))


def gated(repository: str, **_: object) -> None:
    if repository == models.COMMUNITY:
        raise GatedRepoError("403", response=Response())


def test_a_gated_model_without_a_token_says_how_to_get_it(
    hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Naming pyannote's model without HF_TOKEN is refused with what to do."""
    monkeypatch.setattr(models, "auth_check", gated)
    with pytest.raises(
        ModelUnavailable, match=r"HF_TOKEN is not set.*Accept the conditions on huggingface\.co"
    ):
        models.resolve(diarization(models.COMMUNITY))


def test_conditions_that_were_not_accepted_are_named(hub: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """3.1 also needs segmentation-3.0 and community-1: the one that is missing is named."""
    monkeypatch.setattr(models, "get_token", lambda: "hf_x")
    monkeypatch.setattr(models, "auth_check", gated)
    with pytest.raises(ModelUnavailable, match=f"{models.COMMUNITY} is gated and your token"):
        models.resolve(diarization("pyannote/speaker-diarization-3.1"))


def test_a_hub_that_cannot_be_reached_is_one_sentence(
    hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network: the sentence says so and what to do without one."""

    def unreachable(repository: str, **_: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(models, "auth_check", unreachable)
    with pytest.raises(ModelUnavailable, match="hub cannot be reached to fetch Systran/faster-whisper-small"):
        models.resolve(Settings(model="small"))


def test_a_directory_that_is_no_pipeline_is_refused(hub: list[str], tmp_path: Path) -> None:
    """A diarization directory needs config.yaml."""
    with pytest.raises(ModelUnavailable, match=r"without config\.yaml"):
        models.resolve(diarization(str(tmp_path)))
