"""Where models are kept on this machine: a folder for each, which is complete or not there."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from serve_app.models.catalogue import Catalogue, File, catalogue
from serve_app.settings.types import Strict

RECORD = "fetched.json"
SCRATCH = (".wheels", ".cache")  # what a download leaves beside the files: pip's and the hub's


class Record(Strict):
    """What is written down beside the files of a model when it is fetched."""

    source: str
    revision: str | None
    licence: str
    files: dict[str, File]


class Store:
    """The folder of all models. Several processes may use it at once."""

    def __init__(self, root: Path, models: Catalogue | None = None) -> None:
        self.root = root.expanduser().absolute()
        self.catalogue = models or catalogue()

    def record(self, name: str) -> Record | None:
        """What was written down about a model; None where that is missing or about other files."""
        try:
            record = Record.model_validate_json((self.root / name / RECORD).read_bytes())
        except (OSError, ValidationError):
            return None
        model = self.catalogue.get(name)
        known = {} if model is None else _without_members(model.files)
        return record if known in ({}, record.files) else None

    def find(self, name: str) -> Path | None:
        """The model's folder, if all its files are there with their sizes; their content is not read."""
        place, record = self.root / name, self.record(name)
        if record and all(_size(place / file) == known.size for file, known in record.files.items()):
            return place
        return None

    def damaged(self, name: str) -> list[str]:
        """The files of a model, read from end to end, that are missing or have not the hash they should."""
        model, record = self.catalogue.get(name), self.record(name)
        files = (model and _without_members(model.files)) or (record.files if record else {})
        wrong = [file for file, known in files.items() if not is_intact(self.root / name / file, known)]
        return wrong if record else [*wrong, RECORD]

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """The folder in which a model's files are gathered, for one process at a time; it outlives a kill."""
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self.root / f".{name}.lock"):
            folder = self.root / f".{name}.partial"
            folder.mkdir(exist_ok=True)
            yield folder

    def install(self, name: str, folder: Path, record: Record) -> Path:
        """Puts the gathered files in the place of the model; what was there before goes last."""
        place, old = self.root / name, self.root / f".{name}.old"
        (folder / RECORD).write_text(record.model_dump_json(indent=1, exclude_defaults=True))
        for scratch in (*(folder / name for name in SCRATCH), old):
            shutil.rmtree(scratch, ignore_errors=True)
        with suppress(FileNotFoundError):
            place.rename(old)
        try:
            folder.rename(place)
        except OSError:
            old.rename(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
        return place


def open_store(models_dir: str | None = None) -> Store:
    """The store in `models_dir`, else in MODELS_DIR of the environment, else in the user's cache."""
    return Store(Path(models_dir or os.environ.get("MODELS_DIR") or "~/.cache/whisperx-serve"))


def is_intact(path: Path, known: File) -> bool:
    """The file is there with this size and hash; an empty hash is not known yet."""
    if _size(path) != known.size:
        return False
    return not known.sha256 or sha256(path) == known.sha256


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _without_members(files: dict[str, File]) -> dict[str, File]:
    return {name: File(size=file.size, sha256=file.sha256) for name, file in files.items()}
