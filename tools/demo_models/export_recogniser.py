"""A trained recogniser as a CTranslate2 folder that `whisperx.load_model` takes."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from ctranslate2.converters.transformers import WhisperLoader
from tokenizers import Tokenizer
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from tools.demo_models.batches import END, ENGLISH, START
from tools.demo_models.recogniser import DECODER_POSITIONS, ENCODER_POSITIONS, Size, sinusoids
from tools.demo_models.whisper_tokenizer import LANGUAGES, VOCABULARY_SIZE

NEVER = -30.0  # logit of a token that was not trained
PREPROCESSOR = {
    "chunk_length": 30, "feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 80,
    "hop_length": 160, "n_fft": 400, "n_samples": 480000, "nb_max_frames": 3000, "padding_side": "right",
    "padding_value": 0.0, "processor_class": "WhisperProcessor", "return_attention_mask": False,
    "sampling_rate": 16000,
}  # fmt: skip


def export(checkpoint: Path, tokenizer: Tokenizer, out: Path, quantization: str = "int8") -> None:
    """Write model.bin and its configuration, vocabulary, tokenizer and features' settings into `out`."""
    trained = torch.load(checkpoint, weights_only=True)
    size = Size(**trained["size"])
    whisper = WhisperForConditionalGeneration(_configuration(size)).eval()
    weights = _weights(trained["model"], trained["used"], size)
    missing, unexpected = whisper.load_state_dict(weights, strict=False)
    if missing or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    spec = WhisperLoader().get_model_spec(whisper)
    spec.register_vocabulary([tokenizer.id_to_token(token) for token in range(VOCABULARY_SIZE)])
    spec.config.suppress_ids = []
    spec.config.suppress_ids_begin = [END]
    spec.config.lang_ids = list(range(ENGLISH, ENGLISH + len(LANGUAGES)))
    spec.config.alignment_heads = [[size.decoder_layers - 1, head] for head in range(size.heads)]
    spec.validate()
    spec.optimize(quantization=quantization)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    spec.save(str(out))
    compact: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")}
    (out / "tokenizer.json").write_text(json.dumps(json.loads(tokenizer.to_str()), **compact))
    (out / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR, indent=1) + "\n")


def _configuration(size: Size) -> WhisperConfig:
    return WhisperConfig(
        vocab_size=VOCABULARY_SIZE, d_model=size.width, encoder_layers=size.encoder_layers,
        decoder_layers=size.decoder_layers, encoder_attention_heads=size.heads,
        decoder_attention_heads=size.heads,
        encoder_ffn_dim=size.inner, decoder_ffn_dim=size.inner, max_target_positions=DECODER_POSITIONS,
        pad_token_id=END, bos_token_id=END, eos_token_id=END, decoder_start_token_id=START,
        suppress_tokens=[], begin_suppress_tokens=[END],
    )  # fmt: skip


def _weights(trained: dict[str, Tensor], used: list[int], size: Size) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, with rows for the whole vocabulary.

    Untrained tokens get NEVER in a column that the last layer norm holds at one, so they cannot be chosen;
    their rows are all the same, so they take no room in a packed file.
    """
    weights = {
        f"model.{name}": value for name, value in trained.items() if name.startswith(("encoder.", "decoder."))
    }
    learned = weights.pop("model.decoder.embed_tokens")
    embedding = torch.zeros(VOCABULARY_SIZE, size.width)
    embedding[:, -1] = NEVER
    embedding[used] = learned
    embedding[used, -1] = 0
    weights["model.decoder.embed_tokens.weight"] = weights["proj_out.weight"] = embedding
    weights["model.decoder.embed_positions.weight"] = weights.pop("model.decoder.embed_positions")
    weights["model.encoder.embed_positions.weight"] = sinusoids(ENCODER_POSITIONS, size.width)
    weights["model.decoder.layer_norm.weight"] = weights["model.decoder.layer_norm.weight"].clone()
    weights["model.decoder.layer_norm.bias"] = weights["model.decoder.layer_norm.bias"].clone()
    weights["model.decoder.layer_norm.weight"][-1] = 0
    weights["model.decoder.layer_norm.bias"][-1] = 1
    return weights
