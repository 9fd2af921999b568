"""Plain whisperx on the bundled weights, called in its documented order: what our answers must equal."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest

from serve_app import bundled

PUNKT_FILES = ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab")


@dataclass
class PlainWhisperx:
    """`whisperx.load_model`, `load_align_model` and `DiarizationPipeline`, loaded once."""

    asr: Any
    aligner: Any
    aligner_metadata: Any
    diarization: Any

    @classmethod
    def load(cls, folder: Path, monkeypatch: pytest.MonkeyPatch) -> "PlainWhisperx":
        """Loads the models; `folder` gets an ffmpeg for whisperx's PATH and punkt data to keep it offline."""
        (folder / "ffmpeg").symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        punkt = folder / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
        punkt.mkdir(parents=True)
        for name in PUNKT_FILES:
            (punkt / name).touch()  # empty: split at full stops
        import nltk
        import whisperx
        from whisperx.diarize import DiarizationPipeline

        from serve_app.stages.diarization import load_diarizer

        monkeypatch.setattr(nltk.data, "path", [str(folder / "nltk_data")])
        aligner, metadata = whisperx.load_align_model("en", "cpu", model_name=str(bundled.ALIGNERS["en"]))
        asr = whisperx.load_model(str(bundled.ASR), "cpu", compute_type="float32", threads=1)
        diarization = DiarizationPipeline.__new__(DiarizationPipeline)
        diarization.model = load_diarizer("bundled", device="cpu", token=None)._pipeline
        return cls(asr, aligner, metadata, diarization)

    def transcribe(self, path: Path) -> list[dict[str, Any]]:
        """Segments with words and speakers, as the README of whisperx makes them."""
        import whisperx

        audio = whisperx.load_audio(str(path))
        result = self.asr.transcribe(audio, batch_size=4, chunk_size=bundled.ASR_WINDOW_S)
        aligned = whisperx.align(result["segments"], self.aligner, self.aligner_metadata, audio, "cpu")
        segments = whisperx.assign_word_speakers(self.diarization(audio), aligned)["segments"]
        return [segment for segment in segments if segment["text"].strip()]
