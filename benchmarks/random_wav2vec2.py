"""wav2vec2-base at its true size with random weights, where whisperx's loader finds it without a network."""

import json
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import torch
import torchaudio
from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

CHARACTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *ascii_uppercase, "'"]  # as in facebook's models

# For tests in which the size does not matter; weights so large that the probabilities are not all alike.
NARROW: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (32,) * 7,
    "num_conv_pos_embedding_groups": 4,
    "initializer_range": 0.2,
}


def save_torchaudio_base(torch_home: Path) -> None:
    """whisperx's English default, in the place where TORCH_HOME makes torchaudio look for its download.

    The published file has three more outputs than characters, which torchaudio drops while loading.
    """
    torch.manual_seed(0)
    checkpoints = torch_home / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    model = torchaudio.models.wav2vec2_base(aux_num_out=29 + 3)
    torch.save(model.state_dict(), checkpoints / torchaudio.pipelines.WAV2VEC2_ASR_BASE_960H._path)


def save_transformers_base(directory: Path, **changes: Any) -> None:
    """A Hugging Face directory with English characters; `changes` are those of the configuration."""
    torch.manual_seed(0)
    directory.mkdir(parents=True)
    vocabulary = directory / "vocab.json"
    vocabulary.write_text(json.dumps({character: token for token, character in enumerate(CHARACTERS)}))
    Wav2Vec2CTCTokenizer(str(vocabulary)).save_pretrained(directory)
    Wav2Vec2FeatureExtractor().save_pretrained(directory)
    config = Wav2Vec2Config(vocab_size=len(CHARACTERS), pad_token_id=0, **changes)
    Wav2Vec2ForCTC(config).save_pretrained(directory)
