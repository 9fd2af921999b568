"""wav2vec2-base at its true size with random weights, where whisperx's loader finds it without a network."""

import shutil
from pathlib import Path

import torch
import torchaudio
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

from serve_app import bundled


def save_torchaudio_base(torch_home: Path) -> None:
    """whisperx's English default, in the place where TORCH_HOME makes torchaudio look for its download.

    The published file has three more outputs than characters, which torchaudio drops while loading.
    """
    torch.manual_seed(0)
    checkpoints = torch_home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    model = torchaudio.models.wav2vec2_base(aux_num_out=29 + 3)
    torch.save(model.state_dict(), checkpoints / torchaudio.pipelines.WAV2VEC2_ASR_BASE_960H._path)


def save_transformers_base(directory: Path) -> None:
    """A Hugging Face directory with the bundled aligner's characters."""
    torch.manual_seed(0)
    without_model = shutil.ignore_patterns("model.*", "config.json")
    shutil.copytree(bundled.ALIGNERS["en"], directory, ignore=without_model)
    Wav2Vec2ForCTC(Wav2Vec2Config(vocab_size=32, pad_token_id=0)).save_pretrained(directory)
