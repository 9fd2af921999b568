"""Plain whisperx, called as its README says with models kept warm: the service is compared with it."""

import logging
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from serve_app.models.names import Models
from serve_app.models.prefetch import alignment_model, directory_of

PUNKT_FILES = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")
BATCH_SIZE = 4


@dataclass
class PlainWhisperx:
    """`whisperx.load_model`, `load_align_model` and `DiarizationPipeline`, loaded once."""

    asr: Any
    aligner: Any
    aligner_metadata: Any
    diarization: Any | None
    chunk_size: float
    device: str = "cpu"

    @classmethod
    def load(
        cls, models: Models, *, compute_type: str, threads: int = 1, device: str = "cpu"
    ) -> "PlainWhisperx":
        """Loads English models. Changes nltk's data path, so that whisperx downloads nothing."""
        import nltk
        import whisperx

        logging.getLogger("whisperx").handlers = [logging.StreamHandler()]  # its own is on standard output
        nltk.data.path.insert(0, empty_punkt())
        english = models.aligners.get("en")
        name = alignment_model(english) if english else None
        aligner, metadata = whisperx.load_align_model("en", device, model_name=name)
        asr = whisperx.load_model(
            directory_of(models.asr), device, compute_type=compute_type, threads=threads
        )
        diarization = _diarization(directory_of(models.diarization), device) if models.diarization else None
        return cls(asr, aligner, metadata, diarization, models.window_s, device)

    def transcribe(
        self, audio: NDArray[np.float32], *, language: str | None = None, diarize: bool = True
    ) -> list[dict[str, Any]]:
        """Segments with words and speakers, as whisperx's README makes them of (samples,) at 16 kHz."""
        import whisperx

        result = self.asr.transcribe(
            audio, batch_size=BATCH_SIZE, chunk_size=self.chunk_size, language=language
        )
        aligned = whisperx.align(result["segments"], self.aligner, self.aligner_metadata, audio, self.device)
        if diarize and self.diarization is not None:
            aligned = whisperx.assign_word_speakers(self.diarization(audio), aligned)
        return [segment for segment in aligned["segments"] if segment["text"].strip()]


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
    folder = Path(tempfile.mkdtemp(prefix="ffmpeg-"))
    (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"


def empty_punkt() -> str:
    """A folder with punkt data that splits at full stops."""
    folder = Path(tempfile.mkdtemp(prefix="nltk_data-"))
    punkt = folder / "tokenizers" / "punkt_tab" / "english"
    punkt.mkdir(parents=True)
    for name in PUNKT_FILES:
        (punkt / name).touch()
    return str(folder)
