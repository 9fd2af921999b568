"""`python -m serve_app prefetch`, without a network: what it lists, checks and says."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError

from serve_app.__main__ import cli
from serve_app.cli import CommandFailed
from serve_app.models.catalogue import catalogue
from serve_app.models.store import RECORD, Record, sha256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of models with one fetched model, wav2vec2-de, of a tiny file."""
    place = tmp_path / "wav2vec2-de"
    place.mkdir()
    (place / "weights.pt").write_bytes(b"weights")
    file = {"size": 7, "sha256": sha256(place / "weights.pt")}
    record = Record.model_validate(
        {"source": "x", "revision": None, "licence": "CC0", "files": {"weights.pt": file}}
    )
    (place / RECORD).write_text(record.model_dump_json())
    return tmp_path


def run(folder: Path, *arguments: str) -> None:
    """Runs the command in this process; raises its CommandFailed."""
    cli(["prefetch", "--to", str(folder), *arguments], standalone_mode=False)


def test_the_list_has_every_model_and_where_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The list has name, size, licence, author and place, also where only the fetch has found them out."""
    run(folder, "--list")
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == {"name", *(model.name for model in catalogue())}
    assert "148" in lines["base"]
    assert "MIT" in lines["base"]
    assert "OpenAI; conversion by Systran" in lines["base"]
    assert "not here" in lines["base"]
    assert "campplus or speakers" in lines["campplus"]
    assert "CC0" in lines["wav2vec2-de"]
    assert str(folder / "wav2vec2-de") in lines["wav2vec2-de"]


def test_a_damaged_file_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every model on this machine is checked; a damaged one makes the command fail."""
    run(folder, "--check")
    assert "wav2vec2-de is complete" in capsys.readouterr().err
    (folder / "wav2vec2-de" / "weights.pt").write_bytes(b"WEIGHTS")
    with pytest.raises(CommandFailed, match=r"wav2vec2-de \(weights\.pt\)"):
        run(folder, "--check")
    with pytest.raises(CommandFailed, match=r"base \(config\.json, .*model\.bin"):
        run(folder, "--check", "base")


def test_each_model_that_cannot_be_had_has_its_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other models are still fetched."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CommandFailed) as failed:
        run(folder, "smal", "small", "--language", "de")
    first, second = str(failed.value).splitlines()
    assert first.startswith("smal is no model that can be fetched")
    assert second.startswith("small cannot be fetched (the hub does not answer)")
    assert f"wav2vec2-de: {folder / 'wav2vec2-de'}" in capsys.readouterr().err


def test_nothing_to_do_is_said(folder: Path) -> None:
    """A command without names fails with a sentence that asks for them."""
    with pytest.raises(CommandFailed, match="name models"):
        run(folder)


def test_all_models_of_a_config_file_are_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of several, and what is loaded at start beside them; a directory needs no fetch."""
    fetched: list[str] = []

    def fetch(name: str, *_: object, **__: object) -> Path:
        fetched.append(name)
        return folder

    monkeypatch.setattr("serve_app.models.prefetch.fetch", fetch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "none"))
    monkeypatch.setattr("serve_app.models.names.fetch", fetch)
    (tmp_path / "model.bin").touch()
    args = {
        "model": str(tmp_path),
        "models": {"english": {"model": "tiny.en"}, "base": None},
        "alignment": {"method": "attention"},
        "diarization": {"model": "campplus"},
    }
    applications = [{"name": "w", "import_path": "serve_app.app:build", "args": args}]
    config = tmp_path / "config.yaml"
    raw = {"http_options": {"host": "127.0.0.1"}, "applications": applications}
    config.write_text(yaml.safe_dump(raw))
    run(folder, "--config", str(config), "tiny")
    assert fetched == ["tiny", "base", "tiny.en", "campplus"]
    args["models"] = {"smal": None}
    config.write_text(yaml.safe_dump(raw))
    with pytest.raises(CommandFailed, match=r"models\.smal: smal is no model name"):
        run(folder, "--config", str(config))


def test_a_repository_of_a_config_file_is_fetched_with_the_hubs_client(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into the hub client's own cache, where the service looks for it; one that is missing is named."""
    here: set[str] = set()

    def snapshot_download(repository: str, *, local_files_only: bool = False, **_: object) -> str:
        if repository not in here:
            if local_files_only:
                raise LocalEntryNotFoundError("not here")
            if repository == "acme/lost":
                raise ConnectionError
            here.add(repository)
        return str(folder)

    monkeypatch.setattr("serve_app.models.hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("serve_app.models.prefetch.snapshot_download", snapshot_download)
    monkeypatch.setattr("serve_app.models.hub.answers", lambda url: True)
    monkeypatch.setattr("serve_app.models.hub._ask", lambda repository, token: None)
    args: dict[str, object] = {
        "model": "acme/faster-whisper-x",
        "alignment": {"method": "attention"},
        "diarization": {"model": "off"},
    }
    config = config_of(tmp_path, args)
    with pytest.raises(CommandFailed, match=r"acme/faster-whisper-x \(not in the hub client's cache\)"):
        run(folder, "--config", str(config), "--check")
    run(folder, "--config", str(config))
    assert here == {"acme/faster-whisper-x"}
    said = " ".join(capsys.readouterr().err.split())
    assert (
        f"in the hub client's cache (HF_HOME), not in {folder}: to move the models, copy both folders."
        in said
    )
    run(folder, "--config", str(config), "--check")
    assert "acme/faster-whisper-x is complete" in capsys.readouterr().err
    with pytest.raises(CommandFailed, match="acme/lost cannot be fetched"):
        run(folder, "--config", str(config_of(tmp_path, args | {"models": {"acme/lost": None}})))


def test_services_with_several_folders_of_models_are_refused(folder: Path, tmp_path: Path) -> None:
    """A model of one would be put where the other looks; with --to it is said which."""
    both = [{"model": str(tmp_path), "models_dir": f"/models/{name}"} for name in "ab"]
    (tmp_path / "model.bin").touch()
    args: list[dict[str, object]] = [
        {**each, "alignment": {"method": "off"}, "diarization": {"model": "off"}} for each in both
    ]
    config = config_of(tmp_path, *args)
    with pytest.raises(CommandFailed, match="several models_dir"):
        cli(["prefetch", "--config", str(config)], standalone_mode=False)
    run(folder, "--config", str(config), "--check")


def config_of(folder: Path, *args: dict[str, object]) -> Path:
    """A config file with a service for each of these settings."""
    applications = [
        {"name": f"w{n}", "route_prefix": f"/{n}", "import_path": "serve_app.app:build", "args": each}
        for n, each in enumerate(args)
    ]
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1"}, "applications": applications}))
    return path
