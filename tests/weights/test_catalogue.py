"""The catalogue is what others have: faster-whisper's names, and docs/models.md."""

from pathlib import Path

from faster_whisper.utils import _MODELS as FASTER_WHISPER

from serve_app.models.catalogue import Model, catalogue

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"


def row(model: Model) -> str:
    """A model's line in the document."""
    names = ", ".join(f"`{name}`" for name in (model.name, *model.aliases))
    source = f"[{model.hub}](https://huggingface.co/{model.hub})" if model.hub else model.url
    wheels = ", ".join(f"`{wheel.name}=={wheel.version}`" for wheel in model.wheels)
    origin = ", else ".join(filter(None, (source, wheels)))
    return (
        f"| {names} | {model.title} | {model.author} | {model.licence} | {model.size / 1e6:.0f} | {origin} |"
    )


def test_the_names_are_those_of_faster_whisper() -> None:
    """Every name that faster-whisper knows means the same repository here, and there are no others."""
    whisper = [model for model in catalogue() if model.kind == "whisper"]
    names = {name: model.hub for model in whisper for name in (model.name, *model.aliases)}
    assert names == FASTER_WHISPER


def test_no_name_is_another_models_too() -> None:
    """Else one of them could not be had."""
    names = [name for model in catalogue() for name in (model.name, *model.aliases, model.hub) if name]
    assert len(names) == len(set(names))


def test_each_file_with_a_hash_can_come_out_of_wheels() -> None:
    """A model with hashes is one that needs no hub: its wheels are named, and so are the members."""
    for model in catalogue():
        assert bool(model.files) == bool(model.wheels)
        assert all(file.members for file in model.files.values())
        assert model.files or model.hub or model.url


def test_every_model_is_documented() -> None:
    """docs/models.md has licence, author, size and source of every model, and of no other."""
    written = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    expected = [row(model) for model in catalogue()]
    assert written == expected, "\n".join(expected)
