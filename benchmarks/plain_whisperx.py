"""Plain whisperx, called as its README says with models kept warm: the service is compared with it."""

import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.models.names import Models
from serve_app.models.prefetch import alignment_model, directory_of

PUNKT_FILES = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")
BATCH_SIZE = 4


@dataclass
class PlainWhisperx:
    """`whisperx.load_model`, `load_align_model` and `DiarizationPipeline`, each loaded once.

    A language is aligned where its model is on this machine: whisperx would wait for the hub for minutes.
    """

    asr: Any
    aligners: dict[str, str]  # language -> model, where it is not whisperx's default
    diarization: Any | None
    device: str = "cpu"
    _loaded: dict[str, Any] = field(default_factory=dict)  # language -> model and metadata, or None

    @classmethod
    def load(
        cls, models: Models, *, compute_type: str, threads: int = 1, device: str = "cpu"
    ) -> "PlainWhisperx":
        """Loads the models. Changes nltk's data path, so that whisperx downloads nothing."""
        import nltk
        import whisperx

        logging.getLogger("whisperx").handlers = [logging.StreamHandler()]  # its own is on standard output
        nltk.data.path.insert(0, empty_punkt())
        asr = whisperx.load_model(
            directory_of(models.asr), device, compute_type=compute_type, threads=threads
        )
        diarization = _diarization(directory_of(models.diarization), device) if models.diarization else None
        here = {language: alignment_model(name) for language, name in models.aligners.items()}
        aligners = {language: place for language, place in here.items() if place}
        loaded = cls(asr, aligners, diarization, device)
        loaded.aligner("en")  # other languages when they are met
        return loaded

    def transcribe(
        self, audio: NDArray[np.float32], *, language: str | None = None, diarize: bool = True
    ) -> list[dict[str, Any]]:
        """Segments with words and speakers, as whisperx's README makes them of (samples,) at 16 kHz."""
        import whisperx

        result = self.recognize(audio, language=language)
        if diarize and self.diarization is not None:
            result = whisperx.assign_word_speakers(self.diarization(audio), result)
        return [segment for segment in result["segments"] if segment["text"].strip()]

    def recognize(self, audio: NDArray[np.float32], *, language: str | None = None) -> dict[str, Any]:
        """`language` and `segments`; with words where the language can be aligned."""
        result = self.asr.transcribe(audio, batch_size=BATCH_SIZE, language=language)
        return {**result, **self.align(result["segments"], audio, result["language"])}

    def align(
        self, segments: list[dict[str, Any]], audio: NDArray[np.float32], language: str
    ) -> dict[str, Any]:
        """The segments as whisperx aligns them, or as they are where the language has no model here."""
        import whisperx

        if (aligner := self.aligner(language)) is None:
            return {"segments": segments}
        aligned: dict[str, Any] = whisperx.align(segments, *aligner, audio, self.device)
        return aligned

    def aligner(self, language: str) -> tuple[Any, Any] | None:
        """The language's model and its metadata, loaded at the first call."""
        if language not in self._loaded:
            import whisperx

            model = self.aligners.get(language) or _default_aligner(language)
            self._loaded[language] = model and whisperx.load_align_model(language, self.device, model)
        found: tuple[Any, Any] | None = self._loaded[language]
        return found


def _default_aligner(language: str) -> str | None:
    """whisperx's model for the language, if it is on this machine."""
    import torch
    import torchaudio
    from huggingface_hub import try_to_load_from_cache
    from whisperx.alignment import DEFAULT_ALIGN_MODELS_HF, DEFAULT_ALIGN_MODELS_TORCH

    if name := DEFAULT_ALIGN_MODELS_TORCH.get(language):
        file = getattr(torchaudio.pipelines, name)._path
        return name if (Path(torch.hub.get_dir()) / "checkpoints" / file).is_file() else None
    repository = DEFAULT_ALIGN_MODELS_HF.get(language)
    return repository if repository and try_to_load_from_cache(repository, "config.json") else None


def _diarization(model: str, device: str) -> Any:
    """whisperx's pipeline object around the model; its own constructor can only load from the hub."""
    from huggingface_hub import get_token
    from whisperx.diarize import DiarizationPipeline

    from serve_app.stages.diarization.pipeline import load_pipeline

    pipeline = DiarizationPipeline.__new__(DiarizationPipeline)
    pipeline.model = load_pipeline(model, device=device, token=get_token())
    return pipeline


def put_ffmpeg_on_path() -> None:
    """For `whisperx.load_audio`, which runs ffmpeg by that name; the wheel's has another."""
    import imageio_ffmpeg

    folder = Path(tempfile.mkdtemp(prefix="ffmpeg-"))
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


def empty_punkt() -> str:
    """A folder with punkt data that splits at full stops, in every language."""
    from whisperx.utils import PUNKT_LANGUAGES

    folder = Path(tempfile.mkdtemp(prefix="nltk_data-"))
    for language in {"english", *PUNKT_LANGUAGES.values()}:
        punkt = folder / "tokenizers" / "punkt_tab" / language
        punkt.mkdir(parents=True)
        for name in PUNKT_FILES:
            (punkt / name).touch()
    return str(folder)
