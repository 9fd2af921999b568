"""A Whisper of true dimensions with random weights, made on the spot: no hub, no download.

Its texts mean nothing, but loading, shapes, prompts, beam search and scores are the real thing.
"""

import json
from pathlib import Path
from typing import Any

from serve_app import bundled

# Width, layers, heads (https://github.com/openai/whisper#available-models-and-languages and its model.py).
DIMENSIONS = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12), "large-v2": (1280, 32, 20)}


def build_random_whisper(
    directory: Path,
    name: str = "tiny",
    *,
    english_only: bool = False,
    mel_bands: int = 80,
    text_tokens: int | None = None,
) -> Path:
    """Writes a float32 CTranslate2 model with the multilingual tokenizer and returns its directory.

    `english_only` takes one text token away: CTranslate2 tells English-only models by their
    vocabulary of 51,864 tokens. With `text_tokens` every text ends after about that many tokens, as a
    trained model's does; without, decoding goes on to its limit.
    """
    import torch
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )

    layout = json.loads((bundled.ASR / "tokenizer.json").read_text("utf-8"))
    if english_only:
        _remove_last_text_token(layout)
    tokenizer = Tokenizer.from_str(json.dumps(layout))
    start, end = (tokenizer.token_to_id(token) for token in ("<|startoftranscript|>", "<|endoftext|>"))
    translate = tokenizer.token_to_id("<|translate|>")
    width, layers, heads = DIMENSIONS[name]
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=tokenizer.get_vocab_size(),
            num_mel_bins=mel_bands,
            d_model=width,
            encoder_layers=layers,
            decoder_layers=layers,
            encoder_attention_heads=heads,
            decoder_attention_heads=heads,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=start,
        )
    )
    if text_tokens is not None:
        _end_after(model, text_tokens, end)
    model.generation_config = GenerationConfig(
        suppress_tokens=[1, 2, 7, *range(start, tokenizer.token_to_id("<|notimestamps|>"))],
        begin_suppress_tokens=[220, end],
    )
    # The language tokens lie between these two.
    model.generation_config.lang_to_id = {tokenizer.id_to_token(i): i for i in range(start + 1, translate)}
    source = directory / "transformers"
    model.save_pretrained(source)
    WhisperTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    ).save_pretrained(source)
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "preprocessor_config.json").write_text(json.dumps({"feature_size": mel_bands}), "utf-8")
    converter = TransformersConverter(str(source), copy_files=["tokenizer.json", "preprocessor_config.json"])
    return Path(converter.convert(str(directory / name)))


def _end_after(model: Any, text_tokens: int, end: int) -> None:
    """From position `text_tokens` on one direction drowns all others, and only the end token points there."""
    import torch

    with torch.no_grad():
        direction = torch.nn.functional.normalize(torch.randn(model.config.d_model), dim=0)
        model.model.decoder.embed_positions.weight[text_tokens:] += 50 * direction
        model.model.decoder.embed_tokens.weight[end] = 2 * direction


def _remove_last_text_token(layout: dict[str, Any]) -> None:
    vocabulary = layout["model"]["vocab"]
    last = max(vocabulary, key=lambda token: vocabulary[token])
    del vocabulary[last]  # an empty placeholder: no merge makes it
    for token in layout["added_tokens"]:
        token["id"] -= 1
