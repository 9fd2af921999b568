"""The recogniser's settings, and those of more models beside the first one."""

import re
from typing import Annotated, Self

from pydantic import Field, model_validator

from serve_app.settings.types import GPU_SHARE, THREADS, Share, Strict, Threads

# What `models:` may be called: requests and deployments have these names, and deployments' logs.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,63}(/[\w.-]{1,63})?", re.ASCII)


class AsrSettings(Strict):
    """Whisper: windows to text."""

    compute_type: str = Field(
        "auto", description="auto: int8_float16 on a GPU, float16 where it has no int8; int8 on a CPU."
    )
    beam_size: int = Field(5, ge=1, le=20, description="Beam width; 5 is whisperx's.")
    temperature_fallback: tuple[Annotated[float, Field(ge=0.01, le=1)], ...] = Field(
        (0.2, 0.4, 0.6, 0.8, 1.0),
        description="Windows whose text is repetitive or improbable are decoded again at these temperatures, "
        "in order. []: never, as whisperx.",
    )
    compression_ratio_threshold: float = Field(
        2.4, gt=0, description="Text that compresses (zlib) better than this ratio is repetitive."
    )
    log_prob_threshold: float = Field(
        -1.0, le=0, description="Text with a lower mean log-probability per token is improbable."
    )
    no_speech_threshold: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Improbable text is left out, with a warning, where Whisper's no-speech probability is "
        "above this. 1: never, as whisperx.",
    )
    window_s: float = Field(30.0, gt=0, le=30, description="Longest window.")
    threads: Threads = Field(None, description=THREADS)
    gpu_share: Share = Field(0.5, description=GPU_SHARE)

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if list(self.temperature_fallback) != sorted(set(self.temperature_fallback)):
            raise ValueError("asr.temperature_fallback must rise, such as [0.2, 0.4, 0.6, 0.8, 1.0]")
        return self


class ModelSettings(AsrSettings):
    """One of `models`: what it loads, and those settings of `asr` that it has of its own."""

    model: str = ""  # the name that it has in `models`, if nothing else is said

    @model_validator(mode="after")
    def _shares_windows(self) -> Self:
        if "window_s" in self.model_fields_set:
            raise ValueError("window_s: windows are the same for all models; set asr.window_s")
        return self

    def over(self, asr: AsrSettings) -> AsrSettings:
        """The settings of `asr` with its own over them."""
        own = {name: getattr(self, name) for name in self.model_fields_set - {"model"}}
        return asr.model_copy(update=own)


def refuse_wrong_names(model: str, others: dict[str, ModelSettings]) -> None:
    """Raises ValueError for a name that no request or deployment could have, or that is taken."""
    deployments: dict[str, str] = {}
    for name in others:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"models.{name}: a name has letters, digits and . _ -, or is a repository of the hub; "
                "a directory stands under it, as `model`"
            )
        if name == model:
            raise ValueError(f"models.{name}: this is `model` already, whose settings are those of asr")
        other = deployments.setdefault(deployment_of(name), name)
        if other != name:
            raise ValueError(f"models.{name}: it is too like {other}; give one of them another name")


def deployment_of(name: str) -> str:
    """The deployment of one of `models`; that of `model` is called Transcriber alone."""
    return f"Transcriber-{name.replace('/', '-')}"
