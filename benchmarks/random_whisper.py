"""A Whisper of true dimensions with random weights, made on the spot: no hub, no download.

Its texts mean nothing, but loading, shapes, prompts, beam search and scores are the real thing.
"""

import json
from itertools import islice, product
from pathlib import Path
from string import ascii_letters
from typing import Any, Literal

# Width, layers, heads (https://github.com/openai/whisper#available-models-and-languages and its model.py).
DIMENSIONS = {
    "toy": (64, 2, 2),  # of nobody's: for runs in which the size does not matter
    "tiny": (384, 4, 6),
    "base": (512, 6, 8),
    "small": (768, 12, 12),
    "large-v2": (1280, 32, 20),  # and of large-v3, which has 128 mel bands
}


def build_random_whisper(
    directory: Path,
    name: str = "tiny",
    *,
    english_only: bool = False,
    mel_bands: int = 80,
    text_tokens: int | None = None,
    weights: Literal["float32", "float16"] = "float32",
) -> Path:
    """Writes a CTranslate2 model and returns its directory.

    With `text_tokens` every text ends after about that many tokens, as a trained model's does; without,
    decoding goes on to its limit.
    """
    import torch
    from ctranslate2.converters import TransformersConverter
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperForConditionalGeneration,
        WhisperTokenizerFast,
    )

    tokenizer = whisper_tokenizer(english_only=english_only)
    start, end = (tokenizer.token_to_id(token) for token in ("<|startoftranscript|>", "<|endoftext|>"))
    translate = tokenizer.token_to_id("<|translate|>")
    width, layers, heads = DIMENSIONS[name]
    config = WhisperConfig(
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
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, weights))
    try:
        model = WhisperForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    if text_tokens is not None:
        _end_after(model, text_tokens, end)
    model.generation_config = GenerationConfig(
        suppress_tokens=[1, 2, 7, *range(start, tokenizer.token_to_id("<|notimestamps|>"))],
        begin_suppress_tokens=[220, end],
    )
    # The language tokens lie between these two.
    model.generation_config.lang_to_id = {tokenizer.id_to_token(i): i for i in range(start + 1, translate)}
    source = directory / "transformers"
    config.save_pretrained(source)
    WhisperTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
    ).save_pretrained(source)
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "preprocessor_config.json").write_text(json.dumps({"feature_size": mel_bands}), "utf-8")
    converter = TransformersConverter(str(source), copy_files=["tokenizer.json", "preprocessor_config.json"])
    converter.load_model = lambda *_, **__: model  # from memory: `large-v2` has 6 GB
    return Path(
        converter.convert(str(directory / name), quantization=None if weights == "float32" else weights)
    )


def whisper_tokenizer(*, english_only: bool = False) -> Any:
    """A tokenizer with Whisper's special tokens at their places, behind single bytes and words of 3 letters.

    It reads and writes any text. CTranslate2 tells multilingual models by an empty token.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    of_bytes = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (f"Ġ{''.join(letters)}" for letters in product(ascii_letters, repeat=3))
    vocabulary = [*of_bytes, *islice(words, 50256 - len(of_bytes)), *([] if english_only else [""])]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate(vocabulary)}, [], ignore_merges=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    languages = [language for language in LANGUAGES if language != "yue"]  # which came with large-v3
    special = ["endoftext", "startoftranscript", *languages, "translate", "transcribe", "startoflm"]
    special += ["startofprev", "nospeech", "notimestamps"]
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>") for name in special])
    tokenizer.add_tokens([AddedToken(f"<|{n * 0.02:.2f}|>") for n in range(1501)])
    return tokenizer


def _end_after(model: Any, text_tokens: int, end: int) -> None:
    """From position `text_tokens` on one direction drowns all others, and only the end token points there."""
    import torch

    with torch.no_grad():
        direction = torch.nn.functional.normalize(torch.randn(model.config.d_model), dim=0)
        model.model.decoder.embed_positions.weight[text_tokens:] += 50 * direction
        model.model.decoder.embed_tokens.weight[end] = 2 * direction
