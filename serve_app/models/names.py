"""Resolves the model names in the settings, once, before anything starts.

A missing token, a gated model, an unknown name or an unreachable hub is one sentence here instead of a
traceback in a replica or at the first request.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import get_token

from serve_app.errors import ModelUnavailable
from serve_app.models import hub
from serve_app.models.catalogue import MAIN_FILES, Model
from serve_app.models.hub import COMMUNITY
from serve_app.models.prefetch import fetch
from serve_app.models.store import Store, open_store
from serve_app.settings import AlignmentSettings, Settings
from serve_app.stages.diarization.pipeline import CAMPPLUS

logger = logging.getLogger("ray.serve")

# What a pipeline loads besides its own repository: pyannote 4 takes its PLDA from community-1 in any case.
PARTS = {"pyannote/speaker-diarization-3.1": ("pyannote/segmentation-3.0", COMMUNITY)}


@dataclass(frozen=True)
class Whisper:
    """What a recogniser loads."""

    model: str
    attention_shift_s: float = 0.0  # by how much its attention is early


@dataclass(frozen=True)
class Models:
    """What the stages' loaders load: names of the catalogue, repositories and directories.

    A replica may be on another node than this process, so its loader looks for the directory of a name.
    """

    name: str  # as answers report it
    asr: str
    aligners: dict[str, str]  # language -> wav2vec2 model that can be had
    diarization: str | None  # None: off
    attention_shift_s: float = 0.0  # by how much the attention of `asr` is early
    others: dict[str, Whisper] = field(default_factory=dict)  # besides `name`, by their names

    def needed(self, preload: Sequence[str]) -> list[str]:
        """All that is loaded at start, with the aligners of these languages."""
        aligners = [self.aligners[each] for each in preload if each in self.aligners]
        others = [each.model for each in self.others.values()]
        found = [self.asr, *others, *aligners, *([self.diarization] if self.diarization else [])]
        return [*dict.fromkeys(found)]


def resolve(settings: Settings, *, may_fetch: bool = True) -> Models:
    """The models of these settings; raises ModelUnavailable for one that cannot be had.

    Without `may_fetch`, those that would be fetched now count as had.
    """
    store = open_store(settings.models_dir)
    own = _whisper(settings.model, "model", store, may_fetch)
    others = {
        name: _whisper(settings.model_of(name), f"models.{name}", store, may_fetch)
        for name in settings.models
    }
    return Models(
        name=settings.model,
        asr=own.model,
        aligners=_aligners(settings.alignment, store),
        diarization=_diarization(settings.diarization.model, store, may_fetch),
        attention_shift_s=own.attention_shift_s,
        others=others,
    )


def _whisper(model: str, setting: str, store: Store, may_fetch: bool) -> Whisper:
    if directory := _directory(model, setting):
        if not (directory / "model.bin").is_file():
            raise ModelUnavailable(
                f"{model} is a directory without model.bin; {setting} needs a CTranslate2 Whisper directory "
                "(see ct2-transformers-converter)."
            )
        return Whisper(str(directory.resolve()))
    known = store.catalogue.get(model)
    if known and known.kind == "whisper":
        return Whisper(_available(known, setting, store, may_fetch), known.attention_shift_s)
    if "/" not in model:
        names = [name for m in store.catalogue if m.kind == "whisper" for name in (m.name, *m.aliases)]
        where = "" if setting == "model" else f"{setting}: "
        raise ModelUnavailable(
            f"{where}{model} is no model name; known are {', '.join(names)}, or give a directory."
        )
    hub.check(model, setting)
    return Whisper(model)


def _aligners(settings: AlignmentSettings, store: Store) -> dict[str, str]:
    for language, model in settings.models.items():
        _directory(model, f"alignment.models.{language}")
    if settings.method in ("attention", "off"):
        return {}
    found = {
        model.name.removeprefix("wav2vec2-"): model.name
        for model in store.catalogue
        if model.kind == "wav2vec2" and (store.find(model.name) or hub.answers(model.url or hub.endpoint()))
    }
    found |= settings.models
    missing = [language for language in settings.preload if language not in found]
    if missing and settings.method == "wav2vec2":
        raise ModelUnavailable(
            f"alignment.preload: the wav2vec2 model of {', '.join(missing)} is not on this machine, and its "
            "source does not answer; prefetch it where there is a network "
            f"(whisperx-serve prefetch --language {missing[0]}), or set alignment.method: auto."
        )
    return found


def _diarization(model: str, store: Store, may_fetch: bool) -> str | None:
    if model == "auto":
        model = _diarization_by_default(store)
    if model == "off":
        return None
    if directory := _directory(model, "diarization.model"):
        if not any((directory / name).is_file() for name in ("config.yaml", CAMPPLUS)):
            raise ModelUnavailable(
                f"{model} is a directory without config.yaml and {CAMPPLUS}, so no diarization model."
            )
        return str(directory.resolve())
    known = store.catalogue.get(model)
    if known and known.kind == "speakers":
        return _available(known, "diarization.model", store, may_fetch)
    if "/" not in model:
        raise ModelUnavailable(
            f"{model} is no diarization model; use auto, off, campplus, {COMMUNITY} or a directory."
        )
    for repository in (*PARTS.get(model, ()), model):
        hub.check(repository, "diarization.model")
    return model


def _diarization_by_default(store: Store) -> str:
    """community-1 with a token, where it is on this machine or the hub answers; else campplus."""
    is_there = store.find("community-1") or hub.cached(COMMUNITY, MAIN_FILES["speakers"])
    return COMMUNITY if get_token() and (is_there or hub.answers(hub.endpoint())) else "campplus"


def _directory(model: str, setting: str) -> Path | None:
    """The directory that `model` names, or None if it is another kind of name."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ModelUnavailable(f"{setting}: there is no directory {model}.")
    return None


def _available(model: Model, setting: str, store: Store, may_fetch: bool) -> str:
    """The model's name, if it is on this machine or can be fetched; those with hashes, all small, are now."""
    if store.find(model.name):
        return model.name
    if not model.files:
        hub.check(str(model.hub), setting)
        return model.name
    if not may_fetch:
        return model.name
    logger.warning("Fetching the model %s (%.0f MB) to %s.", model.name, model.size / 1e6, store.root)
    try:
        fetch(model.name, store)
    except ModelUnavailable as error:
        raise ModelUnavailable(f"{setting}: {error.message}") from None
    return model.name
