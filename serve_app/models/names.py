"""Resolves the model names in the settings, once, before anything starts.

A missing token, a gated model, an unknown name or an unreachable hub is one sentence here instead of a
traceback in a replica or at the first request.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import auth_check, get_token, snapshot_download
from huggingface_hub import errors as hub

from serve_app import bundled
from serve_app.errors import ModelUnavailable
from serve_app.settings import Settings
from serve_app.stages.diarization.diarizer import LOADERS as DIARIZERS

COMMUNITY = "pyannote/speaker-diarization-community-1"

# What a pipeline loads besides its own repository: pyannote 4 takes its PLDA from community-1 in any case.
PARTS = {"pyannote/speaker-diarization-3.1": ("pyannote/segmentation-3.0", COMMUNITY)}
GATED = {COMMUNITY, *PARTS, "pyannote/segmentation-3.0"}  # without a token the hub need not be asked


@dataclass(frozen=True)
class Models:
    """Names and directories for the stages' loaders."""

    name: str  # as answers report it
    asr: str
    window_s: float
    aligners: dict[str, str]  # language -> model; other languages have whisperx's default
    diarization: str | None  # None: off
    attention_shift_s: float = 0.0  # by how much the recogniser's attention is early


def resolve(settings: Settings) -> Models:
    """The models of these settings; raises ModelUnavailable for one that cannot be had."""
    is_bundled = settings.model == bundled.NAME
    aligners = {language: str(path) for language, path in bundled.ALIGNERS.items() if is_bundled}
    for language, model in settings.alignment.models.items():
        _directory(model, f"alignment.models.{language}")
    return Models(
        name=settings.model,
        asr=str(bundled.ASR) if is_bundled else _asr(settings.model),
        window_s=settings.asr.window_s or (bundled.ASR_WINDOW_S if is_bundled else 30.0),
        aligners={**aligners, **settings.alignment.models},
        diarization=_diarization(settings.diarization.model, is_bundled),
    )


def _asr(model: str) -> str:
    if directory := _directory(model, "model"):
        if not (directory / "model.bin").is_file():
            raise ModelUnavailable(
                f"{model} is a directory without model.bin; model needs a CTranslate2 Whisper directory "
                "(see ct2-transformers-converter)."
            )
        return str(directory.resolve())
    from faster_whisper.utils import _MODELS  # here: it imports CTranslate2

    if model not in _MODELS and "/" not in model:
        known = ", ".join(_MODELS)
        raise ModelUnavailable(f"{model} is no model name; known are bundled, {known}, or give a directory.")
    return _available(_MODELS.get(model, model), "model")


def _diarization(model: str, is_bundled: bool) -> str | None:
    if model == "auto":
        model = bundled.NAME if is_bundled else COMMUNITY if get_token() else "off"
    if model == "off":
        return None
    if model in DIARIZERS:
        return model
    if directory := _directory(model, "diarization.model"):
        if not (directory / "config.yaml").is_file():
            raise ModelUnavailable(f"{model} is a directory without config.yaml, so no pyannote pipeline.")
        return str(directory.resolve())
    if "/" not in model:
        raise ModelUnavailable(f"{model} is no diarization model; use auto, off, {COMMUNITY} or a directory.")
    for repository in PARTS.get(model, ()):
        _available(repository, "diarization.model")
    return _available(model, "diarization.model")


def _directory(model: str, setting: str) -> Path | None:
    """The directory that `model` names, or None if it is another kind of name."""
    directory = Path(model).expanduser()
    if directory.is_dir():
        return directory
    if model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise ModelUnavailable(f"{setting}: there is no directory {model}.")
    return None


def _available(repository: str, setting: str) -> str:
    """The repository, if it is in the local cache or may be downloaded; else raises ModelUnavailable."""
    with suppress(hub.LocalEntryNotFoundError, ValueError):
        snapshot_download(repository, local_files_only=True)
        return repository
    token = get_token()
    why = "your token's account has not accepted its conditions" if token else "HF_TOKEN is not set"
    gated = (
        f"{repository} is gated and {why}. Accept the conditions on huggingface.co/{repository}, "
        "then set HF_TOKEN to a token of that account."
    )
    if repository in GATED and not token:
        raise ModelUnavailable(f"{setting}: {gated}")
    try:
        auth_check(repository, token=token)
    except hub.GatedRepoError:
        problem = gated
    except hub.RepositoryNotFoundError:
        problem = f"there is no {repository} on the hub, or HF_TOKEN does not reach it."
    except (hub.HfHubHTTPError, OSError) as error:
        problem = (
            f"the hub cannot be reached to fetch {repository} ({type(error).__name__}). Check the "
            "network or give a local directory; model: bundled needs neither."
        )
    else:
        return repository
    raise ModelUnavailable(f"{setting}: {problem}")
